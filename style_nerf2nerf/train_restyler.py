"""Trains the embedded restyler on procedural scenes in procedural styles: autoencoder first, then everything else.

Vocabulary: a *stage* is `data` (render and paint what is missing), `vae`, `diffusion` (UNet, ControlNet and both
text encoders together, on latents computed once), `decoder` (the autoencoder's second half again, for the latents as
they are) or `export`. A *recipe* is a file of `configs/` with everything that decides the result. Every random
choice of a step is drawn from the recipe's seed and the step's number, so a run that was cut off goes on exactly as if
it had not been.

`python -m style_nerf2nerf.train_restyler --help` shows the options. In the output folder lie `data/`,
`latents.safetensors` and a folder for each trained stage (`vae/` …) with its checkpoint, log and sample sheets
(`eschernet_prior.base.training_loop`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from accelerate import Accelerator
from diffusers import StableDiffusionXLControlNetImg2ImgPipeline
from jaxtyping import Float, Int
from nerfstudio.utils.rich_utils import CONSOLE
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.utils import make_grid

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import write_json
from eschernet_prior.base.training_loop import TrainingRun, accelerator_for
from style_nerf2nerf.attention import share_attention, shared_modules
from style_nerf2nerf.embedded.batches import Timesteps, draw_batch
from style_nerf2nerf.embedded.data import HELD_OUT, PAINTED, load_shards, paint_scene, write_shards
from style_nerf2nerf.embedded.models import build_pipeline
from style_nerf2nerf.embedded.recipe import Recipe, VaeRecipe, load_recipe
from style_nerf2nerf.embedded.styles import STYLES
from style_nerf2nerf.embedded.vae_init import start_as_block_cosines
from style_nerf2nerf.evaluation.sharing import held_out_scene
from style_nerf2nerf.restyler.hub import EMBEDDED_FOLDER
from style_nerf2nerf.restyler.loading import TRAINING_FILE, load_from_folder
from style_nerf2nerf.restyler.restyler import Restyler


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    recipe: Path = Path("configs/restyler_first.yaml")
    """The recipe file."""
    out: Path = Path("outputs/restyler")
    """Where data, checkpoints and sample sheets go; what is there already is used."""
    stage: Literal["all", "data", "vae", "diffusion", "decoder", "export"] = "all"
    """One stage, or all that are not done yet."""
    sample_every: int = 200
    """Steps between sample sheets; 0 for none."""
    minutes_between_checkpoints: float = 5.0
    """How often the state is written."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """As accelerate understands it."""
    gradient_accumulation: int = 1
    """Batches whose gradients are averaged into one step."""
    start_from: Path | None = None
    """Models in diffusers' layout to train on from, in place of random ones; their autoencoder stays as it is."""
    export_to: Path = EMBEDDED_FOLDER
    """Where `export` writes the models."""

    def has_stage(self, stage: str) -> bool:
        """Whether a stage is asked for; the autoencoder of other models stays as it is.

        Raises:
            UserError: If it is asked for by name and there is nothing to train in it.
        """
        given = self.start_from is not None and stage in ("vae", "decoder")
        if given and self.stage == stage:
            raise UserError(f"The autoencoder of --start-from stays as it is: leave out --stage {stage}.")
        return self.stage == stage or (self.stage == "all" and not given)

    def checkpoint(self, stage: str) -> Path:
        """Where a stage's state lies."""
        return self.out / stage / "checkpoint.pt"


class Restoring(nn.Module):
    """What the diffusion stage trains, as one module: noisy latents, depth and a prompt in, styled latents out."""

    def __init__(self, pipeline: StableDiffusionXLControlNetImg2ImgPipeline):
        super().__init__()
        self.unet, self.controlnet = pipeline.unet, pipeline.controlnet
        self.text_encoder, self.text_encoder_2 = pipeline.text_encoder, pipeline.text_encoder_2

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timestep: Timesteps,
        tokens: Int[Tensor, "scenes length"],
        kept: Float[Tensor, "scenes 1"],
        depth: Float[Tensor, "batch 3 tall wide"],
        time_ids: Float[Tensor, "batch 6"],
        num_views: int,
    ) -> Float[Tensor, "batch channels height width"]:
        """One prediction; `kept` is 0 for scenes whose prompt is dropped, `num_views` views share attention."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        words = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1) * kept[..., None]
        views = noisy.shape[0] // tokens.shape[0]
        prompt = {
            "encoder_hidden_states": words.repeat_interleave(views, 0),
            "added_cond_kwargs": {
                "text_embeds": (second.text_embeds * kept).repeat_interleave(views, 0),
                "time_ids": time_ids,
            },
        }
        down, middle = self.controlnet(noisy, timestep, controlnet_cond=depth, return_dict=False, **prompt)
        with share_attention(self.unet, num_views):
            return self.unet(
                noisy,
                timestep,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
                **prompt,
            )[0]


def load_average(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, stage: str, path: Path) -> bool:
    """Puts a checkpoint's averaged weights into the pipeline; False if there is no checkpoint yet."""
    if not path.exists():
        return False
    model = Restoring(pipeline) if stage == "diffusion" else Reconstructing(pipeline)
    shadows = torch.load(path, weights_only=True, map_location="cpu")["average"]["shadow_params"]
    with torch.no_grad():
        for parameter, shadow in zip(model.parameters(), shadows, strict=True):
            parameter.copy_(shadow)
    return True


