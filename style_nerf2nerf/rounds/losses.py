"""The losses of one retraining step: a rendered view against its restyled pictures and against the base field.

Vocabulary: the *base* of a view is what the field showed before the first round. *Inside* is where a view's mask says
that the scene may change; without masks that is everywhere. A *window* is the part of a view that a step looks at:
(top, left, height, width) in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from style_nerf2nerf.features import Features, StyleLoss, StyleTargets, content_loss, gram_loss
from style_nerf2nerf.model import StyleModelConfig

Window = tuple[int, int, int, int]


@dataclass(frozen=True)
class StyleView:
    """One view of a round, on the CPU."""

    restyled: tuple[Float[Tensor, "3 height width"], ...]
    """The view in each style, RGB in [0, 1]."""
    base: Float[Tensor, "3 height width"]
    """The field's render before the first round, RGB in [0, 1]."""
    base_depth: Float[Tensor, "1 height width"]
    """Its depth along the optical axis in scene units; 0 where nothing is."""
    mask: Float[Tensor, "1 height width"] | None = None
    """1 inside, 0 outside."""

    def cropped(self, window: Window) -> StyleView:
        """What a window shows of it."""
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


class Retraining:
    """What the field is retrained on during one round."""

    def __init__(self, config: StyleModelConfig, style_loss: StyleLoss, views: Sequence[StyleView]) -> None:
        """Take the round's views; features of whole views are computed when they are first needed, and kept.

        Args:
            config: the weights of the losses.
            style_loss: the style loss and its network.
            views: all views of the round, each in the same number of styles.
        """
        self.config, self.style_loss, self.views = config, style_loss, views
        styles = len(views[0].restyled)
        self._targets = [StyleTargets(style_loss, [view.restyled[style] for view in views]) for style in range(styles)]
        self._contents: dict[int, Features] = {}

    def window(self, step: int, size: tuple[int, int]) -> Window | None:
        """The part of a view that a step looks at; None for all of it.

        Args:
            step: the training step, from which the place is drawn.
            size: height and width of the view.
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
        """All losses of a rendered view whose weights are above 0, weighted.

        Args:
            index: which view.
            image: the render, RGB in [0, 1], with gradients.
            depth: its depth along the optical axis in scene units, with gradients.
            weights: of the styles, at least 0; their sum is brought to 1.
            window: the part of the view that was rendered; None: all of it.
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
        """Style, content and Gram terms from one pass of the network."""
        config, losses = self.config, {}
        if not (config.style_loss_mult or config.content_loss_mult or config.gram_loss_mult):
            return losses
        features = self.style_loss.features(image[None])
        targets = [(share, self._target(style, index, view, window)) for share, style in shares]
        if config.content_loss_mult > 0:
            content = self._content(index, view, window)
            losses["content_loss"] = config.content_loss_mult * content_loss(features, content, list(content))
        if config.gram_loss_mult > 0:
            terms = [share * gram_loss(features, target) for share, target in targets]
            losses["gram_loss"] = config.gram_loss_mult * torch.stack(terms).sum()
        if config.style_loss_mult > 0:
            mask = None if inside is None else inside[None]
            losses["style_loss"] = config.style_loss_mult * self.style_loss.blended(features, targets, mask)
        return losses

    def _target(self, style: int, index: int, view: StyleView, window: Window | None) -> Features:
        """Features of a restyled view; those of a window are used once and not kept."""
        if window is None:
            return self._targets[style][index]
        return self.style_loss.encode(view.restyled[style][None].to(self.style_loss.features.mean.device))

    def _content(self, index: int, view: StyleView, window: Window | None) -> Features:
        """The base's conv4 features, or of its deepest layer where conv4 is not looked at."""
        if index in self._contents and window is None:
            return self._contents[index]
        features = self.style_loss.encode(view.base[None].to(self.style_loss.features.mean.device))
        names = [name for name in features if name.startswith("conv4_")] or list(features)[-1:]
        content = {name: features[name] for name in names}
        if window is None:
            self._contents[index] = content
        return content


def block_distances(
    style_loss: StyleLoss,
    image: Float[Tensor, "3 height width"],
    target: Features,
    mask: Float[Tensor, "1 height width"] | None = None,
) -> dict[str, float]:
    """Sliced Wasserstein distance by block of the network, on directions that are always the same.

    Args:
        style_loss: whose network and layers are used.
        image: RGB in [0, 1].
        target: features of the restyled picture.
        mask: where to look in both; None: everywhere.

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
    """Mean squared difference of two pictures inside a mask; 0 where it is empty, everywhere without one."""
    if mask is None:
        return F.mse_loss(a, b)
    return (mask * (a - b).square()).sum() / (a.shape[0] * mask.sum()).clamp(min=1)


def depth_change(depth: Float[Tensor, "1 height width"], base: Float[Tensor, "1 height width"]) -> Float[Tensor, ""]:
    """Mean change of depth as a share of the base's, over the pixels where both have a surface; 0 if none."""
    there = (base > 0) & (depth > 0)
    change = (depth - base).abs() / base.clamp(min=1e-6)
    return torch.where(there, change, 0.0).sum() / there.sum().clamp(min=1)
