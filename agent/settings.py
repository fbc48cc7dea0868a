"""What the installer decides: read once at the start from defaults, a file, the environment and flags.

Later sources win: defaults < YAML file (`--config` or `SEALCI_CONFIG`) < `SEALCI_*` (two underscores nest:
`SEALCI_AGENT__SLOTS=20`) < flags. Secrets are never values here, only the files that hold them, so that they can be
rotated and never show in a process list. Unknown keys are refused; a wrong value is reported with its key.
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
# SEALCI_COMMIT is what the image was built from, for the metrics.
NOT_SETTINGS = frozenset({"SEALCI_CONFIG", "SEALCI_CACHE", "SEALCI_COMMIT"})
# What the kubelet adds for a Service that is called sealci-something.
SERVICE_LINK = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_\d+_(TCP|UDP|SCTP)(_[A-Z]+)?)?)$")


def size(value: object) -> object:
    """Read bytes from a number or a quantity such as "64Mi"."""
    return int(quantity(value)) if isinstance(value, str) else value


def checked_quantity(value: str) -> str:
    """Accept text only when it is a quantity; empty means none."""
    if value:
        quantity(value)
    return value


Duration = Annotated[float, BeforeValidator(seconds), Field(ge=0)]
Size = Annotated[int, BeforeValidator(size), Field(ge=0)]
Quantity = Annotated[str, AfterValidator(checked_quantity)]
Name = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?$")]


class Section(BaseModel):
    """A part of the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Tls(Section):
    """How the scheduler is trusted, and how it can trust this agent."""

    enabled: bool = Field(True, description="speak TLS; false is plaintext, only for a scheduler on this machine")
    ca_file: Path | None = Field(None, description="CA that signed the scheduler; none: the system's")
    cert_file: Path | None = Field(None, description="own certificate for mTLS")
    key_file: Path | None = Field(None, description="key of the own certificate")
    server_name: str = Field("", description="name that the scheduler's certificate must carry, if not its address")

    @model_validator(mode="after")
    def pair(self) -> Tls:
        """Refuse half of a key pair."""
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file must be set together")
        return self


class ClassicSettings(Section):
    """What only `protocol: classic` needs: the scheduler dials this agent back for each action."""

    listen: str = Field("[::]", description="address to listen on; [::] is every address, IPv4 too", min_length=1)
    port: int = Field(7081, ge=0, le=65535, description="port that the scheduler dials; 0: any free port")
    host: str = Field("", description="name or IP that the scheduler dials; empty: the one that leads to the scheduler")
    cert_file: Path | None = Field(None, description="own certificate; none: the scheduler dials in plaintext")
    key_file: Path | None = Field(None, description="key of the own certificate")
    ca_file: Path | None = Field(None, description="CA that signed the scheduler's certificate (mTLS); none: not asked")
    health_interval: Duration = Field(5.0, gt=0, description="between two reports when nothing changes")
    queue: int = Field(100, ge=0, description="actions that wait for a slot; more are refused")
    queue_timeout: Duration = Field(3600.0, gt=0, description="how long an action waits for a slot")
    write_timeout: Duration = Field(600.0, gt=0, description="a scheduler that takes nothing for so long is gone")
    files: Path | None = Field(None, description="folder that keeps the files of actions; none: they are not kept")
    files_max_size: Size = Field(10 << 30, description="bytes in that folder; the oldest actions' files go first")
    files_max_age: Duration = Field(7 * 86400.0, gt=0, description="how long files are kept")

    @model_validator(mode="after")
    def pair(self) -> ClassicSettings:
        """Refuse half of a key pair, and a CA that nobody would ask."""
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file must be set together")
        if self.ca_file is not None and self.cert_file is None:
            raise ValueError("ca_file needs cert_file and key_file")
        return self


class SchedulerSettings(Section):
    """The other end of the stream."""

    address: str = Field("localhost:7080", description="host:port of the scheduler", min_length=1)
    protocol: Literal["stream", "classic"] = Field("stream", description="the wire; classic: SealCI 0.2")
    classic: ClassicSettings = ClassicSettings()
    tls: Tls = Tls()
    token_file: Path | None = Field(None, description="bearer token, read again at each connect")
    register_timeout: Duration = Field(15.0, description="wait for the acknowledgement of a registration")
    reconnect_max: Duration = Field(30.0, description="longest wait between two tries to connect")
    keepalive: Duration = Field(15.0, description="HTTP/2 ping interval; a dead peer is noticed within twice that")
    window: Size = Field(1 << 20, description="bytes of one session kept until they are acknowledged", ge=1 << 17)
    window_total: Size = Field(
        64 << 20, description="bytes of all sessions kept, one event of each always allowed", ge=1 << 20
    )


