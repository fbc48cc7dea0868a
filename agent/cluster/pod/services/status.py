"""Turn the statuses of service containers into the states of services, and find the service that failed. Pure.

A service never hides why the whole pod ends: in a pod that is being deleted or evicted no service has failed.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from agent.cluster.pod.disruption import find_disruption
from agent.cluster.pod.fields import container_status, is_running, parse_timestamp, terminated_state
from agent.cluster.pod.services.containers import container_name
from agent.domain.actions import OnExit
from agent.domain.errors import Reason
from agent.domain.events import ServiceChanged, ServiceState
from agent.domain.json import Object
from agent.domain.observations import FOR_SERVICES, Exited, Running, SetupFailed, Waiting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from agent.cluster.pod.setup_status import Expectations, FirstSeen, SetupLimits
    from agent.domain.actions import Service

OUT_OF_MEMORY = "OOMKilled"
# Reasons of a container that the container runtime could not start.
NOT_STARTED = ("StartError", "ContainerCannotRun", "RunContainerError", "CreateContainerError")
# Exit codes of a program that TERM or KILL may have ended.
SIGNALLED = (0, 137, 143)
# Seconds to wait for the pod's own status after a service ended as TERM ends it. The end of a whole pod reaches its
# containers before it shows in the status of the pod.
SERVICE_WAIT_SECONDS = 3.0
# The keys of `FirstSeen` about services begin with this text.
KEY = "service "
START = f"{KEY}start"


def service_states(pod: Object | None, expectations: Expectations) -> tuple[ServiceChanged, ...]:
    """Return the state of each service. A pod that is gone or has no status yet has no states."""
    status = (pod or {}).get("status", {})
    if not status.get("containerStatuses"):
        return ()
    return tuple(service_state(each, status, expectations) for each in expectations.services)


def service_state(service: Service, status: Object, expectations: Expectations) -> ServiceChanged:
    found = container_status(status, container_name(service))
    if ended := terminated_state(found):
        message = f"could not be started: {ended.get('message', '')}" if ended.get("reason") in NOT_STARTED else ""
        if ended.get("reason") == OUT_OF_MEMORY:
            message = "killed for memory"
        return ServiceChanged(service.name, ServiceState.ENDED, ended.get("exitCode"), message)
    ready = is_ready(service, found, expectations)
    return ServiceChanged(service.name, ServiceState.READY if ready else ServiceState.STARTING)


def is_ready(service: Service, status: Object | None, expectations: Expectations) -> bool:
    """Whether a service that has not ended is ready, as far as the agent knows."""
    if not is_running(status):
        return False
    if expectations.released:
        return True
    healthy = service.health is None or bool((status or {}).get("started"))
    return healthy and (not service.ports or service.name in expectations.ready)


def unhealthy_services(pod: Object, expectations: Expectations) -> list[Service]:
    """Return the services whose health command has not succeeded yet."""
    status = pod.get("status", {})
    return [
        each
        for each in expectations.services
        if each.health is not None and not (container_status(status, container_name(each)) or {}).get("started")
    ]


def waits_for_containers(pod: Object, expectations: Expectations) -> bool:
    """Whether the container of a service has not started yet. The kubelet starts the others nevertheless."""
    status = pod.get("status", {})
    found = (container_status(status, container_name(each)) for each in expectations.services)
    return any(each is None or "waiting" in each.get("state", {}) for each in found)


def judge_health(
    pod: Object, expectations: Expectations, limits: SetupLimits, first_seen: FirstSeen, now: float
) -> tuple[SetupFailed | Waiting, float | None] | None:
    """Judge a pod whose containers run and whose commands wait. None if every health command has succeeded.

    The second value is the number of seconds until the pod must be judged again.
    """
    unhealthy = unhealthy_services(pod, expectations)
    if not unhealthy or expectations.released:
        return None
    age = first_seen.age(START, now)
    limit_of = {each.name: (each.health.timeout if each.health else None) or limits.services for each in unhealthy}
    for service in unhealthy:
        if age >= (limit := limit_of[service.name]):
            text = f"the health command of service {service.name} did not succeed within {limit:g} s"
            return SetupFailed(Reason.SERVICE_FAILED, text), None
    names = ", ".join(each.name for each in unhealthy)
    detail = f"{FOR_SERVICES}{names}: health command"
    return Waiting(detail), min(limit_of.values()) - age


# ---- services that have ended


def judge_ended_services(
    pod: Object, expectations: Expectations, first_seen: FirstSeen, now: float
) -> SetupFailed | Running | float | None:
    """Return the failure of a service that has ended, or the seconds until its end counts as a failure.

    Return None if no service has failed. The action container has not terminated.
    """
    recheck: float | None = None
    for service, ended in failed_services(pod, expectations):
        if signalled(ended) and first_seen.age(f"{KEY}{service.name} ended", now) < SERVICE_WAIT_SECONDS:
            recheck = SERVICE_WAIT_SECONDS
            continue
        text = describe_end(service, ended, expectations)
        if expectations.released:
            return Running(service_failure=text)
        return SetupFailed(Reason.SERVICE_FAILED, text)
    return recheck


def failed_services(pod: Object, expectations: Expectations) -> Iterator[tuple[Service, Object]]:
    """Yield each service whose end is a failure, with `state.terminated` of its container."""
    status = pod.get("status", {})
    if (
        pod["metadata"].get("deletionTimestamp")
        or find_disruption(pod)
        or status.get("phase") in ("Failed", "Succeeded")
    ):
        return
    for service in expectations.services:
        ended = terminated_state(container_status(status, container_name(service)))
        if ended is not None and is_failure(service, ended.get("exitCode"), released=expectations.released):
            yield service, ended


def is_failure(service: Service, code: int | None, *, released: bool) -> bool:
    """Whether the end of a service fails the action. `released`: the commands have begun."""
    if not released and (service.ports or service.health is not None):
        # The service can never become ready.
        return True
    if service.on_exit is OnExit.IGNORE:
        return False
    return code != 0 or service.on_exit is OnExit.ANY_FAILS


def signalled(ended: Object) -> bool:
    """Whether a container may have been ended by TERM or KILL for another reason than memory."""
    return ended.get("exitCode") in SIGNALLED and ended.get("reason") not in (OUT_OF_MEMORY, *NOT_STARTED)


def describe_end(service: Service, ended: Object, expectations: Expectations) -> str:
    """Return a sentence for people about a service whose end is a failure."""
    code, reason = ended.get("exitCode"), ended.get("reason", "")
    when = "while the commands ran" if expectations.released else "before the commands began"
    if not expectations.released and (service.ports or service.health) and service.name not in expectations.ready:
        when = "before it was ready"
    if reason in NOT_STARTED:
        return f"service {service.name} could not be started: {ended.get('message') or reason}"
    if reason == OUT_OF_MEMORY:
        return (
            f"service {service.name} was killed for memory {when} (exit code {code}): "
            "the limit is too low for it (resources.memory)"
        )
    text = f"service {service.name} ended with exit code {code} {when}"
    if expectations.user and code != 0 and not expectations.released:
        text += (
            f"; the profile restricted runs it as user {expectations.user}: give the folders that it writes to in "
            "`scratch`, or choose an image that runs without root"
        )
    return text


def failed_before(exited: Exited, pod: Object, terminated: Object, expectations: Expectations) -> Exited:
    """Return the result of commands that ended, as SERVICE_FAILED if a service had failed before them.

    Times in a status are whole seconds. In the same second the result of the commands stands. A service that TERM may
    have ended counts only if it ended clearly earlier, because TERM goes to all containers of a pod that ends.
    """
    if not expectations.services:
        return exited
    commands_end = parse_timestamp(terminated.get("finishedAt"))
    # The commands have run, so all services were ready.
    expectations = replace(expectations, released=True)
    for service, ended in failed_services(pod, expectations):
        end = parse_timestamp(ended.get("finishedAt"))
        margin = timedelta(seconds=SERVICE_WAIT_SECONDS if signalled(ended) else 0)
        if end is not None and commands_end is not None and end + margin < commands_end:
            text = describe_end(service, ended, expectations)
            return replace(exited, reason=Reason.SERVICE_FAILED, message=text)
    return exited
