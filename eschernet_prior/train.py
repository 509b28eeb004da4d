"""Train the prior on posed renders.

    python -m eschernet_prior.train --recipe configs/prior_tiny.yaml --out outputs/prior

The objective is EscherNet's: the UNet and the image encoder are trained jointly to predict the noise (or velocity) in
the latents of all targets of a scene, given its references and all poses; the autoencoder is frozen. The training is
defined by a *recipe* (`training.recipe`); the data are folders of renders given by `--data` (`data.render_folders`) or
procedural scenes, which are rendered first.

On several processes or GPUs: `accelerate launch -m eschernet_prior.train ...`. Repeating a command resumes from its
last checkpoint. The averaged weights are saved to `OUT/pipeline`, for `EscherNetPipeline.from_pretrained`; renders that
could not be read are listed in `OUT/skipped.tsv`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
from accelerate import Accelerator
from diffusers.training_utils import compute_snr
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.utils import make_grid

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.training_loop import TrainingRun, accelerator_for
from eschernet_prior.data.procedural_renders import FIRST_HELD_OUT, render_scenes
from eschernet_prior.data.render_folders import RenderFolders
from eschernet_prior.pipeline import EscherNetPipeline
from eschernet_prior.training.batches import Draw, SceneDraws, StepSampler
from eschernet_prior.training.networks import PriorTraining, build_pipeline
from eschernet_prior.training.recipe import PriorRecipe, StepsRecipe, load_recipe

ENCODED_AT_ONCE = 16
"""Views that the autoencoder encodes at a time."""


@dataclass(frozen=True)
class TrainingOptions:
    """Options of the command line; none of them changes the result."""

    recipe: Path = Path("configs/prior_tiny.yaml")
    """The recipe, a YAML file."""
    out: Path = Path("outputs/prior")
    """Folder for renders, checkpoint, log, samples and the trained pipeline; existing files are used."""
    data: tuple[Path, ...] = ()
    """Folders of posed renders (NNN.png and NNN.npy, one folder per object), instead of procedural scenes."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of accelerate's autocast."""
    gradient_accumulation: int = 1
    """Accumulated batches per step and process."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass to save memory."""
    workers: int = 0
    """Processes that read renders, per training process."""
    sample_every: int = 1000
    """Steps between sample sheets; 0 for none."""
    minutes_between_checkpoints: float = 10.0
    """Interval of checkpoints in minutes."""
    stop_after_minutes: float | None = None
    """Stop early; the same command resumes."""


