"""Given restyled pictures and masks of a run: from folders, or from the capture.

A *view folder* is a nerfstudio dataset (its transforms.json lists the pictures) or a folder of pictures. A picture
belongs to the view whose photo has the same file name without suffix. It may have any resolution with the aspect ratio
of the view.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base.captures.account import CaptureAccount
from eschernet_prior.base.captures.checks import read_split
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json
from eschernet_prior.base.images import SUFFIXES, check_picture, read_image, read_mask
from style_nerf2nerf.datamanager import StyleDataManager, style_subset
from style_nerf2nerf.masks import read_mask_files, read_view_mask
from style_nerf2nerf.options import DATASET, OBJECT, WORDS, StylePipelineOptions
from style_nerf2nerf.restyler.models.folders import locate_models
from style_nerf2nerf.restyler.models.hub import ensure_ip_adapter

NO_MASKS = "This capture has no masks: set --pipeline.masks to a folder of masks named like the photos."


def check_given(config: StylePipelineOptions, account: CaptureAccount | None) -> None:
    """Refuse folders of restyled pictures and masks that cannot be used, before the capture is loaded.

    Args:
        config: The options that name them.
        account: Of the capture, whose photos they are named like; None where it is not known yet.

    Raises:
        UserError: If a folder does not exist, no name fits, a file cannot be read, or all masks are black.
    """
    if account is not None and (config.restyled_data or config.masks == DATASET or config.masks_folder is not None):
        _refuse_shared_names(account.names)
    for folder in config.restyled_data:
        for path in _given(folder, "--pipeline.restyled-data", account):
            check_picture(path)
    if config.masks == DATASET and account is not None and account.pictures.masked_share is None:
        raise UserError(NO_MASKS)
    if config.masks_folder is not None:
        paths = _given(config.masks_folder, "--pipeline.masks", account)
        inside = [bool(read_mask(path).any()) for path in paths]
        if not any(inside):
            raise UserError(f"The {len(paths)} masks are all black: paint white what should be restyled.")


def _refuse_shared_names(names: Sequence[str]) -> None:
    """Refuse photos with the same name, because masks and restyled pictures are found by the name of their photo.

    Args:
        names: Names of the photos without suffix.
    """
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise UserError(
            f"{count} photos of this capture have the name {name}, and masks and restyled pictures are found by name: "
            "omit --pipeline.restyled-data and --pipeline.masks, or rename the photos."
        )


def _given(folder: Path, option: str, account: CaptureAccount | None) -> list[Path]:
    """The files of a folder that belong to photos of the capture."""
    found = find_pictures(folder, option)
    names = names_in_all({folder: found}, account.names, option) if account is not None else found
    return [found[name] for name in names]


class ViewSources:
    """Given pictures and masks by the names of the photos."""

    styles: tuple[str, ...]
    """Name of each style: its folder's name, or its prompt."""
    restyled_names: frozenset[str] | None
    """Names of the training views that all folders have a picture of; None without folders."""

    def __init__(self, config: StylePipelineOptions, datamanager: StyleDataManager) -> None:
        """Find all pictures, so that missing ones are reported before long work starts.

        Raises:
            UserError: If a folder does not exist or no picture is named like a photo.
        """
        paths = [*datamanager.train_dataset.image_filenames, *datamanager.eval_dataset.image_filenames]
        photos = [path.stem for path in datamanager.train_dataset.image_filenames]
        held_out = [path.stem for path in datamanager.eval_dataset.image_filenames]
        self.masks_from = config.masks_of(datamanager)
        """Where masks come from: `dataset`, `words`, `object` or a folder; None without masks."""
        if config.restyled_data or self.masks_from not in (None, WORDS, OBJECT):
            _refuse_shared_names([path.stem for path in dict.fromkeys(paths)])
        self._restyled = [find_pictures(folder, "--pipeline.restyled-data") for folder in config.restyled_data]
        self.styles = tuple(folder.name for folder in config.restyled_data) or (
            config.model.prompt,
            *config.model.more_prompts,
        )
        self.restyled_names = None
        if self._restyled:
            folders = dict(zip(config.restyled_data, self._restyled))
            common = names_in_all(folders, photos, "--pipeline.restyled-data")
            self.restyled_names = frozenset(common)
            CONSOLE.print(f"{len(common)} of the {len(photos)} training views have given restyled pictures.")
        self._config, self._photos, self._held_out = config, photos, held_out
        self._masks = None
        self.made_masks = None
        """Folder of the masks that the run makes itself; None if it makes none."""
        if self.masks_from in (WORDS, OBJECT):
            self.made_masks = (config.run_dir or Path()) / "masks" / self.masks_from

    def find_masks(self, datamanager: StyleDataManager) -> None:
        """Find the masks of all restyled and held-out views, where the options ask for masks.

        Raises:
            UserError: If a view has no mask, or a picture or mask cannot be used.
        """
        if self.made_masks is not None:
            if self.made_masks.is_dir():
                self.read_made_masks()
        elif self.masks_from is not None:
            needed = [self._photos[index] for index in datamanager.style_indices()] + self._held_out
            self._masks = _find_masks(self.masks_from, needed, datamanager)
        self._configured_masks = self._masks
        self._check_files(datamanager)

    def _check_files(self, datamanager: StyleDataManager) -> None:
        """Refuse files that could not be used later, after the reconstruction.

        Raises:
            UserError: If one cannot be read, has another aspect than its photo, or all masks are black.
        """
        cameras, indices = datamanager.train_dataset.cameras, datamanager.style_indices()
        names = datamanager.style_names()
        sizes = [(int(cameras.height[index]), int(cameras.width[index])) for index in indices]
        for pictures in (*self._restyled, *([] if self._masks is None else [self._masks])):
            for name, size in zip(names, sizes):
                check_view(pictures[name], size)
        if self._masks is not None and not any(bool(read_mask(self._masks[name]).any()) for name in names):
            raise UserError(f"The {len(names)} masks are all black: paint white what should be restyled.")

    def use_masks(self, folder: Path | None) -> None:
        """Take the masks of a folder from now on, one a view; None: those of the configuration, if it has any."""
        self._masks = self._configured_masks if folder is None else find_pictures(folder, "--pipeline.masks")

    @property
    def lacks_made_masks(self) -> bool:
        """Whether the run makes its masks itself and has not made them yet."""
        return self.made_masks is not None and self._masks is None

    def read_made_masks(self) -> None:
        """Use the masks that the run has made.

        Raises:
            UserError: If their folder is empty.
        """
        assert self.made_masks is not None
        self._masks = self._configured_masks = find_pictures(self.made_masks, "--pipeline.masks")

    def restyled(
        self, style: int, names: Sequence[str], size: tuple[int, int]
    ) -> list[Float[Tensor, "3 height width"]]:
        """The pictures of a style (counted from 0) at the views' size.

        Raises:
            UserError: If one cannot be read, or has another aspect ratio.
        """
        return [read_view(self._restyled[style][name], size) for name in names]

    def held_out(
        self, names: Sequence[str], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[Float[Tensor, "3 height width"], ...]] | None:
        """The held-out views' own pictures in each style, at each view's height and width; None unless all exist."""
        if not self._restyled or not all(name in found for found in self._restyled for name in names):
            return None
        return [tuple(read_view(found[name], size) for found in self._restyled) for name, size in zip(names, sizes)]

    def mask(self, name: str, size: tuple[int, int]) -> Float[Tensor, "1 height width"] | None:
        """The mask of a view, 1 where at least half a pixel is inside, else 0; None without a mask."""
        if self._masks is None or name not in self._masks:
            return None
        return (read_view_mask(self._masks[name], size) >= 0.5).float()

    def masks(self, names: Sequence[str], size: tuple[int, int]) -> Float[Tensor, "views 1 height width"] | None:
        """The masks of views; None without masks.

        Raises:
            UserError: If all masks are black.
        """
        if self._masks is None:
            return None
        return read_mask_files([self._masks[name] for name in names], size)


