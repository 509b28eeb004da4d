"""Trains the embedded restyler on procedural scenes in procedural styles: autoencoder first, then everything else.

Vocabulary: a *stage* is ``data`` (render and paint what is missing), ``vae``, ``diffusion`` (UNet, ControlNet and both
text encoders together, on latents computed once) or ``export``. A *recipe* is a file of ``configs/`` with everything
that decides the result. Every random choice of a step is drawn from the recipe's seed and the step's number, so a run
that was cut off goes on exactly as if it had not been.

``python -m style_nerf2nerf.train_restyler --help`` shows the options. In the output folder lie ``data/``,
``vae.pt``, ``latents.safetensors``, ``diffusion.pt`` (checkpoints), ``vae.png``, ``diffusion.png`` (sample sheets) and
``log.jsonl``.
"""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
import tyro
import yaml
from accelerate import Accelerator
from diffusers import StableDiffusionXLControlNetImg2ImgPipeline
from diffusers.training_utils import EMAModel
from jaxtyping import Float, Int
from nerfstudio.utils.rich_utils import CONSOLE
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.utils import save_image

from eschernet_prior.errors import UserError
from style_nerf2nerf.attention import share_attention
from style_nerf2nerf.procedural_styles import STYLES
from style_nerf2nerf.prompts import draw_prompt
from style_nerf2nerf.restyler_data import HELD_OUT, PAINTED, STYLE_NAMES, load_shards, paint_scene, write_shards
from style_nerf2nerf.tiny_models import EMBEDDED, STAND_IN, Size, build_pipeline
from style_nerf2nerf.vae_start import start_as_block_cosines

SIZES = {"embedded": EMBEDDED, "stand-in": STAND_IN}
EXPORT_FOLDER = Path(__file__).parent / "weights" / "restyler"


@dataclass(frozen=True)
class DataRecipe:
    """What is rendered and painted."""

    scenes: int
    views: int
    size: int
    styles_per_scene: int


@dataclass(frozen=True)
class VaeRecipe:
    """How the autoencoder is trained."""

    scenes: int
    steps: int
    batch: int
    learning_rate: float
    warmup: int
    ema_decay: float
    square_weight: float
    gradient_weight: float
    kl_weight: float
    start_as_block_cosines: bool


@dataclass(frozen=True)
class DiffusionRecipe:
    """How UNet, ControlNet and text encoders are trained."""

    steps: int
    scenes: int
    learning_rate: float
    warmup: int
    ema_decay: float
    shared: float
    same_noise: float
    drop_prompt: float
    from_photo: float
    late: float


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result."""

    data: DataRecipe
    vae: VaeRecipe
    diffusion: DiffusionRecipe
    seed: int = 0
    models: str = "embedded"
    """Which size of models, a key of ``SIZES``."""

    @property
    def size(self) -> Size:
        """The models' widths."""
        return SIZES[self.models]


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    recipe: Path = Path("configs/restyler_tiny.yaml")
    """The recipe file."""
    out: Path = Path("outputs/restyler")
    """Where data, checkpoints and sample sheets go; what is there already is used."""
    stage: Literal["all", "data", "vae", "diffusion", "export"] = "all"
    """One stage, or all that are not done yet."""
    minutes_between_saves: float = 5.0
    """How often a checkpoint and a sample sheet are written."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """As accelerate understands it."""
    gradient_accumulation: int = 1
    """Batches whose gradients are averaged into one step."""
    export_to: Path = EXPORT_FOLDER
    """Where ``export`` writes the models."""


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe.

    Raises:
        UserError: If there is no such file, or its keys are not those of a recipe.
    """
    if not path.is_file():
        raise UserError(f"There is no recipe at {path}: name one with --recipe.")
    told = yaml.safe_load(path.read_text())
    try:
        parts = {"data": DataRecipe, "vae": VaeRecipe, "diffusion": DiffusionRecipe}
        recipe = Recipe(**{key: parts[key](**value) if key in parts else value for key, value in told.items()})
    except (TypeError, AttributeError) as error:
        raise UserError(f"The recipe {path} does not fit: {error}.") from error
    if recipe.models not in SIZES:
        raise UserError(f"The recipe {path} asks for models of size {recipe.models!r}; there are {', '.join(SIZES)}.")
    return recipe


