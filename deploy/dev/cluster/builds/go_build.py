"""Binaries of Kubernetes and its neighbours, built from their Go modules into the cache.

One table entry per product, one go.mod per product (a common one does not build). A binary lies below a folder
named by its recipe and appears there by a rename, so a build that was interrupted is simply done again, and what
is there is whole. Builds take a lock: a second command waits for the first instead of building the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed, report, run, run_logged
from deploy.dev.cluster.locks import lock
from deploy.dev.cluster.settings import Settings

# From this language version on, go reads only the part of the module graph that a build needs.
PRUNED_GRAPHS = "1.21"


@dataclass(frozen=True)
class Product:
    """A Go module and the main packages in it: `binaries` maps a binary's name to its package's path below it."""

    module: str
    version: str
    binaries: dict[str, str]
    ldflags: str = ""
    tags: str = ""
    cgo: bool = False
    staging: bool = False

    @property
    def key(self) -> str:
        """What tells this recipe from another version of itself: the end of a folder's name."""
        recipe = json.dumps([self.module, self.version, self.ldflags, self.tags, self.cgo])
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
        return f"{self.version}-{digest}"


def products(kubernetes: str) -> dict[str, Product]:
    """Everything that can be built, by product. `kubernetes` is a version like 1.37.2."""
    stamp = "k8s.io/component-base/version"
    major, minor, _ = kubernetes.split(".")
    version = (
        f"-X {stamp}.gitVersion=v{kubernetes} -X {stamp}.gitMajor={major} -X {stamp}.gitMinor={minor}"
        f" -X {stamp}.gitTreeState=clean"
    )
    components = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl")
    return {
        "kubernetes": Product(
            "k8s.io/kubernetes", f"v{kubernetes}", {n: f"cmd/{n}" for n in components}, version, staging=True
        ),
        "kubeadm": Product("k8s.io/kubernetes", f"v{kubernetes}", {"kubeadm": "cmd/kubeadm"}, version, staging=True),
        "etcd": Product("go.etcd.io/etcd/server/v3", "v3.7.3", {"etcd": ""}),
        "containerd": Product(
            "github.com/containerd/containerd/v2",
            "v2.4.2",
            {n: f"cmd/{n}" for n in ("containerd", "containerd-shim-runc-v2", "ctr")},
            "-X github.com/containerd/containerd/v2/version.Version=v2.4.2",
            tags="no_btrfs,no_devmapper,no_zfs",
        ),
        "runc": Product("github.com/opencontainers/runc", "v1.5.2", {"runc": ""}, tags="seccomp", cgo=True),
        "coredns": Product("github.com/coredns/coredns", "v1.12.4", {"coredns": ""}),
        "helm": Product("helm.sh/helm/v4", "v4.3.1", {"helm": "cmd/helm"}),
        "kind": Product("sigs.k8s.io/kind", "v0.33.0", {"kind": ""}),
        "kwok": Product("sigs.k8s.io/kwok", "v0.8.0", {"kwok": "cmd/kwok"}),
    }


NODE = ("kubernetes", "etcd", "containerd", "runc", "coredns")
KIND_NODE = (*NODE, "kubeadm", "kind")
COLD_SECONDS = {
    "kube-apiserver": 185, "kube-controller-manager": 56, "kube-scheduler": 6, "kubelet": 15, "kube-proxy": 7,
    "kubectl": 14, "etcd": 18, "containerd": 39, "containerd-shim-runc-v2": 1, "ctr": 3, "runc": 8, "coredns": 87,
    "helm": 68, "kind": 4, "kubeadm": 353, "kwok": 80,
}  # fmt: skip


def folder(settings: Settings, product: str) -> Path:
    """Where the binaries of a product lie, once built."""
    return settings.cache / "bin" / f"{product}-{products(settings.kubernetes)[product].key}"


def binary(settings: Settings, name: str) -> Path:
    """The path of one binary by its name. It need not be there yet."""
    for product, recipe in products(settings.kubernetes).items():
        if name in recipe.binaries:
            return folder(settings, product) / name
    raise CommandFailed(f"there is no binary {name} in the table of builds")


def missing(settings: Settings, wanted: Iterable[str]) -> list[tuple[str, str]]:
    """(product, binary) for everything of the wanted products that is not in the cache."""
    table = products(settings.kubernetes)
    return [(p, b) for p in wanted for b in table[p].binaries if not (folder(settings, p) / b).exists()]


