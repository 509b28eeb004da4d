"""Where a run takes restyled pictures and masks from that are there already: folders, or the dataset's own masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.datamanager import StyleDataManager
from style_nerf2nerf.masks import read_mask_files, read_view_mask
from style_nerf2nerf.options import StylePipelineOptions
from style_nerf2nerf.rounds.view_folders import find_pictures, names_in_all, read_view

DATASET = "dataset"
"""In the place of a folder of masks: those that the capture itself names."""


class ViewSources:
    """Pictures and masks by the names of the photos; without such options there are none."""

    styles: tuple[str, ...]
    """What each style is called: its folder's name, or its prompt."""

    def __init__(self, config: StylePipelineOptions, datamanager: StyleDataManager) -> None:
        """Find all files, so that what is missing shows before long work starts.

        With restyled pictures, the data manager is told which views there are.

        Raises:
            UserError: a folder is not there, its pictures have other names, or a view has no mask.
        """
        photos = [path.stem for path in datamanager.train_dataset.image_filenames]
        held_out = [path.stem for path in datamanager.eval_dataset.image_filenames]
        if (config.restyled_data or config.masks) and len({*photos, *held_out}) < len(photos) + len(held_out):
            raise UserError(
                "Photos of this capture share file names, so that pictures and masks cannot be told apart by them: "
                "leave out --pipeline.restyled-data and --pipeline.masks, or rename the photos."
            )
        self._restyled = [find_pictures(folder, "--pipeline.restyled-data") for folder in config.restyled_data]
        self.styles = tuple(folder.name for folder in config.restyled_data) or (
            config.model.prompt,
            *config.model.more_prompts,
        )
        if self._restyled:
            folders = dict(zip(config.restyled_data, self._restyled))
            common = names_in_all(folders, photos, "--pipeline.restyled-data")
            datamanager.restyled_names = frozenset(common)
            CONSOLE.print(f"{len(common)} of the {len(photos)} training views are restyled already.")
        self._masks = None
        if config.masks:
            needed = [photos[index] for index in datamanager.style_indices()] + held_out
            self._masks = _find_masks(config.masks, needed, datamanager)

    def restyled(
        self, style: int, names: Sequence[str], size: tuple[int, int]
    ) -> list[Float[Tensor, "3 height width"]]:
        """The pictures of a style (counted from 0) at the views' size.

        Raises:
            UserError: one cannot be read, or has another aspect.
        """
        return [read_view(self._restyled[style][name], size) for name in names]

    def held_out(
        self, names: Sequence[str], size: tuple[int, int]
    ) -> list[tuple[Float[Tensor, "3 height width"], ...]] | None:
        """The held-out views' own pictures in each style; None unless all of them are there."""
        if not self._restyled or not all(name in found for found in self._restyled for name in names):
            return None
        return [tuple(read_view(found[name], size) for found in self._restyled) for name in names]

    def mask(self, name: str, size: tuple[int, int]) -> Float[Tensor, "1 height width"] | None:
        """The mask of a view, 1 where at least half a pixel is inside, else 0; None where there is none."""
        if self._masks is None or name not in self._masks:
            return None
        return (read_view_mask(self._masks[name], size) >= 0.5).float()

    def masks(self, names: Sequence[str], size: tuple[int, int]) -> Float[Tensor, "views 1 height width"] | None:
        """The masks of views that all have one; None where there are no masks.

        Raises:
            UserError: all of them are black.
        """
        if self._masks is None:
            return None
        return read_mask_files([self._masks[name] for name in names], size)


def _find_masks(masks: str, needed: Sequence[str], datamanager: StyleDataManager) -> dict[str, Path]:
    """The masks by the names of their photos; there is one for every name needed."""
    found = datamanager.mask_paths() if masks == DATASET else find_pictures(Path(masks), "--pipeline.masks")
    if not found:
        raise UserError("This capture names no masks: give --pipeline.masks a folder of masks named like the photos.")
    missing = [name for name in needed if name not in found]
    if missing:
        raise UserError(
            f"{len(missing)} photos have no mask, {missing[0]} for example: give --pipeline.masks a folder with one "
            "mask a photo, named like it."
        )
    return found
