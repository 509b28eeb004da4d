"""Atomic writes: files and folders are written under a temporary name and then renamed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eschernet_prior.base.errors import UserError


@contextmanager
def atomic_path(path: Path, temporary_in: Path | None = None, replace: bool = True) -> Iterator[Path]:
    """Yield a temporary path and rename it to `path` when the block succeeds.

    The temporary name starts with a dot and keeps the suffix, which image and array writers depend on. It is removed if
    the block raises; after a killed process it remains under its dotted name and is never read.

    Args:
        path: The file or folder to write.
        temporary_in: Folder of the temporary name, on the same file system; default: that of `path`.
        replace: Whether to replace an existing file or folder. Otherwise a folder that another process has written in
            the meantime is kept.

    Yields:
        A fresh path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = (temporary_in or path.parent) / f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        yield partial
        if replace and path.is_dir():
            shutil.rmtree(path)
        try:
            os.replace(partial, path)
        except OSError as error:
            if replace or error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, atomically."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf8")


def read_json(path: Path) -> Any:
    """Read a JSON file; None if it does not exist.

    Raises:
        UserError: If it is not valid JSON.
    """
    try:
        return json.loads(path.read_text("utf8")) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): restore it, or delete it to start again.") from None


def cache_root() -> Path:
    """The folder of files that can be recomputed: $STYLE_NERF2NERF_CACHE, or a folder in the user's cache."""
    own, user_cache = os.environ.get("STYLE_NERF2NERF_CACHE"), os.environ.get("XDG_CACHE_HOME")
    return Path(own) if own else Path(user_cache or Path.home() / ".cache") / "style-nerf2nerf"
