"""The node image of kind without an image registry: from Debian's packages, kind's own files and the built binaries.

Follows kind's `images/base` and `kind build node-image` step by step. The result is a read-only store of podman's that
holds one image, in a folder named by everything it is made from; it appears by a rename, so what an interrupted build
left is thrown away. The slow steps before it (binaries, debootstrap) are cached by themselves. About 40 s beyond those.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from deploy.dev.cluster import locks
from deploy.dev.cluster.builds import debian, go_build, images
from deploy.dev.cluster.console import run, step
from deploy.dev.cluster.engines import podman
from deploy.dev.cluster.settings import Settings
from deploy.dev.cluster.waiting import until

KEPT = 2  # stores of one version: another clone's cluster may still stand on the one before
KUBERNETES = ("kubeadm", "kubelet", "kubectl")
CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")
CNI_PLUGINS = ("host-local", "loopback", "ptp", "portmap")
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "coredns")
# systemd's units that make no sense in a container, as kind's Dockerfile removes them.
WANTS = (
    "etc/systemd/system/*.wants/*",
    "lib/systemd/system/basic.target.wants/*",
    "lib/systemd/system/local-fs.target.wants/*",
    "lib/systemd/system/multi-user.target.wants/*",
    "lib/systemd/system/sockets.target.wants/*initctl*",
    "lib/systemd/system/sockets.target.wants/*udev*",
    "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
)
# What kube-proxy calls, beside the libraries of these.
PROXY_PROGRAMS = ("usr/sbin/nft", "usr/sbin/xtables-nft-multi")
PROXY_NAMES = tuple(f"ip{v}tables{suffix}" for v in ("", "6") for suffix in ("", "-save", "-restore"))
# Without CAP_SYS_RESOURCE no score can be lowered. With systemd's cgroups on cgroup v1 a container is frozen while it
# is made, which fails on a busy machine ("unable to freeze").
CONTAINERD_CHANGES = {
    "restrict_oom_score_adj = false": "restrict_oom_score_adj = true",
    "SystemdCgroup = true": "SystemdCgroup = false",
}
CHANGES = ('ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]', "STOPSIGNAL SIGRTMIN+3", "ENV container=docker")
NO_PLUGINS = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
STORAGE_CLASS = """apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations:
    storageclass.kubernetes.io/is-default-class: "true"
provisioner: kubernetes.io/host-path
"""


def name(settings: Settings) -> str:
    """The image's name in its store."""
    return f"localhost/sealci-kind-node:v{settings.kubernetes}"


def store(settings: Settings) -> Path:
    """Where the store lies once made: named by the version and by all that it is made from."""
    table = go_build.products(settings.kubernetes)
    recipe = [table[product].key for product in go_build.KIND_NODE] + [debian.ROOT_VERSION, *debian.KIND_ROOT_PACKAGES]
    digest = hashlib.sha256(json.dumps(recipe).encode() + Path(__file__).read_bytes()).hexdigest()[:12]
    return settings.cache / "kind" / f"node-{settings.kubernetes}-{digest}"


def ensure(settings: Settings) -> Path:
    """The store with the node image, made when it is not there. The binaries must be."""
    made = store(settings)
    if made.exists():
        return made
    archive = debian.kind_root_archive(settings)
    podman.prefix(settings)
    with locks.lock(settings.cache / "kind.lock", "another build of the node image"):
        if not made.exists():
            with step(f"node image of kind for Kubernetes v{settings.kubernetes} (about 40 s, once)"):
                work = settings.cache / "kind" / "work"
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
                make(settings, archive, work)
                (work / "store").replace(made)
                shutil.rmtree(work)
                for older in sorted(made.parent.glob(f"node-{settings.kubernetes}-*"), key=age)[KEPT:]:
                    shutil.rmtree(older)
    return made


def age(path: Path) -> float:
    """Sorts the newest first."""
    return -path.stat().st_mtime


def make(settings: Settings, archive: Path, work: Path) -> None:
    """Makes WORK/store."""
    root = work / "root"
    root.mkdir()
    with step("Debian, systemd and kind's files"):
        run(["tar", "--numeric-owner", "-C", root, "-xf", archive], seconds=300)
        kind_files(go_build.module_folder(settings, "kind") / "images" / "base" / "files", root)
        trim_systemd(root)
    with step("binaries"):
        binaries(settings, root)
    with step("images of the control plane"):
        preload(settings, root, work)
    with step("podman's store"):
        pack(settings, root, work)


def kind_files(files: Path, root: Path) -> None:
    """Copies kind's files with the modes that its Dockerfile gives them, and makes the few that it writes."""
    for source in sorted(path for path in files.rglob("*") if path.is_file()):
        place = source.relative_to(files)
        target = root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        target.chmod(0o755 if place.parent.name == "bin" else 0o644)
    config = root / "etc" / "containerd" / "config.toml"
    text = config.read_text("utf-8")
    for before, after in CONTAINERD_CHANGES.items():
        text = text.replace(before, after)
    config.write_text(text, "utf-8")
    manifests = root / "kind" / "manifests"
    manifests.mkdir()
    (manifests / "default-storage.yaml").write_text(STORAGE_CLASS, "utf-8")
    (root / "etc" / "kubernetes" / "manifests").mkdir(parents=True)


def trim_systemd(root: Path) -> None:
    """Leaves systemd the units of a node, and makes it the first process."""
    for pattern in WANTS:
        for unit in root.glob(pattern):
            unit.unlink()
    with (root / "etc" / "systemd" / "journald.conf").open("a", encoding="utf-8") as journald:
        journald.write("ReadKMsg=no\n")
    init = root / "usr" / "sbin" / "init"
    if not init.is_symlink():
        init.symlink_to("/usr/lib/systemd/systemd")
    for verb in (["enable", "kubelet", "containerd", "undo-mount-hacks"], ["mask", "systemd-binfmt"]):
        run(["chroot", root, "systemctl", *verb], seconds=60)


