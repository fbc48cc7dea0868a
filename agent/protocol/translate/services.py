"""Translation of the services of an action, and of their states."""

from __future__ import annotations

from agent.domain import actions as domain
from agent.domain import events
from agent.protocol.translate.fields import (
    MAX_DURATION,
    ON_EXITS,
    SERVICE_LOGS,
    SERVICE_STATES,
    duration,
    human_text,
    invalid,
    member,
    seconds,
)
from agent.protocol.wire import agent_pb2 as wire

# ---- functions for the agent, which reads services and writes their states


def service(message: wire.Service, number: int) -> domain.Service:
    """Return a service of an action. `number` is its position in the action, from 1, for messages.

    Raises:
        ActionFailed: a field is invalid. The message of the error names the field and the allowed values.
    """
    on_exit, log = domain.OnExit.CRASH_FAILS, domain.ServiceLog.ON_FAILURE
    if message.on_exit != wire.Service.ON_EXIT_UNSPECIFIED:
        on_exit = member(f"services[{number}].on_exit", message.on_exit, ON_EXITS)
    if message.log != wire.Service.LOG_UNSPECIFIED:
        log = member(f"services[{number}].log", message.log, SERVICE_LOGS)
    return domain.Service(
        name=message.name,
        image=message.image,
        aliases=tuple(message.aliases),
        command=tuple(message.command),
        args=tuple(message.args),
        env=dict(message.env),
        secrets=tuple(message.secrets),
        ports=tuple(message.ports),
        health=health_command(message.health, number) if message.HasField("health") else None,
        resources=resources(message.resources),
        scratch=tuple(message.scratch),
        privileged=message.privileged,
        on_exit=on_exit,
        log=log,
    )


def health_command(message: wire.HealthCommand, number: int) -> domain.HealthCommand:
    timeout = seconds(message.timeout) if message.HasField("timeout") else None
    if timeout is not None and not 0 < timeout <= MAX_DURATION:
        invalid(
            f"services[{number}].health.timeout", f"{timeout:g} s", "more than 0 s, or unset for the agent's setting"
        )
    return domain.HealthCommand(tuple(message.command), timeout)


def resources(message: wire.Resources) -> domain.Resources:
    return domain.Resources(message.cpu, message.memory, message.ephemeral_storage)


def service_changed_message(event: events.ServiceChanged) -> wire.ServiceChanged:
    return wire.ServiceChanged(
        name=event.name,
        state=SERVICE_STATES[event.state],
        exit_code=event.exit_code,
        message=human_text(event.message),
    )


# ---- functions for a scheduler, which writes services and reads their states


def service_message(value: domain.Service) -> wire.Service:
    message = wire.Service(
        name=value.name,
        image=value.image,
        aliases=value.aliases,
        command=value.command,
        args=value.args,
        env=value.env,
        secrets=value.secrets,
        ports=value.ports,
        resources=resources_message(value.resources),
        scratch=value.scratch,
        privileged=value.privileged,
        on_exit=ON_EXITS[value.on_exit],
        log=SERVICE_LOGS[value.log],
    )
    if (health := value.health) is not None:
        timeout = duration(health.timeout) if health.timeout is not None else None
        message.health.CopyFrom(wire.HealthCommand(command=health.command, timeout=timeout))
    return message


def resources_message(value: domain.Resources) -> wire.Resources:
    return wire.Resources(cpu=value.cpu, memory=value.memory, ephemeral_storage=value.ephemeral_storage)


def service_changed(message: wire.ServiceChanged) -> events.ServiceChanged:
    """Return the state of a service.

    Raises:
        ActionFailed: the state is unknown.
    """
    return events.ServiceChanged(
        name=message.name,
        state=member("service.state", message.state, SERVICE_STATES),
        exit_code=message.exit_code if message.HasField("exit_code") else None,
        message=message.message,
    )
