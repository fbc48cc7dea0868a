"""The agent of the command `run`. The agent and a scheduler in memory run in the process of the command.

This module is imported only when a pipeline runs, because it imports the whole agent.
"""

from __future__ import annotations

import asyncio
import contextlib
import shlex
from typing import TYPE_CHECKING

from agent.aio import cancel_and_wait, first_of
from agent.app.serve import serve, stop_when_built
from agent.cli.killed_runs import Pool, RunRecord, delete_killed_runs, this_machine
from agent.cli.options import parse_duration
from agent.cli.run_pipeline import RunOptions, Timeouts, run_pipeline
from agent.cluster.environment.interactive.debugging import DebugOptions
from agent.console.follower import print_notice
from agent.console.formatting import plural

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from agent.app.agent import App
    from agent.cli.run import Choices
    from agent.cli.run_pipeline import Endpoint
    from agent.console.reports.run_report import ExitCode
    from agent.pipeline.parser import Pipeline
    from agent.settings import Settings

NO_CLUSTER = ". Create one with `kind create cluster`, or with `make cluster-up` in a checkout of this repository"
NO_ANSWER = ". Start this cluster, or choose another context of your kubeconfig with --context"
# Seconds from the first request to stop the agent to the second request, which stops the sessions that still run.
STOP_SECONDS = 60.0
# Seconds that a run waits at its end for the deletion of what killed runs left.
KILLED_RUNS_SECONDS = 10.0


async def run_with_agent(
    choices: Choices, settings: Settings, pipeline: Pipeline, secrets: dict[str, str], tree: Path | None
) -> ExitCode:
    """Run the pipeline with an agent in this process. `tree` is the tar of the working tree, if there is one."""
    servers: list[str] = []

    async def engine(endpoint: Endpoint, stop: asyncio.Event) -> None:
        connection = settings.scheduler.model_copy(
            update={
                "address": endpoint.address,
                "token_file": endpoint.token_file,
                "protocol": "stream",
                "tls": settings.scheduler.tls.model_copy(update={"enabled": False}),
            }
        )
        debugging = DebugOptions(
            endpoint.screen, tree=tree, keep=choices.keep, shell=choices.shell, show_moved=endpoint.show_moved
        )
        own = settings.model_copy(update={"scheduler": connection})
        await serve_until_set(own, stop, debugging, servers, quiet=choices.quiet)

    return await run_pipeline(
        pipeline,
        engine=engine,
        secrets=secrets,
        options=run_options(choices, settings, servers),
        timeouts=Timeouts(pipeline=parse_duration("--timeout", choices.timeout) if choices.timeout else None),
    )


def run_options(choices: Choices, settings: Settings, servers: Sequence[str]) -> RunOptions:
    """Return what the user wants to see and to keep, and the commands that the run's messages suggest.

    Later, `servers` contains the URL of the API server, as soon as the agent knows this URL.
    """
    context = [f"--context={choices.context}"] if choices.context else []
    # Without this option, kubectl would not find a local cluster that no kube context names.
    context += [f"--kubeconfig={settings.cluster.kubeconfig}"] if settings.cluster.kubeconfig else []

    def kept_commands(environment: str) -> list[str]:
        namespace, _, pod = environment.partition("/")
        kubectl = shlex.join(["kubectl", *context, "-n", namespace])
        return [
            f"{kubectl} logs {pod}",
            f"{kubectl} describe pod {pod}",
            f"{kubectl} exec -it {pod} -c helper -- sh -c 'cd {settings.environment.workspace}; exec bash'",
            f"{kubectl} delete pod {pod}",
        ]

    cleanup = ["sealci-agent", "cleanup", "--set", f"agent.pool={settings.agent.pool}"]
    cleanup += ["--set", f"cluster.namespace={settings.cluster.namespace}"]
    cleanup += ["--set", f"cluster.context={choices.context}"] if choices.context else []
    cleanup += ["--set", f"cluster.kubeconfig={settings.cluster.kubeconfig}"] if settings.cluster.kubeconfig else []
    return RunOptions(
        artifacts=choices.artifacts,
        output=choices.output,
        timestamps=choices.timestamps,
        quiet=choices.quiet,
        reports=choices.reports,
        kept_commands=kept_commands if choices.keep else None,
        cleanup_command=shlex.join(cleanup),
        no_cluster_hint=NO_CLUSTER,
        no_answer_hint=lambda: "".join(f" at {server}{NO_ANSWER}" for server in servers[:1]),
    )


async def serve_until_set(
    settings: Settings, stop: asyncio.Event, debugging: DebugOptions, servers: list[str], *, quiet: bool = False
) -> None:
    """Run an agent in this process until `stop` is set and the agent has ended its sessions.

    Meanwhile, delete what killed runs left in this cluster. With `quiet`, print no notice about them. The URL of the
    API server is appended to `servers`.

    Raises:
        AgentError: the agent could not start, or failed.
    """
    built: asyncio.Future[App] = asyncio.get_running_loop().create_future()
    record = RunRecord()

    def on_built(built: asyncio.Future[App]) -> None:
        server = built.result().client.api.configuration.host
        servers.append(server)
        if not debugging.keep:
            record.write(Pool(settings.agent.pool, settings.cluster.namespace, server, this_machine()))

    built.add_done_callback(on_built)
    serving = asyncio.create_task(serve(settings, built, debugging), name="agent")
    cleaning = asyncio.create_task(clean_up_killed_runs(built, debugging, quiet=quiet), name="killed runs")
    try:
        await first_of(serving, stop)
        if built.done():
            await first_of(serving, cleaning, timeout=KILLED_RUNS_SECONDS)
        if not serving.done():
            stop_when_built(built, "the pipeline has ended")
        await first_of(serving, timeout=STOP_SECONDS)
        if not serving.done():
            # Sessions still run, for example because the scheduler failed and no cancellation reached them. This second
            # request ends them.
            stop_when_built(built, "the pipeline has ended")
        await asyncio.wait({serving})
        serving.result()
        record.remove()
    finally:
        await cancel_and_wait(serving, cleaning, ignore_errors=True)


async def clean_up_killed_runs(built: asyncio.Future[App], debugging: DebugOptions, *, quiet: bool) -> None:
    """Delete what killed runs left in this cluster. Print a notice for each, but not with `quiet`."""
    app = await asyncio.shield(built)
    async with contextlib.aclosing(delete_killed_runs(app.client)) as pools:
        async for pool, result in pools:
            if quiet:
                continue
            what = f"{plural(len(result.pods), 'pod')} of a run that was killed (pool {pool.name})"
            async with debugging.screen():
                await asyncio.to_thread(print_notice, f"deleted {what}")
