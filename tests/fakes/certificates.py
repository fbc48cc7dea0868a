"""Certificates for tests, created by openssl."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True)
class Pair:
    """The paths of a certificate and of its private key."""

    cert: Path
    key: Path

    def credentials(self, clients: Pair | None = None) -> grpc.ServerCredentials:
        """Return gRPC server credentials with this certificate.

        If `clients` is given, the server demands a client certificate that the CA `clients` has signed.
        """
        return grpc.ssl_server_credentials(
            [(self.key.read_bytes(), self.cert.read_bytes())],
            root_certificates=clients.cert.read_bytes() if clients is not None else None,
            require_client_auth=clients is not None,
        )


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def authority(folder: Path, name: str) -> Pair:
    """Create the certificate and key of a new CA below `folder`."""
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1")
    openssl(*new, "-subj", f"/CN={name}", "-keyout", pair.key, "-out", pair.cert)
    return pair


def signed(folder: Path, name: str, by: Pair, host: str, *, days: int = 1, address: str = "") -> Pair:
    """Create a certificate for `host`, and for the IP address `address` if given. The CA `by` signs the certificate."""
    pair = Pair(folder / f"{name}.crt", folder / f"{name}.key")
    request, extensions = folder / f"{name}.csr", folder / f"{name}.ext"
    new = ("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(*new, "-subj", f"/CN={host}", "-keyout", pair.key, "-out", request)
    extensions.write_text(f"subjectAltName=DNS:{host}{f',IP:{address}' if address else ''}\n")
    ca = ("-CA", by.cert, "-CAkey", by.key, "-CAcreateserial", "-days", str(days))
    openssl("x509", "-req", "-in", request, *ca, "-extfile", extensions, "-out", pair.cert)
    return pair


@dataclass(frozen=True)
class Certificates:
    """All certificates that the tests use."""

    ca: Pair
    other_ca: Pair
    localhost: Pair
    elsewhere: Pair
    agent: Pair


def made(folder: Path) -> Certificates:
    ca = authority(folder, "ca")
    return Certificates(
        ca,
        authority(folder, "other-ca"),
        signed(folder, "localhost", ca, "localhost"),
        signed(folder, "elsewhere", ca, "scheduler.example"),
        signed(folder, "agent", ca, "agent"),
    )
