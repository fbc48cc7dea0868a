"""Read the settings of the agent from defaults, a YAML file, the environment and flags.

Later sources win: defaults < YAML file (`--config` or `SEALCI_CONFIG`) < `SEALCI_*` (two underscores nest:
`SEALCI_AGENT__SLOTS=20`) < flags. A setting never holds a secret, only the path of a file with the secret. Secrets can
therefore be rotated and never show in a process list. One `Settings` is read at the start and lives as long as the
process. The descriptions are also the documentation: `docs/settings.md` and the chart's values are generated from them.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from agent.domain.errors import SettingsError
from agent.domain.quantities import quantity, seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "SEALCI_"
# SEALCI_COMMIT is the commit that the image was built from. `sealci_agent_build_info` shows it.
NOT_SETTINGS = frozenset({"SEALCI_CONFIG", "SEALCI_CACHE", "SEALCI_COMMIT"})
# The kubelet adds such variables for every Service whose name begins with `sealci-`.
SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)$")


def size(value: object) -> object:
    """Return text such as "64Mi" as bytes; other values unchanged, for pydantic to check."""
    return int(quantity(value)) if isinstance(value, str) else value


def checked_quantity(value: str) -> str:
    """Return the text unchanged.

    Raises:
        ValueError: the text is neither empty nor a quantity.
    """
    if value:
        quantity(value)
    return value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
Size = Annotated[int, BeforeValidator(size), Field(ge=0)]
Quantity = Annotated[str, AfterValidator(checked_quantity)]
NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]


class Section(BaseModel):
    """Base of every section. Unknown keys are refused, and values never change after the start."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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
        "If empty, the agent's local address on its route to the scheduler.",
    )
    cert_file: Path | None = Field(
        None, description="Server certificate of the agent. If unset, the scheduler dials in plaintext."
    )
    key_file: Path | None = Field(None, description="Private key of `cert_file`.")
    ca_file: Path | None = Field(
        None,
        description="CA that verifies the scheduler's client certificate. "
        "If unset, the agent asks for no client certificate.",
    )
    health_interval: Duration = Field(5.0, gt=0, description="Time between two health reports when nothing changes.")
    queue: int = Field(
        100, ge=0, description="Number of actions that may wait for a slot. The agent refuses further actions."
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

    address: str = Field("localhost:7080", description="Address of the scheduler, as `host:port`.", min_length=1)
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


class AgentSection(Section):
    """Identity and capacity of the agent."""

    pool: Name = Field(
        "default", description="Group of agents that may adopt each other's sessions. Use one pool for each release."
    )
    id: str = Field("", description="UID of the agent's pod. If empty, the agent generates an id at the start.")
    slots: int = Field(10, ge=1, le=10_000, description="Number of sessions that the agent runs at once.")
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels that the agent reports to the scheduler at registration."
    )
    drain_timeout: Duration = Field(
        600.0, description="Time after SIGTERM in which sessions may end. The agent then hands over the rest."
    )
    adoption: bool = Field(
        True, description="Adopt sessions of dead agents of the pool, and hand over sessions at shutdown."
    )
    anchor: str = Field(
        "",
        description="ConfigMap in the namespace of actions that owns all pods and Leases. If empty, there is no owner.",
    )


class ClusterSettings(Section):
    """Access to the Kubernetes API, and the agent's timing towards the cluster."""

    namespace: Name = Field("default", description="Namespace of actions.")
    kubeconfig: Path | None = Field(
        None,
        description="Path of a kubeconfig file. "
        "If unset, the agent uses its service account, or the default kubeconfig outside a cluster.",
    )
    context: str = Field("", description="Context of the kubeconfig file. If empty, the current context.")
    requests_per_second: float = Field(
        200.0, gt=0, description="Client-side limit of requests to the Kubernetes API, per second."
    )
    request_timeout: Duration = Field(30.0, description="Timeout of one request. Watches and logs are not limited.")
    retry_for: Duration = Field(60.0, description="Time in which a session retries a failed request.")
    sweep_interval: Duration = Field(60.0, description="Time between two sweeps for orphans.")
    lease_duration: Duration = Field(
        15.0, ge=2, description="Time without a renewal until other agents judge this agent as dead."
    )
    lease_renew: Duration = Field(5.0, ge=0.5, description="Time between two renewals of the agent's own Lease.")
    delete_timeout: Duration = Field(
        60.0, description="Time until the agent deletes a pod by force, if a normal deletion does not finish."
    )


