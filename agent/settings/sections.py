"""The sections of the settings about the agent, the cluster, pods, limits, and the agent's own output.

The sections live as long as the process.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from agent.settings.environment_classes import ClassSettings, PodTemplate
from agent.settings.field_types import (
    Buckets,
    ClassName,
    Duration,
    Name,
    Quantity,
    Resources,
    SecretName,
    Section,
    Size,
)
from agent.settings.outside import ProxySettings


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

    @model_validator(mode="after")
    def renewed_in_time(self) -> ClusterSettings:
        """Refuse an interval of Lease renewals after which other agents already count this agent as dead."""
        if self.lease_renew >= self.lease_duration:
            raise ValueError(
                f"lease_renew ({self.lease_renew:g} s) must be shorter than lease_duration ({self.lease_duration:g} s)"
            )
        return self


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
        description="Image of the containers `helper` and `repository`. Use the agent's image.",
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="Pull policy of the images that actions name."
    )
    image_pull_secrets: tuple[SecretName, ...] = Field(
        (), description="Names of Secrets with which nodes pull the images of pods. Actions cannot read these Secrets."
    )
    workspace: str = Field(
        "/workspace", pattern=r"^/[A-Za-z0-9._/-]+$", description="Path where the workspace is mounted."
    )
    workspace_limit: Quantity = Field(
        "10Gi",
        description="Size limit of the workspace volume. Also the limit of all disk of an action "
        "if neither the action nor the policy names ephemeral storage.",
    )
    helper_resources: Resources = Field(
        {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "512Mi"}},
        description="Requests and limits of container `helper`. An empty quantity removes one of the default.",
    )
    clone_resources: Resources = Field(
        {"requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "1Gi"}},
        description="Requests and limits of container `repository`. An empty quantity removes one of the default.",
    )
    git_config: str = Field(
        "",
        max_length=16 << 10,
        description="Text of a git configuration file for clones, such as the `url.*.insteadOf` of a mirror. It must "
        "hold no password.",
    )
    git_ca: str = Field(
        "",
        max_length=64 << 10,
        pattern=r"^(-----BEGIN CERTIFICATE-----[\s\S]*)?$",
        description="Certificates (PEM) of authorities that clones trust too.",
    )
    proxy: ProxySettings = ProxySettings()
    grace: Duration = Field(10.0, description="Time between SIGTERM and SIGKILL when commands are stopped.")
    nudge_kubelet: bool = Field(
        True,
        description="Make the kubelet look at a pod as soon as its commands ended, "
        "by small resizes of container `helper` (`pods/resize`). Has an effect on Kubernetes 1.36 and newer.",
    )
    pipefail: bool = Field(
        False,
        description="Run commands with `set -o pipefail` where the image's shell has it. An action can ask otherwise.",
    )
    labels: dict[str, str] = Field(default_factory=dict, description="Extra labels of the pods of actions.")
    pod_template: PodTemplate = Field(
        default_factory=dict,
        description="Partial pod that the agent merges over every pod of an action. "
        "Use it for node selectors, tolerations, pull secrets, volumes or a runtime class.",
    )
    classes: dict[ClassName, ClassSettings] = Field(
        default_factory=dict,
        description="Classes of environments that actions may ask for by name, each with a profile, a pod template, "
        "default and maximum resources, and allowed images. docs/classes.md explains them.",
    )


class ArtifactSettings(Section):
    """Limits on the artifacts of one action."""

    max_files: int = Field(20_000, ge=1, description="Largest number of files of one action.")
    max_file_size: Size = Field(1 << 30, description="Largest size of one file, in bytes.")
    max_total_size: Size = Field(2 << 30, description="Largest size of all files of one action, in bytes.")
    timeout: Duration = Field(
        600.0,
        gt=0,
        description="Longest time to copy the files of one action, retries included. "
        "The wait for a turn (`artifacts.parallel`) does not count. It has the same limit of its own.",
    )
    parallel: int = Field(4, ge=1, description="Number of actions whose files the agent copies at once.")


class LogSettings(Section):
    """Limits on the log of one action, and how the agent follows the log."""

    max_line: Size = Field(
        16 << 20, description="Largest size of one line, in bytes. The agent cuts longer lines and adds a notice."
    )
    max_total: Size = Field(
        256 << 20,
        description="Largest size of an action's log, in bytes. The pod stores the log up to this size and drops the "
        "rest. The agent adds a notice.",
    )
    probe_after: Duration = Field(
        30.0, gt=0, description="Time without output until the agent checks the connection that reads the log."
    )


class HttpSettings(Section):
    """Port for probes, metrics and the status page."""

    host: str = Field("0.0.0.0", description="Address to listen on.")  # noqa: S104 - probes come from the kubelet
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on. 0 selects a free port.")
    status_page: bool = Field(
        False,
        description="Serve the status page at `/`. The page asks for no password. "
        "It shows ids, images, outcomes and messages to every peer that reaches the port.",
    )


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