class AgentSection(Section):
    """This replica."""

    pool: Name = Field("default", description="the agents that may adopt each other's sessions: one release")
    id: str = Field("", description="UID of the agent's pod; empty: made at the start")
    slots: int = Field(10, ge=1, le=10_000, description="sessions at once")
    labels: dict[str, str] = Field(default_factory=dict, description="told to the scheduler")
    drain_timeout: Duration = Field(
        600.0, description="after SIGTERM, how long sessions may end before they are handed over"
    )
    adoption: bool = Field(True, description="adopt sessions of dead agents of the pool, hand over when leaving")
    anchor: str = Field("", description="ConfigMap in the namespace of actions that owns all pods; empty: none")


class ClusterSettings(Section):
    """The Kubernetes API."""

    namespace: Name = Field("default", description="where actions run")
    kubeconfig: Path | None = Field(None, description="kubeconfig file; none: in-cluster, else the default file")
    context: str = Field("", description="context of the kubeconfig")
    requests_per_second: float = Field(200.0, gt=0, description="client-side limit")
    request_timeout: Duration = Field(30.0, description="one request that is not a stream")
    retry_for: Duration = Field(60.0, description="how long a failing request of a session is tried again")
    sweep_interval: Duration = Field(60.0, description="between two sweeps for remains")
    lease_duration: Duration = Field(15.0, ge=2, description="an agent whose Lease is older is dead to the others")
    lease_renew: Duration = Field(5.0, ge=0.5, description="between two renewals of the agent's own Lease")
    delete_timeout: Duration = Field(60.0, description="how long a deleted pod may take before it is forced")


class EnvironmentSettings(Section):
    """The shape of the pods, beyond what an action may ask for."""

    profile: Literal["baseline", "restricted"] = Field("baseline", description="Pod Security profile of actions")
    user_namespaces: Literal["auto", "always", "never"] = Field(
        "auto", description="run root inside a user namespace (baseline); auto: where the cluster supports it"
    )
    user: int = Field(65532, ge=1, description="user and group of the restricted profile")
    image: str = Field("localhost/sealci-agent:dev", description="the agent's image, for files and repository")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="of actions' images"
    )
    workspace: str = Field("/workspace", pattern=r"^/[A-Za-z0-9._/-]+$", description="mount path of the workspace")
    workspace_limit: Quantity = Field("10Gi", description="size limit of the workspace")
    grace: Duration = Field(10.0, description="between TERM and KILL")
    labels: dict[str, str] = Field(default_factory=dict, description="extra labels of pods")
    pod_template: dict[str, Any] = Field(
        default_factory=dict,
        description="merged over every pod: node selectors, tolerations, pull secrets, volumes, runtime class ...",
    )

    @model_validator(mode="after")
    def processes_apart(self) -> EnvironmentSettings:
        """Refuse templates in which a signal to all processes would reach more than the commands."""
        for name in ("shareProcessNamespace", "hostPID"):
            if self.pod_template.get("spec", {}).get(name):
                raise ValueError(f"pod_template.spec.{name}: must not be set, commands are ended by a signal to all")
        return self