class Restoring(nn.Module):
    """What the diffusion stage trains, as one module: noisy latents, depth and a prompt in, predicted velocity out."""

    def __init__(self, pipeline: StableDiffusionXLControlNetImg2ImgPipeline):
        super().__init__()
        self.unet, self.controlnet = pipeline.unet, pipeline.controlnet
        self.text_encoder, self.text_encoder_2 = pipeline.text_encoder, pipeline.text_encoder_2

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timestep: Int[Tensor, batch],
        tokens: Int[Tensor, "scenes length"],
        kept: Float[Tensor, "scenes 1"],
        depth: Float[Tensor, "batch 3 tall wide"],
        time_ids: Float[Tensor, "batch 6"],
        num_views: int,
    ) -> Float[Tensor, "batch channels height width"]:
        """One prediction; ``kept`` is 0 for scenes whose prompt is dropped, ``num_views`` views share attention."""
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


class Stage:
    """The loop that both trained stages share: learning rate, averaging of weights, checkpoints, log, sample sheets."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        steps: int,
        learning_rate: float,
        warmup: int,
        ema_decay: float,
        options: Options,
    ):
        self.name, self.steps, self.warmup, self.options = name, steps, warmup, options
        self.learning_rate = learning_rate
        self.path = options.out / f"{name}.pt"
        self.accelerator = Accelerator(
            mixed_precision=options.mixed_precision, gradient_accumulation_steps=options.gradient_accumulation
        )
        self.model, self.optimizer = self.accelerator.prepare(
            model, torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
        )
        self.average = EMAModel(model.parameters(), decay=ema_decay)
        self.average.to(self.accelerator.device)
        self.step = 0

    @property
    def bare(self) -> nn.Module:
        """The model without accelerate's wrapping."""
        return self.accelerator.unwrap_model(self.model)

    def run(self, loss_of: Callable[[int], Tensor], sheet: Callable[[], None]) -> None:
        """Trains from the last checkpoint to the last step; ``loss_of`` gives the loss of the batch of a number."""
        self._resume()
        started = saved = time.monotonic()
        first, total, counted = self.step, 0.0, 0
        batches = self.options.gradient_accumulation
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * self._pace()
            for batch in range(batches):
                with self.accelerator.accumulate(self.model):
                    loss = loss_of(self.step * batches + batch)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                total += float(loss.detach()) / batches
            counted += 1
            self.average.step(self.bare.parameters())
            self.step += 1
            if self.step % 20 == 0 or self.step == self.steps:
                self._log(loss=total / counted, seconds_a_step=(time.monotonic() - started) / (self.step - first))
                total, counted = 0.0, 0
            if self.step == self.steps or time.monotonic() - saved > 60 * self.options.minutes_between_saves:
                self._save()
                self._with_average(sheet)
                saved = time.monotonic()
        self.average.copy_to(self.bare.parameters())

    def _pace(self) -> float:
        """Linear warm-up, then a cosine down to a fiftieth."""
        if self.step < self.warmup:
            return (self.step + 1) / self.warmup
        share = (self.step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))

    def _with_average(self, action: Callable[[], None]) -> None:
        self.average.store(self.bare.parameters())
        self.average.copy_to(self.bare.parameters())
        self.bare.eval()
        if self.accelerator.is_main_process:
            with torch.no_grad():
                action()
        self.bare.train()
        self.average.restore(self.bare.parameters())

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        beside = self.path.with_suffix(".part")
        state = {
            "step": self.step,
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }
        torch.save(state, beside)
        os.replace(beside, self.path)

    def _resume(self) -> None:
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location=self.accelerator.device)
            self.bare.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.load_state_dict(state["average"])
            self.average.to(self.accelerator.device)
            self.step = state["step"]

    def _log(self, **values: float) -> None:
        if self.accelerator.is_main_process:
            line = {"stage": self.name, "step": self.step, **{key: round(value, 5) for key, value in values.items()}}
            with (self.options.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            CONSOLE.print(
                f"{self.name} {self.step}/{self.steps}: loss {line['loss']}, {line['seconds_a_step']:.2f} s a step"
            )


def load_average(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, stage: str, path: Path) -> bool:
    """Puts a checkpoint's averaged weights into the pipeline; False if there is no checkpoint yet."""
    if not path.exists():
        return False
    model = Reconstructing(pipeline) if stage == "vae" else Restoring(pipeline)
    shadows = torch.load(path, weights_only=True, map_location="cpu")["average"]["shadow_params"]
    with torch.no_grad():
        for parameter, shadow in zip(model.parameters(), shadows, strict=True):
            parameter.copy_(shadow)
    return True


def make_data(recipe: Recipe, options: Options, scenes: int | None = None) -> dict[str, Tensor]:
    """All training scenes, or the first so many; keys and axes as in ``restyler_data``."""
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


def train_vae(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options) -> None:
    """Stage ``vae``."""
    told = recipe.vae
    data = make_data(recipe, options, told.scenes)
    pictures = torch.cat([data["photo"][:, None], data["styled"]], 1).flatten(0, 2)
    if told.start_as_block_cosines:
        start_as_block_cosines(pipeline.vae)
    model = Reconstructing(pipeline)
    stage = Stage("vae", model, told.steps, told.learning_rate, told.warmup, told.ema_decay, options)
    device, shrink = stage.accelerator.device, 2 ** (len(recipe.size.vae_channels) - 1)
    latent = (told.batch, recipe.size.latent_channels, recipe.data.size // shrink, recipe.data.size // shrink)

    def loss_of(number: int) -> Tensor:
        generator = _generator(recipe.seed, number, stage.accelerator)
        chosen = _unit(pictures[torch.randint(len(pictures), (told.batch,), generator=generator)]).to(device)
        shown, divergence = stage.model(chosen, torch.randn(latent, generator=generator).to(device))
        return reconstruction_loss(shown, chosen, told) + told.kl_weight * divergence

    held_out = paint_scene(HELD_OUT, 1, recipe.data.size, PAINTED)
    originals = _unit(torch.cat([held_out["photo"], held_out["styled"][:, 0]])).to(device)

    def sheet() -> None:
        shown = model.vae(originals).sample
        error = ((shown - originals).clamp(-2, 2) / 2).square().mean()
        CONSOLE.print(f"vae {stage.step}: held-out PSNR {float(-10 * error.log10()):.2f} dB")
        save_image(torch.cat([originals, shown]).clamp(-1, 1) / 2 + 0.5, options.out / "vae.png", nrow=len(originals))

    stage.run(loss_of, sheet)


@torch.no_grad()
def make_latents(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options
) -> dict[str, Tensor]:
    """All training pictures as latents, computed once and kept on disk.

    ``photo`` (scenes views channels height width) and ``styled`` (scenes painted views channels height width), float16
    with overall deviation 1; ``depth`` and ``style`` as in the shards; ``scale``, the factor that made the deviation 1.
    """
    path = options.out / "latents.safetensors"
    if not path.exists():
        device = Accelerator().device
        vae, data = pipeline.vae.to(device).eval(), make_data(recipe, options)
        kept = {"depth": data["depth"], "style": data["style"]}
        for key in ("photo", "styled"):
            flat = data[key].flatten(0, -4).split(64)
            means = [vae.encode(_unit(part).to(device)).latent_dist.mean.half().cpu() for part in flat]
            kept[key] = torch.cat(means).unflatten(0, data[key].shape[:-3])
        kept["scale"] = 1 / kept["styled"].float().std()
        for key in ("photo", "styled"):
            kept[key] = (kept[key].float() * kept["scale"]).half()
        save_file(kept, path.with_suffix(".part"))
        os.replace(path.with_suffix(".part"), path)
    return load_file(path)


@dataclass(frozen=True)
class Batch:
    """One batch of the diffusion stage; entries are scenes × views, a scene's views consecutive."""

    target: Float[Tensor, "batch channels height width"]
    """Latents of the styled pictures."""
    noisy: Float[Tensor, "batch channels height width"]
    """What the network sees."""
    velocity: Float[Tensor, "batch channels height width"]
    """What it shall say: the velocity that leads from ``noisy`` to ``target``."""
    timestep: Int[Tensor, batch]
    prompts: list[str]
    """One a scene."""
    kept: Float[Tensor, "scenes 1"]
    """0 where the prompt is dropped."""
    depth: Float[Tensor, "batch 3 tall wide"]
    time_ids: Float[Tensor, "batch 6"]
    num_views: int
    """Views that share attention; 1 for none."""


def draw_batch(
    latents: dict[str, Tensor], alphas: Float[Tensor, timesteps], recipe: Recipe, generator: torch.Generator
) -> Batch:
    """Draws scenes, styles, prompts, timesteps and noise.

    With a = √ᾱ, s = √(1-ᾱ), x the styled latents and p the photo's: the input is a·((1-u)·x + u·p) + s·ε, where u is 0
    for most scenes and uniform for a share ``from_photo`` of them, and the velocity is (a·input - x) / s, the one
    for which v-prediction returns x. For u = 0 that is the usual a·ε - s·x; for u > 0 it teaches what is asked for at
    inference, where denoising starts from the noisy photo.

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
    # Where little noise is left, the photo could not be told from the target: blend only among the noisy half.
    mixed = (uniform(told.scenes, 1) < told.from_photo) & (time > 0.4)
    blend = (uniform(told.scenes, 1) * mixed).view(*mixed.shape, 1, 1, 1)
    noisy = signal * ((1 - blend) * target + blend * photo) + sigma * noise
    velocity = (signal * noisy - target) / sigma
    height, width = latents["depth"].shape[-2:]
    sides = torch.tensor([height, width], dtype=torch.float32).repeat(told.scenes, 1)
    odd = (uniform(told.scenes, 1) < 0.5) * (uniform(told.scenes, 2) - 0.5) * sides
    time_ids = torch.cat([sides + odd.round(), torch.zeros(told.scenes, 2), sides + odd.round()], -1)
    return Batch(
        target=target.flatten(0, 1),
        noisy=noisy.flatten(0, 1),
        velocity=velocity.flatten(0, 1),
        timestep=timestep.flatten(),
        prompts=prompts,
        kept=(uniform(told.scenes, 1) >= told.drop_prompt).float(),
        depth=latents["depth"][chosen].flatten(0, 1).float().expand(-1, 3, -1, -1),
        time_ids=time_ids.repeat_interleave(views, 0),
        num_views=num_views,
    )


def train_diffusion(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, options: Options) -> None:
    """Stage ``diffusion``; needs the autoencoder's checkpoint."""
    if not load_average(pipeline, "vae", options.out / "vae.pt"):
        raise UserError(f"There is no autoencoder in {options.out} yet: run the stage 'vae' first.")
    told = recipe.diffusion
    latents = make_latents(pipeline, recipe, options)
    pipeline.vae.register_to_config(scaling_factor=float(latents["scale"]))
    alphas = pipeline.scheduler.alphas_cumprod
    stage = Stage(
        "diffusion", Restoring(pipeline), told.steps, told.learning_rate, told.warmup, told.ema_decay, options
    )
    device = stage.accelerator.device

    def loss_of(number: int) -> Tensor:
        batch = draw_batch(latents, alphas, recipe, _generator(recipe.seed, number, stage.accelerator))
        tokens = pipeline.tokenizer(batch.prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        inputs = (batch.noisy, batch.timestep, tokens, batch.kept, batch.depth, batch.time_ids)
        predicted = stage.model(*(tensor.to(device) for tensor in inputs), batch.num_views)
        return F.mse_loss(predicted.float(), batch.velocity.to(device))

    stage.run(loss_of, lambda: draw_sheet(pipeline, recipe, options.out / "diffusion.png"))


@torch.no_grad()
def draw_sheet(
    pipeline: StableDiffusionXLControlNetImg2ImgPipeline, recipe: Recipe, path: Path, steps: int = 8
) -> None:
    """Two views of a held-out scene, one column a style: photo above, restyled below."""
    scene = paint_scene(HELD_OUT + 1, 2, recipe.data.size, ())
    photos, depth = scene["photo"].float() / 255, scene["depth"].float().expand(-1, 3, -1, -1)
    pipeline.set_progress_bar_config(disable=True)
    columns = [photos]
    for style in PAINTED:
        with share_attention(pipeline.unet, 2):
            shown: Any = pipeline(
                [STYLES[style].prompt] * 2,
                image=photos,
                control_image=depth,
                strength=0.8,
                num_inference_steps=steps,
                guidance_scale=2.5,
                controlnet_conditioning_scale=1.0,
                generator=[torch.Generator().manual_seed(view) for view in range(2)],
                output_type="pt",
            )
        columns.append(shown.images.cpu().float())
    save_image(torch.stack(columns, 1).flatten(0, 1), path, nrow=len(columns))


def export(pipeline: StableDiffusionXLControlNetImg2ImgPipeline, options: Options) -> None:
    """Writes the averaged weights in diffusers' layout, as float16 safetensors.

    Raises:
        UserError: If a stage has no checkpoint yet.
    """
    for stage in ("vae", "diffusion"):
        if not load_average(pipeline, stage, options.out / f"{stage}.pt"):
            raise UserError(f"There is no checkpoint of the stage {stage!r} in {options.out}: train it first.")
    pipeline.vae.register_to_config(scaling_factor=float(load_file(options.out / "latents.safetensors")["scale"]))
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.half()
    pipeline.save_pretrained(options.export_to, safe_serialization=True)


def main(options: Options) -> None:
    """Runs the stages asked for.

    Raises:
        UserError: If the recipe does not fit, or a stage before is missing.
    """
    recipe = load_recipe(options.recipe)
    options.out.mkdir(parents=True, exist_ok=True)
    pipeline = build_pipeline(recipe.size, recipe.seed)
    if options.stage == "data":
        make_data(recipe, options)
    if options.stage in ("all", "vae"):
        train_vae(pipeline, recipe, options)
    if options.stage in ("all", "diffusion"):
        train_diffusion(pipeline, recipe, options)
    if options.stage in ("all", "export"):
        export(pipeline, options)


def cli() -> None:
    """The command line."""
    try:
        main(tyro.cli(Options, description=__doc__))
    except UserError as error:
        CONSOLE.print(f"[red]{error}[/red]")
        raise SystemExit(1) from None


if __name__ == "__main__":
    cli()
