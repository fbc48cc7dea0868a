"""Build kind's node image without a registry, from Debian packages, kind's own files and the built binaries.

The steps follow kind's `images/base` and `kind build node-image`. The result is a read-only podman store that holds one
image. The name of the store's folder contains a hash of all inputs. The build renames the finished folder to this name,
so an interrupted build leaves no folder of this name. A build takes about 40 s. The binaries and Debian's root file
system, whose builds take longer, have folders of their own in the cache.
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
from deploy.dev.cluster.builds import debian, go_build
from deploy.dev.cluster.builds.docker_archive import write_archive
from deploy.dev.cluster.console import run, step
from deploy.dev.cluster.engines import podman
from deploy.dev.cluster.settings import Settings
from deploy.dev.cluster.waiting import wait_until

# Number of stores that are kept for one version of Kubernetes. A cluster of another clone can still use an older store.
KEEP_STORES = 2
KUBERNETES = ("kubeadm", "kubelet", "kubectl")
CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")
CNI_PLUGINS = ("host-local", "loopback", "ptp", "portmap")
CONTROL_PLANE = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd", "coredns")
# Units of systemd that cannot work in a container and are therefore removed from the image. kind's Dockerfile removes
# the same units.
REMOVED_UNITS = (
    "etc/systemd/system/*.wants/*",
    "lib/systemd/system/basic.target.wants/*",
    "lib/systemd/system/local-fs.target.wants/*",
    "lib/systemd/system/multi-user.target.wants/*",
    "lib/systemd/system/sockets.target.wants/*initctl*",
    "lib/systemd/system/sockets.target.wants/*udev*",
    "lib/systemd/system/sysinit.target.wants/systemd-tmpfiles-setup.service",
)
# The programs that kube-proxy runs. The image of kube-proxy gets these programs and their libraries.
PROXY_PROGRAMS = ("usr/sbin/nft", "usr/sbin/xtables-nft-multi")
PROXY_NAMES = tuple(f"ip{v}tables{suffix}" for v in ("", "6") for suffix in ("", "-save", "-restore"))
# Replacements in containerd's configuration. Without CAP_SYS_RESOURCE the kernel refuses a lower OOM score. With
# systemd's cgroups on cgroup v1, runc freezes a container while it creates the container, and this fails on a busy
# machine ("unable to freeze").
CONTAINERD_CHANGES = {
    "restrict_oom_score_adj = false": "restrict_oom_score_adj = true",
    "SystemdCgroup = true": "SystemdCgroup = false",
}
# Changes that `podman import` makes to the metadata of the node image. kind's own image has the same entrypoint and
# stop signal.
IMAGE_CHANGES = (
    'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]',
    "STOPSIGNAL SIGRTMIN+3",
    "ENV container=docker",
)
DISABLED_PLUGINS = ["io.containerd.grpc.v1.cri", "io.containerd.nri.v1.nri"]
STORAGE_CLASS = """apiVersion: storage.k8s.io/v1
kind: StorageClass
metadata:
  name: standard
  annotations:
    storageclass.kubernetes.io/is-default-class: "true"
