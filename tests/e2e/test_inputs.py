"""Files of one action in a later one, on the real cluster."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.e2e.lab import BUSYBOX, DEBIAN, until
from tests.e2e.test_adoption import QUICK
from tests.e2e.test_files import NAMES, NONROOT, TRUTH, python

if TYPE_CHECKING:
    from tests.e2e.lab import Lab

BIG = 80_000_000


def test_files_arrive_with_their_names_modes_and_contents(lab: Lab) -> None:
    reports = lab.run(
        {
            "make": {"image": DEBIAN, "commands": [python(NAMES), "mkdir dist; echo 1 > dist/a", python(TRUTH)]},
            "same": {"image": DEBIAN, "inputs": [{"from": "make"}], "commands": [python(TRUTH)]},
            "user": {
                "image": NONROOT,
                "inputs": [{"from": "make", "paths": ["dist/*"], "to": "in/of/make"}],
                "commands": ["cd in/of/make", "id -u", "echo 2 >> a && cat a", "mv a b && touch c"],
            },
            "none": {"image": BUSYBOX, "inputs": [{"from": "make", "paths": ["no/*"]}], "commands": ["false"]},
        }
    )
    made, same = reports["make"], reports["same"]
    assert same.outcome == ("succeeded", None, 0), same
    assert json.loads(same.text.splitlines()[-1]) == json.loads(made.text.splitlines()[-1])
    assert same.files == {}, "inputs are no artifacts of the action that gets them"
    details = [each["detail"] for each in same.events if each["event"] == "stage" and each.get("detail")]
    assert any("MB/s" in each for each in details), details
    user = reports["user"]
    assert user.outcome == ("succeeded", None, 0), user
    identity, *content = user.text.splitlines()
    assert (identity != "0", content) == (True, ["1", "2"])
    assert sorted(user.files) == ["in/of/make/b", "in/of/make/c"]
    assert reports["none"].outcome == ("failed", "INPUT_MISSING", None)
    assert "no artifact of make matches 'no/*'" in reports["none"].finished["message"]


def test_an_agent_that_adopts_repeats_a_copy_that_was_cut(own_lab: Lab) -> None:
    own_lab.settings = QUICK
    first = own_lab.agent()
    make = f'python3 -c \'import os; open("big", "wb").write(os.urandom({BIG}))\''
    submission = own_lab.start(
        {
            "make": {"image": DEBIAN, "commands": [make, "sha256sum big"]},
            "same": {"image": DEBIAN, "inputs": [{"from": "make"}], "commands": ["echo begin", "sha256sum big"]},
        }
    )
    copying = "copying 1 file of other actions"
    submission.until("same", lambda report: any(copying in each.get("detail", "") for each in report.events))
    first.kill()
    second = own_lab.agent()
    reports = submission.wait()
    assert reports["same"].outcome == ("succeeded", None, 0), reports["same"]
    assert reports["same"].text == f"begin\n{reports['make'].text}"
    until(lambda: "adopted a session" in second.log, "the second agent did not adopt")