def starting_point(recipe: Recipe, options: Options) -> StableDiffusionXLControlNetImg2ImgPipeline:
    """The models that training begins with: random ones drawn from the recipe's seed, or those of `start_from`.

    Layers that the latter lack begin as the random ones do: a transformer as nothing.

    Raises:
        UserError: If there are no such models, or they have other layers or sizes than the recipe's.
    """
    pipeline = build_pipeline(recipe.size, recipe.seed)
    if options.start_from is None:
        return pipeline
    found = load_from_folder(options.start_from, torch.float32)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            own, weights = part.state_dict(), found.components[name].state_dict()
            if any(key not in own or own[key].shape != weight.shape for key, weight in weights.items()):
                raise UserError(f"The {name} in {options.start_from} does not fit the recipe's: train it anew.")
            part.load_state_dict(weights, strict=False)
    pipeline.register_modules(tokenizer=found.tokenizer, tokenizer_2=found.tokenizer_2)
    pipeline.vae.register_to_config(scaling_factor=found.vae.config["scaling_factor"])
    return pipeline


def _need(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, stage: str, options: Options) -> None:
    if stage == "vae" and options.start_from:
        return
    if not load_average(pipeline, stage, options.checkpoint(stage)):
        raise UserError(f"There is no checkpoint of the stage {stage!r} in {options.out}: train it first.")


def make_data(recipe: Recipe, options: Options, scenes: int | None = None) -> dict[str, Tensor]:
    """All training scenes, or the first so many; keys and axes as in `restyler_data`."""
    data, paths = recipe.data, []
    for path in write_shards(options.out / "data", scenes or data.scenes, data.views, data.size, data.styles_per_scene):
        paths.append(path)
        CONSOLE.print(f"data: {len(paths)} shards")
    return load_shards(paths)


def _unit(pictures: Tensor) -> Float[Tensor, "*batch 3 height width"]:
    """uint8 to what the autoencoder reads, [-1, 1]."""
    return pictures.float() / 127.5 - 1


class Reconstructing(nn.Module):
    """What the autoencoder stage trains: pictures through the latents and back."""

    def __init__(self, pipeline: StableDiffusionXLControlNetImg2ImgPipeline):
        super().__init__()
        self.vae = pipeline.vae

    def forward(
        self, pictures: Float[Tensor, "batch 3 height width"], noise: Float[Tensor, "batch channels tall wide"]
    ) -> tuple[Float[Tensor, "batch 3 height width"], Tensor]:
        """The pictures as they come back, and the mean KL divergence of a latent number from a standard normal."""
        posterior = self.vae.encode(pictures).latent_dist
        shown = self.vae.decode(posterior.mean + posterior.std * noise).sample
        return shown, 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()


def reconstruction_loss(
    shown: Float[Tensor, "batch 3 height width"], pictures: Float[Tensor, "batch 3 height width"], recipe: VaeRecipe
) -> Tensor:
    """L1 and L2 on pixels, and L1 on the differences of neighbours: edges are what small autoencoders lose."""
    error = shown - pictures
    edges = sum(error.diff(dim=dim).abs().mean() for dim in (-1, -2))
    return error.abs().mean() + recipe.square_weight * error.square().mean() + recipe.gradient_weight * edges


def _generator(seed: int, number: int, accelerator: Accelerator) -> torch.Generator:
    """Everything random about one batch."""
    return torch.Generator().manual_seed((seed * 64 + accelerator.process_index) * 10_000_019 + number)


