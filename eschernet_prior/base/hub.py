"""Describe and download models on the Hugging Face hub: repository, revision and files.

Each package lists its models in a `hub.py` of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.errors import UserError

SMALL_FILES = ("*.json", "*.txt")
"""Configurations and vocabularies, which are always downloaded."""

_announced: set[Path] = set()


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face hub."""

    repository: str
    """Hub id of the repository."""
    revision: str
    """The commit that is downloaded by default; a branch where `pinned` is False."""
    weights: tuple[str, ...] = ()
    """Required files, in addition to `SMALL_FILES`."""
    configurations: tuple[str, ...] = ()
    """Files among `SMALL_FILES` that are required for loading the model."""
    variant: str | None = None
    """Variant of the files, e.g. `"fp16"`; None if the repository has only one."""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, whose files cannot change."""
        return len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")


def ensure_downloaded(model: HubModel, instead: str, offline: bool = False) -> Path:
    """Download a model unless it is in the hub's cache; a complete cache is used without the network.

    Args:
        model: The model.
        instead: What to do without a network, for the message.
        offline: Never use the network.

    Returns:
        The model's folder in the hub's cache.

    Raises:
        UserError: If the model is not cached and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def snapshot(local: bool) -> Path:
        wanted = [*SMALL_FILES, *model.weights]
        return Path(
            snapshot_download(model.repository, revision=model.revision, allow_patterns=wanted, local_files_only=local)
        )

    def missing(folder: Path) -> list[str]:
        return [name for name in (*model.weights, *model.configurations) if not (folder / name).is_file()]

    def checked(folder: Path) -> Path:
        if not model.pinned and folder not in _announced:
            _announced.add(folder)
            CONSOLE.print(f"{model.repository}: commit {folder.name}.", markup=False)
        return folder

    lacks: list[str] = []
    try:
        folder = snapshot(local=True)
        lacks = missing(folder)
        if not lacks:
            return checked(folder)
    except FileNotFoundError:
        pass  # nothing of the repository is cached
    if not offline:
        try:
            folder = snapshot(local=False)
        except (OSError, HfHubHTTPError) as error:
            raise UserError(
                f"{model.repository} is {_absence(lacks)} and could not be downloaded ({type(error).__name__}): "
                f"connect to the network once, or {instead}."
            ) from error
        lacks = missing(folder)
        if not lacks:
            return checked(folder)
    raise UserError(f"{model.repository} is {_absence(lacks)}: connect to the network once, or {instead}.")


def _absence(lacks: list[str]) -> str:
    """Describe which files of a model are missing in the cache."""
    return f"only partly in the local cache ({lacks[0]} is missing)" if lacks else "not in the local cache"
