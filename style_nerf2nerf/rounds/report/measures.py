"""Metrics of a run: of the reconstruction on held-out photos, of a round on restyled and held-out views."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from safetensors.torch import load_file, save_file
from torch import Tensor

from eschernet_prior.base.files import atomic_path
from eschernet_prior.base.sampling import evenly_spaced
from style_nerf2nerf.features import StyleLoss
from style_nerf2nerf.options import StyledRun
from style_nerf2nerf.rendering import RenderedView, render_view
from style_nerf2nerf.rounds.losses import StyleView, block_distances, depth_change, masked_mse


def measure_reconstruction(pipeline: StyledRun) -> dict[str, Any]:
    """PSNR and SSIM of the field on held-out photos."""
    dataset = pipeline.datamanager.eval_dataset
    indices = evenly_spaced(pipeline.config.num_eval_views, len(dataset))
    if not indices:
        return {"held_out_views": []}
    model, results = pipeline.model, []
    model.eval()
    for index in indices:
        camera = dataset.cameras[index : index + 1].to(pipeline.model.device)
        batch = {**dataset[index]}
        metrics, _ = model.get_image_metrics_and_images(model.get_outputs_for_camera(camera), batch)
        results.append(metrics)
    model.train()
    mean = {name: sum(result[name] for result in results) / len(indices) for name in results[0]}
    CONSOLE.print(f"The field shows {len(indices)} held-out views at {mean['psnr']:.2f} dB PSNR.")
    return {"held_out_views": [dataset.image_filenames[index].name for index in indices], **mean}


def masked_psnr(a: Tensor, b: Tensor, mask: Float[Tensor, "1 height width"] | None = None) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [0, 1], inside a mask; 100 where they are equal."""
    return float(-10 * masked_mse(a, b, mask).clamp(min=1e-10).log10())


@dataclass
class HeldOutViews:
    """Held-out views of the field before the first round, saved in the run folder."""

    path: Path
    names: list[str]
    cameras: Cameras

    def views(self, pipeline: StyledRun) -> list[RenderedView]:
        """Render the current field."""
        return [render_view(pipeline.model, self.cameras[index : index + 1]) for index in range(len(self.names))]

    def keep(self, pipeline: StyledRun) -> None:
        """Render and save the views, before the first round."""
        tensors = {}
        for index, view in enumerate(self.views(pipeline)):
            tensors |= {f"colour_{index}": view.colour.contiguous(), f"depth_{index}": view.depth.contiguous()}
        with atomic_path(self.path) as partial:
            save_file(tensors, partial)

    def read(self) -> list[RenderedView]:
        """The views before the first round."""
        tensors = load_file(self.path)
        return [RenderedView(tensors[f"colour_{index}"], tensors[f"depth_{index}"]) for index in range(len(self.names))]


def nearest_cameras(cameras: Cameras, others: Cameras) -> list[int]:
    """For each camera the index of the most similar one of the others.

    The least of distance² / mean distance² + angle² between the viewing directions, both in the training frame.
    """
    here, there = (each.camera_to_worlds.double().cpu() for each in (cameras, others))
    apart = torch.cdist(here[:, :, 3], there[:, :, 3])
    angle = (here[:, :, 2] @ there[:, :, 2].T).clamp(-1, 1).acos()
    return (apart.square() / apart.square().mean().clamp(min=1e-12) + angle.square()).argmin(1).tolist()


