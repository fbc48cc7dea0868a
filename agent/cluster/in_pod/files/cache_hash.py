"""Hash files of the workspace for the placeholder `{hash:GLOB}` of a cache's key. Part of the program `caches`.

The content of the workspace is not trusted, so no link is followed and the number of bytes is limited. `packaging`
sends this source to the pod (Python 3.9, standard library).
"""

from __future__ import annotations

import os
import stat
from hashlib import sha256

from agent.cluster.in_pod.workspace import FOLDER, walk
from agent.glob import compile_globs

MAX_HASHED_BYTES = 1 << 30  # maximum number of bytes of all files of one placeholder
COPY_BYTES = 256 * 1024  # number of bytes of one read of a file
PLAIN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class CacheFault(Exception):
    """The cache cannot be packed or unpacked, for a reason that the message states."""


def hash_files(workspace: str, globs: list[str]) -> str:
    """Return a hash of the paths and the content of all files of WORKSPACE that match GLOBS.

    Raises:
        CacheFault: no file matches, or the files are too large.
    """
    matchers, total, left = compile_globs(globs), sha256(), MAX_HASHED_BYTES
    found = []
    root = os.open(workspace, FOLDER)
    try:
        for path, name, folder, facts in walk(root, lambda path, _: path != ".git", lambda *_: None):
            names = path.split("/")
            if not any(glob.matches(names) for glob in matchers):
                continue
            left -= facts.st_size
            if left < 0:
                raise CacheFault(f"the files of {','.join(globs)} have more than {MAX_HASHED_BYTES} bytes")
            found.append((os.fsencode(path), content_hash(name, folder, facts)))
    finally:
        os.close(root)
    if not found:
        raise CacheFault(f"no file of the workspace matches {','.join(globs)}")
    for each in sorted(found):
        total.update(b"%d %s%s" % (len(each[0]), *each))
    return total.hexdigest()[:32]


def content_hash(name: str, folder: int, facts: os.stat_result) -> bytes:
    """Return the hash of a file's content, or of the target of a symbolic link."""
    if stat.S_ISLNK(facts.st_mode):
        return sha256(b"link " + os.fsencode(os.readlink(name, dir_fd=folder))).digest()
    digest = sha256()
    if stat.S_ISREG(facts.st_mode):
        file = os.open(name, PLAIN_FILE, dir_fd=folder)
        try:
            while data := os.read(file, COPY_BYTES):
                digest.update(data)
        finally:
            os.close(file)
    return digest.digest()