def _find_masks(masks: str, needed: Sequence[str], datamanager: StyleDataManager) -> dict[str, Path]:
    """Find the masks by the names of their photos, at least those that are needed."""
    found = datamanager.mask_paths() if masks == DATASET else find_pictures(Path(masks), "--pipeline.masks")
    if not found:
        raise UserError(NO_MASKS)
    _refuse_missing_masks(found, needed)
    return found


def _refuse_missing_masks(found: Mapping[str, Path], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in found]
    if missing:
        raise UserError(
            f"{len(missing)} photos have no mask, {missing[0]} for example: set --pipeline.masks to a folder with one "
            "mask per photo, named like it."
        )


HUB = "sdxl"
"""Value of --pipeline.restyle.source and .ip-adapter for models that may have to be downloaded: these come last."""


def check_sources(config: StylePipelineOptions) -> None:
    """Refuse folders of models, pictures and masks that do not exist, before anything of the capture is read.

    Raises:
        UserError: If one of them does not exist or is empty.
    """
    if config.rounds.rounds == 0:
        return
    for folder in config.restyled_data:
        find_pictures(folder, "--pipeline.restyled-data")
    if config.masks_folder is not None:
        find_pictures(config.masks_folder, "--pipeline.masks")
    if not config.restyled_data:
        source, adapter = config.restyle.source, config.restyle.ip_adapter
        if source != HUB:
            locate_models(source)
        if adapter not in (None, HUB):
            ensure_ip_adapter(adapter)


