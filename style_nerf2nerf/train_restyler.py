"""Trains the embedded restyler on procedural scenes in procedural styles, from nothing.

Vocabulary: a *stage* is `data` (render and paint what is missing), `vae` (the autoencoder), `words` (the text encoders
learn to tell styles and colours apart), `diffusion` (UNet, ControlNet and text encoders together, on latents computed
once), `decoder` (the autoencoder's second half again, for the latents as they are) or `export`. A *recipe* is a file of
`configs/` with everything that decides the result. Every random choice of a step is drawn from the recipe's seed and
the step's number, so an interrupted run continues exactly as if it had not been interrupted.

`python -m style_nerf2nerf.train_restyler --help` shows the options. In the output folder are `data/`,
`latents.safetensors` and a folder for each trained stage (`vae/` …) with its checkpoint, log and sample sheets
(`eschernet_prior.base.training_loop`).
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
from diffusers import StableDiffusionXLControlNetImg2ImgPipeline
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.utils import make_grid

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import atomic_path, write_json
from eschernet_prior.base.training_loop import TrainingRun, accelerator_for
from style_nerf2nerf.embedded.batches import draw_batch
from style_nerf2nerf.embedded.data import HELD_OUT, load_shards, paint_scene, write_shards
from style_nerf2nerf.embedded.models import build_pipeline, noise_levels
from style_nerf2nerf.embedded.modules import Naming, Reconstructing, Restoring, reconstruction_loss, restyling_loss
from style_nerf2nerf.embedded.prompts import draw_asked, vocabulary
from style_nerf2nerf.embedded.recipe import Recipe, load_recipe
from style_nerf2nerf.embedded.styles import PAINTED, STYLES
from style_nerf2nerf.embedded.vae_init import start_as_block_cosines
from style_nerf2nerf.evaluation.sharing import held_out_scene
from style_nerf2nerf.restyler.models.hub import EMBEDDED_FOLDER
from style_nerf2nerf.restyler.models.vocabulary import TRAINING_FILE
from style_nerf2nerf.restyler.restyler import Restyler

STAGES: dict[str, Callable[[StableDiffusionXLControlNetImg2ImgPipeline], nn.Module]] = {
    "vae": Reconstructing,
    "words": Naming,
    "diffusion": Restoring,
    "decoder": Reconstructing,
}
"""The trained stages in their order, and the module that each trains."""


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    recipe: Path = Path("configs/restyler_tiny.yaml")
    """The recipe file."""
    out: Path = Path("outputs/restyler")
    """Folder of data, checkpoints and sample sheets; existing files are used."""
    stage: Literal["all", "data", "vae", "words", "diffusion", "decoder", "export"] = "all"
    """The stage to run; default: all that are not finished."""
    sample_every: int = 200
    """Steps between sample sheets; 0 for none."""
    minutes_between_checkpoints: float = 5.0
    """Minutes between two checkpoints."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """accelerate's mixed precision: no, fp16 or bf16."""
    gradient_accumulation: int = 1
    """Batches whose gradients are averaged into one step."""
    export_to: Path = EMBEDDED_FOLDER
    """Folder into which `export` writes the models."""

    def has_stage(self, stage: str) -> bool:
        """Whether a stage is to be run."""
        return self.stage in (stage, "all")

    def checkpoint(self, stage: str) -> Path:
        """The checkpoint file of a stage."""
        return self.out / stage / "checkpoint.pt"


def load_average(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, stage: str, path: Path) -> bool:
    """Puts a checkpoint's averaged weights into the pipeline; False if there is no checkpoint yet."""
    if not path.exists():
        return False
    shadows = torch.load(path, weights_only=True, map_location="cpu")["average"]["shadow_params"]
    with torch.no_grad():
        for parameter, shadow in zip(STAGES[stage](pipeline).parameters(), shadows, strict=True):
            parameter.copy_(shadow)
    return True


def _need(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, stage: str, options: Options) -> None:
    if not load_average(pipeline, stage, options.checkpoint(stage)):
        raise UserError(f"There is no checkpoint of the stage {stage!r} in {options.out}: train it first.")


def make_data(recipe: Recipe, options: Options, scenes: int | None = None) -> dict[str, Tensor]:
    """All training scenes, or the first so many; keys and axes as in `embedded.data`."""
    data, paths = recipe.data, []
    for path in write_shards(options.out / "data", scenes or data.scenes, data.views, data.size, data.styles_per_scene):
        paths.append(path)
        CONSOLE.print(f"data: {len(paths)} shards")
    return load_shards(paths)


def _unit(pictures: Tensor) -> Float[Tensor, "*batch 3 height width"]:
    """uint8 to what the autoencoder reads, [-1, 1]."""
    return pictures.float() / 127.5 - 1


def _generator(seed: int, number: int, accelerator: Accelerator) -> torch.Generator:
    """The random generator of one batch."""
    return torch.Generator().manual_seed((seed * 64 + accelerator.process_index) * 10_000_019 + number)


