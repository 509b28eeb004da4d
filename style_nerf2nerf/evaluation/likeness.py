"""Measures restyled views against painted truth: how smooth, how colourful, how like the style.

The truth of a scene and a style is what its painter (`embedded.styles`) makes of the scene in the colours of the
prompt. What no word says, a warm or a cool light, the models choose: views are compared with the hand that they are
nearer to, and the other hand tells how far two paintings of one style and scene are apart.

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

from style_nerf2nerf.embedded.colours import MOODS, Hand, draw_hand
from style_nerf2nerf.embedded.data import own_hand, paint_scene
from style_nerf2nerf.evaluation.consistency import sharpness
from style_nerf2nerf.swd import sliced_wasserstein

Views = Float[Tensor, "views 3 height width"]
FLAT = 0.008
"""Local deviation of the painted truth below which a place counts as flat."""
PATCH = 5
"""Side in pixels of the patches whose distributions are compared, at full and at half size."""
DIRECTIONS = 96
"""Projections of the sliced Wasserstein distance of patches."""
FEATURES = 64
"""Random filters of the classifier at each of its scales."""
SCALES = (1, 2, 4)


@dataclass(frozen=True)
class Likeness:
    """How restyled views compare with painted truth."""

    grain: float
    """Local deviation (5×5 px) where the truth's is below `FLAT`, as a multiple of the truth's."""
    chroma: float
    """Mean CIELAB chroma, as a multiple of the truth's."""
    sharpness: float
    """Variance of the Laplacian, as a multiple of the truth's."""
    distance: float
    """Sliced Wasserstein distance of patches to the other hand's painting, as a multiple of that between the hands."""


def deviation(images: Views) -> Float[Tensor, "views 1 height width"]:
    """Standard deviation in 5×5 pixels, over the channels' mean variance."""
    mean, square = (F.avg_pool2d(each, 5, stride=1, padding=2, count_include_pad=False) for each in (images, images**2))
    return (square - mean.square()).clamp(min=0).mean(1, keepdim=True).sqrt()


def grain(images: Views, truth: Views) -> float:
    """Local deviation where the truth's is below `FLAT`, as a multiple of the truth's; NaN where nothing is flat."""
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


def compare_with_truth(images: Views, hands: Sequence[Views]) -> Likeness:
    """Measures views against the paintings of two hands.

    Args:
        images: The restyled views.
        hands: The same views painted by two hands of the same style.
    """
    errors = [float((images - truth).square().mean()) for truth in hands]
    near = min(range(len(hands)), key=errors.__getitem__)
    truth, other = hands[near], hands[1 - near]
    return Likeness(
        grain=grain(images, truth),
        chroma=chroma(images) / max(chroma(truth), 1e-6),
        sharpness=float(sharpness(images).mean() / sharpness(truth).mean().clamp(min=1e-6)),
        distance=patch_distance(images, other) / max(patch_distance(truth, other), 1e-6),
    )


def painted_truth(
    number: int, background: bool, views: int, size: int, styles: Sequence[str]
) -> dict[str, list[Views]]:
    """A scene's views by the hands of both moods, by style, in the colours of the style's own prompt."""
    painted: dict[str, list[Views]] = {style: [] for style in styles}
    for mood in range(len(MOODS)):
        hands = {style: Hand(own_hand(style, number).pair, mood) for style in styles}
        scene = paint_scene(number, views, size, tuple(styles), background, hands)
        for style, pictures in zip(styles, scene["styled"]):
            painted[style].append(pictures.float() / 255)
    return painted


def fitted_classifier(styles: Sequence[str], scenes: int, size: int) -> StyleClassifier:
    """A classifier fitted to the painted truth of training scenes, one view each, in drawn colours and moods.

    Args:
        styles: Names of the styles to tell apart.
        scenes: The first so many training scenes.
        size: Height and width in pixels.
    """
    pictures: list[Tensor] = []
    for number in range(scenes):
        rng = random.Random(number)  # noqa: S311
        hands = {style: draw_hand(rng) for style in styles}
        pictures.append(paint_scene(number, 1, size, tuple(styles), hands=hands)["styled"][:, 0].float() / 255)
    return StyleClassifier(styles, torch.cat(pictures), torch.arange(len(styles)).repeat(scenes))


class StyleClassifier:
    """Names the style of pictures: logistic regression on statistics of random filters, fitted to painted truth."""

    def __init__(self, styles: Sequence[str], pictures: Views, labels: Int[Tensor, " views"]):
        """Fits it.

        Args:
            styles: Their names.
            pictures: Painted truth.
            labels: Indices into the names.
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
            # Three of four see no brightness, only edges and patterns.
            blind = (torch.arange(FEATURES) % 4 > 0).view(-1, 1, 1, 1)
            filters = filters - blind * filters.mean((2, 3), keepdim=True)
            response = F.conv2d(F.avg_pool2d(pictures, scale) - 0.5, filters).relu()
            parts += [response.mean((2, 3)), response.flatten(2).std(-1)]
        return torch.cat(parts, 1)