def check_names(config: StylePipelineOptions) -> None:
    """Refuse folders of masks and restyled pictures that are not named like the photos, before any photo is loaded.

    Raises:
        UserError: If a folder has no picture of any photo, or a view that is restyled or held out has no mask.
    """
    from_folder = config.masks_folder
    if config.rounds.rounds == 0 or not (config.restyled_data or from_folder):
        return
    parser = config.datamanager.dataparser.setup()
    training, held_out = (read_split(parser, split) for split in ("train", "val"))
    names = [path.stem for path in training.image_filenames]
    if config.restyled_data:
        folders = {folder: find_pictures(folder, "--pipeline.restyled-data") for folder in config.restyled_data}
        views = names_in_all(folders, names, "--pipeline.restyled-data")
    elif config.datamanager.densify.num_views:
        views = []  # generated views join the photos later
    else:
        views = [names[index] for index in style_subset(training.cameras, config.datamanager.num_style_views)]
    if from_folder:
        found = find_pictures(from_folder, "--pipeline.masks")
        _refuse_missing_masks(found, [*views, *(path.stem for path in held_out.image_filenames)])


ASPECT_TOLERANCE = 0.02
"""Largest relative difference of the aspect ratios of a picture and its view."""


def find_pictures(folder: Path, option: str) -> dict[str, Path]:
    """All pictures of a view folder by name without suffix.

    Args:
        folder: A nerfstudio dataset, or a folder of pictures.
        option: Name of the command line's option, for the message.

    Raises:
        UserError: If there is no such folder, or it has no pictures.
    """
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}: set {option} to a folder of pictures named like the photos.")
    meta = read_json(folder / "transforms.json")
    if meta is not None:
        try:
            paths = [folder / frame["file_path"] for frame in meta["frames"]]
        except (KeyError, TypeError):
            raise UserError(
                f"{folder / 'transforms.json'} has no frames that name their file_path: correct it, or delete it, and "
                "the pictures of the folder are taken."
            ) from None
    else:
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_file() and found.setdefault(path.stem, path) != path:
            raise UserError(f"{found[path.stem]} and {path} belong to one photo: take one of them out.")
    if not found:
        raise UserError(f"{folder} contains no pictures: set {option} to a folder of pictures named like the photos.")
    return found


def names_in_all(folders: Mapping[Path, Mapping[str, Path]], names: Sequence[str], option: str) -> list[str]:
    """Names of which every folder has a picture.

    Raises:
        UserError: If there is none.
    """
    common = [name for name in names if all(name in found for found in folders.values())]
    if not common:
        folder = next((folder for folder, found in folders.items() if not set(found) & set(names)), next(iter(folders)))
        raise UserError(
            f"No picture in {folder} is named like a photo of the capture, {names[0]} for example: set {option} to a "
            "folder with matching file names."
        )
    return common


def read_view(path: Path, size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """Read a picture as RGB in [0, 1] at a view's size.

    Args:
        path: The picture.
        size: Height and width of the view.

    Raises:
        UserError: If it cannot be read, or has another aspect.
    """
    picture = _read(path, size)
    if tuple(picture.shape[1:]) == tuple(size):
        return picture
    return F.interpolate(picture[None], size=size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def _read(path: Path, size: tuple[int, int]) -> Float[Tensor, "3 _ _"]:
    picture = read_image(path)
    _check_aspect(path, (picture.shape[1], picture.shape[2]), size)
    return picture


def check_view(path: Path, size: tuple[int, int]) -> None:
    """Refuse a picture or mask that cannot be brought to a view's size, from what its file says.

    Args:
        path: The picture.
        size: Height and width of the view.

    Raises:
        UserError: If it cannot be read, or has another aspect.
    """
    width, height = check_picture(path).size
    _check_aspect(path, (height, width), size)


def _check_aspect(path: Path, found: tuple[int, int], size: tuple[int, int]) -> None:
    height, width = found
    if abs(width * size[0] / (height * size[1]) - 1) > ASPECT_TOLERANCE:
        raise UserError(
            f"{path} is {width} × {height} and its view {size[1]} × {size[0]}: pictures must have the aspect ratio of "
            "their photos."
        )
