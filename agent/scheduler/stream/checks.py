"""The scheduler's part of `sealci-agent doctor`: address, TLS, token and registration.

Each check opens a connection of its own and closes it. The last check registers a temporary agent with a new identity
and no slots, sends no health message, and ends the stream. A scheduler sends actions only to agents that have reported
READY, so no action arrives.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agent.domain.check_result import Finding, Verdict, failed, ok, skipped, warning
from agent.domain.errors import Refused, SchedulerError
from agent.domain.session_state import Health, Readiness
from agent.protocol.wire import agent_pb2 as wire
from agent.scheduler.call_status import ConnectionBroken
from agent.scheduler.stream.channel import StreamChannels, call_metadata
from agent.scheduler.stream.connection import Identity
from agent.scheduler.stream.health import HealthReporter
from agent.scheduler.stream.outbox import Outbox
from agent.scheduler.stream.stream import PROTOCOL_VERSION, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.settings import SchedulerSettings, Settings, Tls
    from agent.telemetry.metrics import Metrics

ADDRESS, TLS, TOKEN, REGISTRATION = (f"scheduler: {what}" for what in ("address", "TLS", "token", "registration"))
# Seconds until a connection or a handshake counts as failed.
CONNECT_TIMEOUT = 10.0
# Seconds until the check stops waiting for the scheduler to end the stream of the registration.
LEAVE_TIMEOUT = 2.0
DAY = 86400.0
# Seconds of remaining validity of a certificate below which the check warns.
EXPIRY_WARNING = 14 * DAY

ADDRESS_ADVICE = "check scheduler.address, its DNS name, and the NetworkPolicies and firewalls on the way"
TLS_ADVICE = (
    "check that scheduler.tls.ca_file (in the chart credentials.ca) holds the CA of the scheduler, that server_name is"
    " a name in its certificate, that cert_file and key_file (credentials.certificate) belong together, and that the"
    " port speaks TLS"
)
UNTRUSTED_ADVICE = (
    "renew the token in the Secret behind scheduler.token_file (in the chart credentials.token), or set a client"
    " certificate (credentials.certificate)"
)


async def check_scheduler(settings: Settings, version: str, metrics: Metrics) -> AsyncGenerator[Finding]:
    """Yield one finding after another. A check that depends on a failed check is skipped."""
    address = await check_address(settings.scheduler)
    yield address
    if address.verdict is Verdict.FAILED:
        for name in (TLS, TOKEN, REGISTRATION):
            yield skipped(name, "the address cannot be reached")
        return
    tls = await check_tls(settings.scheduler)
    yield tls
    token = check_token(settings.scheduler)
    yield token
    if Verdict.FAILED in (tls.verdict, token.verdict):
        yield skipped(REGISTRATION, f"{tls.check if tls.verdict is Verdict.FAILED else token.check} failed")
    elif settings.scheduler.protocol == "classic":
        yield skipped(REGISTRATION, "a classic scheduler would send actions to this registration")
    else:
        yield await check_registration(settings, version, metrics)


def host_and_port(address: str) -> tuple[str, int] | None:
    """Return host and port of an address, or None for an address that only gRPC can parse."""
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    return (host.strip("[]"), int(port)) if host and "/" not in host and port.isdigit() else None


async def check_address(settings: SchedulerSettings) -> Finding:
    """Open a TCP connection to the scheduler and close it."""
    target = host_and_port(settings.address)
    if target is None:
        return skipped(ADDRESS, f"{settings.address} is not host:port; the registration checks it")
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            _, writer = await asyncio.open_connection(*target)
    except TimeoutError:
        return failed(ADDRESS, f"{settings.address} did not answer in {CONNECT_TIMEOUT:g} s", ADDRESS_ADVICE)
    except OSError as error:
        return failed(ADDRESS, f"{settings.address} cannot be reached: {error.strerror or error}", ADDRESS_ADVICE)
    writer.close()
    return ok(ADDRESS, f"{settings.address} answers")


async def check_tls(settings: SchedulerSettings) -> Finding:
    """Make the TLS handshake of the agent, and check how long the scheduler's certificate is valid."""
    if not settings.tls.enabled:
        return warning(TLS, "off (scheduler.tls.enabled: false)", no_tls_advice(settings))
    target = host_and_port(settings.address)
    if target is None:
        return skipped(TLS, f"{settings.address} is not host:port")
    name = settings.tls.server_name or target[0]
    try:
        async with asyncio.timeout(CONNECT_TIMEOUT):
            context = ssl_context(settings.tls)
            _, writer = await asyncio.open_connection(*target, ssl=context, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        return failed(TLS, f"{name} is not trusted: {error.verify_message}", TLS_ADVICE)
    except ssl.SSLError as error:
        return failed(TLS, f"no handshake: {error.reason or error}", TLS_ADVICE)
    except TimeoutError:
        return failed(TLS, f"no handshake in {CONNECT_TIMEOUT:g} s", TLS_ADVICE)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return failed(TLS, f"{where}{error.strerror or error}", TLS_ADVICE)
    connection = writer.get_extra_info("ssl_object")
    writer.close()
    return check_expiry(name, str(connection.version()), ssl.cert_time_to_seconds(connection.getpeercert()["notAfter"]))


def no_tls_advice(settings: SchedulerSettings) -> str:
    """Return what to do about a connection without TLS. The scheduler of SealCI 0.2 does not support TLS."""
    if settings.protocol == "classic":
        return (
            "the scheduler of SealCI 0.2 has no TLS: let only the scheduler reach scheduler.classic.port, or put a TLS"
            " proxy before both"
        )
    return "set scheduler.tls.enabled: true, or the token and all data travel unencrypted"


def ssl_context(tls: Tls) -> ssl.SSLContext:
    """Return a client context with the files of the settings."""
    context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    context.set_alpn_protocols(["h2"])
    if tls.cert_file and tls.key_file:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def check_expiry(name: str, version: str, end: float) -> Finding:
    """Return a warning if the certificate of host `name` ends in less than two weeks, else a finding without a problem.

    `version` is the TLS version. `end` is the end of the certificate in seconds since the epoch.
    """
    left = end - time.time()
    detail = f"{version}, the certificate of {name} is valid until {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M}"
    if left < EXPIRY_WARNING:
        return warning(TLS, f"{detail}, {left / DAY:.0f} days", "replace it; the agent reads it at each connect")
    return ok(TLS, detail)


def check_token(settings: SchedulerSettings) -> Finding:
    """Read the token as the agent does. The finding never contains the token."""
    if settings.token_file is None:
        return ok(TOKEN, "not set (scheduler.token_file)")
    try:
        call_metadata(settings)
    except ConnectionBroken as error:
        return failed(TOKEN, str(error), "mount the Secret with the token there; the token is one word of ASCII")
    return ok(TOKEN, f"read from {settings.token_file}")


async def check_registration(settings: Settings, version: str, metrics: Metrics) -> Finding:
    """Register a temporary agent with no slots, then end its stream."""
    outbox = Outbox(settings.scheduler.window, metrics)
    health = HealthReporter(lambda: Health(Readiness.DRAINING, 0, 0, cluster_reachable=True), outbox.wake)
    identity = Identity.of("", version)
    message = wire.Register(
        agent_id=identity.agent_id,
        protocol_version=PROTOCOL_VERSION,
        agent_version=version,
        pool=settings.agent.pool,
        slots=0,
        labels=settings.agent.labels,
    )
    channels = StreamChannels(settings.scheduler)
    try:
        call = channels.connect()
        answer = await Stream(settings.scheduler, call, outbox, health, metrics).register(message)
        await call.done_writing()
        async with asyncio.timeout(LEAVE_TIMEOUT):
            while isinstance(await call.read(), wire.SchedulerMessage):
                pass
    except TimeoutError:
        return ok(REGISTRATION, f"registered in pool {settings.agent.pool}; the scheduler did not end the stream")
    except Refused as error:
        return failed(REGISTRATION, str(error), "the scheduler must know this pool and this agent's protocol version")
    except SchedulerError as error:
        untrusted = isinstance(error, ConnectionBroken) and error.kind == "unauthenticated"
        return failed(
            REGISTRATION, str(error), UNTRUSTED_ADVICE if untrusted else "see the scheduler's log at this time"
        )
    finally:
        await channels.close()
    scheduler = f" of {answer.scheduler[:100]}" if answer.scheduler else ""
    return ok(REGISTRATION, f"registered in pool {settings.agent.pool}{scheduler} with no slots, and left")