def measure_held_out(
    base: Sequence[RenderedView],
    now: Sequence[RenderedView],
    targets: Sequence[tuple[Float[Tensor, "3 height width"], ...]],
    masks: Sequence[Float[Tensor, "1 height width"] | None],
    styles: Sequence[str],
    style_loss: StyleLoss,
) -> dict[str, Any]:
    """Style and faithfulness of held-out views, means over the views.

    Args:
        base: The views before the first round.
        now: The views now.
        targets: For each view, a restyled picture in each style.
        masks: Where the scene may change; None: everywhere.
        styles: Name of each style.
        style_loss: Whose network is used.

    Returns:
        `style_distance` and `style_distance_base`: sliced Wasserstein distance to the targets by style and block
        of VGG19, now and before the first round; `psnr_to_base` in dB, outside the masks where there are some;
        `depth_change`, the mean change of depth as a share of it.
    """
    device = style_loss.features.mean.device
    found: dict[str, dict[str, dict[str, float]]] = {"style_distance": {}, "style_distance_base": {}}
    for number, style in enumerate(styles):
        each: dict[str, list[dict[str, float]]] = {key: [] for key in found}
        for after, before, pictures, mask in zip(now, base, targets, masks):
            if mask is None or bool(mask.any()):
                target = style_loss.encode(pictures[number][None].to(device))
                each["style_distance"].append(block_distances(style_loss, after.colour, target, mask))
                each["style_distance_base"].append(block_distances(style_loss, before.colour, target, mask))
        for key, distances in each.items():
            found[key][style] = _means(distances)
    outside = [None if mask is None else 1 - mask for mask in masks]
    return {
        **found,
        "psnr_to_base": float(
            np.mean([masked_psnr(a.colour, b.colour, mask) for a, b, mask in zip(now, base, outside)])
        ),
        "depth_change": float(np.mean([float(depth_change(a.depth, b.depth)) for a, b in zip(now, base)])),
    }


def style_distance(
    style_loss: StyleLoss,
    pictures: Sequence[Float[Tensor, "3 height width"]],
    views: Sequence[StyleView],
    weights: Sequence[float],
) -> float:
    """How far pictures are from the views' restyled ones, as a blend's retraining weights it.

    The mean over views and layers of `Σ_k w_k SW(picture, restyled_k)`, with the sliced Wasserstein distance SW of
    `style_nerf2nerf.swd` and weights `w` that sum to 1.

    Args:
        style_loss: Whose network is used.
        pictures: One for each view, RGB in [0, 1].
        views: Restyled in each style; where they have masks, only the inside is compared.
        weights: Of the styles, at least 0 and not all 0; their sum is brought to 1, a style of weight 0 is left out.

    Returns:
        The distance; 0 where the masks leave nothing to compare.
    """
    shares = _shares(weights)
    found = [
        sum(share * _distance(style_loss, picture, view.restyled[style], view.mask) for style, share in shares.items())
        for picture, view in zip(pictures, views)
        if view.mask is None or bool(view.mask.any())
    ]
    return float(np.mean(found)) if found else 0.0


def least_style_distance(style_loss: StyleLoss, views: Sequence[StyleView], weights: Sequence[float]) -> float:
    """A `style_distance` that no picture can go below, because it cannot be in several styles at once.

    On each direction SW is a mean of squared differences between sorted projections `x` of the picture and `t_k` of
    the restyled views. With weights that sum to 1,

        Σ_k w_k |x − t_k|² = |x − Σ_k w_k t_k|² + Σ_{j<k} w_j w_k |t_j − t_k|²

    of which the last term does not depend on the picture. So the bound is the mean over views and layers of
    `Σ_{j<k} w_j w_k SW(restyled_j, restyled_k)`, on the directions of `style_distance`. It is 0 for a single style.

    Args:
        style_loss: Whose network is used.
        views: Restyled in each style, all of one size.
        weights: Of the styles, as in `style_distance`.
    """
    pairs = list(itertools.combinations(_shares(weights).items(), 2))
    found = [
        sum(
            one_share * other_share * _distance(style_loss, view.restyled[one], view.restyled[other], view.mask)
            for (one, one_share), (other, other_share) in pairs
        )
        for view in views
        if pairs and (view.mask is None or bool(view.mask.any()))
    ]
    return float(np.mean(found)) if found else 0.0


def _shares(weights: Sequence[float]) -> dict[int, float]:
    """The share of each style that has one, by its number."""
    return {style: weight / sum(weights) for style, weight in enumerate(weights) if weight > 0}


def _distance(style_loss: StyleLoss, picture: Tensor, other: Tensor, mask: Tensor | None) -> float:
    target = style_loss.encode(other[None].to(style_loss.features.mean.device))
    return block_distances(style_loss, picture, target, mask)["mean"]


def _means(each: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for one in each for name in one)
    return {name: float(np.mean([one[name] for one in each if name in one])) for name in names}
