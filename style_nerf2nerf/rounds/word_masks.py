"""Masks from words: where CLIPSeg (Lüddecke and Ecker, CVPR 2022, arXiv 2112.10003) finds them, made consistent.

CLIPSeg gives each pixel of a single view a probability that it shows what the words describe, so a scene point has
another probability in each view. The field's depth matches the pixels that show the same point: every pixel gets the
mean over all views that see its point, and is inside the mask if that mean reaches the threshold.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.reprojection import ViewCameras, match, sample

NEIGHBOURS = 12
"""Number of nearest views that a view's probabilities are averaged with."""
SMOOTHING = 5
"""Side in pixels of the square over which a mask's edge is smoothed."""


class WordSegmenter:
    """CLIPSeg applied to views."""

    def __init__(self, folder: Path, device: torch.device | str = "cpu") -> None:
        """Load the model.

        Args:
            folder: Its folder, in the hub's layout.
            device: The device to run on.

        Raises:
            UserError: If its files are damaged or do not match.
        """
        self._model, self._processor = _load(folder)
        self._model.to(device)
        self._device = torch.device(device)

    @torch.no_grad()
    def probabilities(
        self, images: Float[Tensor, "views 3 height width"], words: str
    ) -> Float[Tensor, "views 1 height width"]:
        """Probability of each pixel to show what the words describe.

        Args:
            images: The views, in [0, 1].
            words: Description of the object.
        """
        found = []
        for image in images:
            inputs = self._processor(
                text=[words],
                images=[(image * 255).round().to(torch.uint8)],
                return_tensors="pt",
                truncation=True,
                padding=True,
            )
            logits = self._model(**inputs.to(self._device)).logits.reshape(1, 1, *self._model_size())
            found.append(F.interpolate(logits.float().cpu(), images.shape[-2:], mode="bilinear", align_corners=False))
        return torch.cat(found).sigmoid()

    def _model_size(self) -> tuple[int, int]:
        """Height and width of the model's input and output."""
        size = self._processor.image_processor.size
        return int(size["height"]), int(size["width"])


def check_clipseg(folder: Path) -> None:
    """Refuse files that CLIPSeg cannot be loaded from.

    Raises:
        UserError: If they are damaged or do not match.
    """
    _load(folder)


def _load(folder: Path) -> tuple[Any, Any]:
    from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

    from style_nerf2nerf.restyler.models.loading import quiet_loading

    try:
        with quiet_loading():
            processor = CLIPSegProcessor.from_pretrained(folder, local_files_only=True)
            loaded: Any = CLIPSegForImageSegmentation.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
            model, report = loaded
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"The CLIPSeg in {folder} could not be loaded: fetch it again.") from error
    missing = sorted(report["missing_keys"]) + [str(key) for key in report["mismatched_keys"]]
    if missing:
        raise UserError(f"The CLIPSeg in {folder} lacks {len(missing)} weights ({missing[0]}): fetch it again.")
    return model.eval(), processor


def consistent(
    probabilities: Float[Tensor, "views 1 height width"],
    depths: Float[Tensor, "views 1 height width"],
    cameras: ViewCameras,
) -> Float[Tensor, "views 1 height width"]:
    """Mean probability of each pixel's scene point over the views that see it.

    Args:
        probabilities: Of each pixel of each view.
        depths: z-depth in the cameras' units, 0 where there is no surface.
        cameras: Of the views, for pictures of this size.
    """
    places = cameras.camera_to_worlds[:, :3, 3]
    order = torch.cdist(places, places).argsort(dim=1)
    means = []
    for view in range(len(probabilities)):
        total, count = probabilities[view].clone(), torch.ones_like(probabilities[view])
        for other in [int(index) for index in order[view] if index != view][:NEIGHBOURS]:
            there = match(cameras, depths, view, other)
            total += torch.where(there.visible, sample(probabilities[other], there.pixels), 0.0)
            count += there.visible
        means.append(total / count)
    return torch.stack(means)


def masks_from(
    probabilities: Float[Tensor, "views 1 height width"], threshold: float
) -> Float[Tensor, "views 1 height width"]:
    """Threshold probabilities into masks, 1 inside and 0 outside, and remove specks by a majority filter.

    Args:
        probabilities: Of each pixel.
        threshold: Least probability inside.
    """
    inside = (probabilities >= threshold).float()
    shares = F.avg_pool2d(inside, SMOOTHING, stride=1, padding=SMOOTHING // 2, count_include_pad=False)
    return (shares >= 0.5).float()
