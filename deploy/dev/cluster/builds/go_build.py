"""Build the binaries of Kubernetes, etcd, containerd and other projects from their Go modules into the cache.

`products` is the table of all products. Each product has a go.mod of its own, because the products do not build with
common versions of their dependencies. The folder of a product's binaries is named after the recipe, and each build
renames its finished binaries into this folder. Hence every binary in the cache is complete, and an interrupted build is
repeated. A lock makes a second command wait for the first instead of building the same binaries.

Settings that only speed a build up are no part of the recipe, so an existing cache stays valid.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy.dev.cluster.console import CommandFailed, report, run, run_logged, step
from deploy.dev.cluster.locks import lock
from deploy.dev.cluster.settings import Settings

# The language version in a generated go.mod. With language version 1.17 or newer, go reads only the part of the module
# graph that a build needs.
PRUNED_GRAPHS = "1.21"
# The linker drops debugging information because of `-s -w`. Compilers that write no debugging information use 12 % less
# CPU time.
COMPILER_FLAGS = "all=-dwarf=false"
# The part of this machine's memory that all compilers of one build may use together before they collect garbage.
MEMORY_PART = 0.5
# The plugins of CoreDNS that the Corefiles of `local` and of kubeadm name. CoreDNS has 50 other plugins. They contain
# the API clients of three cloud providers, and would make the build three times as long.
COREDNS_PLUGINS = (
    "cache", "errors", "forward", "health", "kubernetes", "loadbalance", "log", "loop", "metrics", "ready", "reload",
)  # fmt: skip
COREDNS_MAIN = "\n".join((
    "package main",
    "",
    "import (",
    *(f'\t_ "github.com/coredns/coredns/plugin/{name}"' for name in COREDNS_PLUGINS),
    "",
    '\t"github.com/coredns/coredns/coremain"',
    ")",
    "",
    "func main() { coremain.Run() }",
    "",
))  # fmt: skip


@dataclass(frozen=True)
class Product:
    """The recipe of one Go module. `binaries` maps the name of a binary to the path of its main package in the module.

    `staging` marks a module whose go.mod replaces modules by folders of its own repository. `main` is the source of a
    main package. If it is set, it is built instead of the module's own main package.
    """

    module: str
    version: str
    binaries: dict[str, str]
    ldflags: str = ""
    tags: str = ""
    cgo: bool = False
    staging: bool = False
    main: str = ""

    @property
    def key(self) -> str:
        """Return the product's version and a hash of its recipe, as the end of the name of the product's folder."""
        recipe = json.dumps([self.module, self.version, self.ldflags, self.tags, self.cgo, *filter(None, [self.main])])
        digest = hashlib.sha256(recipe.encode()).hexdigest()[:12]
        return f"{self.version}-{digest}"

    def package(self, name: str) -> str:
        """Return the package from which go builds one binary."""
        return "." if self.main else "/".join(filter(None, (self.module, self.binaries[name])))


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
        "coredns": Product("github.com/coredns/coredns", "v1.12.4", {"coredns": ""}, main=COREDNS_MAIN),
        "helm": Product("helm.sh/helm/v4", "v4.3.1", {"helm": "cmd/helm"}),
        "kind": Product("sigs.k8s.io/kind", "v0.33.0", {"kind": ""}),
        "kwok": Product("sigs.k8s.io/kwok", "v0.8.0", {"kwok": "cmd/kwok"}),
        "versitygw": Product("github.com/versity/versitygw", "v1.8.0", {"versitygw": "cmd/versitygw"}),
    }


NODE = ("kubernetes", "etcd", "containerd", "runc", "coredns")
KIND_NODE = (*NODE, "kubeadm", "kind")
# Seconds that each product takes on 2 cores with cold caches. The times are only shown to the user.
COLD_SECONDS = {
    "kubernetes": 283, "etcd": 18, "containerd": 43, "runc": 8, "coredns": 30, "helm": 68, "kind": 4, "kubeadm": 353,
    "kwok": 80, "versitygw": 52,
}  # fmt: skip


def folder(settings: Settings, product: str) -> Path:
    """Return the path of the folder for a product's binaries. The folder need not exist yet."""
    return settings.cache / "bin" / f"{product}-{products(settings.kubernetes)[product].key}"