def train_vae(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline,
    recipe: Recipe,
    options: Options,
    name: Literal["vae", "decoder"] = "vae",
) -> None:
    """Stage `vae`, or `decoder`, which keeps the encoder, so that the latents do not change."""
    settings = recipe.vae if name == "vae" else recipe.decoder
    data = make_data(recipe, options, settings.scenes)
    pictures = torch.cat([data["photo"][:, None], data["styled"]], 1).flatten(0, 2)
    if settings.start_as_block_cosines:
        start_as_block_cosines(pipeline.vae)
    if name == "decoder":
        _need(pipeline, "vae", options)
        pipeline.vae.encoder.requires_grad_(False)
        pipeline.vae.quant_conv.requires_grad_(False)
    model, accelerator = Reconstructing(pipeline), _accelerator(name, options)
    run = TrainingRun(model, settings, options.out / name, accelerator)
    device, unit = accelerator.device, 2 ** (len(recipe.size.vae_channels) - 1)
    side = settings.crop or recipe.data.size
    latent = (settings.batch, recipe.size.latent_channels, side // unit, side // unit)

    def loss_of(number: int) -> Tensor:
        generator = _generator(recipe.seed, number, accelerator)
        chosen = pictures[torch.randint(len(pictures), (settings.batch,), generator=generator)]
        corners = unit * torch.randint((recipe.data.size - side) // unit + 1, (settings.batch, 2), generator=generator)
        parts = [each[:, y : y + side, x : x + side] for each, (y, x) in zip(chosen, corners.tolist())]
        originals = _unit(torch.stack(parts)).to(device)
        noise = settings.latent_noise * torch.randn(latent, generator=generator).to(device)
        decoded, divergence = run.model(originals, noise)
        return reconstruction_loss(decoded, originals, settings) + settings.kl_weight * divergence

    held_out = paint_scene(HELD_OUT, 1, recipe.data.size, PAINTED)
    originals = _unit(torch.cat([held_out["photo"], held_out["styled"][:, 0]])).to(device)

    def sheet() -> Float[Tensor, "3 height width"]:
        decoded = model.vae(originals).sample
        error = ((decoded - originals).clamp(-2, 2) / 2).square().mean()
        CONSOLE.print(f"{name} {run.step}: held-out PSNR {float(-10 * error.log10()):.2f} dB")
        return make_grid(torch.cat([originals, decoded]).clamp(-1, 1) / 2 + 0.5, nrow=len(originals))

    _train(run, loss_of, sheet, options)


def train_words(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options) -> None:
    """Stage `words`: it takes a minute, and the diffusion stage learns faster after it."""
    settings, accelerator = recipe.words, _accelerator("words", options)
    run = TrainingRun(Naming(pipeline), settings, options.out / "words", accelerator)

    def loss_of(number: int) -> Tensor:
        asked = draw_asked(settings.prompts, _generator(recipe.seed, number, accelerator))
        tokens = _tokens(pipeline, asked.prompts).to(accelerator.device)
        loss: Tensor = run.model(tokens, asked.style.to(accelerator.device), asked.colours.to(accelerator.device))
        return loss

    _train(run, loss_of, lambda: None, options)


def _tokens(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, prompts: list[str]) -> Tensor:
    return pipeline.tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def make_latents(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options, device: torch.device
) -> dict[str, Tensor]:
    """All training pictures as latents, computed once and kept on disk.

    `photo` and `soft` (scenes views channels height width), the photos as they are and as a field renders them, and
    `styled` (scenes painted views channels height width), float16 with overall deviation 1; `depth`, `guides`,
    `rough_guides`, `style`, `pair` and `mood` as in the shards; `scale`, the factor that made the deviation 1.
    """
    path = options.out / "latents.safetensors"
    if not path.exists():
        vae, data = pipeline.vae.to(device).eval(), make_data(recipe, options)
        pictures = {"photo": data["photo"], "soft": soften(data["photo"], recipe.seed), "styled": data["styled"]}
        kept = {key: data[key] for key in ("depth", "guides", "rough_guides", "style", "pair", "mood")}
        for key, value in pictures.items():
            flat = value.flatten(0, -4).split(64)
            means = [vae.encode(_unit(part).to(device)).latent_dist.mean.half().cpu() for part in flat]
            kept[key] = torch.cat(means).unflatten(0, value.shape[:-3])
        kept["scale"] = 1 / kept["styled"].float().std()
        for key in pictures:
            kept[key] = (kept[key].float() * kept["scale"]).half()
        with atomic_path(path) as partial:
            save_file(kept, partial)
    return load_file(path)


def soften(photos: Tensor, seed: int) -> Tensor:
    """Photos as a field renders them: each scene's blurred by a random amount, with a little noise; uint8."""
    softened, (height, width) = [], photos.shape[-2:]
    for number, views in enumerate(photos.float()):
        generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
        share = 0.44 + 0.44 * float(torch.rand((), generator=generator))
        coarse = F.interpolate(
            views, size=(round(share * height), round(share * width)), mode="bilinear", antialias=True
        )
        noise = 4 * torch.randn(views.shape, generator=generator)
        softened.append((F.interpolate(coarse, size=(height, width), mode="bicubic") + noise).clamp(0, 255).round())
    return torch.stack(softened).to(torch.uint8)


def train_diffusion(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options) -> None:
    """Stage `diffusion`; needs the checkpoints of `vae` and `words`."""
    _need(pipeline, "vae", options)
    _need(pipeline, "words", options)
    settings, accelerator = recipe.diffusion, _accelerator("diffusion", options)
    device = accelerator.device
    latents = make_latents(pipeline, recipe, options, device)
    pipeline.vae.register_to_config(scaling_factor=float(latents["scale"]))
    levels = torch.tensor(noise_levels(settings.steps_trained))
    alphas = pipeline.scheduler.alphas_cumprod[levels]
    seen = pipeline.controlnet.config["conditioning_channels"]  # of depth alone, or of depth and guides
    run = TrainingRun(Restoring(pipeline), settings, options.out / "diffusion", accelerator)

    def loss_of(number: int) -> Tensor:
        cropped = number < settings.crop_steps * options.gradient_accumulation
        batch = draw_batch(latents, recipe, _generator(recipe.seed, number, accelerator), cropped)
        words = (_tokens(pipeline, batch.prompts), batch.kept, batch.controls[:, :seen], batch.time_ids)
        words = tuple(tensor.to(device) for tensor in words)

        def predict(clean: Tensor, index: int) -> Tensor:
            level = batch.levels[index]
            noise = batch.noises[index].to(device)
            signal, sigma = alphas[level].sqrt(), (1 - alphas[level]).sqrt()
            noisy = signal * clean + sigma * noise
            timestep = levels[level].to(device).expand(len(clean))
            velocity: Tensor = run.model(noisy, timestep, *words, batch.num_views)
            return signal * noisy - sigma * velocity.float()

        clean = batch.start.to(device)
        with torch.no_grad():
            for index in range(len(batch.levels) - 1):
                clean = predict(clean, index)
        error = predict(clean, len(batch.levels) - 1) - batch.target.to(device)
        return restyling_loss(error, settings.means_weight)

    _train(run, loss_of, lambda: draw_sheet(pipeline, recipe, device), options)


def _accelerator(stage: str, options: Options) -> Accelerator:
    return accelerator_for(options.out / stage, options.mixed_precision, options.gradient_accumulation)


def _train(
    run: TrainingRun,
    loss_of: Callable[[int], Tensor],
    sheet: Callable[[], Float[Tensor, "3 height width"] | None],
    options: Options,
) -> None:
    """Train the remaining steps of a stage; at the end the averaged weights are loaded."""
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
    """Two views of a held-out scene, one column a style: photo, then restyled."""
    scene = held_out_scene(1, 2, recipe.data.size)
    settings: dict[str, Any] = dict(own_settings(recipe))
    restyler = Restyler(pipeline, "training", device, noise_offset=recipe.diffusion.noise_offset)
    prompts = [STYLES[style].prompt for style in PAINTED]
    settings["cameras"] = scene.cameras
    restyled = [restyler.restyle(scene.photos, scene.depths, prompt, **settings) for prompt in prompts]
    columns = [scene.photos, *restyled]
    return make_grid(torch.stack(columns, 1).flatten(0, 1), nrow=len(columns))


def own_settings(recipe: Recipe) -> dict[str, float]:
    """The settings of restyling for which the models are trained."""
    steps = recipe.diffusion.steps_trained
    return {"strength": recipe.diffusion.strength, "num_inference_steps": steps, "guidance_scale": 1.0}


def export(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options) -> None:
    """Writes the averaged weights in diffusers' layout, as float16 safetensors; of an unfinished run what there is.

    Raises:
        UserError: If autoencoder or diffusion have no checkpoint yet.
    """
    _need(pipeline, "vae", options)
    _need(pipeline, "diffusion", options)
    load_average(pipeline, "decoder", options.checkpoint("decoder"))
    pipeline.vae.register_to_config(scaling_factor=float(load_file(options.out / "latents.safetensors")["scale"]))
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.half()
    pipeline.save_pretrained(options.export_to, safe_serialization=True)
    facts = {"noise_offset": recipe.diffusion.noise_offset, "settings": own_settings(recipe), **vocabulary()}
    write_json(options.export_to / TRAINING_FILE, facts)


def main(options: Options) -> None:
    """Run the chosen stages.

    Raises:
        UserError: If the recipe does not fit, or a stage before is missing.
    """
    recipe = load_recipe(options.recipe)
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(recipe.size, recipe.seed)
    if options.stage == "data":
        make_data(recipe, options)
    if options.has_stage("vae"):
        train_vae(pipeline, recipe, options)
    if options.has_stage("words"):
        train_words(pipeline, recipe, options)
    if options.has_stage("diffusion"):
        train_diffusion(pipeline, recipe, options)
    if options.has_stage("decoder"):
        train_vae(pipeline, recipe, options, "decoder")
    if options.has_stage("export"):
        export(pipeline, recipe, options)


def cli() -> None:
    """The command line."""
    with exit_on_user_error():
        main(tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    cli()
