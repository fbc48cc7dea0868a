"""python3 -m deploy.dev.cluster VERB: a real Kubernetes for tests and demos by one command.

    up              brings the cluster up (again and again is fine; so is Ctrl-C and up again)
    down            removes all of it (also what a killed one left)
    status          what runs; exit code 0 when all of it does
    kubeconfig      prints the path of its kubeconfig file
    kubectl         prints the path of a kubectl that fits it
    address         prints this machine's address as pods see it
    build           only builds the binaries (or `build helm`: one product of the table)
    image           builds the agent's image and loads it
    prometheus      prints the folder of prometheus and promtool (Debian's, unpacked, where they are not installed)
    test-images     builds the images of the tests and loads them
    load IMAGE...   loads docker or OCI archives, or images built here by name
    tag IMAGE NAME  gives an image of the cluster another name
    helm            prints the path of helm, built from its Go module when it is not there
    browser         prints the path of a Chromium or Chrome, Debian's, installed when none is there
    log-limit SIZE  the kubelet begins a new log file at SIZE, until `log-limit default`; pods keep running
    NAME stop       ends a component (kubelet, apiserver, containerd, ...) and waits until it is gone
    NAME start [FLAG...]
                    starts it, with these flags too (of the local cluster), and waits until it answers
    restart NAME... both
    kind WORD...    runs kind where it sees this cluster: `kind get clusters`, `kind delete cluster`, `kind export logs`

CLUSTER=local (upstream binaries on this machine, as root), kind (needs Docker or podman, which pulls kind's image),
kind-offline (the same from packages alone, as root) or existing (the current context).
Also: KUBERNETES_VERSION, CLUSTER_LOG_MAX_SIZE, CLUSTER_NUMBER (a second cluster beside the first), SEALCI_CACHE.
"""

from __future__ import annotations

import sys

from deploy.dev.cluster import settings as configuration
from deploy.dev.cluster.builds import debian, go_build, image_builders, images
from deploy.dev.cluster.console import CommandFailed, report
from deploy.dev.cluster.providers.existing import Existing
from deploy.dev.cluster.providers.kind import Kind
from deploy.dev.cluster.providers.local import Local

Provider = Local | Kind | Existing
PROVIDERS: dict[str, type[Provider]] = {"local": Local, "kind": Kind, "kind-offline": Kind, "existing": Existing}
COMPONENTS = ("etcd", "containerd", "apiserver", "controller-manager", "scheduler", "kubelet", "kube-proxy")


def main(words: list[str]) -> int:
    """Obeys one command line; returns its exit code."""
    if not words or words[0] in ("help", "-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    try:
        settings = configuration.read(image_builders.engine)
        provider = PROVIDERS[settings.provider](settings)
        return obey(settings, provider, words[0], words[1:])
    except CommandFailed as error:
        report(f"cluster: {error}")
        return 1
    except KeyboardInterrupt:
        report("cluster: interrupted; the same command goes on from here")
        return 130


def obey(settings: configuration.Settings, provider: Provider, verb: str, rest: list[str]) -> int:
    """One verb. Usage errors are refusals too."""
    match verb, rest:
        case "up", []:
            provider.up()
        case "down", []:
            provider.down()
        case "status", []:
            return 0 if provider.status() else 1
        case "kubeconfig", []:
            print(provider.kubeconfig())
        case "kubectl", []:
            print(provider.program())
        case "address", []:
            print(provider.address())
        case "build", []:
            provider.build()
        case "build", products:
            go_build.build(settings, products)
            for path in sorted({go_build.folder(settings, product) for product in products}):
                print(path)
        case "prometheus", []:
            print(debian.prometheus(settings))
        case "image", []:
            make_images(settings, provider, [images.agent()])
        case "test-images", []:
            make_images(settings, provider, images.tests())
        case "load", [_, *_]:
            for image in rest:
                images.load_by_hand(settings, provider, image)
        case "tag", [image, name]:
            provider.tag(image, name)
        case "helm", []:
            go_build.build(settings, ["helm"])
            print(go_build.binary(settings, "helm"))
        case "browser", []:
            print(debian.browser())
        case "log-limit", [size]:
            provider.log_limit(settings.log_max_size if size == "default" else size)
        case "kind", [_, *_] if isinstance(provider, Kind):
            return provider.by_hand(rest)
        case name, ["stop"] if name in COMPONENTS:
            provider.stop(name)
        case name, ["start", *flags] if name in COMPONENTS:
            provider.start(name, flags)
        case "restart", [_, *_] if set(rest) <= set(COMPONENTS):
            for name in rest:
                provider.stop(name)
                provider.start(name)
        case _:
            raise CommandFailed(f"`{' '.join([verb, *rest])}` is no command; `help` lists them all")
    return 0


def make_images(settings: configuration.Settings, provider: Provider, recipes: list[images.Recipe]) -> None:
    """Builds images, then loads them into the cluster, which must be up for that."""
    archives = images.build(settings, recipes)
    images.load(settings, provider, {r.name: a for r, a in zip(recipes, archives, strict=True)})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