class PolicySettings(Section):
    """What actions may ask for."""

    images: tuple[str, ...] = Field(("*",), description="allowed images, as globs over the whole reference")
    require_digest: bool = Field(False, description="images must be named with a digest, as in NAME@sha256:...")
    default_cpu: Quantity = Field("100m", description="CPU request of an action that names none")
    default_memory: Quantity = Field("256Mi", description="memory request of an action that names none")
    default_ephemeral_storage: Quantity = Field("", description="ephemeral storage of an action that names none")
    limit_memory: bool = Field(True, description="a named memory is the limit too")
    max_cpu: Quantity = Field("", description="empty: no maximum")
    max_memory: Quantity = Field("", description="empty: no maximum")
    max_ephemeral_storage: Quantity = Field("", description="empty: no maximum")
    default_timeout: Duration = Field(3600.0, gt=0, description="of the commands of an action that names none")
    max_timeout: Duration = Field(86400.0, gt=0, description="longest timeout that an action may ask for")
    max_commands: int = Field(500, ge=1, le=1000, description="commands of one action")
    max_variables: int = Field(500, ge=0, description="env and secrets of one action")
    repository_schemes: tuple[Literal["https", "ssh", "http", "git"], ...] = Field(
        ("https", "ssh"), description="how repositories may be cloned"
    )
    pending_timeout: Duration = Field(300.0, gt=0, description="for a node to be found")
    pull_grace: Duration = Field(30.0, gt=0, description="for an image that cannot be pulled")
    registry_grace: Duration = Field(40.0, gt=0, description="for a registry that does not answer")
    pull_timeout: Duration = Field(600.0, gt=0, description="for all images to be pulled and containers to start")
    clone_timeout: Duration = Field(600.0, gt=0, description="for the repository to be cloned")


class ArtifactSettings(Section):
    """How much may be copied out of one environment."""

    max_files: int = Field(20_000, ge=1, description="files of one action")
    max_file_size: Size = Field(1 << 30, description="bytes of one file")
    max_total_size: Size = Field(2 << 30, description="bytes of one action")
    timeout: Duration = Field(600.0, gt=0, description="for one copy, retries included")
    parallel: int = Field(4, ge=1, description="copies at once")


class LogSettings(Section):
    """How much log one environment may write."""

    max_line: Size = Field(16 << 20, description="bytes of one line; the rest of it is left out with a notice")
    max_total: Size = Field(256 << 20, description="bytes of one action's log; the rest is left out with a notice")
    probe_after: Duration = Field(30.0, gt=0, description="silence after which a follower is checked")
    node_limit: Size = Field(1 << 20, description="least containerLogMaxSize of the nodes: no smaller log is cut", ge=1)


class HttpSettings(Section):
    """The port for probes, metrics and the status page."""

    host: str = Field("0.0.0.0", description="address to listen on")  # noqa: S104 - probes come from the kubelet
    port: int = Field(8080, ge=0, le=65535, description="0: any free port")
    status_page: bool = Field(True, description="show sessions, outcomes and health at /, to whoever reaches the port")


def rising(bounds: tuple[float, ...]) -> tuple[float, ...]:
    """Accept bounds of buckets only when each is larger than the one before."""
    if any(low >= high for low, high in pairwise((0.0, *bounds))):
        raise ValueError("bounds of buckets must rise, from above 0")
    return bounds


Buckets = Annotated[tuple[float, ...], AfterValidator(rising), Field(min_length=1, max_length=50)]


class MetricsSettings(Section):
    """How finely times are told apart: upper bounds of the histograms' buckets, in seconds."""

    action_buckets: Buckets = Field((1, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200), description="whole actions")
    phase_buckets: Buckets = Field(
        (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600), description="phases of actions, and single commands"
    )
    request_buckets: Buckets = Field(
        (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30), description="requests to the Kubernetes API"
    )


class TracesSettings(Section):
    """Where spans are sent; the rest is said by the standard OTEL_* variables."""

    endpoint: str = Field(
        "",
        pattern=r"^(https?://[^\s]+)?$",
        description="OTLP/HTTP collector, as in http://collector:4318; empty: no traces. Needs the extra `otel`",
    )


class LoggingSettings(Section):
    """The agent's own log."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "json", "console"] = Field("auto", description="auto: console on a terminal, else JSON")


class Settings(BaseSettings):
    """All settings of `serve`."""

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
        """Flags over the environment over the file."""
        return (init_settings, env_settings, YamlConfigSettingsSource(settings_cls))


def load(file: Path | None, flags: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> Settings:
    """Read all sources.

    Raises:
        SettingsError: names every wrong key, where it came from and what is allowed.
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
    """Whether an environment variable with our prefix names a setting."""
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
    """Say one validation error with its key in both spellings."""
    path = [str(part) for part in detail["loc"]]
    key = ".".join(path)
    variable = PREFIX + "__".join(part.upper() for part in path)
    if detail["type"] == "extra_forbidden":
        return f"{key} ({variable}): there is no such setting"
    return f"{key} ({variable}): {detail['msg']}; got {detail['input']!r}"
