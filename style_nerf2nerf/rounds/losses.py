"""The losses of one retraining step: a rendered view against its restyled pictures and against the base field.

Vocabulary: the *base* of a view is its render before the first round. *Inside* is the region in which a view's mask
allows changes; without masks it is the whole view. A *window* is the part of a view that is used in a step: (top, left,
height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.cameras.rays import RayBundle
from torch import Tensor

from style_nerf2nerf.features import StyleLoss, StyleTargets, feature_difference, feature_memory, gram_loss
from style_nerf2nerf.model import StyleModelConfig
from style_nerf2nerf.vgg19 import Features

Window = tuple[int, int, int, int]

BLENDED_RAYS = 0.1
"""Factor of the ray loss where several styles are blended."""


@dataclass(frozen=True)
class StyleView:
    """One view of a round, on the CPU."""

    restyled: tuple[Float[Tensor, "3 height width"], ...]
    """The view in each style, RGB in [0, 1]."""
    base: Float[Tensor, "3 height width"]
    """The field's render before the first round, RGB in [0, 1]."""
    base_depth: Float[Tensor, "1 height width"]
    """Depth of the base along the optical axis in scene units; 0 without a surface."""
    mask: Float[Tensor, "1 height width"] | None = None
    """1 inside, 0 outside."""

    def cropped(self, window: Window) -> StyleView:
        """Crop the view to a window."""
        crop = _crop_to(window)
        return StyleView(
            tuple(crop(picture) for picture in self.restyled),
            crop(self.base),
            crop(self.base_depth),
            None if self.mask is None else crop(self.mask),
        )


def _crop_to(window: Window):
    top, left, height, width = window
    return lambda picture: picture[:, top : top + height, left : left + width]


@dataclass(frozen=True)
class RayTargets:
    """Colours of the restyled views at the pixels of some rays."""

    restyled: Float[Tensor, "styles rays 3"]
    """Colours in each style, RGB in [0, 1]."""
    base: Float[Tensor, "rays 3"]
    """The field's colour before the first round."""
    inside: Float[Tensor, "rays 1"] | None
    """1 inside, 0 outside; None without masks."""


