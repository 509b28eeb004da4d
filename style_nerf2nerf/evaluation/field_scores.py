"""The papers' metrics of a restyled field, on renders along a path and from the restyled cameras.

*Consistency*: frames t and t − 1 (short range), t and t − 7 (long range) of a path, warped into each other with the
field's own depth (see `consistency`). *Sharpness*: variance of the Laplacian of the path's frames, to be read together
with consistency, which flat colours also improve. *Style distance*: sliced Wasserstein distance over VGG19's layers,
between renders and the restyled views of the same cameras, or between all frames of the path and one restyled view.
*BPSNR, BSSIM* (Fischer et al., NeRF Analogies): a second field is trained on renders of the first and compared with it
from held-out cameras; it cannot reproduce views that are inconsistent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.nerfacto import NerfactoModel
from torch import Tensor

from eschernet_prior.base import image_metrics
from eschernet_prior.base.errors import UserError
from style_nerf2nerf.evaluation.consistency import RANGES, Clip, Distance, clip_scores, sharpness, warp_error
from style_nerf2nerf.evaluation.second_field import train_second_field
from style_nerf2nerf.features import StyleLoss
from style_nerf2nerf.rendering import render_view
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.rounds.losses import block_distances


@dataclass(frozen=True)
class Viewpoints:
    """The cameras from which fields of a capture are rendered."""

    path: Cameras
    """Frames of the path in order, all of one size."""
    restyled: Cameras
    """Cameras of the restyled views."""
    held_out: Cameras
    """Cameras of held-out photos, which may be empty."""
    scene_box: SceneBox


@dataclass(frozen=True)
class Renders:
    """Renders of a field from several cameras."""

    colours: Float[Tensor, "views 3 height width"]
    depths: Float[Tensor, "views 1 height width"]


def render_from(model: NerfactoModel, cameras: Cameras) -> Renders:
    """Render a field from cameras of one size; the results are on the CPU."""
    views = [render_view(model, cameras[index : index + 1]) for index in range(len(cameras))]
    return Renders(torch.stack([view.colour for view in views]), torch.stack([view.depth for view in views]))


def path_scores(path: Renders, cameras: Cameras, lpips: Distance | None = None) -> dict[str, float]:
    """Compute warp errors at both ranges and the sharpness of the frames of a path.

    A range at which no two frames show the same surfaces is omitted.
    """
    scores = {"sharpness": float(sharpness(path.colours).mean())}
    views = ViewCameras.from_nerfstudio(cameras)
    for name, apart in RANGES.items():
        pairs = [(frame, frame - apart) for frame in range(apart, len(cameras))]
        try:
            error = warp_error(path.colours, path.depths, views, pairs, lpips)
        except UserError:
            continue
        scores |= {f"{name}_{metric}": value for metric, value in error.as_json().items() if metric != "pairs"}
    return scores


def style_scores(
    style_loss: StyleLoss,
    renders: Float[Tensor, "views 3 height width"],
    restyled: Float[Tensor, "views 3 height width"],
    path: Float[Tensor, "frames 3 _ _"],
) -> dict[str, float]:
    """Compute style distances of renders to their cameras' restyled views, and of a path's frames to the first one."""
    device = style_loss.features.mean.device
    targets = [style_loss.encode(view[None].to(device)) for view in restyled]
    own = [block_distances(style_loss, render, target)["mean"] for render, target in zip(renders, targets)]
    single = [block_distances(style_loss, frame, targets[0])["mean"] for frame in path]
    return {"style_distance": fmean(own), "single_image_style_distance": fmean(single)}


def second_field_scores(
    model: NerfactoModel, viewpoints: Viewpoints, renders: Float[Tensor, "views 3 height width"], steps: int
) -> dict[str, float]:
    """Compute BPSNR in dB and BSSIM; the result is empty without held-out cameras.

    Args:
        model: The field.
        viewpoints: Cameras; the second field is trained on renders from the restyled ones.
        renders: Renders of the field from the restyled cameras.
        steps: Training steps of the second field.
    """
    if len(viewpoints.held_out) == 0:
        return {}
    second = train_second_field(viewpoints.restyled, renders, viewpoints.scene_box, steps, device=model.device)
    first, again = (render_from(field, viewpoints.held_out).colours for field in (model, second))
    return {
        "bpsnr": float(image_metrics.psnr(again, first).mean()),
        "bssim": float(image_metrics.ssim(again, first).mean()),
    }


def text_scores(clip: Clip, path: Renders, before: Renders, prompt: str, original_prompt: str) -> dict[str, float]:
    """Compute CLIP's text-image direction similarity (TIDS) and direction consistency (DC) of a path's frames."""
    pairs: Sequence[tuple[int, int]] = [(frame, frame - 1) for frame in range(1, len(path.colours))]
    found = clip_scores(clip, path.colours, before.colours, prompt, original_prompt, list(pairs))
    return {"clip_tids": found["direction_similarity"], "clip_dc": found["direction_consistency"]}