def build(settings: Settings, wanted: Iterable[str] = NODE) -> None:
    """Builds what is missing of the wanted products; says first what that is and how long it may take."""
    wanted = tuple(wanted)
    unknown = set(wanted) - set(products(settings.kubernetes))
    if unknown:
        raise CommandFailed(f"there is no product {', '.join(sorted(unknown))} in the table of builds")
    if not missing(settings, wanted):
        return
    if shutil.which("go") is None:
        raise CommandFailed("go is not installed, and is needed to build the cluster's binaries once")
    with lock(settings.cache / "build.lock", "another build"):
        todo = missing(settings, wanted)
        seconds = sum(COLD_SECONDS.get(name, 60) for _, name in todo)
        report(f"Building {len(todo)} binaries (about {seconds} s on 2 cores with cold caches, once).")
        for product, name in todo:
            build_binary(settings, product, name)


def build_binary(settings: Settings, product: str, name: str) -> None:
    """One `go build`, whose result appears in the cache by a rename."""
    recipe = products(settings.kubernetes)[product]
    source = settings.cache / "src" / f"{product}-{recipe.key}"
    target = folder(settings, product) / name
    target.parent.mkdir(parents=True, exist_ok=True)
    write_module(recipe, source)
    partial = target.with_name(f".{name}.partial")
    ldflags = f"-s -w {recipe.ldflags}".strip()
    flags = ["-trimpath", "-ldflags", ldflags, "-tags", recipe.tags, "-o", str(partial)]
    package = "/".join(filter(None, (recipe.module, recipe.binaries[name])))
    log = settings.cache / "log" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    what = f"go build {name} {recipe.version}"
    report(f"  {what} (about {COLD_SECONDS.get(name, 60)} s cold) ...")
    began = time.monotonic()
    run_logged(["go", "build", *flags, package], log, what, cwd=source, env=go_environment(recipe))
    partial.chmod(0o755)
    partial.replace(target)
    report(f"  {what}: {time.monotonic() - began:.1f} s")


def write_module(recipe: Product, source: Path) -> None:
    """A go.mod that requires this one product; Kubernetes' staging modules are replaced by the published ones."""
    if (source / "go.mod").exists():
        return
    source.mkdir(parents=True, exist_ok=True)
    partial = source / "go.mod.partial"
    lines = [
        "module sealci.local/build",
        "",
        f"go {PRUNED_GRAPHS}",
        "",
        f"require {recipe.module} {recipe.version}",
        "",
    ]
    if recipe.staging:
        go_mod = Path(downloaded(recipe, source)["GoMod"]).read_text("utf-8")
        published = recipe.version.replace("v1.", "v0.", 1)
        names = re.findall(r"^\s*(?:replace\s+)?(k8s\.io/\S+)\s+=>\s+\./staging/", go_mod, re.MULTILINE)
        names = names or re.findall(r"^\s*(k8s\.io/\S+)\s+v0\.0\.0(?:\s|$)", go_mod, re.MULTILINE)
        lines += [f"replace {name} => {name} {published}" for name in names]
    partial.write_text("\n".join(lines) + "\n", "utf-8")
    partial.replace(source / "go.mod")


def downloaded(recipe: Product, source: Path) -> dict[str, str]:
    """What go says about a product's module, once it is in go's cache: `GoMod` and `Dir` are paths."""
    command = ["go", "mod", "download", "-json", f"{recipe.module}@{recipe.version}"]
    return dict(json.loads(run(command, cwd=source, env=go_environment(recipe), seconds=600)))


def module_folder(settings: Settings, product: str) -> Path:
    """The sources of a product that was built, read-only in go's cache."""
    recipe = products(settings.kubernetes)[product]
    source = settings.cache / "src" / f"{product}-{recipe.key}"
    write_module(recipe, source)
    return Path(downloaded(recipe, source)["Dir"])


def go_environment(recipe: Product) -> dict[str, str]:
    """The machine's environment and caches, with the flags that our own go.mod needs."""
    return os.environ | {
        "GOFLAGS": "-mod=mod -buildvcs=false",
        "GOWORK": "off",
        "CGO_ENABLED": "1" if recipe.cgo else "0",
    }
