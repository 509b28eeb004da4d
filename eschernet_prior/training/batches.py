"""Training batches that depend on the recipe's seed, the number of the step and the slot of the scene alone.

They do not depend on the number of processes or on interruptions. A *slot* is the index of a scene among all scenes of
a step, over all processes and accumulated batches. The numbers of references and targets are drawn once per step,
everything else once per slot.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from eschernet_prior.data.render_folders import RenderFolders
from eschernet_prior.training.recipe import StepsRecipe

NO_SLOT = 2**32 - 1
"""Slot number for draws that are made once per step."""


class Draw(NamedTuple):
    """A scene of a batch, or, with a leading dimension, a whole batch; on the CPU."""

    references: Float[Tensor, "references 3 size size"]
    """Reference views in [0, 1]."""
    targets: Float[Tensor, "targets 3 size size"]
    """Target views in [0, 1]."""
    source_poses: Float[Tensor, "references 4 4"]
    """World-to-camera, float64."""
    target_poses: Float[Tensor, "targets 4 4"]
    timestep: Int[Tensor, ""]
    """Timestep of all targets, in [0, T)."""
    kept: Float[Tensor, ""]
    """0 if the reference tokens are zeroed, else 1."""
    posterior_noise: Float[Tensor, "targets channels h w"]
    """Standard normal noise for the sample from the autoencoder's posterior."""
    noise: Float[Tensor, "targets channels h w"]
    """Standard normal noise that is added to the latents."""


def generator_for(*numbers: int) -> torch.Generator:
    """A generator seeded by all given numbers."""
    mixed = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(mixed[0]) >> 1)


def views_in_step(seed: int, step: int, recipe: StepsRecipe) -> tuple[int, int]:
    """Numbers of references and targets of all scenes of a step."""
    generator = generator_for(seed, step, NO_SLOT)
    (first, second) = (
        int(torch.randint(low, high + 1, (), generator=generator)) for low, high in (recipe.references, recipe.targets)
    )
    return first, second


def timestep_power(step: int, recipe: StepsRecipe) -> float:
    """Exponent of the distribution of timesteps at a step."""
    if recipe.last_timestep_power is None:
        return recipe.timestep_power
    done = min(step / max(recipe.steps - 1, 1), 1.0)
    return recipe.timestep_power + done * (recipe.last_timestep_power - recipe.timestep_power)


def tint(
    images: Float[Tensor, "views 3 height width"], generator: torch.Generator
) -> Float[Tensor, "views 3 height width"]:
    """Recolour the views of a scene: permute the channels and darken each by a random factor; white remains white.

    Each channel keeps its brightness with probability 1/6.

    Args:
        images: In [0, 1], on white.
        generator: Source of the permutation and the factors.
    """
    order = torch.randperm(3, generator=generator)
    share = (1.2 * torch.rand(3, generator=generator)).clamp(max=1.0)
    return 1.0 - (1.0 - images[:, order]) * share[:, None, None]


class SceneDraws(Dataset[Draw]):
    """The scenes of all steps, indexed by (step, slot)."""

    def __init__(
        self,
        renders: RenderFolders,
        objects: list[int],
        recipe: StepsRecipe,
        seed: int,
        latent_shape: tuple[int, int, int],
        num_timesteps: int,
    ) -> None:
        """Set up the draws.

        Args:
            renders: The objects' views.
            objects: Indices of the objects to draw from.
            recipe: Distributions of views, timesteps and dropped conditions.
            seed: The recipe's seed.
            latent_shape: (channels, height, width) of a target's latents.
            num_timesteps: T of the noise schedule.
        """
        self.renders, self.objects, self.recipe, self.seed = renders, objects, recipe, seed
        self.latent_shape, self.num_timesteps = latent_shape, num_timesteps

    def __getitem__(self, index: tuple[int, int]) -> Draw:
        step, slot = index
        generator = generator_for(self.seed, step, slot)
        num_references, num_targets = views_in_step(self.seed, step, self.recipe)
        chosen = self.objects[int(torch.randint(len(self.objects), (), generator=generator))]
        positions = self._positions(chosen, num_references + num_targets, generator)
        views = self.renders.read(chosen, positions)
        images = torch.stack([view.image for view in views]).float() / 255
        poses = torch.stack([view.pose for view in views])
        share = torch.rand((), generator=generator, dtype=torch.float64) ** timestep_power(step, self.recipe)
        kept = (torch.rand((), generator=generator) >= self.recipe.drop_condition).float()
        noise = torch.randn(2, num_targets, *self.latent_shape, generator=generator)
        if torch.rand((), generator=generator) < self.recipe.tinted:
            images = tint(images, generator)
        return Draw(
            references=images[:num_references],
            targets=images[num_references:],
            source_poses=poses[:num_references],
            target_poses=poses[num_references:],
            timestep=(share * self.num_timesteps).long().clamp(max=self.num_timesteps - 1),
            kept=kept,
            posterior_noise=noise[0],
            noise=noise[1],
        )

    def _positions(self, chosen: int, count: int, generator: torch.Generator) -> list[int]:
        available = self.renders.num_views(chosen)
        if self.recipe.with_replacement or available < count:
            return torch.randint(available, (count,), generator=generator).tolist()
        return torch.randperm(available, generator=generator)[:count].tolist()


class StepSampler(Sampler[list[tuple[int, int]]]):
    """The batches of one process: for each step its share of the slots, in `accumulation` pieces."""

    def __init__(self, steps: range, batch: int, process: int, processes: int, accumulation: int) -> None:
        """Distribute `batch` scenes per step, a multiple of processes × accumulation."""
        self.steps, self.process, self.processes, self.accumulation = steps, process, processes, accumulation
        self.size = batch // (processes * accumulation)

    def __len__(self) -> int:
        return len(self.steps) * self.accumulation

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            for piece in range(self.accumulation):
                first = (piece * self.processes + self.process) * self.size
                yield [(step, slot) for slot in range(first, first + self.size)]
