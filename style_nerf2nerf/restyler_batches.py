"""What one step of the diffusion stage sees: scenes, styles, prompts, noise, and the answer that is asked for."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from style_nerf2nerf.prompts import draw_prompt
from style_nerf2nerf.restyler_data import STYLE_NAMES
from style_nerf2nerf.restyler_recipe import Recipe

Timesteps = Int[Tensor, "batch"]
LEAVES_PHOTO = 0.3
"""Below this share of the schedule no photo is mixed into the input."""
Schedule = Float[Tensor, "timesteps"]


@dataclass(frozen=True)
class Batch:
    """One batch of the diffusion stage; entries are scenes × views, a scene's views consecutive."""

    target: Float[Tensor, "batch channels height width"]
    """Latents of the styled pictures: what the network shall say."""
    noisy: Float[Tensor, "batch channels height width"]
    """What the network sees."""
    timestep: Timesteps
    prompts: list[str]
    """One a scene."""
    kept: Float[Tensor, "scenes 1"]
    """0 where the prompt is dropped."""
    depth: Float[Tensor, "batch 3 tall wide"]
    time_ids: Float[Tensor, "batch 6"]
    num_views: int
    """Views that share attention; 1 for none."""


def draw_batch(latents: dict[str, Tensor], alphas: Schedule, recipe: Recipe, generator: torch.Generator) -> Batch:
    """Draws scenes, styles, prompts, timesteps and noise.

    With a = √ᾱ, s = √(1-ᾱ), x the styled latents and p the photo's: the input is a·((1-u)·x + u·p) + s·ε and the answer
    is x. u = 0 is ordinary denoising. For a share ``from_photo`` of the scenes u is 1 or, for half of them, uniform:
    that is what is asked for at inference, where denoising starts from the noisy photo and leaves it step by step.

    Args:
        latents: As ``make_latents`` returns them.
        alphas: ᾱ of every training timestep.
        recipe: The recipe.
        generator: Where all randomness comes from.
    """
    told = recipe.diffusion

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    scenes, painted, views = latents["styled"].shape[:3]
    chosen = torch.randint(scenes, (told.scenes,), generator=generator)
    which = torch.randint(
        -1, 2 * painted, (told.scenes,), generator=generator
    )  # -1: the photo, half as often as a style
    photo = latents["photo"][chosen].float()
    styled = latents["styled"][chosen, which.clamp(min=0) % painted].float()
    target = torch.where((which < 0).view(-1, 1, 1, 1, 1), photo, styled)
    rng = random.Random(int(torch.randint(2**31, (), generator=generator)))  # noqa: S311
    prompts = [
        draw_prompt("photo" if choice < 0 else STYLE_NAMES[int(latents["style"][scene, choice % painted])], rng)
        for scene, choice in zip(chosen.tolist(), which.tolist())
    ]
    shared = bool(uniform(1) < told.shared)
    num_views = (views, 2)[int(uniform(1) < 0.4)] if shared and views % 2 == 0 else views if shared else 1
    share_time = 1 if shared else views
    time = uniform(told.scenes, share_time).pow(told.late).expand(-1, views)
    timestep = (time * len(alphas)).long().clamp(max=len(alphas) - 1)
    noise = torch.randn(target.shape, generator=generator)
    if bool(uniform(1) < told.same_noise):
        noise = noise[:, :1].expand_as(noise)
    signal, sigma = (part[timestep].view(*timestep.shape, 1, 1, 1) for part in (alphas.sqrt(), (1 - alphas).sqrt()))
    # Where little noise is left, little of the photo is left at inference.
    mixed = (uniform(told.scenes, 1) < told.from_photo) & (time > LEAVES_PHOTO)
    share = torch.where(uniform(told.scenes, 1) < 0.5, 1.0, uniform(told.scenes, 1))
    blend = (share * mixed).view(*mixed.shape, 1, 1, 1)
    noisy = signal * ((1 - blend) * target + blend * photo) + sigma * noise
    height, width = latents["depth"].shape[-2:]
    sides = torch.tensor([height, width], dtype=torch.float32).repeat(told.scenes, 1)
    odd = (uniform(told.scenes, 1) < 0.5) * (uniform(told.scenes, 2) - 0.5) * sides
    time_ids = torch.cat([sides + odd.round(), torch.zeros(told.scenes, 2), sides + odd.round()], -1)
    return Batch(
        target=target.flatten(0, 1),
        noisy=noisy.flatten(0, 1),
        timestep=timestep.flatten(),
        prompts=prompts,
        kept=(uniform(told.scenes, 1) >= told.drop_prompt).float(),
        depth=latents["depth"][chosen].flatten(0, 1).float().expand(-1, 3, -1, -1),
        time_ids=time_ids.repeat_interleave(views, 0),
        num_views=num_views,
    )
