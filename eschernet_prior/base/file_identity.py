"""Identify the version of a model's files by the hub's hashes, or by hashes of their content.

A file in the hub's cache is a link to a blob named by the hash of its content, so it is not read. Other files are
hashed with SHA-256; the hash is cached together with size and modification time, so that large files are read once.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from pathlib import Path

from eschernet_prior.base.files import cache_root, read_json, write_json

SMALL = 1 << 20
"""Size in bytes up to which a file is hashed each time, because this is faster than looking up a cached hash."""
COMMIT = re.compile(r"[0-9a-f]{40}")


def file_identity(path: Path) -> str:
    """Compute a hash of a file's content: the name of its blob in the hub's cache, or else its SHA-256.

    Args:
        path: The file, or a link to it.
    """
    blob = path.resolve()
    if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", blob.name):
        return blob.name
    status = blob.stat()
    if status.st_size <= SMALL:
        return hashlib.sha256(blob.read_bytes()).hexdigest()
    name = hashlib.sha256(str(blob).encode()).hexdigest()[:32]
    record, state = cache_root() / "hashes" / f"{name}.json", [status.st_size, status.st_mtime_ns, status.st_ino]
    kept = read_json(record)
    if isinstance(kept, dict) and kept.get("state") == state:
        return kept["sha256"]
    with blob.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 24):
            digest.update(block)
    write_json(record, {"file": str(blob), "state": state, "sha256": digest.hexdigest()})
    return digest.hexdigest()


def folder_identity(folder: Path, suffixes: Iterable[str] = (".safetensors", ".bin", ".json")) -> str:
    """Compute a hash of the names and contents of a folder's files, including those in subfolders.

    Args:
        folder: The folder.
        suffixes: Suffixes of the files to include; by default those of weights and configurations.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in tuple(suffixes) and path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()} {file_identity(path)}\n".encode())
    return digest.hexdigest()[:16]


def snapshot_commit(folder: Path) -> str | None:
    """The commit of a snapshot in the hub's cache; None for other folders."""
    is_snapshot = folder.parent.name == "snapshots" and COMMIT.fullmatch(folder.name)
    return folder.name if is_snapshot else None
