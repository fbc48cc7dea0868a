"""Build the binaries of Kubernetes, etcd, containerd and other projects from their Go modules into the cache.

A product is one Go module and the binaries that are built from it. The function `products` returns the recipes of all
products. Each product has a go.mod of its own, because no single set of versions of the dependencies fits all products.
The folder of a product's binaries is named after the recipe, and each build renames its finished binary into this
folder. Hence every binary in the cache is complete, and an interrupted build is repeated. If two commands build at the
same time, a lock makes the second command wait for the first.
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

# The language version in a generated go.mod. With language version 1.17 or newer, go reads only the part of the module
# graph that a build needs.
PRUNED_GRAPHS = "1.21"


@dataclass(frozen=True)
class Product:
    """The recipe of one Go module. `binaries` maps the name of a binary to the path of its main package in the module.

    `staging` marks a module whose go.mod replaces modules by folders of its own repository.
    """

    module: str
    version: str
    binaries: dict[str, str]
    ldflags: str = ""
    tags: str = ""
    cgo: bool = False
    staging: bool = False

    @property
    def key(self) -> str:
        """Return the product's version and a hash of its recipe, as the end of the name of the product's folder."""
        recipe = json.dumps([self.module, self.version, self.ldflags, self.tags, self.cgo])
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
        return f"{self.version}-{digest}"


def products(kubernetes: str) -> dict[str, Product]:
    """Return the recipe of every product by its name. `kubernetes` is a version like 1.37.2."""
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
# Seconds that each binary takes on 2 cores with cold caches. The times are only shown to the user.
COLD_SECONDS = {
    "kube-apiserver": 185, "kube-controller-manager": 56, "kube-scheduler": 6, "kubelet": 15, "kube-proxy": 7,
    "kubectl": 14, "etcd": 18, "containerd": 39, "containerd-shim-runc-v2": 1, "ctr": 3, "runc": 8, "coredns": 87,
    "helm": 68, "kind": 4, "kubeadm": 353, "kwok": 80,
}  # fmt: skip


def folder(settings: Settings, product: str) -> Path:
    """Return the path of the folder for a product's binaries. The folder may not exist yet."""
    return settings.cache / "bin" / f"{product}-{products(settings.kubernetes)[product].key}"


def binary(settings: Settings, name: str) -> Path:
    """Return the path of the binary `name`. The binary may not exist yet."""
    for product, recipe in products(settings.kubernetes).items():
        if name in recipe.binaries:
            return folder(settings, product) / name
    raise CommandFailed(f"the table of products has no binary {name}")


def missing(settings: Settings, product_names: Iterable[str]) -> list[tuple[str, str]]:
    """Return (product, binary) for every binary of these products that the cache lacks."""
    table = products(settings.kubernetes)
    return [(p, b) for p in product_names for b in table[p].binaries if not (folder(settings, p) / b).exists()]


def build(settings: Settings, product_names: Iterable[str] = NODE) -> None:
    """Build the binaries of these products that the cache lacks. First report their number and the expected time."""
    product_names = tuple(product_names)
    unknown = set(product_names) - set(products(settings.kubernetes))
    if unknown:
        raise CommandFailed(f"the table of products has no {', '.join(sorted(unknown))}")
    if not missing(settings, product_names):
        return
    if shutil.which("go") is None:
        raise CommandFailed("go is not installed. It is needed once, to build the cluster's binaries.")
    with lock(settings.cache / "build.lock", "another build"):
        # `missing` is called a second time here. Another command may have built some of the binaries while this command
        # waited for the lock.
        todo = missing(settings, product_names)
        seconds = sum(COLD_SECONDS.get(name, 60) for _, name in todo)
        report(f"Building {len(todo)} binaries (about {seconds} s on 2 cores with cold caches, only once).")
        for product, name in todo:
            build_binary(settings, product, name)


def build_binary(settings: Settings, product: str, name: str) -> None:
    """Run `go build` for one binary of a product, and rename the result into the cache."""
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
    description = f"go build {name} {recipe.version}"
    report(f"  {description} (about {COLD_SECONDS.get(name, 60)} s cold) ...")
    began = time.monotonic()
    run_logged(["go", "build", *flags, package], log, description, cwd=source, env=go_environment(recipe))
    partial.chmod(0o755)
    partial.replace(target)
    report(f"  {description}: {time.monotonic() - began:.1f} s")


def write_module(recipe: Product, source: Path) -> None:
    """Write a go.mod that requires only the module of this product, if the folder `source` has no go.mod yet.

    Kubernetes' own go.mod replaces its staging modules by folders of its repository. Go ignores `replace` in a required
    module, so the new go.mod replaces them by their published versions (v0.X.Y for Kubernetes v1.X.Y).
    """
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
        go_mod = Path(download_module(recipe, source)["GoMod"]).read_text("utf-8")
        published = recipe.version.replace("v1.", "v0.", 1)
        names = re.findall(r"^\s*(?:replace\s+)?(k8s\.io/\S+)\s+=>\s+\./staging/", go_mod, re.MULTILINE)
        # In newer versions of Kubernetes, go.mod does not replace the staging modules. It requires them as v0.0.0, and
        # go.work declares their folders.
        names = names or re.findall(r"^\s*(k8s\.io/\S+)\s+v0\.0\.0(?:\s|$)", go_mod, re.MULTILINE)
        lines += [f"replace {name} => {name} {published}" for name in names]
    partial.write_text("\n".join(lines) + "\n", "utf-8")
    partial.replace(source / "go.mod")


def download_module(recipe: Product, source: Path) -> dict[str, str]:
    """Download a product's module into go's cache. Return go's answer, in which `GoMod` and `Dir` are paths."""
    command = ["go", "mod", "download", "-json", f"{recipe.module}@{recipe.version}"]
    return dict(json.loads(run(command, cwd=source, env=go_environment(recipe), seconds=600)))


def module_folder(settings: Settings, product: str) -> Path:
    """Return the read-only folder of a product's sources in go's cache."""
    recipe = products(settings.kubernetes)[product]
    source = settings.cache / "src" / f"{product}-{recipe.key}"
    write_module(recipe, source)
    return Path(download_module(recipe, source)["Dir"])


def go_environment(recipe: Product) -> dict[str, str]:
    """Return this process' environment variables, with the variables that go needs for a generated go.mod."""
    return os.environ | {
        "GOFLAGS": "-mod=mod -buildvcs=false",
        "GOWORK": "off",
        "CGO_ENABLED": "1" if recipe.cgo else "0",
    }
