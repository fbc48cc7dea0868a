"""The probe of the doctor for warm pods: one warm pod is created, claimed by an action, run and deleted.

The probe uses the same code as the agent. It runs only if the settings name warm pods, and in the pool of the doctor.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from agent.aio import cancel_and_wait
from agent.cluster.environment.backend import PodBackend
from agent.domain.check_result import Finding, failed, ok, warning
from agent.domain.errors import ActionFailed
from agent.domain.observations import FINAL, Exited
from agent.settings.warm import WarmPool, WarmSettings

if TYPE_CHECKING:
    from agent.cluster.api.client import Client
    from agent.cluster.capabilities import ClusterFacts
    from agent.cluster.environment.environment import PodEnvironment
    from agent.cluster.environment.watch import PodWatch
    from agent.domain.actions import Action
    from agent.settings import Settings

WARM_POD = "probe: warm pod"
ADVICE = "warm pods need the rights `patch pods` and `create pods/exec`; without warm pods, remove warm.pools"
# Seconds of a start above which an action would begin as fast in a pod of its own.
SLOW_SECONDS = 0.5


async def examine(
    client: Client, settings: Settings, watch: PodWatch, facts: ClusterFacts, action: Action, seconds: float
) -> Finding:
    """Start the probe's action in a warm pod, and return the finding. Each part may take `seconds`."""
    pools = (WarmPool(image=action.image),)
    # An image with a tag that may move is fine for the probe.
    warm = WarmSettings(pools=pools, max_pods=1, stale_tags=2 * seconds)
    settings = settings.model_copy(update={"warm": warm})
    backend = PodBackend(settings, client, watch, settings.agent.pool, facts)
    watch.on_change = backend.warm.pod_changed
    ready = asyncio.Event()
    backend.warm.on_change = ready.set
    keeping = asyncio.create_task(backend.warm.run(), name="probe: warm pods")
    environment: PodEnvironment | None = None
    try:
        async with asyncio.timeout(seconds):
            await ready.wait()
        environment = backend.environment(action)
        backend.warm.drain()
        async with asyncio.timeout(seconds):
            return await run(environment)
    except TimeoutError:
        troubles = [pool.trouble for pool in backend.warm.pools.by_key.values() if pool.trouble]
        return failed(WARM_POD, "; ".join(troubles) or f"no warm pod was ready after {seconds:g} s", ADVICE)
    except ActionFailed as error:
        return failed(WARM_POD, error.message, ADVICE)
    finally:
        if environment is not None:
            await environment.remove()
        backend.warm.drain()
        await backend.warm.wait_until_empty(seconds)
        await cancel_and_wait(keeping)


async def run(environment: PodEnvironment) -> Finding:
    """Run the action, and return whether it began in the warm pod."""
    warm_name, began = environment.plan.name, time.monotonic()
    await environment.create()
    took = time.monotonic() - began
    end = None
    async for seen in environment.observations():
        if isinstance(seen, FINAL):
            end = seen
    if environment.plan.name != warm_name:
        return failed(WARM_POD, "the action could not begin in the warm pod, and got a pod of its own", ADVICE)
    if not isinstance(end, Exited) or end.reason is not None:
        return failed(WARM_POD, f"the commands failed: {end.message if end else 'no end was seen'}", ADVICE)
    detail = f"an action began in a warm pod after {took:.2f} s"
    return (
        ok(WARM_POD, detail) if took < SLOW_SECONDS else warning(WARM_POD, detail, "the API server or a node is slow")
    )
