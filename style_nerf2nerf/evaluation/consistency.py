"""Metrics of restyled views: consistency, sharpness, outlines and CLIP scores.

*Warp error*: a neighbouring view is warped by depth and pose and compared where both show the same surface,
as RMSE and LPIPS, over a short and a long range (Lai et al., ECCV 2018, as the 3D stylisation literature applies it).
Neighbours are ordered by the distance of the cameras: the short range is the nearest view, the long range the seventh.
*Sharpness*: the variance of the Laplacian, because blurring also reduces the warp error.
*Outlines*: the probability that a picture changes more at a discontinuity of the depth than elsewhere (area under the
ROC curve): 0.5 for a picture unrelated to the shapes, 1 if all its edges are theirs.
*CLIP scores*: with e and o the image embeddings of a restyled and an original view and t, s those of the prompt and of
a description of the original, the text-image direction similarity `cos(e - o, t - s)` (Gal et al., 2022) and the
direction consistency `cos(e_i - o_i, e_j - o_j)` of neighbours (Haque et al., ICCV 2023).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc

from eschernet_prior.base import image_metrics
from eschernet_prior.base.errors import UserError
from style_nerf2nerf.reprojection import EDGE, ViewCameras, match, sample

RANGES = {"short": 1, "long": 7}
"""Rank of the neighbour by the distance of its camera; the last one if there are fewer."""
LEAST_SHARED = 0.01
"""Least share of a view's pixels that a pair must have in common."""
Distance = Callable[[Float[Tensor, "1 3 height width"], Float[Tensor, "1 3 height width"]], Tensor]


def neighbours(cameras: ViewCameras, place: int) -> list[tuple[int, int]]:
    """Pair each view with its neighbour of the given rank, 1 for the nearest; the last if there are fewer."""
    centres = cameras.camera_to_worlds[:, :3, 3].float()
    order = torch.cdist(centres, centres).argsort(dim=1, stable=True).tolist()
    pairs = []
    for view, others in enumerate(order):
        others.remove(view)
        pairs.append((view, others[min(place, len(others)) - 1]))
    return pairs


@dataclass(frozen=True)
class WarpError:
    """Mean over pairs of views."""

    rmse: float
    lpips: float | None
    """None if it was not measured."""
    pairs: int
    """Number of pairs with enough common surface."""

    def as_json(self) -> dict[str, float | int]:
        """The entries for JSON, without LPIPS if it was not measured."""
        measured = {"rmse": self.rmse, "lpips": self.lpips, "pairs": self.pairs}
        return {name: value for name, value in measured.items() if value is not None}


def warp_error(
    images: Float[Tensor, "views 3 height width"],
    depths: Float[Tensor, "views 1 height width"],
    cameras: ViewCameras,
    pairs: list[tuple[int, int]],
    lpips: Distance | None = None,
) -> WarpError:
    """Mean difference of views and their neighbours where both show the same surface.

    Args:
        images: Pictures in [0, 1].
        depths: z-depth in the poses' units, 0 without a surface.
        cameras: The views' cameras, at the size of the pictures.
        pairs: Pairs of views to compare.
        lpips: Function for LPIPS of pictures in [0, 1], called with pixels outside the common surface set to black.

    Raises:
        UserError: If no pair has enough common surface.
    """
    squares, perceived = [], []
    for view, other in pairs:
        found = match(cameras, depths, view, other)
        if found.visible.float().mean() < LEAST_SHARED:
            continue
        warped = sample(images[other], found.pixels)
        squares.append((warped - images[view])[:, found.visible].square().mean())
        if lpips is not None:
            perceived.append(lpips((warped * found.visible)[None], (images[view] * found.visible)[None]).mean())
    if not squares:
        raise UserError("No two views show the same surfaces: check that depth and poses have the same units.")
    rmse = float(torch.stack(squares).sqrt().mean())
    return WarpError(rmse, float(torch.stack(perceived).mean()) if perceived else None, len(squares))


def sharpness(images: Float[Tensor, "views 3 height width"]) -> Float[Tensor, " views"]:
    """Variance of the Laplacian of each view's grey values, 0 to 255."""
    grey = 255 * (images * images.new_tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)
    kernel = images.new_tensor([[0.0, 1.0, 0.0], [1.0, -4.0, 1.0], [0.0, 1.0, 0.0]])
    return F.conv2d(grey, kernel[None, None]).flatten(1).var(dim=1)


