"""python3 -m deploy.dev.cluster VERB: run a real Kubernetes cluster for tests and demos.

    up              start the cluster; continues after an interrupted `up`
    down            remove the cluster, and what a killed `up` left
    status          print the state of each component; exit code 0 if all of them run
    kubeconfig      print the path of the kubeconfig file
    kubectl         print the path of a kubectl that fits the cluster
    address         print this machine's address as pods see it
    build           build the cluster's binaries without starting the cluster
    build PRODUCT...
                    build these products of the table in go_build.py and print the folders of their binaries
    prepare         build all that the demo needs, in two parallel lanes, without starting the cluster
    image           build the agent's image and load it into the cluster
    demo-images     build the agent's image and the images of the demo, and load them into the cluster
    test-images     build the images of the tests and load them into the cluster
    load IMAGE...   load docker or OCI archives, or images that this machine built, by name
    tag IMAGE NAME  give an image of the cluster another name
    helm            print the path of helm; build helm first if the cache has none
    versitygw       print the path of the object store versitygw; build it first if the cache has none
    moto            print the Python that has moto, the token service of AWS; install it first if the cache has none
    prometheus      print the folder of prometheus and promtool; unpack Debian's package if none are installed
    registry        print the path of docker-registry; unpack Debian's package if it is not installed
    browser         print the path of Chromium or Chrome; install Debian's Chromium if there is none
    log-limit SIZE  set the size at which the kubelet rotates a log file (`default` resets it); pods keep running
    NAME stop       stop a component (kubelet, apiserver, containerd, ...) and wait until its process is gone
    NAME start [FLAG...]
                    start a component and wait until it answers; FLAGs are added to its command line
    restart NAME... stop and start components
    kind WORD...    run kind on this cluster: `kind get clusters`, `kind delete cluster`, `kind export logs`

Environment variables:
    CLUSTER=local         upstream binaries on this machine, as root
    CLUSTER=kind          kind in Docker or podman, which pull kind's node image
    CLUSTER=kind-offline  kind from Debian packages and Go modules alone, as root
    CLUSTER=existing      the current context of kubectl; never changed
    KUBERNETES_VERSION    the version of Kubernetes, like 1.37.2
    CLUSTER_LOG_MAX_SIZE  the kubelet's containerLogMaxSize, 50Mi by default
    CLUSTER_WAY_OUT=off   pods of `local` reach and resolve nothing outside the cluster (default: what this machine can)
    CLUSTER_NUMBER        0 to 9, to run several clusters on one machine
    SEALCI_CACHE          the folder of the cache, ~/.cache/sealci-agent by default
"""

from __future__ import annotations

import sys

from deploy.dev.cluster import settings as configuration
from deploy.dev.cluster.builds import debian, go_build, image_builders, images, moto, prepare
from deploy.dev.cluster.console import CommandFailed, report
from deploy.dev.cluster.providers.existing import Existing
from deploy.dev.cluster.providers.kind import Kind
from deploy.dev.cluster.providers.local import Local

Provider = Local | Kind | Existing
PROVIDERS: dict[str, type[Provider]] = {"local": Local, "kind": Kind, "kind-offline": Kind, "existing": Existing}
COMPONENTS = ("etcd", "containerd", "apiserver", "controller-manager", "scheduler", "kubelet", "kube-proxy")


def main(words: list[str]) -> int:
    """Run one command line, given as a list of words. Return the exit code."""
    if not words or words[0] in ("help", "-h", "--help"):
        print(__doc__)
        return 0 if words else 2
    try:
        settings = configuration.read(image_builders.find_engine)
        provider = PROVIDERS[settings.provider](settings)
        for group in (run_cluster_verb, run_build_verb, run_program_verb, run_component_verb):
            code = group(settings, provider, words[0], words[1:])
            if code is not None:
                return code
        raise CommandFailed(f"`{' '.join(words)}` is not a command. `help` lists all commands.")
    except CommandFailed as error:
        report(f"cluster: {error}")
        return 1
    except KeyboardInterrupt:
        report("cluster: interrupted. Run the same command again to continue.")
        return 130


