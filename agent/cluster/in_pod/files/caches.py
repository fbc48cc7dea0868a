"""Restore the caches of an action before its commands, and save them afterwards. An errand in container `helper`.

Each line on stdin is a request of the agent, and each line on stdout an answer, both JSON. The agent chooses keys and
signs URLs. The program moves the bytes between the workspace and the object store, or the volume of caches. The word
`restore` runs the requests `caches` (fill in placeholders), `get` (restore one cache) and `end` (keep a note for the
errand that saves). The word `save` begins with that note, and runs the request `pack` for each cache, and then `end`.
With a volume, both also run the requests about entries of `cache_claim`.

While an archive is on its way, the program writes a line with the bytes that were `moved`, and the size, at most once a
second.

An error of one cache is an answer, so that the others go on. The workspace is not trusted (see `cache_archive`), and an
archive is unpacked only when its size and its hash are those that the agent has named.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from functools import partial

from agent.cluster.in_pod.files.cache_archive import NothingToPack, pack, unpack
from agent.cluster.in_pod.files.cache_claim import Claim
from agent.cluster.in_pod.files.cache_hash import CacheFault, hash_files
from agent.cluster.in_pod.files.collect_files import Output
from agent.cluster.in_pod.files.errand_lock import DONE, LOCK, Lock, read_user, remove_folder
from agent.cluster.in_pod.objects.downloads import Downloads, Refused
from agent.cluster.in_pod.objects.send_objects import ObjectSender, StoreUnavailable
from agent.cluster.in_pod.objects.store_client import StoreClient
from agent.cluster.in_pod.workspace import USER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

REQUEST_BYTES = 1 << 20  # maximum number of bytes of a request
NOTE = "caches.json"  # file of the log's folder: what `restore` leaves for `save`
PROGRESS_SECONDS = 1.0  # seconds between two lines about the bytes that were moved
ARCHIVE = "archive"  # name of the archive in the temporary folder
LEFT_CACHE = ".sealci-cache-"  # start of the name of the temporary folder


class OutOfTime(Exception):
    """The time of the errand is over."""


def stop_late(*_: object) -> None:
    """Handle SIGALRM."""
    raise OutOfTime("not done in time")


class CacheErrand:
    """Answers the requests of the agent. Lives as long as the program."""

    def __init__(self, workspace: str, folder: str, seconds: int, limit: int, claim: str) -> None:
        self.workspace, self.folder, self.seconds, self.limit = workspace, folder, seconds, limit
        self.claim = Claim(claim)
        self.temporary = f"{workspace}/{LEFT_CACHE}{os.urandom(8).hex()}"
        self.next_progress = 0.0
        self.downloads = Downloads(lambda *_: None, lambda: None)

    def read(self) -> dict[str, Any]:
        """Return the next request. An empty one means that the agent has ended the exec."""
        line = sys.stdin.buffer.readline(REQUEST_BYTES)
        request: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        return request

    def write(self, answer: dict[str, object]) -> None:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()

    def report_progress(self, done: int, size: int) -> None:
        if (now := time.monotonic()) >= self.next_progress:
            self.next_progress = now + PROGRESS_SECONDS
            self.write({"moved": [done, size]})

    # ---- before the commands

    def restore(self) -> None:
        user = read_user(f"{self.folder}/{USER}")
        while request := self.read():
            if "caches" in request:
                self.write(self.facts(request))
            elif "get" in request:
                self.write(self.answer(request["get"], user))
            elif "end" not in request:
                self.write(self.claim.answer(request))
            else:
                with open(f"{self.folder}/.{NOTE}", "w") as file:
                    json.dump(request["end"], file)
                os.rename(f"{self.folder}/.{NOTE}", f"{self.folder}/{NOTE}")
                self.write({})
                return

    def facts(self, request: dict[str, Any]) -> dict[str, object]:
        """Return the values of placeholders: `hashes` by the text of the globs, or `faults`."""
        if request["ca"]:
            self.downloads.use_ca(request["ca"])
        hashes: dict[str, str] = {}
        faults: dict[str, str] = {}
        for globs in request["caches"]:
            try:
                hashes[globs] = hash_files(self.workspace, globs.split(","))
            except (CacheFault, OSError) as error:
                faults[globs] = str(error)
        return {"arch": os.uname().machine, "os": "linux", "hashes": hashes, "faults": faults}

    def answer(self, wanted: dict[str, Any], user: tuple[int, int] | None) -> dict[str, object]:
        """Restore one cache. `fault` is the kind of an error: `missing`, `store`, `digest`, `archive` or `disk`."""
        try:
            return {"left": self.get(wanted, user)}
        except Refused as error:
            return {"fault": error.args[0], "message": error.args[1]}
        except CacheFault as error:
            return {"fault": "archive", "message": str(error)}
        except OSError as error:
            return {"fault": "disk", "message": str(error)}
        finally:
            remove_folder(self.temporary)

    def get(self, wanted: dict[str, Any], user: tuple[int, int] | None) -> list[str]:
        """Copy an archive, check it, and unpack it. The copy cannot change after the check."""
        os.mkdir(self.temporary, 0o700)
        self.next_progress = 0.0
        with open(f"{self.temporary}/{ARCHIVE}", "w+b") as file:
            if "file" in wanted:
                digest = self.claim.copy(wanted["file"], wanted["size"], file.fileno())
            else:
                digest = self.download(wanted, file.fileno())
            if digest != wanted["sha256"]:
                raise Refused("digest", "the archive has another sha256 than its entry")
            file.seek(0)
            left = unpack(file, self.workspace, f"{self.temporary}/files", wanted["paths"], user, self.limit)
        if "entry" in wanted:
            self.claim.mark_used(wanted["entry"])
        return left

    def download(self, wanted: dict[str, Any], file: int) -> str:
        """Copy an archive of the object store into FILE. Return its SHA-256."""
        header = {key: wanted[key] for key in ("url", "size", "sha256")} | {"path": "the archive"}
        client = StoreClient(self.downloads.trust)
        try:
            return self.downloads.download(client, file, header, partial(self.report_progress, size=wanted["size"]))
        finally:
            client.close()

    # ---- after the commands

    def save(self) -> None:
        note: dict[str, object] = {}
        with contextlib.suppress(OSError, ValueError), open(f"{self.folder}/{NOTE}") as file:
            note = json.load(file)
        self.write({"note": note})
        while (request := self.read()) and "end" not in request:
            self.answer_save(request)
        self.write({})

    def answer_save(self, request: dict[str, Any]) -> None:
        """Run one request. `fault` is the kind of an error: `nothing`, `store` or `archive`."""
        if "pack" not in request:
            self.write(self.claim.answer(request))
            return
        paths = request["pack"]
        try:
            if "into" in request:
                self.write({"packed": self.claim.pack(request["into"], self.workspace, paths, self.limit)})
            else:
                self.put(paths)
        except NothingToPack:
            self.write({"fault": "nothing", "message": f"there is no {' and no '.join(paths)}"})
        except StoreUnavailable as error:
            self.write({"fault": "store", "message": str(error)})
        except (CacheFault, OSError) as error:
            self.write({"fault": "archive", "message": str(error)})
        finally:
            remove_folder(self.temporary)

    def put(self, paths: list[str]) -> None:
        """Pack PATHS and put the archive into the store, as `send_objects` puts a file."""
        os.mkdir(self.temporary, 0o700)
        with open(f"{self.temporary}/{ARCHIVE}", "w+b") as file:
            pack(self.workspace, paths, file, self.limit)
            file.flush()
            facts = os.fstat(file.fileno())
            sender = ObjectSender(Output(1), [1, self.limit, self.limit, self.seconds], [], [], set())
            self.next_progress = 0.0
            sender.progress = partial(self.report_progress, size=facts.st_size)
            sender.send_file(ARCHIVE, file.fileno(), facts)
            sender.send_batch()


def main(arguments: list[str]) -> None:
    """Run with the arguments WORD WORKSPACE FOLDER CLAIM SECONDS LIMIT.

    FOLDER is the log's folder, and CLAIM the folder of the volume of caches, if there is one. SECONDS is the time for
    all caches, and LIMIT the largest size of an archive in bytes.
    """
    word, workspace, folder, claim, seconds, limit = arguments
    signal.signal(signal.SIGALRM, stop_late)
    signal.alarm(int(seconds))
    os.umask(0o022)
    errand = CacheErrand(workspace, folder, int(seconds), int(limit), claim)
    lock = Lock(f"{folder}/{LOCK}")
    lock.take()
    lock.write(errand.temporary)
    try:
        if word == "save":
            errand.save()
        elif os.path.exists(f"{folder}/{DONE}"):
            errand.write({"started": True})
        else:
            errand.restore()
    except OutOfTime as error:
        errand.write({"fault": "time", "message": str(error)})
    finally:
        remove_folder(errand.temporary)
