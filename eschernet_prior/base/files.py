"""Files that appear whole or not at all: written beside, then renamed."""

from __future__ import annotations

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
def atomic_path(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """Hand out a path to write to, and rename it to `path` once the block ends well.

    The temporary name keeps the suffix, which image and array writers read, and starts with a dot. What a block that
    raised has written is removed; what a killed process has written stays under its dotted name and is never read.

    Args:
        path: where the file or folder shall appear; what stands there before is replaced.
        beside: folder for the temporary name, on the same file system; default: that of `path`.

    Yields:
        A fresh path.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = (beside or path.parent) / f".{path.stem}-{uuid.uuid4().hex[:8]}{path.suffix}"
    try:
        yield partial
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(partial, path)
    finally:
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    with atomic_path(path) as partial:
        partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", "utf8")


def read_json(path: Path) -> Any:
    """Read a JSON file; None where there is none.

    Raises:
        UserError: it is no JSON.
    """
    try:
        return json.loads(path.read_text("utf8")) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}): give it back as it was, or delete it to start anew.") from None