class EnvironmentSettings(Section):
    """Shape of the pods of actions, beyond the fields that an action may set."""

    profile: Literal["baseline", "restricted"] = Field(
        "baseline", description="Pod Security Standard that the pods of actions follow."
    )
    user_namespaces: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Run pods of the profile `baseline` in a user namespace. "
        "`auto` does so if the cluster's version supports user namespaces.",
    )
    user: int = Field(65532, ge=1, description="User id and group id of all containers in the profile `restricted`.")
    image: str = Field(
        "localhost/sealci-agent:dev",
        description="Image of the containers `files` and `repository`. Use the agent's image.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="Pull policy of the images that actions name."
    )
    workspace: str = Field(
        "/workspace", pattern=r"^/[A-Za-z0-9._/-]+$", description="Path where the workspace is mounted."
    )
    workspace_limit: Quantity = Field("10Gi", description="Size limit of the workspace volume.")
    grace: Duration = Field(10.0, description="Time between SIGTERM and SIGKILL when commands are stopped.")
    pipefail: bool = Field(
        False,
        description="Run commands with `set -o pipefail` where the image's shell has it. An action can ask otherwise.",
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Extra labels of the pods of actions.")
    pod_template: dict[str, Any] = Field(
        default_factory=dict,
        description="Partial pod that the agent merges over every pod of an action. "
        "Use it for node selectors, tolerations, pull secrets, volumes or a runtime class.",
    )

    @model_validator(mode="after")
    def processes_apart(self) -> EnvironmentSettings:
        """Refuse templates that share the process namespace of the pod or of the node."""
        # The supervisor stops the commands with `kill -TERM -1`, which reaches every process of its namespace.
        for name in ("shareProcessNamespace", "hostPID"):
            if self.pod_template.get("spec", {}).get(name):
                raise ValueError(f"pod_template.spec.{name}: must not be set, because stop signals go to all processes")
        return self


class PolicySettings(Section):
    """Limits on the requests of actions."""

    images: tuple[str, ...] = Field(
        ("*",), description="Allowed images, as globs. A glob is compared with the whole image reference."
    )
    require_digest: bool = Field(
        False, description="Refuse images that are not named with a digest, as in `NAME@sha256:...`."
    )
    default_cpu: Quantity = Field("100m", description="CPU request of an action that requests no CPU.")
    default_memory: Quantity = Field("256Mi", description="Memory request of an action that requests no memory.")
    default_ephemeral_storage: Quantity = Field(
        "", description="Ephemeral storage of an action that requests none. If empty, none is set."
    )
    limit_memory: bool = Field(True, description="Set the memory that an action requests as its memory limit too.")
    max_cpu: Quantity = Field("", description="Largest CPU request. If empty, there is no maximum.")
    max_memory: Quantity = Field("", description="Largest memory request. If empty, there is no maximum.")
    max_ephemeral_storage: Quantity = Field(
        "", description="Largest ephemeral storage request. If empty, there is no maximum."
    )
    default_timeout: Duration = Field(
        3600.0, gt=0, description="Timeout of the commands of an action that sets no timeout."
    )
    max_timeout: Duration = Field(86400.0, gt=0, description="Largest timeout that an action may set.")
    max_commands: int = Field(500, ge=1, le=1000, description="Largest number of commands of an action.")
    max_variables: int = Field(
        500, ge=0, description="Largest number of environment variables of an action, secrets included."
    )
    repository_schemes: tuple[Literal["https", "ssh", "http", "git"], ...] = Field(
        ("https", "ssh"), description="Allowed URL schemes of repositories."
    )
    pending_timeout: Duration = Field(300.0, gt=0, description="Longest time until a pod has a node.")
    pull_grace: Duration = Field(
        30.0,
        gt=0,
        description="Time in which the kubelet may retry a failed image pull, or a failed sandbox of the pod, "
        "before the action fails.",
    )
    registry_grace: Duration = Field(
        40.0, gt=0, description="As `pull_grace`, when the registry cannot be reached or is overloaded."
    )
    pull_timeout: Duration = Field(
        600.0, gt=0, description="Longest time for all images to be pulled and all containers to start."
    )
    clone_timeout: Duration = Field(600.0, gt=0, description="Longest time for the repository to be cloned.")


class ArtifactSettings(Section):
    """Limits on the artifacts of one action."""

    max_files: int = Field(20_000, ge=1, description="Largest number of files of one action.")
    max_file_size: Size = Field(1 << 30, description="Largest size of one file, in bytes.")
    max_total_size: Size = Field(2 << 30, description="Largest size of all files of one action, in bytes.")
    timeout: Duration = Field(
        600.0, gt=0, description="Longest time to copy the files of one action, retries included."
    )
    parallel: int = Field(4, ge=1, description="Number of actions whose files the agent copies at once.")


class LogSettings(Section):
    """Limits on the log of one action, and how the agent follows the log."""

    max_line: Size = Field(
        16 << 20, description="Largest size of one line, in bytes. The agent cuts longer lines and adds a notice."
    )
    max_total: Size = Field(
        256 << 20, description="Largest size of an action's log, in bytes. The agent drops the rest and adds a notice."
    )
    probe_after: Duration = Field(
        30.0, gt=0, description="Time without output until the agent checks the connection that reads the log."
    )
    node_limit: Size = Field(
        1 << 20,
        description="Smallest `containerLogMaxSize` of all nodes, in bytes. "
        "The agent assumes that a node rotates no log file below this size.",
        ge=1,
    )


class HttpSettings(Section):
    """Port for probes, metrics and the status page."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - probes come from the kubelet
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on. 0 selects a free port.")
    status_page: bool = Field(
        True,
        description="Serve the status page at `/`. The page shows sessions and outcomes, and asks for no password.",
    )


def rising(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """Return the bounds of buckets unchanged.

    Raises:
        ValueError: a bound is not larger than the bound before, or the first bound is not above 0.
    """
    if any(low >= high for low, high in pairwise((0.0, *bounds))):
        raise ValueError("bounds of buckets must rise, from above 0")
    return bounds


Buckets = Annotated[tuple[float, ...], AfterValidator(rising), Field(min_length=1, max_length=50)]


class MetricsSettings(Section):
    """Upper bounds of the histograms' buckets, in seconds."""

    action_buckets: Buckets = Field(
        (1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200), description="Buckets for the duration of actions."
    )
    phase_buckets: Buckets = Field(
        (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600),
        description="Buckets for the duration of the phases of an action, and of single commands.",
    )
    request_buckets: Buckets = Field(
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
        description="Buckets for the duration of requests to the Kubernetes API.",
    )


class TracesSettings(Section):
    """Export of traces. The standard `OTEL_*` variables set headers, sampling and resource attributes."""

    endpoint: str = Field(
        "",
        pattern=r"^(https?://[^\s]+)?$",
        description="Base URL of an OTLP/HTTP collector, as in `http://collector:4318`. "
        "If empty, the agent sends no traces. A URL needs the extra `otel`.",
    )


class LoggingSettings(Section):
    """The agent's own log."""

    level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest level of the entries that the agent logs."
    )
    format: Literal["auto", "json", "console"] = Field(
        "auto", description="Format of the log. `auto` is `console` on a terminal and `json` otherwise."
    )