def train_vae(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline,
    recipe: Recipe,
    options: Options,
    name: Literal["vae", "decoder"] = "vae",
) -> None:
    """Stage `vae`, or `decoder`: the same with the encoder as it is, so that the latents stay what they are."""
    told = recipe.vae if name == "vae" else recipe.decoder
    assert told is not None, "such a recipe goes on from models"
    data = make_data(recipe, options, told.scenes)
    pictures = torch.cat([data["photo"][:, None], data["styled"]], 1).flatten(0, 2)
    if told.start_as_block_cosines:
        start_as_block_cosines(pipeline.vae)
    if name == "decoder":
        _need(pipeline, "vae", options)
        pipeline.vae.encoder.requires_grad_(False)
        pipeline.vae.quant_conv.requires_grad_(False)
    model, accelerator = Reconstructing(pipeline), _accelerator(name, options)
    run = TrainingRun(model, told, options.out / name, accelerator)
    device, shrink = accelerator.device, 2 ** (len(recipe.size.vae_channels) - 1)
    latent = (told.batch, recipe.size.latent_channels, recipe.data.size // shrink, recipe.data.size // shrink)

    def loss_of(number: int) -> Tensor:
        generator = _generator(recipe.seed, number, accelerator)
        chosen = _unit(pictures[torch.randint(len(pictures), (told.batch,), generator=generator)]).to(device)
        shown, divergence = run.model(chosen, torch.randn(latent, generator=generator).to(device))
        return reconstruction_loss(shown, chosen, told) + told.kl_weight * divergence

    held_out = paint_scene(HELD_OUT, 1, recipe.data.size, PAINTED)
    originals = _unit(torch.cat([held_out["photo"], held_out["styled"][:, 0]])).to(device)

    def sheet() -> Float[Tensor, "3 height width"]:
        shown = model.vae(originals).sample
        error = ((shown - originals).clamp(-2, 2) / 2).square().mean()
        CONSOLE.print(f"{name} {run.step}: held-out PSNR {float(-10 * error.log10()):.2f} dB")
        return make_grid(torch.cat([originals, shown]).clamp(-1, 1) / 2 + 0.5, nrow=len(originals))

    _train(run, loss_of, sheet, options)


@torch.no_grad()
def make_latents(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options, device: torch.device
) -> dict[str, Tensor]:
    """All training pictures as latents, computed once and kept on disk.

    `photo` (scenes views channels height width) and `styled` (scenes painted views channels height width), float16
    with overall deviation 1; `depth` and `style` as in the shards; `scale`, the factor that made the deviation 1,
    or the one that the models which training starts from are used to.
    """
    path = options.out / "latents.safetensors"
    if not path.exists():
        vae, data = pipeline.vae.to(device).eval(), make_data(recipe, options)
        kept = {"depth": data["depth"], "style": data["style"]}
        for key in ("photo", "styled"):
            flat = data[key].flatten(0, -4).split(64)
            means = [vae.encode(_unit(part).to(device)).latent_dist.mean.half().cpu() for part in flat]
            kept[key] = torch.cat(means).unflatten(0, data[key].shape[:-3])
        known = pipeline.vae.config["scaling_factor"] if options.start_from else 1 / kept["styled"].float().std()
        kept["scale"] = torch.as_tensor(known, dtype=torch.float32)
        for key in ("photo", "styled"):
            kept[key] = (kept[key].float() * kept["scale"]).half()
        save_file(kept, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    return load_file(path)


def train_diffusion(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options) -> None:
    """Stage `diffusion`; needs the autoencoder's checkpoint."""
    _need(pipeline, "vae", options)
    told, accelerator = recipe.diffusion, _accelerator("diffusion", options)
    device = accelerator.device
    latents = make_latents(pipeline, recipe, options, device)
    pipeline.vae.register_to_config(scaling_factor=float(latents["scale"]))
    alphas = pipeline.scheduler.alphas_cumprod
    model = Restoring(pipeline)
    if told.only_attention:
        keep_all_but_attention(model)
    rates = {id(weight): told.attention_rate for part in shared_modules(pipeline.unet) for weight in part.parameters()}
    run = TrainingRun(model, told, options.out / "diffusion", accelerator, rates)

    def loss_of(number: int) -> Tensor:
        cropped = number < told.crop_steps * options.gradient_accumulation
        batch = draw_batch(latents, alphas, recipe, _generator(recipe.seed, number, accelerator), cropped)
        tokens = pipeline.tokenizer(batch.prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        inputs = (batch.noisy, batch.timestep, tokens, batch.kept, batch.depth, batch.time_ids)
        predicted = run.model(*(tensor.to(device) for tensor in inputs), batch.num_views)
        return restyling_loss(predicted.float() - batch.target.to(device), batch.weight.to(device), told.colour_weight)

    _train(run, loss_of, lambda: draw_sheet(pipeline, recipe, device), options)


def keep_all_but_attention(model: Restoring) -> None:
    """Only the UNet's transformers, all that views can tell each other by, are trained; everything else stays."""
    for name, weight in model.named_parameters():
        weight.requires_grad_(name.startswith("unet.") and ".attentions." in name)


def restyling_loss(
    error: Float[Tensor, "batch channels height width"], weight: Float[Tensor, "batch 1 1 1"], colour_weight: float
) -> Float[Tensor, ""]:
    """Mean squared error, and that of each channel's mean: a picture's colours are few numbers among many.

    Args:
        error: Of the predicted velocities.
        weight: Of each entry.
        colour_weight: Of the means' errors.
    """
    means = error.mean(dim=(2, 3), keepdim=True)
    return (weight * error.square()).mean() + colour_weight * (weight * means.square()).mean()


def _accelerator(stage: str, options: Options) -> Accelerator:
    return accelerator_for(options.out / stage, options.mixed_precision, options.gradient_accumulation)


def _train(
    run: TrainingRun,
    loss_of: Callable[[int], Tensor],
    sheet: Callable[[], Float[Tensor, "3 height width"]],
    options: Options,
) -> None:
    """Take the steps of a stage that are left; batches are numbers. The averaged weights are in place at the end."""
    batches = options.gradient_accumulation
    run.train(
        range(run.step * batches, run.recipe.steps * batches),
        loss_of,
        sheet,
        sample_every=options.sample_every,
        minutes_between_checkpoints=options.minutes_between_checkpoints,
    )
    run.use_average()
    for tracker in run.accelerator.trackers:
        tracker.finish()  # end_training() would end the process group, too, which later stages need


def draw_sheet(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, device: torch.device
) -> Float[Tensor, "3 height width"]:
    """Two views of a held-out scene, one column a style: photo above, restyled below."""
    scene = held_out_scene(1, 2, recipe.data.size)
    restyler = Restyler(pipeline, "training", device, noise_offset=recipe.diffusion.noise_offset)
    told: Any = {"strength": 0.8, "num_inference_steps": 20, "guidance_scale": 2.0}
    columns = [scene.photos]
    columns += [restyler.restyle(scene.photos, scene.depths, STYLES[style].prompt, **told) for style in PAINTED]
    return make_grid(torch.stack(columns, 1).flatten(0, 1), nrow=len(columns))


def export(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options) -> None:
    """Writes the averaged weights in diffusers' layout, as float16 safetensors; of an unfinished run what there is.

    Raises:
        UserError: If autoencoder or diffusion have no checkpoint yet.
    """
    _need(pipeline, "vae", options)
    _need(pipeline, "diffusion", options)
    if options.start_from is None:
        load_average(pipeline, "decoder", options.checkpoint("decoder"))
    pipeline.vae.register_to_config(scaling_factor=float(load_file(options.out / "latents.safetensors")["scale"]))
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.half()
    pipeline.save_pretrained(options.export_to, safe_serialization=True)
    write_json(options.export_to / TRAINING_FILE, {"noise_offset": recipe.diffusion.noise_offset})


def main(options: Options) -> None:
    """Runs the stages asked for.

    Raises:
        UserError: If the recipe does not fit, or a stage before is missing.
    """
    recipe = load_recipe(options.recipe)
    goes_on = recipe.vae is None or recipe.diffusion.only_attention
    if goes_on and options.start_from is None and options.stage != "data":
        raise UserError(
            f"{options.recipe} does not begin with nothing: name the models that it goes on from, --start-from."
        )
    options.out.mkdir(parents=True, exist_ok=True)
    wanted = [stage for stage in ("vae", "diffusion", "decoder", "export") if options.has_stage(stage)]
    pipeline = starting_point(recipe, options)
    if options.stage == "data":
        make_data(recipe, options)
    if "vae" in wanted:
        train_vae(pipeline, recipe, options)
    if "diffusion" in wanted:
        train_diffusion(pipeline, recipe, options)
    if "decoder" in wanted:
        train_vae(pipeline, recipe, options, "decoder")
    if "export" in wanted:
        export(pipeline, recipe, options)


def cli() -> None:
    """The command line."""
    with exit_on_user_error():
        main(tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    cli()