class Retraining:
    """The targets and losses of one round."""

    def __init__(
        self, config: StyleModelConfig, style_loss: StyleLoss, views: Sequence[StyleView], cameras: Cameras
    ) -> None:
        """Store the round's views; features of whole views are computed on first use and cached.

        Args:
            config: The weights of the losses.
            style_loss: The style loss; its network also computes the aligned layers.
            views: All views of the round, each in the same number of styles.
            cameras: Cameras of the views, of shape (views,).
        """
        self.config, self.style_loss, self.views, self.cameras = config, style_loss, views, cameras
        styles = range(len(views[0].restyled))
        device = style_loss.features.mean.device
        share = feature_memory(device) // (len(styles) + 1)
        self._targets = [
            StyleTargets(style_loss, [view.restyled[style] for view in views], max_bytes=share) for style in styles
        ]
        own = style_loss.features.layers
        self._content_layers = [name for name in own if name.startswith("conv4_")] or list(own)[-1:]
        self._contents = StyleTargets(style_loss, [view.base for view in views], self._content_layers, max_bytes=share)
        self._pixels = [torch.stack([view.restyled[style] for view in views]).to(device) for style in styles]
        self._base = torch.stack([view.base for view in views]).to(device)
        masked = views[0].mask is not None
        self._inside = torch.stack([cast(Tensor, view.mask) for view in views]).to(device) if masked else None

    def looks_at_view(self, step: int) -> bool:
        """Whether a step of the round, counted from 0, uses a whole view and not only rays."""
        return step % self.config.style_every == 0

    def rays(self, step: int, count: int) -> tuple[RayBundle, RayTargets]:
        """Draw rays through random pixels of all restyled views, with their colours.

        Args:
            step: The training step, which seeds the draw.
            count: Number of rays.
        """
        views, _, height, width = self._base.shape
        drawn = np.random.default_rng((step, 2)).integers(views * height * width, size=count)
        view, row, column = (torch.from_numpy(each) for each in np.unravel_index(drawn, (views, height, width)))
        coords = torch.stack([row, column], -1) + 0.5
        rays = self.cameras.generate_rays(camera_indices=view[:, None], coords=coords)
        at = (view, slice(None), row, column)
        return rays.to(self._base.device), RayTargets(
            torch.stack([pixels[at] for pixels in self._pixels]),
            self._base[at],
            None if self._inside is None else self._inside[at],
        )

    def ray_losses(
        self, colours: Float[Tensor, "rays 3"], targets: RayTargets, weights: Sequence[float], progress: float
    ) -> dict[str, Tensor]:
        """Compute the weighted losses on rays; losses of weight 0 are omitted.

        In a blend, rays are compared with the weighted mean colour of the styles. The median, or the nearest colour,
        would be that of the style with the largest weight. The mean of two strong colours can be grey, so in a blend
        the ray loss counts less (`BLENDED_RAYS`) than the style and aligned terms, which blend features.

        Args:
            colours: Colours of the field, RGB, with gradients.
            targets: Colours of the restyled views.
            weights: Weights of the styles, at least 0; they are normalised to a sum of 1.
            progress: Progress of the round, from 0 to 1.
        """
        config, losses = self.config, {}
        inside = targets.inside
        if config.ray_loss_mult > 0:
            shares = torch.tensor(weights, dtype=colours.dtype, device=colours.device) / sum(weights)
            wanted = torch.einsum("s,src->rc", shares, targets.restyled)
            each = ray_difference(colours, wanted, config.ray_loss, progress)
            mean = each.mean() if inside is None else (inside[:, 0] * each).sum() / inside.sum().clamp(min=1)
            blended = sum(weight > 0 for weight in weights) > 1
            losses["ray_loss"] = config.ray_loss_mult * (BLENDED_RAYS if blended else 1.0) * mean
        if inside is not None and config.background_loss_mult > 0:
            squares = (1 - inside) * (colours - targets.base).square()
            mean = squares.sum() / (3 * (1 - inside).sum()).clamp(min=1)
            losses["background_ray_loss"] = config.background_loss_mult * mean
        return losses

    def window(self, step: int, size: tuple[int, int]) -> Window | None:
        """Draw the part of a view that is used in a step; None for the whole view.

        Args:
            step: The training step, which seeds the draw.
            size: Height and width of the view.
        """
        sides = [min(self.config.style_patch_size or side, side) for side in size]
        if sides == list(size):
            return None
        drawn = np.random.default_rng((step, 1))
        top, left = (int(drawn.integers(side - part + 1)) for side, part in zip(size, sides))
        return top, left, sides[0], sides[1]

    def losses(
        self,
        index: int,
        image: Float[Tensor, "3 height width"],
        depth: Float[Tensor, "1 height width"],
        weights: Sequence[float],
        window: Window | None = None,
    ) -> dict[str, Tensor]:
        """Compute the weighted losses of a rendered view; losses of weight 0 are omitted.

        Args:
            index: Index of the view.
            image: The render, RGB in [0, 1], with gradients.
            depth: Its depth along the optical axis in scene units, with gradients.
            weights: Weights of the styles, at least 0; they are normalised to a sum of 1.
            window: The part of the view that was rendered; None: the whole view.
        """
        config, device = self.config, image.device
        view = self.views[index] if window is None else self.views[index].cropped(window)
        inside = None if view.mask is None else view.mask.to(device)
        shares = [(weight / sum(weights), style) for style, weight in enumerate(weights) if weight > 0]
        losses: dict[str, Tensor] = {}
        if inside is None or bool(inside.any()):
            losses |= self._feature_losses(index, image, view, shares, inside, window)
        if config.rgb_loss_mult > 0:
            terms = [share * masked_mse(image, view.restyled[style].to(image), inside) for share, style in shares]
            losses["style_rgb_loss"] = config.rgb_loss_mult * torch.stack(terms).sum()
        if inside is not None and config.background_loss_mult > 0:
            losses["background_loss"] = config.background_loss_mult * masked_mse(image, view.base.to(image), 1 - inside)
        if config.depth_loss_mult > 0:
            losses["depth_loss"] = config.depth_loss_mult * depth_change(depth, view.base_depth.to(depth))
        return losses

    def _feature_losses(
        self,
        index: int,
        image: Tensor,
        view: StyleView,
        shares: Sequence[tuple[float, int]],
        inside: Tensor | None,
        window: Window | None,
    ) -> dict[str, Tensor]:
        """Compute style, aligned, content and Gram terms from one pass of the network."""
        config, losses = self.config, {}
        weights = (config.style_loss_mult, config.aligned_loss_mult, config.content_loss_mult, config.gram_loss_mult)
        if not any(weights):
            return losses
        features = self.style_loss.features(image[None])
        targets = [(share, self._target(style, index, view, window)) for share, style in shares]
        if config.aligned_loss_mult > 0:
            terms = [
                share * feature_difference(features, target, config.aligned_layers, inside) for share, target in targets
            ]
            losses["aligned_loss"] = config.aligned_loss_mult * torch.stack(terms).sum()
        if config.content_loss_mult > 0:
            content = self._content(index, view, window)
            losses["content_loss"] = config.content_loss_mult * feature_difference(
                features, content, self._content_layers
            )
        if config.gram_loss_mult > 0:
            terms = [share * gram_loss(features, target) for share, target in targets]
            losses["gram_loss"] = config.gram_loss_mult * torch.stack(terms).sum()
        if config.style_loss_mult > 0:
            mask = None if inside is None else inside[None]
            losses["style_loss"] = config.style_loss_mult * self.style_loss.blended(features, targets, mask)
        return losses

    def _target(self, style: int, index: int, view: StyleView, window: Window | None) -> Features:
        """Features of a restyled view; those of a window are not cached."""
        if window is None:
            return self._targets[style][index]
        return self.style_loss.encode(view.restyled[style][None].to(self.style_loss.features.mean.device))

    def _content(self, index: int, view: StyleView, window: Window | None) -> Features:
        """The base's conv4 features, or those of the deepest layer if the network has no conv4."""
        if window is None:
            return self._contents[index]
        return self.style_loss.encode(view.base[None].to(self.style_loss.features.mean.device))


