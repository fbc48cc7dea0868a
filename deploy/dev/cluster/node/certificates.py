"""Create the certificates and kubeconfigs of a local cluster with openssl. They live as long as the cluster's folder.

Each component gets a client certificate with the user and the groups that Kubernetes expects. RBAC and NodeRestriction
are therefore as strict as in production, and a permission that the chart lacks makes a test fail.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path

from deploy.dev.cluster.console import run
from deploy.dev.cluster.settings import Settings

# Validity of every certificate in days.
DAYS = "3650"
KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def create(settings: Settings, folder: Path) -> None:
    """Write the CA, all certificates, the key for ServiceAccount tokens, and one kubeconfig per client."""
    folder.mkdir(mode=0o700, parents=True)
    run(["openssl", "req", "-x509", *KEY, "-days", DAYS, "-subj", f"/CN={settings.name}",
         "-addext", "keyUsage=critical,keyCertSign,cRLSign,digitalSignature",
         "-keyout", folder / "ca.key", "-out", folder / "ca.crt"])  # fmt: skip
    run(["openssl", "genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256",
         "-out", folder / "service-accounts.key"])  # fmt: skip
    run(["openssl", "pkey", "-in", folder / "service-accounts.key", "-pubout",
         "-out", folder / "service-accounts.pub"])  # fmt: skip
    service = "kubernetes.default.svc"
    names = ("kubernetes", "kubernetes.default", service, f"{service}.cluster.local", "localhost")
    addresses = (settings.node_address, settings.api_service, "127.0.0.1")
    certificate(folder, "apiserver", "/CN=kube-apiserver", names, addresses)
    certificate(folder, "apiserver-to-kubelet", "/O=system:masters/CN=kube-apiserver-to-kubelet")
    node = f"/O=system:nodes/CN=system:node:{settings.name}"
    clients = {
        "admin": ("/O=system:masters/CN=admin", (), ()),
        "kubelet": (node, (settings.name,), (settings.node_address, "127.0.0.1")),
        "kube-scheduler": ("/CN=system:kube-scheduler", ("localhost",), ("127.0.0.1",)),
        "kube-controller-manager": ("/CN=system:kube-controller-manager", ("localhost",), ("127.0.0.1",)),
        "kube-proxy": ("/CN=system:kube-proxy", (), ()),
    }
    for name, (subject, dns, ips) in clients.items():
        certificate(folder, name, subject, dns, ips)
        write_kubeconfig(settings, folder, name)


def certificate(
    folder: Path, name: str, subject: str, names: tuple[str, ...] = (), addresses: tuple[str, ...] = ()
) -> None:
    """Write NAME.key and NAME.crt, a certificate that the cluster's CA has signed for use by servers and clients."""
    alternatives = [f"DNS:{n}" for n in names] + [f"IP:{a}" for a in addresses]
    extensions = ["-addext", "keyUsage=critical,digitalSignature", "-addext", "extendedKeyUsage=serverAuth,clientAuth",
                  "-addext", "basicConstraints=critical,CA:FALSE"]  # fmt: skip
    if alternatives:
        extensions += ["-addext", f"subjectAltName={','.join(alternatives)}"]
    run(["openssl", "req", "-x509", "-CA", folder / "ca.crt", "-CAkey", folder / "ca.key", *KEY, "-days", DAYS,
         "-subj", subject, *extensions, "-keyout", folder / f"{name}.key", "-out", folder / f"{name}.crt"])  # fmt: skip


def write_kubeconfig(settings: Settings, folder: Path, name: str) -> None:
    """Write NAME.kubeconfig, which contains the certificates of NAME and refers to no other file.

    The file is JSON, which is valid YAML.
    """
    cluster = {"server": settings.server, "certificate-authority-data": base64_of(folder / "ca.crt")}
    user = {
        "client-certificate-data": base64_of(folder / f"{name}.crt"),
        "client-key-data": base64_of(folder / f"{name}.key"),
    }
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": settings.name,
        "clusters": [{"name": settings.name, "cluster": cluster}],
        "users": [{"name": name, "user": user}],
        "contexts": [{"name": settings.name, "context": {"cluster": settings.name, "user": name}}],
    }
    path = folder / f"{name}.kubeconfig"
    # The file is created with its mode before the client's private key is written, so that no other user can ever read
    # the key.
    path.touch(mode=0o600)
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")


def base64_of(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