def binary(settings: Settings, name: str) -> Path:
    """Return the path of the binary `name`. The binary need not exist yet."""
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
        # `missing` is called a second time here. While this command waited for the lock, another command has perhaps
        # built some of the binaries.
        todo = missing(settings, product_names)
        names = list(dict.fromkeys(product for product, _ in todo))
        seconds = sum(COLD_SECONDS[name] for name in names)
        report(f"Building {', '.join(names)} (about {seconds} s on 2 cores with cold caches, only once).")
        for product in names:
            build_product(settings, product, [binary for name, binary in todo if name == product])


def build_product(settings: Settings, product: str, binaries: list[str]) -> None:
    """Build binaries of one product with one `go build`, and rename them into the cache.

    One command for all binaries keeps two cores busy, because go links one binary while it compiles the next.
    """
    recipe = products(settings.kubernetes)[product]
    source = settings.cache / "src" / f"{product}-{recipe.key}"
    target = folder(settings, product)
    partial = target / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    write_module(recipe, source)
    # With several packages, go names each binary after the folder of its package.
    output = partial / binaries[0] if len(binaries) == 1 else f"{partial}/"
    flags = ["-trimpath", "-gcflags", COMPILER_FLAGS, "-ldflags", f"-s -w {recipe.ldflags}".strip()]
    command: list[str | Path] = [
        "go",
        "build",
        *flags,
        "-tags",
        recipe.tags,
        "-o",
        output,
        *map(recipe.package, binaries),
    ]
    log = settings.cache / "log" / f"{product}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with step(f"go build {product} {recipe.version}"):
        run_logged(command, log, f"go build {product}", cwd=source, env=go_environment(recipe))
    for name in binaries:
        (partial / name).chmod(0o755)
        (partial / name).replace(target / name)
    partial.rmdir()


def write_module(recipe: Product, source: Path) -> None:
    """Write a go.mod that requires this one product. If the recipe has a source `main`, also write it to main.go.

    Kubernetes' own go.mod replaces its staging modules by folders of its repository. Go ignores `replace` in a required
    module, so the new go.mod replaces them by their published versions (v0.X.Y for Kubernetes v1.X.Y).
    """
    if (source / "go.mod").exists():
        return
    source.mkdir(parents=True, exist_ok=True)
    if recipe.main:
        (source / "main.go").write_text(recipe.main, "utf-8")
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
    """Download a product's module into go's cache. Return go's JSON output, in which `GoMod` and `Dir` are paths."""
    command = ["go", "mod", "download", "-json", f"{recipe.module}@{recipe.version}"]
    return dict(json.loads(run(command, cwd=source, env=go_environment(recipe), seconds=600)))


def module_folder(settings: Settings, product: str) -> Path:
    """Return the read-only folder of a product's sources in go's cache."""
    recipe = products(settings.kubernetes)[product]
    source = settings.cache / "src" / f"{product}-{recipe.key}"
    write_module(recipe, source)
    return Path(download_module(recipe, source)["Dir"])


def go_environment(recipe: Product) -> dict[str, str]:
    """Return this process' environment variables, with the variables that a build with a generated go.mod needs.

    A compiler usually ends before it is worth collecting its garbage. So it collects garbage only near its limit of
    memory.
    """
    processors = os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return os.environ | {
        "GOFLAGS": "-mod=mod -buildvcs=false",
        "GOWORK": "off",
        "CGO_ENABLED": "1" if recipe.cgo else "0",
        "GOGC": "off",
        "GOMEMLIMIT": f"{int(memory * MEMORY_PART / processors / 2**20)}MiB",
    }
