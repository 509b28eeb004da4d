"""Render what the viewer shows: the present field, that before the first round, a mixture, or restyled views."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from style_nerf2nerf.model import StyleModel
from style_nerf2nerf.options import StyledRun
from style_nerf2nerf.rendering import OPAQUE
from style_nerf2nerf.rounds.losses import Retraining
from style_nerf2nerf.rounds.mask_shapes import MaskShape
from style_nerf2nerf.rounds.report.measures import nearest_cameras
from style_nerf2nerf.rounds.storage import original_field
from style_nerf2nerf.rounds.viewer.interpolation import interpolated_state
from style_nerf2nerf.rounds.viewer.panel import ORIGINAL, RESTYLED, ViewControls

DARKER = 0.35
"""Factor on colours outside the shape that limits a round."""
BEFORE = "original"
"""Name of the output with the field before the first round, for nerfstudio's split screen."""


class ShownField:
    """Replaces the field in the viewer, and renders what the panel selects.

    The viewer renders under the training lock. Before the first round, every selection shows the field itself.
    """

    def __init__(
        self,
        pipeline: StyledRun,
        run_dir: Path | None,
        view: ViewControls,
        retraining: Callable[[], Retraining | None],
        selected: Callable[[], Collection[str]],
        on_render: Callable[[int, float], None],
        limit: Callable[[], MaskShape | None] = lambda: None,
    ) -> None:
        """Store the arguments; other fields are loaded when they are shown first.

        Args:
            pipeline: The pipeline of the field.
            run_dir: The run folder; None if unknown.
            view: The controls that select what to show.
            retraining: Function that returns the targets of the present round; None outside of a round.
            selected: Function that returns the names of the outputs that the viewer will use.
            on_render: Called with the number of rays and the seconds of every picture.
            limit: Function that returns the shape outside which colours are darkened; None for no shape.
        """
        self._pipeline, self._run_dir, self._view = pipeline, run_dir, view
        self._retraining, self._selected, self._on_render = retraining, selected, on_render
        self._limit = limit
        self._original: StyleModel | None = None
        self._between: StyleModel | None = None

    @property
    def device(self) -> torch.device:
        """Device of the field."""
        return self._pipeline.model.device

    @property
    def training(self) -> bool:
        """Whether the field is in training mode."""
        return self._pipeline.model.training

    def eval(self) -> None:
        """Put the field into evaluation mode."""
        self._pipeline.model.eval()

    def train(self) -> None:
        """Put the field into training mode."""
        self._pipeline.model.train()

    def get_outputs_for_camera(self, camera: Cameras, obb_box: OrientedBox | None = None) -> dict[str, Tensor]:
        """Render the selection from a camera of shape (1,): images (height, width, channels) by name.

        The dictionary always contains `original`, which is rendered only if the viewer uses it.
        """
        began = time.perf_counter()
        outputs = dict(self._field().get_outputs_for_camera(camera, obb_box=obb_box))
        size = (outputs["rgb"].shape[0], outputs["rgb"].shape[1])
        rays = size[0] * size[1]
        if BEFORE in self._selected():
            before = self.original() or self._pipeline.model
            outputs[BEFORE] = before.get_outputs_for_camera(camera, obb_box=obb_box)["rgb"]
            rays *= 2
        else:
            outputs[BEFORE] = outputs["rgb"]
        limit = self._limit()
        if limit is not None:
            outputs["rgb"] = _outside_darker(limit, outputs, camera)
        if self._view.see == RESTYLED:
            picture = self._nearest_picture(camera)
            if picture is not None:
                # Other outputs, such as depth, remain those of the field.
                outputs["rgb"] = fit_inside(picture.to(outputs["rgb"]), size).permute(1, 2, 0)
        self._on_render(rays, time.perf_counter() - began)
        return outputs

    def original(self) -> StyleModel | None:
        """The field before the first round; None until it exists."""
        if self._original is None and self._run_dir is not None:
            # The viewer may interrupt a render at any line: only a completely loaded field is stored.
            self._original = original_field(self._pipeline, self._run_dir)
        return self._original

    def _field(self) -> StyleModel:
        """The selected field."""
        field, amount = self._pipeline.model, self._view.amount
        if self._view.see == ORIGINAL:
            amount = 0.0
        if amount == 1.0:
            return field
        original = self.original()
        if original is None or amount == 0.0:
            return original or field
        if self._between is None:
            assert self._run_dir is not None
            self._between = original_field(self._pipeline, self._run_dir)
        assert self._between is not None
        self._between.load_state_dict(interpolated_state(original, field, amount))
        return self._between

    def _nearest_picture(self, camera: Cameras) -> Float[Tensor, "3 height width"] | None:
        """The restyled view of the nearest camera, in the style with the largest share."""
        retraining = self._retraining()
        if retraining is None:
            return None
        (index,) = nearest_cameras(camera, self._pipeline.datamanager.style_cameras())
        weights = self._pipeline.style_weights
        return retraining.views[index].restyled[weights.index(max(weights))]


def _outside_darker(limit: MaskShape, outputs: dict[str, Tensor], camera: Cameras) -> Float[Tensor, "height width 3"]:
    """Darken the colours of a picture outside the shape."""
    rays = camera.generate_rays(camera_indices=0, keep_shape=True)
    inside = limit.contains(rays.origins + outputs["depth"] * rays.directions)
    return torch.where((inside & (outputs["accumulation"][..., 0] >= OPAQUE))[..., None], 1.0, DARKER) * outputs["rgb"]


def fit_inside(picture: Float[Tensor, "3 _ _"], size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """Scale a picture to fit into (height, width), centred on black; values stay in [0, 1]."""
    height, width = size
    scale = min(height / picture.shape[1], width / picture.shape[2])
    inner = [max(1, min(side, round(scale * own))) for side, own in zip(size, picture.shape[1:])]
    scaled = F.interpolate(picture[None], size=inner, mode="bilinear", align_corners=False, antialias=True)[0]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return F.pad(scaled, (left, width - inner[1] - left, top, height - inner[0] - top))
