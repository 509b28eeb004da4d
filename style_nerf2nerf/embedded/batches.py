"""Batches of the diffusion stage: scenes, styles, prompts, noise, and the paintings to predict."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from style_nerf2nerf.embedded.data import COLOUR_NAMES, STYLE_NAMES
from style_nerf2nerf.embedded.prompts import draw_prompt
from style_nerf2nerf.embedded.recipe import DiffusionRecipe, Recipe
from style_nerf2nerf.restyler.depths import FARTHEST
from style_nerf2nerf.restyler.guides import DEPTH_CHANNELS
from style_nerf2nerf.restyler.noise import choice_pattern

PHOTO_SHARE = 1 / 21
"""Share of scenes whose target is the photo, the same as that of each style."""
GRID = 8
"""Crops of pictures begin at multiples of so many latents."""
Latents = Float[Tensor, "batch channels tall wide"]


@dataclass(frozen=True)
class Batch:
    """One batch of the diffusion stage; entries are scenes × views, a scene's views consecutive."""

    start: Latents
    """Clean latents from which denoising starts: of the photos, or of softened paintings."""
    target: Latents
    """Clean latents of the paintings, with which every prediction is compared."""
    levels: list[int]
    """Levels of the chain, counted from the noisiest, 0; only the last one is trained."""
    noises: list[Latents]
    """The noise of each of these levels."""
    prompts: list[str]
    """Prompt of each scene."""
    kept: Float[Tensor, "scenes 1"]
    """0 where the prompt is dropped."""
    controls: Float[Tensor, "batch channels height width"]
    """The ControlNet's pictures: depth and guides."""
    time_ids: Float[Tensor, "batch 6"]
    num_views: int
    """Views of each scene, which share attention."""