provisioner: kubernetes.io/host-path
"""


def name(settings: Settings) -> str:
    """Return the name of the node image in its podman store."""
    return f"localhost/sealci-kind-node:v{settings.kubernetes}"


def store(settings: Settings) -> Path:
    """Return the path of the podman store. The name of its folder contains the version and a hash of all inputs.

    This Python file is one of the inputs, because it contains the steps of the build.
    """
    table = go_build.products(settings.kubernetes)
    recipe = [table[product].key for product in go_build.KIND_NODE] + [debian.ROOT_VERSION, *debian.KIND_ROOT_PACKAGES]
    digest = hashlib.sha256(json.dumps(recipe).encode() + Path(__file__).read_bytes()).hexdigest()[:12]
    return settings.cache / "kind" / f"node-{settings.kubernetes}-{digest}"


def build_if_missing(settings: Settings) -> Path:
    """Return the path of the podman store with the node image. Build the store if it does not exist.

    The binaries must be built already.
    """
    target = store(settings)
    if target.exists():
        return target
    archive = debian.kind_root_archive(settings)
    podman.unpack(settings)
    with locks.lock(settings.cache / "kind.lock", "another build of the node image"):
        if not target.exists():
            with step(f"node image of kind for Kubernetes v{settings.kubernetes} (about 40 s, only once)"):
                work = settings.cache / "kind" / "work"
                shutil.rmtree(work, ignore_errors=True)
                work.mkdir(parents=True)
                build(settings, archive, work)
                (work / "store").replace(target)
                shutil.rmtree(work)
                remove_old_stores(target.parent, settings.kubernetes)
    return target


def remove_old_stores(folder: Path, version: str) -> None:
    """Remove all podman stores for one version of Kubernetes, except the newest ones."""
    stores = sorted(folder.glob(f"node-{version}-*"), key=lambda path: path.stat().st_mtime)
    for store in stores[:-KEEP_STORES]:
        shutil.rmtree(store)


def build(settings: Settings, archive: Path, work: Path) -> None:
    """Build the podman store with the node image in the folder `store` below `work`.

    `archive` is the tar of Debian's root file system.
    """
    root = work / "root"
    root.mkdir()
    with step("Debian, systemd and kind's files"):
        run(["tar", "--numeric-owner", "-C", root, "-xf", archive], seconds=300)
        copy_kind_files(go_build.module_folder(settings, "kind") / "images" / "base" / "files", root)
        trim_systemd(root)
    with step("binaries"):
        install_binaries(settings, root)
    with step("images of the control plane"):
        import_images(settings, root, work)
    with step("podman's store"):
        import_into_store(settings, root, work)


def copy_kind_files(files: Path, root: Path) -> None:
    """Copy kind's files to the root file system `root`, with the modes of kind's Dockerfile.

    Also write the files that kind's Dockerfile writes.
    """
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
    """Remove the systemd units that cannot work in a container, and make systemd the first process of the node."""
    for pattern in REMOVED_UNITS:
        for unit in root.glob(pattern):
            unit.unlink()
    with (root / "etc" / "systemd" / "journald.conf").open("a", encoding="utf-8") as journald:
        journald.write("ReadKMsg=no\n")
    init = root / "usr" / "sbin" / "init"
    if not init.is_symlink():
        init.symlink_to("/usr/lib/systemd/systemd")
    for verb in (["enable", "kubelet", "containerd", "undo-mount-hacks"], ["mask", "systemd-binfmt"]):
        run(["chroot", root, "systemctl", *verb], seconds=60)


def install_binaries(settings: Settings, root: Path) -> None:
    """Copy the node's programs into the root file system `root`, to the paths at which kind looks for them.

    Also write containerd's base runtime spec.
    """
    places = dict.fromkeys(KUBERNETES, "usr/bin") | dict.fromkeys(CONTAINERD, "usr/local/bin")
    for program, place in (places | {"runc": "usr/local/sbin"}).items():
        (root / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(go_build.binary(settings, program), root / place / program)
    plugins = root / "opt" / "cni" / "bin"
    plugins.mkdir(parents=True)
    for plugin in CNI_PLUGINS:
        shutil.copy(root / "usr" / "lib" / "cni" / plugin, plugins / plugin)
    # The runtime spec that containerd uses for every container gets kind's hook, which hides the hardware ids of this
    # machine. It gets no rlimits, so that containers inherit the limits of containerd.
    spec = json.loads(run([go_build.binary(settings, "ctr"), "oci", "spec"]))
    hook = {"path": "/kind/bin/mount-product-files.sh"}
    spec.setdefault("hooks", {}).setdefault("createContainer", []).append(hook)
    spec["process"].pop("rlimits", None)
    (root / "etc" / "containerd" / "cri-base.json").write_text(json.dumps(spec), "utf-8")
    (root / "kind" / "version").write_text(f"v{settings.kubernetes}", "utf-8")


def import_images(settings: Settings, root: Path, work: Path) -> None:
    """Import the images that kubeadm needs into the node's containerd, so that the node need not pull them.

    A containerd on this machine imports the images into the node's storage below `root`, and unpacks them there.
    """
    kubeadm = go_build.binary(settings, "kubeadm")
    listed = run([kubeadm, "config", "images", "list", f"--kubernetes-version=v{settings.kubernetes}"]).split()
    image_of = {program_of(image): image for image in listed}
    config = (root / "etc" / "containerd" / "config.toml").read_text("utf-8")
    image_of["pause"] = re.findall(r'sandbox_image = "(.+)"', config)[0]
    with run_containerd(settings, root, work) as ctr:
        for program, image in image_of.items():
            archive = work / f"{program}.tar"
            write_archive(archive, image, layer(settings, root, program), entrypoint(program))
            run([*ctr, "images", "import", "--local", "--discard-unpacked-layers",
                 "--label=io.cri-containerd.pinned=pinned", archive], seconds=120)  # fmt: skip
            archive.unlink()


def program_of(image: str) -> str:
    """Return the program in a control plane image, such as `kube-apiserver`: the last part of the image's name."""
    return image.rsplit(":", 1)[0].rsplit("/", 1)[-1]


