"""What the viewer shows: the field as it is, as it was before the first round, or the pictures it is retrained on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import OrientedBox
from torch import Tensor

from style_nerf2nerf.rounds.measures import nearest_cameras
from style_nerf2nerf.rounds.panel import ORIGINAL, RESTYLED
from style_nerf2nerf.rounds.storage import original_field

if TYPE_CHECKING:
    from style_nerf2nerf.model import StyleModel
    from style_nerf2nerf.pipeline import StylePipeline


class ShownField:
    """Stands in for the field where the viewer renders, and shows what the panel's menu says.

    The viewer renders under the training lock. What cannot be shown yet, before the first round, is the field itself.
    """

    def __init__(self, pipeline: StylePipeline) -> None:
        """Nothing is loaded before it is to be seen."""
        self._pipeline = pipeline
        self._original: StyleModel | None = None

    @property
    def device(self) -> torch.device:
        """Where the field is."""
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
        """What is to be seen from a camera of shape (1,): images (height, width, channels) by name."""
        see = self._pipeline.runner.panel.see
        if see == ORIGINAL:
            return self._original_field().get_outputs_for_camera(camera, obb_box=obb_box)
        outputs = self._pipeline.model.get_outputs_for_camera(camera, obb_box=obb_box)
        if see == RESTYLED:
            picture = self._nearest_picture(camera)
            if picture is not None:
                size = (outputs["rgb"].shape[0], outputs["rgb"].shape[1])
                # Depth and the like stay the field's: the viewer may be showing one of them.
                outputs["rgb"] = fit_inside(picture.to(outputs["rgb"]), size).permute(1, 2, 0)
        return outputs

    def _original_field(self) -> StyleModel:
        """The field before the first round; the field itself while there is no such."""
        if self._original is None:
            # The viewer may interrupt a render at any line: only a whole field is kept.
            self._original = original_field(self._pipeline, self._pipeline.runner.run_dir)
        return self._original or self._pipeline.model

    def _nearest_picture(self, camera: Cameras) -> Float[Tensor, "3 height width"] | None:
        """The restyled view of the camera that looks most alike, in the style with the largest share."""
        retraining = self._pipeline.runner.retraining
        if retraining is None:
            return None
        (index,) = nearest_cameras(camera, self._pipeline.datamanager.style_cameras())
        weights = self._pipeline.style_weights
        return retraining.views[index].restyled[weights.index(max(weights))]


def fit_inside(picture: Float[Tensor, "3 _ _"], size: tuple[int, int]) -> Float[Tensor, "3 height width"]:
    """A picture as large as it fits into (height, width), in the middle, on black; values stay in [0, 1]."""
    height, width = size
    scale = min(height / picture.shape[1], width / picture.shape[2])
    inner = [max(1, min(side, round(scale * own))) for side, own in zip(size, picture.shape[1:])]
    scaled = F.interpolate(picture[None], size=inner, mode="bilinear", align_corners=False, antialias=True)[0]
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    return F.pad(scaled, (left, width - inner[1] - left, top, height - inner[0] - top))
