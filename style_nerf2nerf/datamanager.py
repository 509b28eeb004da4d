"""The capture's photos while the field is reconstructed, the restyled views while it is retrained."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor


@dataclass
class StyleDataManagerConfig(VanillaDataManagerConfig):
    """Which of the capture's cameras are rendered and restyled."""

    _target: type = field(default_factory=lambda: StyleDataManager)
    num_style_views: int = 18
    """Views that are restyled together: an even subset of the training views; all of them where there are fewer."""
    max_view_size: int = 1024
    """Longest side in pixels of the views that are restyled and retrained on; larger captures are rendered smaller."""


class StyleDataManager(VanillaDataManager[InputDataset]):
    """nerfstudio's data manager, and beside the photos the views of a round."""

    config: StyleDataManagerConfig

    def style_indices(self) -> list[int]:
        """Training views that are restyled: evenly spread, of the capture's most common size."""
        cameras = self.train_dataset.cameras
        sizes = list(zip(cameras.height.flatten().tolist(), cameras.width.flatten().tolist()))
        (common, _), *_ = Counter(sizes).most_common(1)
        candidates = [index for index, size in enumerate(sizes) if size == common]
        count = min(self.config.num_style_views, len(candidates))
        chosen = np.linspace(0, len(candidates), count, endpoint=False).round().astype(int)
        return [candidates[i] for i in chosen]

    def style_names(self) -> list[str]:
        """One file name without suffix per restyled view: that of its photo, made unique where photos share one."""
        stems = [Path(self.train_dataset.image_filenames[index]).stem for index in self.style_indices()]
        if len(set(stems)) == len(stems):
            return stems
        return [f"{position:04d}_{stem}" for position, stem in enumerate(stems)]

    def style_cameras(self) -> Cameras:
        """The cameras of the restyled views, of shape (views,), no larger than ``max_view_size``."""
        cameras = self.train_dataset.cameras[torch.tensor(self.style_indices())]
        longest = max(int(cameras.height.max()), int(cameras.width.max()))
        if longest > self.config.max_view_size:
            cameras.rescale_output_resolution(self.config.max_view_size / longest)
        return cameras

    def show_round(self, cameras: Cameras, targets: list[Float[Tensor, "3 height width"]], seed: int) -> None:
        """From now on, :meth:`next_style_view` hands out these views.

        Args:
            cameras: their cameras, of shape (views,).
            targets: the restyled views, RGB in [0, 1].
            seed: of the order in which they come.
        """
        self._style_views = (cameras, targets)
        self._order_seed = seed

    def next_style_view(self, step: int) -> tuple[int, Cameras, Float[Tensor, "3 height width"]]:
        """The view to retrain on at a step: every view once before any comes again, in another order each time.

        Args:
            step: the training step; the same step has the same view, so a resumed run goes on in the same order.

        Returns:
            The view's index, its camera of shape (1,), and the restyled image.
        """
        cameras, targets = self._style_views
        turn, position = divmod(step, len(targets))
        index = int(np.random.default_rng((self._order_seed, turn)).permutation(len(targets))[position])
        return index, cameras[index : index + 1], targets[index]