class Settings(BaseSettings):
    """All settings of the agent, one attribute per section."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    scheduler: SchedulerSettings = SchedulerSettings()
    agent: AgentSection = AgentSection()
    cluster: ClusterSettings = ClusterSettings()
    environment: EnvironmentSettings = EnvironmentSettings()
    policy: PolicySettings = PolicySettings()
    artifacts: ArtifactSettings = ArtifactSettings()
    logs: LogSettings = LogSettings()
    http: HttpSettings = HttpSettings()
    metrics: MetricsSettings = MetricsSettings()
    traces: TracesSettings = TracesSettings()
    logging: LoggingSettings = LoggingSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, the strongest first: flags, environment, file."""
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls))


def load(file: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Read and check all sources.

    Raises:
        SettingsError: a key is unknown or a value is wrong. The message names every such key, one per line.
    """
    environ = os.environ if environ is None else environ
    file = file or (Path(environ["SEALCI_CONFIG"]) if environ.get("SEALCI_CONFIG") else None)
    if file is not None and not file.is_file():
        raise SettingsError(f"--config: {file} is not a file")
    unknown = [name for name in environ if name.startswith(PREFIX) and not known(name)]
    if unknown:
        raise SettingsError("\n".join(f"{name}: there is no such setting" for name in sorted(unknown)))

    class Sourced(Settings):
        model_config = SettingsConfigDict(yaml_file=file)

    try:
        return Sourced(**flags)
    except ValidationError as error:
        raise SettingsError("\n".join(sentence(detail) for detail in error.errors())) from error
    except (ValueError, OSError, yaml.YAMLError) as error:
        raise SettingsError(f"the settings cannot be read: {error}") from error


def known(variable: str) -> bool:
    """Whether the agent accepts an environment variable that begins with `SEALCI_`."""
    if variable in NOT_SETTINGS or ("__" not in variable and SERVICE_LINK.search(variable)):
        return True
    model: type[BaseModel] | None = Settings
    for part in variable.removeprefix(PREFIX).lower().split("__"):
        if model is None or part not in model.model_fields:
            return False
        kind = model.model_fields[part].annotation
        model = kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if model is None:
            return True
    return True


def sentence(detail: Any) -> str:
    """Describe one validation error. The text names the key and the environment variable."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    variable = PREFIX + "__".join(part.upper() for part in path)
    if detail["type"] == "extra_forbidden":
        return f"{key} ({variable}): there is no such setting"
    return f"{key} ({variable}): {detail['msg']}; got {detail['input']!r}"
