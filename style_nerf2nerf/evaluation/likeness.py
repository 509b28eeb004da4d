"""Compare restyled views with the painted ground truth: smoothness, colourfulness and likeness to the style.

The ground truth of a scene and a style is its painting (`embedded.styles`) in the colours of the prompt. The prompt
leaves open whether the light is warm or cool: views are compared with the more similar of the two paintings, and the
distance between the two paintings is the unit of the likeness.

Axes: `views 3 height width`, in [0, 1].
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from skimage.color import rgb2lab
from torch import Tensor, nn

from style_nerf2nerf.embedded.colours import MOODS, StyleVariation, draw_variation
from style_nerf2nerf.embedded.data import own_variation, paint_scene
from style_nerf2nerf.evaluation.consistency import sharpness
from style_nerf2nerf.swd import sliced_wasserstein

Views = Float[Tensor, "views 3 height width"]
FLAT = 0.008
"""Local deviation of the painted truth below which a region counts as flat."""
PATCH = 5
"""Side in pixels of the patches whose distributions are compared, at full and at half size."""
DIRECTIONS = 96
"""Projections of the sliced Wasserstein distance of patches."""
FEATURES = 64
"""Random filters of the classifier at each of its scales."""
SCALES = (1, 2, 4)


@dataclass(frozen=True)
class Likeness:
    """Comparison of restyled views with the painted truth."""

    grain: float
    """Local deviation (5×5 px) where the truth's is below `FLAT`, as a multiple of the truth's."""
    chroma: float
    """Mean CIELAB chroma, as a multiple of the truth's."""
    sharpness: float
    """Variance of the Laplacian, as a multiple of the truth's."""
    distance: float
    """Sliced Wasserstein distance of patches to the painting in the other light, as a multiple of that between the two
    paintings."""


def deviation(images: Views) -> Float[Tensor, "views 1 height width"]:
    """Compute the local standard deviation in 5×5 pixels, from the mean variance of the channels."""
    mean, square = (F.avg_pool2d(each, 5, stride=1, padding=2, count_include_pad=False) for each in (images, images**2))
    return (square - mean.square()).clamp(min=0).mean(1, keepdim=True).sqrt()


def grain(images: Views, truth: Views) -> float:
    """Local deviation where the truth's is below `FLAT`, as a multiple of the truth's; NaN if no region is flat."""
    known = deviation(truth)
    flat = known < FLAT
    if not bool(flat.any()):
        return math.nan
    return float(deviation(images)[flat].mean() / known[flat].mean().clamp(min=1e-4))


def chroma(images: Views) -> float:
    """Mean CIELAB chroma, √(a² + b²)."""
    lab = torch.from_numpy(rgb2lab(images.movedim(1, -1).double().numpy()))
    return float(lab[..., 1:].norm(dim=-1).mean())


def patch_distance(images: Views, others: Views) -> float:
    """Sliced Wasserstein distance between the patches of two sets of pictures, the root of its mean over two scales."""
    generator = torch.Generator().manual_seed(0)
    directions = F.normalize(torch.randn(DIRECTIONS, 3 * PATCH**2, generator=generator), dim=1)
    total = 0.0
    for scale in (1, 2):
        sets = [F.unfold(F.avg_pool2d(each, scale), PATCH, stride=2) for each in (images, others)]
        first, second = (each.transpose(0, 1).flatten(1)[None] for each in sets)
        total += float(sliced_wasserstein(first, second, directions)) / 2
    return total**0.5


def compare_with_truth(images: Views, variations: Sequence[Views]) -> Likeness:
    """Compare views with two paintings of the same style.

    Args:
        images: The restyled views.
        variations: The same views painted in both lights.
    """
    errors = [float((images - truth).square().mean()) for truth in variations]
    near = min(range(len(variations)), key=errors.__getitem__)
    truth, other = variations[near], variations[1 - near]
    return Likeness(
        grain=grain(images, truth),
        chroma=chroma(images) / max(chroma(truth), 1e-6),
        sharpness=float(sharpness(images).mean() / sharpness(truth).mean().clamp(min=1e-6)),
        distance=patch_distance(images, other) / max(patch_distance(truth, other), 1e-6),
    )


