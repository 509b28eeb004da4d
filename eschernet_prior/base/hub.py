"""Models on the Hugging Face hub: which files of which repository at which revision, and how they are downloaded.

The models themselves are listed in the `hub.py` of the package that uses them, and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from eschernet_prior.base.errors import UserError

SMALL_FILES = ("*.json", "*.txt")
"""Configurations and vocabularies, which are always downloaded."""


@dataclass(frozen=True)
class HubModel:
    """A model on the Hugging Face hub."""

    repository: str
    """Its hub id."""
    revision: str
    """The commit that is downloaded by default; a branch where `pinned` is False."""
    weights: tuple[str, ...] = ()
    """Files that must be there, in addition to `SMALL_FILES`."""
    variant: str | None = None
    """Which of the repository's files: `"fp16"`, or None for the only ones."""

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit, whose files cannot change."""
        return len(self.revision) == 40 and set(self.revision) <= set("0123456789abcdef")


def ensure_downloaded(model: HubModel, instead: str) -> Path:
    """Download a model unless it is in the hub's cache; a complete cache is used without the network.

    Args:
        model: which one.
        instead: what a person without network can do, for the message.

    Returns:
        The model's folder in the hub's cache.

    Raises:
        UserError: if the model is neither cached nor can be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    def snapshot(offline: bool) -> Path:
        wanted = [*SMALL_FILES, *model.weights]
        return Path(
            snapshot_download(
                model.repository, revision=model.revision, allow_patterns=wanted, local_files_only=offline
            )
        )

    try:
        folder = snapshot(offline=True)
        if all((folder / name).is_file() for name in model.weights):
            return folder
    except FileNotFoundError:
        pass  # not in the cache at all
    try:
        folder = snapshot(offline=False)
    except (OSError, HfHubHTTPError) as error:
        raise UserError(
            f"{model.repository} is not in the local cache and could not be downloaded ({type(error).__name__}): "
            f"connect to the network once, or {instead}."
        ) from error
    missing = [name for name in model.weights if not (folder / name).is_file()]
    if missing:
        raise UserError(
            f"{model.repository} is only partly in the local cache ({missing[0]} is missing): connect to the network "
            f"once, or {instead}."
        )
    return folder