def draw_batch(latents: dict[str, Tensor], recipe: Recipe, generator: torch.Generator, cropped: bool = False) -> Batch:
    """Draws scenes, views, styles, prompts, levels and noise.

    Denoising starts from the noised photo and, at each level, predicts the clean painting, which is noised again for
    the next level. A batch trains one prediction of such a chain: the first, or with probability `onward` the one
    after, and so on. What leads there are predictions of the models as they are.

    Args:
        latents: As `make_latents` returns them.
        recipe: The recipe.
        generator: Where all randomness comes from.
        cropped: See parts of pictures, the same part of all views of a scene.
    """
    settings = recipe.diffusion
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311
    views = _views_that_share(settings, latents["styled"].shape[2], rng)
    scenes = settings.pictures // views
    drawn = [_draw_scene(latents, settings, views, rng, generator) for _ in range(scenes)]
    photo, target, controls = (
        torch.cat(parts) for parts in zip(*((one.photo, one.target, one.controls) for one in drawn))
    )
    last = settings.steps_trained - 1
    if rng.random() < settings.from_painting:
        levels, heights = [rng.randint(min(last, settings.steps_trained // 2), last)], None
        start = target
        if rng.random() < 0.7:
            start = F.avg_pool2d(F.pad(target, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    else:
        levels, start = _draw_chain(settings, last, rng), photo
        heights = torch.cat([_heights(one.mood, views, generator) for one in drawn])
    noises = [torch.randn(target.shape, generator=generator) for _ in levels]
    if heights is not None:
        noises[0] = noises[0] + settings.noise_offset * choice_pattern(heights, target.shape)
    height, width = controls.shape[-2:]
    sides = [height, width]
    if rng.random() < 0.5:
        sides = [rng.randint(3 * side // 8, 3 * side // 2) for side in sides]
    time_ids = torch.tensor([[*sides, 0, 0, *sides]], dtype=torch.float32).repeat(len(target), 1)
    if cropped:
        cell, side = height // target.shape[-1], settings.crop
        places = range(0, target.shape[-1] - side + 1, GRID)
        corners = [corner for _ in drawn for corner in [(rng.choice(places), rng.choice(places))] * views]
        start, target, *noises = (_parts(each, corners, side) for each in (start, target, *noises))
        controls = _parts(controls, [(cell * y, cell * x) for y, x in corners], cell * side)
        time_ids = torch.tensor(
            [[height, width, cell * y, cell * x, cell * side, cell * side] for y, x in corners]
        ).float()
    return Batch(
        start=start,
        target=target,
        levels=levels,
        noises=noises,
        prompts=[one.prompt for one in drawn],
        kept=torch.tensor([[float(rng.random() >= settings.drop_prompt)] for _ in drawn]),
        controls=controls,
        time_ids=time_ids,
        num_views=views,
    )


@dataclass(frozen=True)
class _Scene:
    """One scene's part of a batch."""

    photo: Float[Tensor, "views channels tall wide"]
    target: Float[Tensor, "views channels tall wide"]
    controls: Float[Tensor, "views channels height width"]
    prompt: str
    mood: int | None
    """None for the photo, which has no mood."""


def _draw_scene(
    latents: dict[str, Tensor], settings: DiffusionRecipe, views: int, rng: random.Random, generator: torch.Generator
) -> _Scene:
    scene = rng.randrange(len(latents["styled"]))
    seen = torch.randperm(latents["styled"].shape[2], generator=generator)[:views]
    photo = latents["soft" if rng.random() < settings.soft_photo else "photo"][scene][seen].float()
    depth = latents["depth"][scene][seen].float()
    if rng.random() < settings.rough_depth:
        depth = _rough(depth, rng, generator)
    guides = latents["rough_guides" if rng.random() < settings.rough_depth else "guides"][scene][seen].float() / 255
    controls = torch.cat([depth.expand(-1, DEPTH_CHANNELS, -1, -1), guides], 1)
    if rng.random() < PHOTO_SHARE:
        return _Scene(photo, latents["photo"][scene][seen].float(), controls, draw_prompt("photo", ("", ""), rng), None)
    which = rng.randrange(latents["styled"].shape[1])
    style = STYLE_NAMES[int(latents["style"][scene, which])]
    first, second = (COLOUR_NAMES[index] for index in latents["pair"][scene, which].tolist())
    target = latents["styled"][scene, which][seen].float()
    return _Scene(photo, target, controls, draw_prompt(style, (first, second), rng), int(latents["mood"][scene, which]))


def _rough(
    depth: Float[Tensor, "views 1 height width"], rng: random.Random, generator: torch.Generator
) -> Float[Tensor, "views 1 height width"]:
    """Depth pictures with a field's errors: uneven surfaces, and in half of them a rough background."""
    height, width = depth.shape[-2:]
    fine = torch.randn(depth.shape, generator=generator)
    coarse = torch.randn(len(depth), 1, max(1, height // 4), max(1, width // 4), generator=generator)
    uneven = F.interpolate(coarse, size=(height, width), mode="bilinear") + 0.5 * fine
    rough = torch.where(depth > 0, (depth + rng.uniform(0.002, 0.012) * uneven).clamp(FARTHEST, 1), 0.0)
    if rng.random() < 0.5:
        return rough
    behind = (FARTHEST + 0.03 * torch.randn(depth.shape, generator=generator)).clamp(FARTHEST, 1)
    return torch.where(depth > 0, rough, behind)


def _draw_chain(settings: DiffusionRecipe, last: int, rng: random.Random) -> list[int]:
    """Draw the levels from the first to the trained one."""
    firsts, shares = zip(*settings.first_levels.items())
    levels = rng.choices(firsts, shares)
    while levels[-1] < last and rng.random() < settings.onward:
        levels.append(levels[-1] + 1)
    return levels


def _heights(mood: int | None, views: int, generator: torch.Generator) -> Float[Tensor, " views"]:
    """Normal numbers, one per view, whose mean is positive for mood 1 and negative for mood 0."""
    heights = torch.randn(views, generator=generator)
    return heights if mood is None or (heights.mean() > 0) == (mood == 1) else -heights


def _parts(maps: Float[Tensor, "batch channels tall wide"], corners: list[tuple[int, int]], side: int) -> Tensor:
    """Cut a square out of each map, from its corner (row, column)."""
    return torch.stack([each[:, y : y + side, x : x + side] for each, (y, x) in zip(maps, corners)])


def _views_that_share(settings: DiffusionRecipe, available: int, rng: random.Random) -> int:
    """Number of views that share attention: 1, or in batches with sharing all views or, half as often, two."""
    if rng.random() >= settings.shared:
        return 1
    return rng.choice((available, available, min(2, available)))