def entrypoint(program: str) -> list[str]:
    """Return the entrypoint of the image for a program of the control plane.

    Kubernetes uses only the entrypoints of `pause` and `coredns`. All other images run in static pods, which name their
    commands.
    """
    return {"pause": ["/pause", "-P"], "coredns": ["/coredns"]}.get(program, [f"/usr/local/bin/{program}"])


def layer(settings: Settings, root: Path, program: str) -> dict[str, Path | str]:
    """Return the files of the image for `program`, by their paths in the image. A text is a symbolic link's target."""
    if program == "pause":
        return {"pause": Path(shutil.which("catatonit") or "/usr/bin/catatonit")}
    path = entrypoint(program)[0].lstrip("/")
    files: dict[str, Path | str] = {path: go_build.binary(settings, program)}
    return files | proxy_files(root) if program == "kube-proxy" else files


def proxy_files(root: Path) -> dict[str, Path | str]:
    """Return the files of nft, iptables and their libraries for the image of kube-proxy, by their paths in the image.

    The files come from the node's root file system `root`. A text is a symbolic link's target.
    """
    found = run(["chroot", root, "ldd", *(f"/{program}" for program in PROXY_PROGRAMS)])
    # Each path that ldd prints can be a chain of symbolic links. The image gets a regular file at each path.
    libraries = {path.lstrip("/") for path in re.findall(r"(/\S+) \(0x", found)}
    plugins = {str(path.relative_to(root)) for path in root.glob("usr/lib/*/xtables/*.so")}
    files: dict[str, Path | str] = {each: (root / each).resolve() for each in (*PROXY_PROGRAMS, *libraries, *plugins)}
    return files | {f"usr/sbin/{each}": "xtables-nft-multi" for each in PROXY_NAMES}


@contextlib.contextmanager
def run_containerd(settings: Settings, root: Path, work: Path) -> Iterator[list[str | Path]]:
    """Run a containerd on the node's storage below `root` while the `with` block runs.

    Yield the first words of a command line that runs ctr with this containerd.
    """
    socket, state, log = work / "c.sock", work / "state", work / "containerd.log"
    config = work / "containerd.toml"
    config.write_text(f"version = 3\ndisabled_plugins = {json.dumps(DISABLED_PLUGINS)}\n", "utf-8")
    # setpriv makes the kernel kill this containerd when the process that started it is killed.
    command = ["setpriv", "--pdeathsig=KILL", go_build.binary(settings, "containerd"), "--config", config,
               "--root", root / "var" / "lib" / "containerd", "--state", state, "--address", socket]  # fmt: skip
    with log.open("wb") as output:
        process = subprocess.Popen(list(map(str, command)), stdout=output, stderr=output)
    try:
        wait_until(socket.exists, f"containerd, whose log is {log}")
        yield [go_build.binary(settings, "ctr"), "--address", socket, "--namespace", "k8s.io"]
    finally:
        process.terminate()
        process.wait(20)


def import_into_store(settings: Settings, root: Path, work: Path) -> None:
    """Import the root file system as the only image of the podman store in the folder `store` below `work`."""
    tar = work / "root.tar"
    run(["tar", "--numeric-owner", "--xattrs", "-C", root, "-cf", tar, "."], seconds=300)
    shutil.rmtree(root)
    podman.configure(settings, work, work / "store")
    changes = [f"--change={change}" for change in IMAGE_CHANGES]
    # Podman runs in a mount namespace of its own, because it keeps state below /run and /dev/shm.
    private = 'mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /dev/shm && exec "$@"'
    run(["unshare", "--mount", "sh", "-c", private, "sh", "podman", "import", "--quiet", *changes, tar, name(settings)],
        env=podman.merged_environment(settings, work), seconds=300)  # fmt: skip
    tar.unlink()
