"""The scheduler's half of the doctor: is it there, is it who it says, does it take this agent.

Each check lives for a connection. The last one registers as the agent would, with an identity of its own and no slots,
tells no health, and leaves: a scheduler sends actions only to agents that have said they are ready, so none comes.
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
from agent.scheduler.stream.channel import Broken, Dialed, metadata
from agent.scheduler.stream.connection import Identity
from agent.scheduler.stream.health import HealthReporter
from agent.scheduler.stream.outbox import Outbox
from agent.scheduler.stream.stream import PROTOCOL_VERSION, Stream

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from agent.settings import SchedulerSettings, Settings, Tls
    from agent.telemetry.metrics import Metrics

ADDRESS, TLS, TOKEN, REGISTRATION = (f"scheduler: {what}" for what in ("address", "TLS", "token", "registration"))
CONNECT_SECONDS = 10.0
LEAVE_SECONDS = 2.0
SOON_SECONDS = 14 * 86400.0
DAY = 86400.0


async def examine(settings: Settings, version: str, metrics: Metrics) -> AsyncGenerator[Finding]:
    """Yield one finding after another; what depends on one that failed is skipped."""
    reached = await address(settings.scheduler)
    yield reached
    if reached.verdict is Verdict.FAILED:
        for check in (TLS, TOKEN, REGISTRATION):
            yield skipped(check, "the address is not reached")
        return
    trust = await tls(settings.scheduler)
    yield trust
    held = token(settings.scheduler)
    yield held
    if Verdict.FAILED in (trust.verdict, held.verdict):
        yield skipped(REGISTRATION, f"{trust.check if trust.verdict is Verdict.FAILED else held.check} failed")
    elif settings.scheduler.protocol == "classic":
        yield skipped(REGISTRATION, "the classic protocol has no registration that takes no action")
    else:
        yield await registration(settings, version, metrics)


def place(address: str) -> tuple[str, int] | None:
    """Return host and port of an address, None for one that only gRPC can read."""
    host, _, port = address.removeprefix("dns:///").rpartition(":")
    return (host.strip("[]"), int(port)) if host and "/" not in host and port.isdigit() else None


async def address(settings: SchedulerSettings) -> Finding:
    """Open a connection, and close it."""
    target = place(settings.address)
    if target is None:
        return skipped(ADDRESS, f"{settings.address} is no host:port; the registration will tell")
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            _, writer = await asyncio.open_connection(*target)
    except TimeoutError:
        return failed(ADDRESS, f"{settings.address} did not answer in {CONNECT_SECONDS:g} s", WAY)
    except OSError as error:
        return failed(ADDRESS, f"{settings.address} cannot be reached: {error.strerror or error}", WAY)
    writer.close()
    return ok(ADDRESS, f"{settings.address} answers")


WAY = "check scheduler.address, its DNS name, and the NetworkPolicies and firewalls on the way"


async def tls(settings: SchedulerSettings) -> Finding:
    """Shake hands as the agent would, and look at how long the scheduler's certificate is good."""
    if not settings.tls.enabled:
        advice = "set scheduler.tls.enabled: true: the token and everything else travels in the clear"
        return warning(TLS, "off (scheduler.tls.enabled: false)", advice)
    target = place(settings.address)
    if target is None:
        return skipped(TLS, "no host:port to try it with")
    name = settings.tls.server_name or target[0]
    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            context = trusting(settings.tls)
            _, writer = await asyncio.open_connection(*target, ssl=context, server_hostname=name)
    except ssl.SSLCertVerificationError as error:
        return failed(TLS, f"{name} is not trusted: {error.verify_message}", TRUST)
    except ssl.SSLError as error:
        return failed(TLS, f"no handshake: {error.reason or error}", TRUST)
    except TimeoutError:
        return failed(TLS, f"no handshake in {CONNECT_SECONDS:g} s", TRUST)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return failed(TLS, f"{where}{error.strerror or error}", TRUST)
    connection = writer.get_extra_info("ssl_object")
    writer.close()
    return good_until(name, str(connection.version()), ssl.cert_time_to_seconds(connection.getpeercert()["notAfter"]))


TRUST = (
    "scheduler.tls.ca_file must hold the CA of the scheduler, server_name a name in its certificate, cert_file and"
    " key_file a pair; is TLS spoken on that port?"
)


def trusting(tls: Tls) -> ssl.SSLContext:
    """Return the trust of the settings."""
    context = ssl.create_default_context(cafile=str(tls.ca_file) if tls.ca_file else None)
    context.set_alpn_protocols(["h2"])
    if tls.cert_file and tls.key_file:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


def good_until(name: str, version: str, end: float) -> Finding:
    """Say how long a certificate is good."""
    left = end - time.time()
    detail = f"{version}, the certificate of {name} is good until {datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M}"
    if left < SOON_SECONDS:
        return warning(TLS, f"{detail}, {left / DAY:.0f} days", "replace it; the agent reads it at each connect")
    return ok(TLS, detail)


def token(settings: SchedulerSettings) -> Finding:
    """Read the token as the agent would; its text is never said."""
    if settings.token_file is None:
        return ok(TOKEN, "none set (scheduler.token_file)")
    try:
        metadata(settings)
    except Broken as error:
        return failed(TOKEN, str(error), "mount the Secret that holds the token there: one word")
    return ok(TOKEN, f"read from {settings.token_file}")


async def registration(settings: Settings, version: str, metrics: Metrics) -> Finding:
    """Register with no slots, and leave."""
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
    dialed = Dialed(settings.scheduler)
    try:
        call = dialed.connect()
        answer = await Stream(settings.scheduler, call, outbox, health, metrics).register(message)
        await call.done_writing()
        async with asyncio.timeout(LEAVE_SECONDS):
            while isinstance(await call.read(), wire.SchedulerMessage):
                pass
    except TimeoutError:
        return ok(REGISTRATION, f"taken into pool {settings.agent.pool}, and left without a good-bye")
    except Refused as error:
        return failed(REGISTRATION, str(error), "the scheduler must know this pool and speak this agent's protocol")
    except SchedulerError as error:
        unknown = isinstance(error, Broken) and error.kind == "unauthenticated"
        return failed(REGISTRATION, str(error), RENEW if unknown else "see the scheduler's log at this time")
    finally:
        await dialed.close()
    scheduler = f" by {answer.scheduler[:100]}" if answer.scheduler else ""
    return ok(REGISTRATION, f"taken into pool {settings.agent.pool}{scheduler} with no slots, and left")


RENEW = "renew the token in the Secret that scheduler.token_file comes from; or the scheduler wants a certificate"
