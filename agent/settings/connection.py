"""Settings of the connection to the scheduler, for both protocols. They live as long as the process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from agent.settings.field_types import ADDRESS_PATTERN, Caller, CloneHost, Duration, SecretName, Section, Size


class Tls(Section):
    """TLS between the agent and the scheduler."""

    enabled: bool = Field(
        True, description="Encrypt the connection. Use plaintext (`false`) only for a scheduler on the same machine."
    )
    ca_file: Path | None = Field(
        None, description="CA certificate that verifies the scheduler. If unset, the system's CAs are used."
    )
    cert_file: Path | None = Field(None, description="Client certificate of the agent, for mutual TLS.")
    key_file: Path | None = Field(None, description="Private key of `cert_file`.")
    server_name: str = Field(
        "", description="Name expected in the scheduler's certificate. If empty, the host of `scheduler.address`."
    )

    @model_validator(mode="after")
    def pair(self) -> Tls:
        """Refuse a certificate without a key, and a key without a certificate."""
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file must be set together")
        return self


class ClassicSettings(Section):
    """Server of the agent for `protocol: classic`. The scheduler dials the agent for each action."""

    listen: str = Field("[::]", description="Address to listen on. `[::]` includes IPv4.", min_length=1)
    port: int = Field(7081, ge=0, le=65535, description="Port that the scheduler dials. 0 selects a free port.")
    host: str = Field(
        "",
        description="Name or IP that the scheduler dials. "
        "If empty, the agent's local address on its route to the scheduler. "
        "The Helm chart sets one name for all agents.",
    )
    cert_file: Path | None = Field(
        None,
        description="Server certificate of the agent. If unset, the scheduler dials in plaintext. "
        "The scheduler of SealCI 0.2 has no TLS, so a certificate needs a TLS proxy or another scheduler.",
    )
    key_file: Path | None = Field(None, description="Private key of `cert_file`.")
    ca_file: Path | None = Field(
        None,
        description="CA that verifies the scheduler's client certificate. "
        "If unset, the agent asks for no client certificate.",
    )
    open: bool = Field(
        False,
        description="Accept calls without a client certificate on an address that other machines reach. "
        "Any peer can then run actions. Set it only if a firewall or a NetworkPolicy admits only the scheduler.",
    )
    callers: tuple[Caller, ...] = Field(
        (),
        description="Networks from which the agent accepts calls, such as `10.1.2.3/32`. "
        "`scheduler` stands for the addresses of `scheduler.address`. If empty, every address may call.",
        max_length=100,
    )
    health_interval: Duration = Field(5.0, gt=0, description="Time between two health reports when nothing changes.")
    queue: int = Field(
        100, ge=0, description="Number of actions that may wait for a slot. The agent refuses further actions."
    )
    echo: bool = Field(True, description="Show each command and the progress of the set-up in the log of the action.")
    clone_credentials: dict[CloneHost, SecretName] = Field(
        {},
        description="Secret for clones from a host, as `host: secret` or `host:port: secret`. "
        "The Secret is in the namespace of the actions.",
        max_length=100,
    )
    queue_timeout: Duration = Field(3600.0, gt=0, description="Longest time that an action waits for a slot.")
    write_timeout: Duration = Field(
        600.0, gt=0, description="Time until the agent gives up a scheduler that reads no output of an action."
    )
    files: Path | None = Field(
        None, description="Folder for the artifacts of actions. If unset, artifacts are not kept."
    )
    files_max_size: Size = Field(
        10 << 30, description="Bytes in the folder `files`. The agent deletes the oldest actions' artifacts first."
    )
    files_max_age: Duration = Field(
        7 * 86400.0, gt=0, description="Time until the agent deletes an action's artifacts."
    )

    @property
    def admits_anyone(self) -> bool:
        """Whether every caller on another machine can run actions without a client certificate."""
        host = self.listen.strip("[]")
        loopback = host == "localhost" or host == "::1" or host.startswith("127.")
        return self.ca_file is None and not loopback and not self.callers

    @model_validator(mode="after")
    def pair(self) -> ClassicSettings:
        """Refuse a certificate without a key, a key without a certificate, and a CA without both."""
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file must be set together")
        if self.ca_file is not None and self.cert_file is None:
            raise ValueError("ca_file needs cert_file and key_file")
        return self


class SchedulerSettings(Section):
    """Connection to the scheduler."""

    address: str = Field(
        "localhost:7080", description="Address of the scheduler, as `host:port`.", pattern=ADDRESS_PATTERN
    )
    protocol: Literal["stream", "classic"] = Field(
        "stream", description="Protocol of the scheduler. `classic` is the protocol of SealCI 0.2."
    )
    classic: ClassicSettings = ClassicSettings()
    tls: Tls = Tls()
    token_file: Path | None = Field(
        None, description="File with the bearer token. The agent reads the file at each connect."
    )
    register_timeout: Duration = Field(
        15.0, description="Longest time to wait for the scheduler's answer to a registration."
    )
    reconnect_max: Duration = Field(30.0, description="Longest pause between two attempts to connect.")
    keepalive: Duration = Field(
        15.0, description="Interval of HTTP/2 pings. The agent reconnects after twice this time without an answer."
    )
    window: Size = Field(
        1 << 20,
        description="Bytes of unacknowledged events that the agent keeps for each session. "
        "If the window is full, the agent stops reading the log.",
        ge=1 << 17,
    )
    window_total: Size = Field(
        64 << 20,
        description="Bytes of unacknowledged events that the agent keeps for all sessions. "
        "One event of each session is always allowed.",
        ge=1 << 20,
    )

    @model_validator(mode="after")
    def classic_admits_only_the_scheduler(self) -> SchedulerSettings:
        """Refuse settings with which any machine could call the agent, because the classic protocol has no password."""
        if self.protocol == "classic" and self.classic.admits_anyone and not self.classic.open:
            raise ValueError(
                f"with protocol classic, any peer that reaches {self.classic.listen}:{self.classic.port} could run "
                "actions: set classic.ca_file (with cert_file and key_file) to require a client certificate, or "
                "classic.callers to the networks of the scheduler, or classic.listen to a loopback address, or "
                "classic.open to true if a firewall admits only the scheduler"
            )
        return self