def run_cluster_verb(
    settings: configuration.Settings, provider: Provider, verb: str, arguments: list[str]
) -> int | None:
    """Run `verb` if it concerns the cluster as a whole, like `up`. Return the exit code, or None for another verb."""
    match verb, arguments:
        case "up", []:
            provider.up()
        case "down", []:
            provider.down()
        case "status", []:
            return 0 if provider.status() else 1
        case "kubeconfig", []:
            print(provider.kubeconfig())
        case "kubectl", []:
            print(provider.kubectl())
        case "address", []:
            print(provider.address())
        case "log-limit", [size]:
            provider.log_limit(settings.log_max_size if size == "default" else size)
        case "kind", [_, *_] if isinstance(provider, Kind):
            return provider.run_kind_attached(arguments)
        case _:
            return None
    return 0


def run_build_verb(settings: configuration.Settings, provider: Provider, verb: str, arguments: list[str]) -> int | None:
    """Run `verb` if it concerns binaries or images. Return the exit code, or None for another verb."""
    match verb, arguments:
        case "build", []:
            provider.build()
        case "build", products:
            go_build.build(settings, products)
            for path in sorted({go_build.folder(settings, product) for product in products}):
                print(path)
        case "prepare", []:
            prepare.prepare(settings)
        case "demo-images", []:
            tests = [recipe for recipe in images.test_recipes() if recipe.target in images.DEMO_IMAGES]
            build_and_load(settings, provider, [images.agent_recipe(), *tests])
        case "image", []:
            build_and_load(settings, provider, [images.agent_recipe()])
        case "test-images", []:
            build_and_load(settings, provider, images.test_recipes())
        case "load", [_, *_]:
            for image in arguments:
                images.load_one(settings, provider, image)
        case "tag", [image, name]:
            provider.tag(image, name)
        case _:
            return None
    return 0


def run_program_verb(
    settings: configuration.Settings,
    provider: Provider,  # noqa: ARG001 - all verbs have the same parameters
    verb: str,
    arguments: list[str],
) -> int | None:
    """Print the path of one of the other programs. Return the exit code, or None for another verb."""
    match verb, arguments:
        case "helm", []:
            go_build.build(settings, ["helm"])
            print(go_build.binary(settings, "helm"))
        case "versitygw", []:
            go_build.build(settings, ["versitygw"])
            print(go_build.binary(settings, "versitygw"))
        case "moto", []:
            print(moto.python(settings))
        case "prometheus", []:
            print(debian.prometheus(settings))
        case "registry", []:
            print(debian.registry(settings))
        case "browser", []:
            print(debian.browser())
        case _:
            return None
    return 0


def run_component_verb(
    settings: configuration.Settings,  # noqa: ARG001 - all verbs have the same parameters
    provider: Provider,
    verb: str,
    arguments: list[str],
) -> int | None:
    """Start or stop components of the cluster. Return the exit code, or None if the words form no such command."""
    match verb, arguments:
        case name, ["stop"] if name in COMPONENTS:
            provider.stop(name)
        case name, ["start", *flags] if name in COMPONENTS:
            provider.start(name, flags)
        case "restart", [_, *_] if set(arguments) <= set(COMPONENTS):
            for name in arguments:
                provider.stop(name)
                provider.start(name)
        case _:
            return None
    return 0


def build_and_load(settings: configuration.Settings, provider: Provider, recipes: list[images.Recipe]) -> None:
    """Build images and load them into the cluster, which must be up.

    The agent's image also gets the name that the chart uses by default. So `helm install` needs no value for the image.
    """
    archives = images.build(settings, recipes)
    images.load(settings, provider, {r.name: a for r, a in zip(recipes, archives, strict=True)})
    if any(recipe.name == images.AGENT for recipe in recipes) and not isinstance(provider, Existing):
        provider.tag(images.AGENT, images.chart_image())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
