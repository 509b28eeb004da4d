"""What one step of the diffusion stage sees: scenes, styles, prompts, noise, and the answer that is asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from style_nerf2nerf.embedded.data import STYLE_NAMES
from style_nerf2nerf.embedded.prompts import draw_prompt
from style_nerf2nerf.embedded.recipe import DiffusionRecipe, Recipe

Timesteps = Int[Tensor, "batch"]
WEAKEST = 0.3
"""The lowest strength of restyling that training prepares for."""
Schedule = Float[Tensor, "timesteps"]


@dataclass(frozen=True)
class Batch:
    """One batch of the diffusion stage; entries are scenes × views, a scene's views consecutive."""

    noisy: Float[Tensor, "batch channels height width"]
    """What the network sees."""
    target: Float[Tensor, "batch channels height width"]
    """The velocity: what the network shall say."""
    weight: Float[Tensor, "batch 1 1 1"]
    """Of each entry in the loss."""
    timestep: Timesteps
    prompts: list[str]
    """One a scene."""
    kept: Float[Tensor, "scenes 1"]
    """0 where the prompt is dropped."""
    depth: Float[Tensor, "batch 3 tall wide"]
    time_ids: Float[Tensor, "batch 6"]
    num_views: int
    """Views of each scene, which share attention."""


def draw_batch(
    latents: dict[str, Tensor], alphas: Schedule, recipe: Recipe, generator: torch.Generator, cropped: bool = False
) -> Batch:
    """Draws scenes, views, styles, prompts, timesteps and noise.

    With a = √ᾱ, s = √(1-ᾱ), x the styled latents, p the photo's and ε the noise: the input is a·x + s·n and the answer
    the velocity a·n - s·x. For ordinary denoising n = ε. For a share `from_photo` of the scenes n is what stands for
    noise when denoising starts at some strength from the photo, a₀·p + s₀·ε, and is meant to end at x, all the way
    down: n = ε + (p - x)·a₀/s₀. The weight s stands between the error of n and that of x, which would be s²; beside
    it, the weight takes back the variance of n, about 1 + (a₀/s₀)².

    Args:
        latents: As `make_latents` returns them.
        alphas: ᾱ of every training timestep.
        recipe: The recipe.
        generator: Where all randomness comes from.
        cropped: See parts of pictures, as many more as they are smaller.
    """
    told = recipe.diffusion
    side = latents["styled"].shape[-1]
    crop, cell = told.crop if cropped else side, latents["depth"].shape[-1] // side
    entries = told.pictures * (side // crop) ** 2

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    views = _views_that_share(told, latents["styled"].shape[2], float(uniform(1)))
    scenes, painted = entries // views, latents["styled"].shape[1]
    chosen = torch.randint(len(latents["styled"]), (scenes,), generator=generator)
    # -1: the photo, half as often as a style.
    which = torch.randint(-1, 2 * painted, (scenes,), generator=generator)
    seen = torch.stack([torch.randperm(latents["styled"].shape[2], generator=generator)[:views] for _ in chosen])
    photo = latents["photo"][chosen[:, None], seen].float()
    styled = latents["styled"][chosen[:, None], which.clamp(min=0)[:, None] % painted, seen].float()
    pictures = torch.where((which < 0).view(-1, 1, 1, 1, 1), photo, styled)
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311
    prompts = [
        draw_prompt("photo" if choice < 0 else STYLE_NAMES[int(latents["style"][scene, choice % painted])], rng)
        for scene, choice in zip(chosen.tolist(), which.tolist())
    ]
    time = uniform(scenes, 1).pow(told.late)
    start = time.clamp(min=WEAKEST) + (1 - time.clamp(min=WEAKEST)) * uniform(scenes, 1)
    # In some scenes one view is ahead of the others, and they can read in it what they have to agree on.
    ahead = (torch.arange(views) == 0) & (uniform(scenes, 1) < told.one_ahead) & (views > 1)
    time = torch.where(ahead, time * uniform(scenes, 1), time)
    timestep, first = ((share * len(alphas)).long().clamp(max=len(alphas) - 1) for share in (time, start))
    noise = torch.randn(pictures.shape, generator=generator)
    noise = noise + told.noise_offset * torch.randn((*pictures.shape[:3], 1, 1), generator=generator)
    if bool(uniform(1) < told.same_noise):
        noise = noise[:, :1].expand_as(noise)
    ratio = (alphas / (1 - alphas)).sqrt()[first] * (uniform(scenes, 1) < told.from_photo)
    noise = noise + ratio.view(-1, 1, 1, 1, 1) * (photo - pictures)
    signal, sigma = (part[timestep][..., None, None, None] for part in (alphas.sqrt(), (1 - alphas).sqrt()))
    weight = sigma / (1 + ratio.square()).view(-1, 1, 1, 1, 1)
    height, width = latents["depth"].shape[-2:]
    sides = torch.tensor([height, width], dtype=torch.float32).repeat(scenes, 1)
    odd = (uniform(scenes, 1) < 0.5) * (uniform(scenes, 2) - 0.5) * sides
    time_ids = torch.cat([sides + odd.round(), torch.zeros(scenes, 2), sides + odd.round()], -1)
    time_ids = time_ids.repeat_interleave(views, 0)
    noisy, target = (
        part.flatten(0, 1) for part in (signal * pictures + sigma * noise, signal * noise - sigma * pictures)
    )
    depth = latents["depth"][chosen[:, None], seen].flatten(0, 1).float()
    if crop < side:
        corners = torch.randint(side - crop + 1, (entries, 2), generator=generator)
        noisy, target = (_parts(tensor, corners, crop) for tensor in (noisy, target))
        depth = _parts(depth, corners * cell, crop * cell)
        time_ids = torch.cat([time_ids[:, :2], corners * cell, torch.full((entries, 2), crop * cell)], -1)
    return Batch(
        noisy=noisy,
        target=target,
        weight=weight.flatten(0, 1),
        timestep=timestep.flatten(),
        prompts=prompts,
        kept=(uniform(scenes, 1) >= told.drop_prompt).float(),
        depth=depth.expand(-1, 3, -1, -1),
        time_ids=time_ids,
        num_views=views,
    )


def _views_that_share(told: DiffusionRecipe, available: int, share: float) -> int:
    """1 for a batch without sharing; pairs, or all views there are, for one with it; `share` in [0, 1) decides."""
    if share >= told.shared:
        return 1
    return available if share < told.shared / 2 else 2


def _parts(
    pictures: Float[Tensor, "batch channels height width"], corners: Int[Tensor, "batch 2"], side: int
) -> Float[Tensor, "batch channels side side"]:
    """A square of each picture, from its own corner (row, column) on."""
    cut = [picture[:, y : y + side, x : x + side] for picture, (y, x) in zip(pictures, corners.tolist())]
    return torch.stack(cut)
