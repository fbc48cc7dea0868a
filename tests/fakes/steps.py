"""Counts the steps of a call, so that a test can bound work without a clock. A step is one executed line of Python."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

Result = TypeVar("Result")


class TooManySteps(BaseException):
    """The call took more steps than the test allows. No code under test catches this exception."""


def within(limit: int, call: Callable[[], Result]) -> Result:
    """Return the result of a call that executes at most `limit` lines of Python.

    Loops inside C, such as slices and regular expressions, do not count.

    Raises:
        TooManySteps: the call executes more lines. It is interrupted, so a test of endless work ends.
    """
    steps = 0

    def trace(_: FrameType, event: str, __: Any) -> Any:
        nonlocal steps
        if event == "line":
            steps += 1
            if steps > limit:
                raise TooManySteps(f"more than {limit} steps")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(before)
