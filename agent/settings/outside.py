"""The settings by which clones and commands reach what is outside the cluster. They live as long as the process."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from agent.settings.field_types import Section

# A URL with a password would be readable in every pod.
ProxyUrl = Annotated[str, Field(pattern=r"^(https?://[^\s/@]+/?)?$")]


class ProxySettings(Section):
    """HTTP proxy of clones and commands. An action may set other values in its `env`."""

    http: ProxyUrl = Field(
        "", description="URL of the proxy for `http://`, without a user name. Sets `HTTP_PROXY` and `http_proxy`."
    )
    https: ProxyUrl = Field(
        "", description="URL of the proxy for `https://`, without a user name. Sets `HTTPS_PROXY` and `https_proxy`."
    )
    no_proxy: str = Field(
        "",
        max_length=4096,
        pattern=r"^[^\s]*$",
        description="Hosts, domains and networks that are reached without the proxy, with commas between them. "
        "Sets `NO_PROXY` and `no_proxy`.",
    )

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment variables that programs read, in both spellings. curl reads only `http_proxy`."""
        values = {"http_proxy": self.http, "https_proxy": self.https, "no_proxy": self.no_proxy}
        return {spelling: value for name, value in values.items() if value for spelling in (name.upper(), name)}
