"""The SealCI agent: takes actions from a scheduler's stream and runs each in a Kubernetes pod of its own.

The flow of one action:

1. `cli` reads the settings. `app.wiring` builds the agent, and `app.agent` runs it until the process is asked to end.
2. `scheduler.stream` registers with the scheduler. `protocol.translate` turns the scheduler's messages into
   `domain.actions`.
3. `execution.registry` admits an action by policy, gives it a slot and starts an `execution.session`.
4. `execution.lifecycle` is the whole life of a session: create, follow, collect, report, clean up.
5. `cluster.pod.manifest` builds the pod and its Secret. `cluster.environment` creates, watches and deletes them.
6. `cluster.pod.status` judges what happened to the pod. Only this module decides the verdict of an action.
7. `cluster.logs` and `cluster.artifacts` read bytes out of the pod. `scheduler.stream.outbox` keeps the bytes until the
   scheduler has stored them.
8. `cluster.ownership` adopts the sessions of dead agents, and deletes the pods that no living agent owns.

The packages, from the top layer to the bottom:

- `cli`: the command line.
- `app`: builds, runs and ends one agent, and checks its preconditions (`doctor`).
- `http`: metrics, probes and the status page.
- `local_scheduler`: a small scheduler for one machine, used by `run` and `scheduler`.
- `console`: shows a running pipeline on a terminal or as JSON.
- `scheduler`: the connections to a scheduler, by the stream protocol or the classic protocol.
- `execution`: sessions, the life of an action. Declares the interfaces that `cluster` and `scheduler` implement.
- `cluster`: everything about Kubernetes.
- `pipeline`: the pipeline file and its events.
- `protocol`: the wire format of the stream protocol.
- `telemetry`: metrics, traces and logging.
- `settings`: all settings, from file, environment and command line.
- `aio`: shared pieces of asyncio.
- `backoff`: the pauses between the tries of an operation that fails.
- `domain`: the vocabulary that all packages share.
"""

import sys

if "rich" not in sys.modules:
    # structlog loads rich if rich is installed, only for its own coloured tracebacks. An idle agent saves 3 MiB without
    # rich. `console` imports rich itself.
    sys.modules["rich"] = None  # type: ignore[assignment]
    import structlog  # noqa: F401 - loads structlog while rich is hidden

    del sys.modules["rich"]
