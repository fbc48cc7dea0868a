"""The sections of the settings about the object store and the cache. They live as long as the process."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from agent.settings.field_types import Duration, Section, Size


class ObjectSettings(Section):
    """An object store with the protocol of S3. Pods put artifacts into it and get inputs from it directly."""

    issuer: Literal["none", "agent", "scheduler"] = Field(
        "none",
        description="Which side signs the URLs of objects. With `none`, no object store is used, "
        "and files go through the API server, the agent and the scheduler. With `scheduler`, the agent needs no "
        "credentials, and `ca_file`, the limits and `fallback` are the only other keys that it reads.",
    )
    endpoint: str = Field(
        "",
        pattern=r"^(https?://[A-Za-z0-9._:\[\]-]+/?)?$",
        description="URL of the store, as in `https://s3.eu-central-1.amazonaws.com`. Pods must reach it too.",
    )
    region: str = Field("us-east-1", pattern=r"^[A-Za-z0-9-]+$", description="Region that is part of each signature.")
    bucket: str = Field("", pattern=r"^[A-Za-z0-9._-]*$", description="Bucket for all objects.")
    prefix: str = Field(
        "sealci", pattern=r"^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$", description="Start of the names of all objects."
    )
    path_style: bool = Field(
        False, description="Name the bucket in the path of a URL, not in the host. Most stores of your own need this."
    )
    ca_file: Path | None = Field(None, description="CA of the store's certificate. If unset, the CAs of the system.")
    credentials_file: Path | None = Field(
        None,
        description="File with the section `[default]` and the keys `aws_access_key_id` and `aws_secret_access_key`. "
        "If unset, the agent uses the variables of AWS for a web identity or for a key.",
    )
    max_file_size: Size = Field(50 << 30, description="Largest size of one file in the store, in bytes.")
    max_total_size: Size = Field(
        100 << 30, description="Largest size of all files of one action in the store, in bytes."
    )
    fallback: Literal["scheduler", "none"] = Field(
        "scheduler",
        description="What happens if the store cannot be used. With `scheduler`, the files go through the scheduler, "
        "within the limits of `artifacts`. With `none`, the action fails with `OBJECT_STORE_UNAVAILABLE`.",
    )

    @model_validator(mode="after")
    def complete(self) -> ObjectSettings:
        """Refuse a store without an endpoint or a bucket."""
        if self.issuer == "agent":
            for name in self.missing:
                raise ValueError(f"objects.{name}: must be set, because objects.issuer is {self.issuer}")
        return self

    @property
    def missing(self) -> list[str]:
        """Return the keys that are not set, and that the side that signs URLs needs."""
        return [name for name in ("endpoint", "bucket") if not getattr(self, name)]


class CacheSettings(Section):
    """Caches of actions: paths of the workspace that are kept for later actions. docs/cache.md explains them."""

    store: Literal["none", "objects", "claim"] = Field(
        "none",
        description="Where caches are kept. With `none`, actions run without their caches. "
        "With `objects`, in the object store of the section `objects`. With `claim`, on a volume.",
    )
    claim: str = Field(
        "",
        pattern=r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$",
        description="Name of a PersistentVolumeClaim in the namespace of actions, for `claim`. "
        "Only container `helper` mounts it, in the pods of actions with caches.",
    )
    sign_key_file: Path | None = Field(
        None,
        description="File with at least 32 random characters, by which agents sign the entries of the cache. "
        "All agents that share a cache need the same key. Needed with `objects` and `claim`.",
    )
    max_size: Size = Field(2 << 30, gt=0, description="Largest size of the archive of one cache, in bytes.")
    restore_timeout: Duration = Field(
        120.0, ge=1, description="Longest time to restore all caches of an action. It then runs without the rest."
    )
    save_timeout: Duration = Field(120.0, ge=1, description="Longest time to save all caches of an action.")

    @model_validator(mode="after")
    def signs_entries(self) -> CacheSettings:
        """Refuse a cache whose entries are not signed, and a claim without a name."""
        if self.store != "none" and self.sign_key_file is None:
            raise ValueError(f"caches.sign_key_file: must be set, because caches.store is {self.store}")
        if (self.store == "claim") != bool(self.claim):
            raise ValueError("caches.claim: must be set if caches.store is claim, and only then")
        return self