LOCKED_SCALES = (0.5, 0.08)
"""Colour difference at which the locked ray loss saturates, at the beginning and at the end of a round."""


def ray_difference(
    colours: Float[Tensor, "rays 3"], wanted: Float[Tensor, "rays 3"], kind: str, progress: float
) -> Float[Tensor, " rays"]:
    """Compute the difference between colours and targets by one of the measures of `StyleModelConfig.ray_loss`.

    With d the mean absolute difference of the channels, l1 is d and l2 the mean square; locked is d s / (d + s), which
    equals d for small differences (d ≪ s) and is constant for large ones. s decreases geometrically over the round, so
    that a surface first averages all views and then converges to the nearest of several contradicting ones.

    Args:
        colours: Colours of the field.
        wanted: Colours of the restyled views.
        kind: One of "l1", "l2" and "locked".
        progress: Progress of the round, from 0 to 1.
    """
    if kind == "l2":
        return (colours - wanted).square().mean(-1)
    distance = (colours - wanted).abs().mean(-1)
    if kind == "l1":
        return distance
    first, last = LOCKED_SCALES
    scale = first * (last / first) ** min(max(progress, 0.0), 1.0)
    return distance * scale / (distance + scale)


def block_distances(
    style_loss: StyleLoss,
    image: Float[Tensor, "3 height width"],
    target: Features,
    mask: Float[Tensor, "1 height width"] | None = None,
) -> dict[str, float]:
    """Compute the sliced Wasserstein distance for each block of the network, with fixed directions.

    Args:
        style_loss: The style loss whose network and layers are used.
        image: RGB in [0, 1].
        target: Features of the restyled picture.
        mask: Region to compare in both; None: the whole picture.

    Returns:
        The mean over the layers of each block, `block1` … `block4`, and over all layers, `mean`.
    """
    measure = StyleLoss(style_loss.features, style_loss.num_directions, torch.Generator().manual_seed(0))
    device = style_loss.features.mean.device
    with torch.no_grad():
        found = measure.distances(
            measure.encode(image[None].to(device)), target, None if mask is None else mask[None].to(device)
        )
    blocks: dict[str, list[float]] = {}
    for name, distance in found.items():
        blocks.setdefault(f"block{name[4]}", []).append(float(distance))
    means = {name: float(np.mean(values)) for name, values in blocks.items()}
    return {**means, "mean": float(np.mean([float(distance) for distance in found.values()]))}


def masked_mse(a: Tensor, b: Tensor, mask: Float[Tensor, "1 height width"] | None) -> Float[Tensor, ""]:
    """Mean squared difference of two pictures inside a mask, or without one, everywhere; 0 for an empty mask."""
    if mask is None:
        return F.mse_loss(a, b)
    return (mask * (a - b).square()).sum() / (a.shape[0] * mask.sum()).clamp(min=1)


def depth_change(depth: Float[Tensor, "1 height width"], base: Float[Tensor, "1 height width"]) -> Float[Tensor, ""]:
    """Mean relative change of depth over the pixels where both have a surface; 0 if there are none."""
    there = (base > 0) & (depth > 0)
    change = (depth - base).abs() / base.clamp(min=1e-6)
    return torch.where(there, change, 0.0).sum() / there.sum().clamp(min=1)
