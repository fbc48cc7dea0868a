"""The command `sealci-agent conformance`: check somebody's scheduler against the contract.

Heavy modules are imported inside the function, so that `--help` is instant.
"""

from __future__ import annotations

import sys
from typing import Any

import click

from agent.aio import run_in_event_loop
from agent.cli.options import parse_duration, print_error, target_options


@click.command()
@target_options
@click.option("--pool", default="default", show_default=True, help="Register in this pool.")
@click.option(
    "--submit",
    "submit_command",
    default="",
    metavar="COMMAND",
    help="Queue actions with this shell command. The variable ACTIONS has their number.",
)
@click.option(
    "--cancel",
    "cancel_command",
    default="",
    metavar="COMMAND",
    help="Cancel an action with this shell command. The variable ACTION_ID has its id.",
)
@click.option(
    "--wait", default="2m", show_default=True, metavar="DURATION", help="Longest time until a queued action comes."
)
@click.option(
    "--timeout", default="10s", show_default=True, metavar="DURATION", help="Longest time for each other answer."
)
@click.option(
    "--output",
    type=click.Choice(["plain", "json"]),
    default="plain",
    show_default=True,
    help="Print one line per point, or one JSON object per line.",
)
def conformance(
    address: str,
    plaintext: bool,
    pool: str,
    submit_command: str,
    cancel_command: str,
    wait: str,
    timeout: str,
    output: str,
    **trust: Any,
) -> None:
    """Check a scheduler against the contract with agents, point by point.

    The command plays agents. It takes three actions from the scheduler's queue, runs nothing, and ends them as failed.
    So use it with a scheduler that has no other work. It submits the actions itself if the scheduler serves
    sealci.local.v1.Local, as `sealci-agent scheduler` does. Otherwise give --submit, or queue three actions by hand.

    \b
    Prints one line per point, with the place in the contract if the point is broken.
    Exit codes: 0 no point is broken, 1 a point is broken, 3 the scheduler cannot be reached.
    """
    from agent.cli.submit import Target
    from agent.conformance.player import Options
    from agent.conformance.tool import check_conformance
    from agent.console.reports.check_report import report

    if cancel_command and not submit_command:
        raise click.UsageError("--cancel needs --submit")
    options = Options(
        pool=pool,
        timeout=parse_duration("--timeout", timeout),
        wait=parse_duration("--wait", wait),
        submit=submit_command,
        cancel=cancel_command,
    )
    findings = check_conformance(Target(address, tls=not plaintext, **trust), options, print_error)
    sys.exit(0 if run_in_event_loop(lambda: report(findings, write=click.echo, as_json=output == "json")) else 1)