def main(options: TrainingOptions) -> EscherNetPipeline:
    """Train the prior and save the pipeline.

    Returns:
        The pipeline with the averaged weights.

    Raises:
        UserError: If the recipe or the data cannot be used.
    """
    recipe = load_recipe(options.recipe)
    accelerator = accelerator_for(options.out, options.mixed_precision, options.gradient_accumulation)
    shares = accelerator.num_processes * options.gradient_accumulation
    if recipe.training.batch % shares:
        raise UserError(
            f"{recipe.training.batch} scenes per step cannot be distributed evenly among {accelerator.num_processes} "
            f"processes × {options.gradient_accumulation} accumulated batches."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(recipe)
    renders, training, held_out = find_data(recipe, options, accelerator)
    pipeline.vae.requires_grad_(False).eval().to(accelerator.device)
    if options.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    run = TrainingRun(PriorTraining(pipeline), recipe.training, options.out, accelerator)
    factor = pipeline.vae_scale_factor
    side = recipe.image_size // factor
    draws = SceneDraws(
        renders,
        training,
        recipe.training,
        recipe.seed,
        (pipeline.unet.config["in_channels"], side, side),
        pipeline.scheduler.config.num_train_timesteps,
    )
    sampler = StepSampler(
        range(run.step, recipe.training.steps),
        recipe.training.batch,
        accelerator.process_index,
        accelerator.num_processes,
        options.gradient_accumulation,
    )
    finished = run.train(
        DataLoader(draws, batch_sampler=sampler, num_workers=options.workers),  # pyright: ignore[reportArgumentType]
        objective(pipeline, run.model, recipe.training, accelerator.device),
        lambda: sample_sheet(pipeline, renders, held_out, recipe),
        sample_every=options.sample_every,
        minutes_between_checkpoints=options.minutes_between_checkpoints,
        stop_after_minutes=options.stop_after_minutes,
        notes=renders.counts,
    )
    run.use_average()
    if accelerator.is_main_process:
        pipeline.to(torch.float16).save_pretrained(options.out / "pipeline")
        how = "is done" if finished else f"stopped at step {run.step} of {recipe.training.steps}"
        CONSOLE.print(f"The training {how}; its averaged weights are in {options.out / 'pipeline'}.", markup=False)
    accelerator.end_training()
    return pipeline


def find_data(
    recipe: PriorRecipe, options: TrainingOptions, accelerator: Accelerator
) -> tuple[RenderFolders, list[int], list[int]]:
    """Find the renders, and divide the objects into those to train on and held-out ones.

    Raises:
        UserError: If there are no renders, or all objects are held out.
    """
    data = recipe.data
    folder = options.out / "renders" / f"{data.views}_views_{recipe.image_size}"
    if not options.data:
        if not data.scenes:
            raise UserError(f"The recipe {options.recipe} needs renders: pass their folders with --data.")
        seeds = [*range(data.scenes), *range(FIRST_HELD_OUT, FIRST_HELD_OUT + data.held_out)]
        mine = seeds[accelerator.process_index :: accelerator.num_processes]
        render_scenes(folder, mine, data.views, recipe.image_size)
        accelerator.wait_for_everyone()
    training = recipe.training
    renders = RenderFolders(
        options.data or [folder],
        recipe.image_size,
        min_views=2 if training.with_replacement else training.references[1] + training.targets[1],
        hard_alpha=data.hard_alpha,
        keep_in_memory=data.keep_in_memory,
        record=options.out / "skipped.tsv",
    )
    first_held_out = len(renders) - data.held_out
    if first_held_out < 1:
        raise UserError(
            f"{len(renders)} objects with renders were found, and the recipe holds out {data.held_out}: add renders, "
            "or lower data.held_out in the recipe."
        )
    return renders, list(range(first_held_out)), list(range(first_held_out, len(renders)))


def objective(
    pipeline: EscherNetPipeline, model: Callable[..., Tensor], recipe: StepsRecipe, device: torch.device
) -> Callable[[Draw], Float[Tensor, ""]]:
    """Build the loss of a batch: mean squared error of the predicted noise or velocity, over all scenes and targets."""
    scheduler = pipeline.scheduler
    velocity = scheduler.config.prediction_type == "v_prediction"

    def loss_of(batch: Draw) -> Float[Tensor, ""]:
        batch = Draw(*(tensor.to(device, non_blocking=True) for tensor in batch))
        latents = encode(pipeline, batch.targets, batch.posterior_noise)
        scenes, targets = latents.shape[:2]
        each = batch.timestep.repeat_interleave(targets)
        flat, noise = latents.flatten(0, 1), batch.noise.flatten(0, 1)
        noisy = scheduler.add_noise(flat, noise, each).unflatten(0, (scenes, targets))
        predicted = model(
            batch.references, noisy, batch.timestep, batch.source_poses, batch.target_poses, batch.kept
        ).float()
        wanted = scheduler.get_velocity(flat, noise, each) if velocity else noise
        errors = F.mse_loss(predicted, wanted.unflatten(0, (scenes, targets)), reduction="none").flatten(1).mean(1)
        if recipe.min_snr_gamma is None:
            return errors.mean()
        snr = compute_snr(scheduler, batch.timestep)
        return (errors * snr.clamp(max=recipe.min_snr_gamma) / (snr + 1 if velocity else snr)).mean()

    return loss_of


@torch.no_grad()
def encode(
    pipeline: EscherNetPipeline,
    targets: Float[Tensor, "scenes targets 3 size size"],
    noise: Float[Tensor, "scenes targets channels h w"],
) -> Float[Tensor, "scenes targets channels h w"]:
    """Sample from the autoencoder's posterior, scaled to unit variance, float32."""
    vae: Any = pipeline.vae
    pieces = (targets.flatten(0, 1) * 2 - 1).to(vae.dtype).split(ENCODED_AT_ONCE)
    posteriors = [vae.encode(piece).latent_dist for piece in pieces]
    mean, std = (torch.cat([getattr(each, name).float() for each in posteriors]) for name in ("mean", "std"))
    return (mean + std * noise.flatten(0, 1)).unflatten(0, targets.shape[:2]) * vae.config["scaling_factor"]


def sample_sheet(
    pipeline: EscherNetPipeline, renders: RenderFolders, objects: list[int], recipe: PriorRecipe
) -> Float[Tensor, "3 height width"] | None:
    """Draw held-out objects, one per row: references | predictions | truth; None if there are none."""
    samples, rows = recipe.samples, []
    pipeline.set_progress_bar_config(disable=True)
    for index in objects:
        available, wanted = renders.num_views(index), samples.references + samples.targets
        views = renders.read(index, [place * available // wanted for place in range(wanted)])
        order = torch.randperm(wanted, generator=torch.Generator().manual_seed(index)).tolist()
        images = torch.stack([views[place].image for place in order]).float() / 255
        poses = torch.stack([views[place].pose for place in order])
        made: Any = pipeline(
            images[: samples.references],
            poses[: samples.references],
            poses[samples.references :],
            samples.steps,
            samples.guidance_scale,
            generator=torch.Generator().manual_seed(index),
            output_type="pt",
        )
        rows.append(torch.cat((images[: samples.references], made.images.cpu(), images[samples.references :])))
    return make_grid(torch.cat(rows), nrow=len(rows[0]), padding=2) if rows else None


def cli() -> None:
    """The command line."""
    with exit_on_user_error():
        main(tyro.cli(TrainingOptions, description=__doc__))


if __name__ == "__main__":
    cli()