def outlines(
    images: Float[Tensor, "views 3 height width"], depths: Float[Tensor, "views 1 height width"]
) -> float | None:
    """How well edges of the pictures predict discontinuities of the depth, mean over views.

    Both are dilated by a pixel, to tolerate edges half a pixel off.

    Args:
        images: Pictures in [0, 1].
        depths: z-depth, 0 without a surface.

    Returns:
        The area under the ROC curve; None if no view has both discontinuities and other pixels.
    """
    jumps = F.max_pool2d((_change((depths + 1e-6).log()) > EDGE).float(), 3, stride=1, padding=1)
    changes = F.max_pool2d(_change(images), 3, stride=1, padding=1)
    areas = [
        binary_auroc(change.flatten(), jump.flatten().long())
        for change, jump in zip(changes, jumps)
        if 0 < jump.mean() < 1
    ]
    return float(torch.stack(areas).mean()) if areas else None


def _change(maps: Float[Tensor, "views channels height width"]) -> Float[Tensor, "views 1 height width"]:
    """The largest difference to the right and the lower neighbour."""
    sideways = F.pad(maps.diff(dim=-1).abs(), (0, 1))
    downwards = F.pad(maps.diff(dim=-2).abs(), (0, 0, 0, 1))
    return torch.maximum(sideways, downwards).amax(1, keepdim=True)


class Clip:
    """Embeddings of pictures and texts by a CLIP model on this machine; nothing is downloaded."""

    def __init__(self, source: str | Path):
        """Load the model.

        Args:
            source: a folder in transformers' layout, or the id of a model in the hub's cache.

        Raises:
            UserError: If the model is not on this machine.
        """
        from transformers import AutoTokenizer, CLIPModel

        try:
            self._model: Any = CLIPModel.from_pretrained(source, local_files_only=True).eval()
            self._tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
        except (OSError, ValueError) as error:
            raise UserError(
                f"There is no CLIP model {source} on this machine: pass its folder, or omit the CLIP scores."
            ) from error

    @torch.no_grad()
    def images(self, images: Float[Tensor, "views 3 height width"]) -> Float[Tensor, "views channels"]:
        """Unit embeddings of pictures in [0, 1], resized to the model's square."""
        side = self._model.config.vision_config.image_size
        pixels = F.interpolate(images, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean = pixels.new_tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
        deviation = pixels.new_tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
        embedded = self._model.vision_model(pixel_values=(pixels - mean) / deviation).pooler_output
        return F.normalize(self._model.visual_projection(embedded), dim=-1)

    @torch.no_grad()
    def texts(self, texts: list[str]) -> Float[Tensor, "texts channels"]:
        """Unit embeddings of texts."""
        tokens = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        embedded = self._model.text_model(
            input_ids=tokens.input_ids, attention_mask=tokens.attention_mask
        ).pooler_output
        return F.normalize(self._model.text_projection(embedded), dim=-1)


def clip_scores(
    clip: Clip,
    restyled: Float[Tensor, "views 3 height width"],
    originals: Float[Tensor, "views 3 height width"],
    prompt: str,
    original_prompt: str,
    pairs: list[tuple[int, int]],
) -> dict[str, float]:
    """Text-image direction similarity and direction consistency, each in [-1, 1], means over views and pairs."""
    ways = clip.images(restyled) - clip.images(originals)
    target, source = clip.texts([prompt, original_prompt])
    first, second = (ways[list(views)] for views in zip(*pairs))
    return {
        "direction_similarity": float(F.cosine_similarity(ways, (target - source)[None]).mean()),
        "direction_consistency": float(F.cosine_similarity(first, second).mean()),
    }


def find_lpips() -> Distance | None:
    """LPIPS; None if its weights are neither cached nor can be downloaded."""
    blank = torch.zeros(1, 3, 64, 64)
    try:
        image_metrics.lpips(blank, blank)
    except UserError:
        CONSOLE.print("Skipping LPIPS: the AlexNet weights are not cached and could not be downloaded.")
        return None
    return image_metrics.lpips


def find_clip(source: str) -> Clip | None:
    """CLIP; None if it is not on this machine."""
    try:
        return Clip(source)
    except UserError:
        CONSOLE.print(f"Skipping CLIP scores: there is no {source} on this machine; select another model with --clip.")
        return None
