"""Data manager: photos during the reconstruction, restyled views in a round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.datasets.base_dataset import InputDataset

from eschernet_prior.base.captures.checks import UsableLenses
from eschernet_prior.base.dataset_io import CROP_RADIUS
from eschernet_prior.base.sampling import evenly_spaced
from eschernet_prior.densify.datamanager import DensifyDataManager, DensifyDataManagerConfig

RESTYLED_LENSES = UsableLenses(
    frozenset({CameraType.PERSPECTIVE, CameraType.FISHEYE, CameraType.FISHEYE624}),
    eighth_order=True,
    advice="only views of perspective and fisheye cameras can be restyled, so convert 360° images with "
    "ns-process-data images --camera-type equirectangular first.",
)
"""Lenses whose views can be restyled."""


@dataclass
class StyleDataManagerConfig(DensifyDataManagerConfig):
    """Configuration of the data manager, and the choice of the restyled views."""

    _target: type = field(default_factory=lambda: StyleDataManager)
    num_style_views: int = 18
    """Number of views that are restyled together, an even subset of the training views; with
    --pipeline.restyled-data, all views with a restyled picture."""
    max_view_size: int = 1024
    """Longest side of the restyled views in pixels; views of larger captures are rendered at this size."""

    @property
    def lenses(self) -> UsableLenses:
        """The lenses that can be restyled and, if views are generated, also densified."""
        return super().lenses if self.densify.num_views else RESTYLED_LENSES


def of_common_size(cameras: Cameras) -> list[int]:
    """Find the indices of the cameras with the most common size."""
    sizes = list(zip(cameras.height.flatten().tolist(), cameras.width.flatten().tolist()))
    (common, _), *_ = Counter(sizes).most_common(1)
    return [index for index, size in enumerate(sizes) if size == common]


def style_subset(cameras: Cameras, count: int) -> list[int]:
    """Choose the cameras whose views are restyled: at most `count`, evenly spaced, of the most common size."""
    candidates = of_common_size(cameras)
    return [candidates[index] for index in evenly_spaced(count, len(candidates), closed=True)]


class StyleDataManager(DensifyDataManager):
    """Photos, generated views, and the views of a round."""

    config: StyleDataManagerConfig
    restyled_names: frozenset[str] | None = None
    """Names of the views with a given restyled picture, which are all used; None without --pipeline.restyled-data."""

    def style_indices(self) -> list[int]:
        """Indices of the training views that are restyled: evenly spaced, of the capture's most common size."""
        cameras = self.train_dataset.cameras
        if self.restyled_names is None:
            return style_subset(cameras, self.config.num_style_views)
        stems = [path.stem for path in self.train_dataset.image_filenames]
        return [index for index in of_common_size(cameras) if stems[index] in self.restyled_names]

    def style_names(self) -> list[str]:
        """File names without suffix of the restyled views: those of the photos, made unique."""
        stems = [Path(self.train_dataset.image_filenames[index]).stem for index in self.style_indices()]
        if len(set(stems)) == len(stems):
            return stems
        return [f"{position:04d}_{stem}" for position, stem in enumerate(stems)]

    def style_cameras(self) -> Cameras:
        """Cameras of the restyled views, of shape (views,), reduced to `max_view_size`."""
        return self._view_cameras(self.train_dataset, self.style_indices())

    def cameras_of(self, names: Sequence[str]) -> Cameras:
        """The cameras of a round's views, by the names of the views."""
        indices = dict(zip(self.style_names(), self.style_indices()))
        if not set(names) <= indices.keys():
            indices = {path.stem: index for index, path in enumerate(self.train_dataset.image_filenames)}
        return self._view_cameras(self.train_dataset, [indices[name] for name in names])

    def held_out_views(self, count: int) -> tuple[list[str], Cameras]:
        """Names and cameras of an even subset of the held-out photos, reduced to `max_view_size`.

        Names are made unique if photos in different folders have the same name.
        """
        indices = evenly_spaced(count, len(self.eval_dataset))
        paths = {*self.train_dataset.image_filenames, *self.eval_dataset.image_filenames}
        names = [self.eval_dataset.image_filenames[index].stem for index in indices]
        if len({path.stem for path in paths}) < len(paths):
            names = [f"held_out_{position:02d}_{name}" for position, name in enumerate(names)]
        return names, self._view_cameras(self.eval_dataset, indices)

    def _view_cameras(self, dataset: InputDataset, indices: list[int]) -> Cameras:
        cameras = dataset.cameras[torch.tensor(indices, dtype=torch.int64)]
        longest = max([*cameras.height.flatten().tolist(), *cameras.width.flatten().tolist()], default=0)
        if longest > self.config.max_view_size:
            scale = self.config.max_view_size / longest
            cameras.rescale_output_resolution(scale)
            metadata = cameras.metadata or {}
            if CROP_RADIUS in metadata:
                cameras.metadata = {**metadata, CROP_RADIUS: scale * metadata[CROP_RADIUS]}
        return cameras

    def mask_paths(self) -> dict[str, Path]:
        """The capture's masks by the names of their photos, including held-out ones; empty without masks."""
        paths: dict[str, Path] = {}
        for dataset in (self.train_dataset, self.eval_dataset):
            outputs = dataset._dataparser_outputs
            photos = [path.stem for path in outputs.image_filenames]
            pairs = zip(photos, outputs.mask_filenames or [])
            paths |= {photo: mask for photo, mask in pairs if mask is not None}  # generated views have none
        return paths

    def show_round(self, seed: int) -> None:
        """Make `next_style_view` return the restyled views from now on.

        Args:
            seed: Seed of their order.
        """
        self._style_views = self.style_cameras()
        self._order_seed = seed

    def next_style_view(self, step: int) -> tuple[int, Cameras]:
        """Choose the view of a retraining step: all views in random order, then again in another order.

        Args:
            step: The training step, which determines the view, so that a resumed run keeps the order.

        Returns:
            The view's index and its camera of shape (1,).
        """
        count = len(self._style_views)
        turn, position = divmod(step, count)
        index = int(np.random.default_rng((self._order_seed, turn)).permutation(count)[position])
        return index, self._style_views[index : index + 1]