def painted_truth(
    number: int, background: bool, views: int, size: int, styles: Sequence[str]
) -> dict[str, list[Views]]:
    """Paint a scene's views in both lights, in the colours of each style's own prompt; returns them by style."""
    painted: dict[str, list[Views]] = {style: [] for style in styles}
    for mood in range(len(MOODS)):
        variations = {style: StyleVariation(own_variation(style, number).pair, mood) for style in styles}
        scene = paint_scene(number, views, size, tuple(styles), background, variations)
        for style, pictures in zip(styles, scene["styled"]):
            painted[style].append(pictures.float() / 255)
    return painted


def fitted_classifier(styles: Sequence[str], scenes: int, size: int) -> StyleClassifier:
    """Fit a classifier to paintings of training scenes, one view each, in random colours and lights.

    Args:
        styles: Names of the styles to distinguish.
        scenes: Number of training scenes.
        size: Height and width in pixels.
    """
    pictures: list[Tensor] = []
    for number in range(scenes):
        rng = random.Random(number)  # noqa: S311
        variations = {style: draw_variation(rng) for style in styles}
        pictures.append(
            paint_scene(number, 1, size, tuple(styles), variations=variations)["styled"][:, 0].float() / 255
        )
    return StyleClassifier(styles, torch.cat(pictures), torch.arange(len(styles)).repeat(scenes))


class StyleClassifier:
    """Classifies the style of pictures: logistic regression on statistics of random filters, fitted to paintings."""

    def __init__(self, styles: Sequence[str], pictures: Views, labels: Int[Tensor, " views"]):
        """Fit the classifier.

        Args:
            styles: Names of the styles.
            pictures: Paintings.
            labels: Index of each painting's style.
        """
        self.styles = list(styles)
        features = self._features(pictures)
        self._mean, self._deviation = features.mean(0), features.std(0).clamp(min=1e-4)
        self._layer = nn.Linear(features.shape[1], len(self.styles))
        nn.init.zeros_(self._layer.weight)
        nn.init.zeros_(self._layer.bias)
        normal = self._normal(features)
        optimizer = torch.optim.LBFGS(self._layer.parameters(), max_iter=60, line_search_fn="strong_wolfe")

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(self._layer(normal), labels) + 1e-3 * self._layer.weight.square().sum()
            loss.backward()
            return loss

        with torch.enable_grad():
            optimizer.step(closure)

    @torch.no_grad()
    def __call__(self, pictures: Views) -> list[str]:
        """The style of each picture."""
        answers = self._layer(self._normal(self._features(pictures))).argmax(1)
        return [self.styles[index] for index in answers.tolist()]

    def _normal(self, features: Float[Tensor, "views features"]) -> Float[Tensor, "views features"]:
        return (features - self._mean) / self._deviation

    @staticmethod
    @torch.no_grad()
    def _features(pictures: Views) -> Float[Tensor, "views features"]:
        """Mean and deviation of rectified random filters at three scales."""
        generator = torch.Generator().manual_seed(1)
        parts: list[Tensor] = []
        for scale in SCALES:
            filters = torch.randn(FEATURES, 3, PATCH, PATCH, generator=generator)
            # Three of four filters ignore brightness and respond only to edges and patterns.
            blind = (torch.arange(FEATURES) % 4 > 0).view(-1, 1, 1, 1)
            filters = filters - blind * filters.mean((2, 3), keepdim=True)
            response = F.conv2d(F.avg_pool2d(pictures, scale) - 0.5, filters).relu()
            parts += [response.mean((2, 3)), response.flatten(2).std(-1)]
        return torch.cat(parts, 1)
