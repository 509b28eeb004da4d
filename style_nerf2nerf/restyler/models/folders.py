"""Where the restyling models are on this machine: found in a folder or the hub's cache, downloaded where they are not.

Nothing is loaded here. A model of the hub is used by the *folder* of its snapshot, never by its id: loading by id looks
for files on the network that are not needed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.hub import ensure_downloaded
from style_nerf2nerf.restyler.models.hub import EMBEDDED_FOLDER, SDXL

USE_EMBEDDED = "use --pipeline.restyle.source embedded"
"""What a person without network can do instead of using SDXL."""


@dataclass(frozen=True)
class ModelFolders:
    """The folders of a restyling pipeline."""

    base: Path
    """Holds `model_index.json`, the tokenizers and the scheduler."""
    networks: Mapping[str, Path]
    """The folder of each network, by its name in the pipeline."""
    commits: Mapping[str, str] = field(default_factory=dict)
    """Repository and commit of each part that is from the hub."""


def locate_models(source: str | Path, offline: bool = False) -> ModelFolders:
    """The folders of a source's models; those of `"sdxl"` are downloaded where they are not in the hub's cache.

    The network is not used where everything is in the cache.

    Args:
        source: `"embedded"`, `"sdxl"`, or a folder in diffusers' layout.
        offline: Never use the network.

    Raises:
        UserError: If they are not on this machine and cannot be downloaded.
    """
    if source == "sdxl":
        folders = {name: ensure_downloaded(model, USE_EMBEDDED, offline) for name, model in SDXL.items()}
        base = folders["base"]
        networks = {name: base / name for name in ("unet", "text_encoder", "text_encoder_2")}
        commits = {name: f"{SDXL[name].repository}@{folder.name}" for name, folder in folders.items()}
        return ModelFolders(base, networks | {name: folders[name] for name in ("controlnet", "vae")}, commits)
    folder = EMBEDDED_FOLDER if source == "embedded" else Path(source)
    if not (folder / "model_index.json").is_file():
        raise UserError(
            f"There are no restyling models in {folder}: give --pipeline.restyle.source sdxl, embedded, or a folder "
            "that diffusers' save_pretrained wrote."
        )
    names = ("unet", "controlnet", "vae", "text_encoder", "text_encoder_2")
    return ModelFolders(folder, {name: folder / name for name in names})