def binaries(settings: Settings, root: Path) -> None:
    """Puts the programs where kind looks for them."""
    places = dict.fromkeys(KUBERNETES, "usr/bin") | dict.fromkeys(CONTAINERD, "usr/local/bin")
    for program, place in (places | {"runc": "usr/local/sbin"}).items():
        (root / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(go_build.binary(settings, program), root / place / program)
    plugins = root / "opt" / "cni" / "bin"
    plugins.mkdir(parents=True)
    for plugin in CNI_PLUGINS:
        shutil.copy(root / "usr" / "lib" / "cni" / plugin, plugins / plugin)
    spec = json.loads(run([go_build.binary(settings, "ctr"), "oci", "spec"]))
    hook = {"path": "/kind/bin/mount-product-files.sh"}
    spec.setdefault("hooks", {}).setdefault("createContainer", []).append(hook)
    spec["process"].pop("rlimits", None)
    (root / "etc" / "containerd" / "cri-base.json").write_text(json.dumps(spec), "utf-8")
    (root / "kind" / "version").write_text(f"v{settings.kubernetes}", "utf-8")


def preload(settings: Settings, root: Path, work: Path) -> None:
    """Imports the images that kubeadm names into the node's containerd, unpacked, by a containerd of this machine."""
    kubeadm = go_build.binary(settings, "kubeadm")
    listed = run([kubeadm, "config", "images", "list", f"--kubernetes-version=v{settings.kubernetes}"]).split()
    wanted = {program_of(image): image for image in listed}
    config = (root / "etc" / "containerd" / "config.toml").read_text("utf-8")
    wanted["pause"] = re.findall(r'sandbox_image = "(.+)"', config)[0]
    with containerd(settings, root, work) as ctr:
        for program, image in wanted.items():
            archive = work / f"{program}.tar"
            images.write_archive(archive, image, layer(settings, root, program), entrypoint(program))
            run([*ctr, "images", "import", "--local", "--discard-unpacked-layers",
                 "--label=io.cri-containerd.pinned=pinned", archive], seconds=120)  # fmt: skip
            archive.unlink()


def program_of(image: str) -> str:
    """The program that an image of the control plane runs: the last word of its name."""
    return image.rsplit(":", 1)[0].rsplit("/", 1)[-1]


def entrypoint(program: str) -> list[str]:
    """What an image runs by itself; the manifests of the control plane name their commands."""
    return {"pause": ["/pause", "-P"], "coredns": ["/coredns"]}.get(program, [f"/usr/local/bin/{program}"])


def layer(settings: Settings, root: Path, program: str) -> dict[str, Path | str]:
    """The files of an image by their place in it; a text is the target of a link."""
    if program == "pause":
        return {"pause": Path(shutil.which("catatonit") or "/usr/bin/catatonit")}
    place = entrypoint(program)[0].lstrip("/")
    files: dict[str, Path | str] = {place: go_build.binary(settings, program)}
    return files | proxy_files(root) if program == "kube-proxy" else files


def proxy_files(root: Path) -> dict[str, Path | str]:
    """nft, iptables and their libraries, out of the node's own root."""
    found = run(["chroot", root, "ldd", *(f"/{program}" for program in PROXY_PROGRAMS)])
    # A library's path is a chain of links, each of which stands in the image as a file.
    libraries = {path.lstrip("/") for path in re.findall(r"(/\S+) \(0x", found)}
    plugins = {str(path.relative_to(root)) for path in root.glob("usr/lib/*/xtables/*.so")}
    files: dict[str, Path | str] = {each: (root / each).resolve() for each in (*PROXY_PROGRAMS, *libraries, *plugins)}
    return files | {f"usr/sbin/{each}": "xtables-nft-multi" for each in PROXY_NAMES}


@contextlib.contextmanager
def containerd(settings: Settings, root: Path, work: Path) -> Iterator[list[str | Path]]:
    """Runs a containerd over the node's own store; yields the beginning of ctr's command line. Ends with its parent."""
    socket, state, log = work / "c.sock", work / "state", work / "containerd.log"
    config = work / "containerd.toml"
    config.write_text(f"version = 3\ndisabled_plugins = {json.dumps(NO_PLUGINS)}\n", "utf-8")
    command = ["setpriv", "--pdeathsig=KILL", go_build.binary(settings, "containerd"), "--config", config,
               "--root", root / "var" / "lib" / "containerd", "--state", state, "--address", socket]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
    try:
        until(socket.exists, f"containerd, whose log is {log}")
        yield [go_build.binary(settings, "ctr"), "--address", socket, "--namespace", "k8s.io"]
    finally:
        process.terminate()
        process.wait(20)


def pack(settings: Settings, root: Path, work: Path) -> None:
    """Makes WORK/store, with one image of the root: the entrypoint and the signal are those of kind's."""
    tar = work / "root.tar"
    run(["tar", "--numeric-owner", "--xattrs", "-C", root, "-cf", tar, "."], seconds=300)
    shutil.rmtree(root)
    podman.configure(settings, work, work / "store")
    changes = [f"--change={change}" for change in CHANGES]
    # A mount namespace of its own, because podman keeps its state in these places.
    private = 'mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && exec "$@"'
    run(["unshare", "--mount", "sh", "-c", private, "sh", "podman", "import", "--quiet", *changes, tar, name(settings)],
        env=podman.variables(settings, work), seconds=300)  # fmt: skip
    tar.unlink()
