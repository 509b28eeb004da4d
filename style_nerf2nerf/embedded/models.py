"""Small models of SDXL's own classes: the architecture of the embedded restyler, and stand-ins for tests.

Vocabulary: a *size* is one dataclass of widths; `EMBEDDED` is what the shipped weights were trained with,
`STAND_IN` what tests build with random weights. Every part is the class that the SDXL pipeline expects (UNet with
text-time conditioning, depth ControlNet, KL autoencoder, CLIP text encoders with and without projection, CLIP
tokenizer), so that the code that runs them cannot tell them from the large ones.

Pictures are 128 × 128 by default; the autoencoder halves twice, so latents are 32 × 32.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    LCMScheduler,
    StableDiffusionXLControlNetImg2ImgPipeline,
    UNet2DConditionModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from style_nerf2nerf.embedded.prompts import COMMON_WORDS, style_words
from style_nerf2nerf.restyler.guides import CHANNELS, DEPTH_CHANNELS

Model = TypeVar("Model", bound=nn.Module)
START, END, END_OF_WORD = "<|startoftext|>", "<|endoftext|>", "</w>"


@dataclass(frozen=True)
class Size:
    """The widths of a small restyler."""

    unet_channels: tuple[int, ...] = (96, 128, 96)
    """UNet and ControlNet: one block each, every block but the last halves the latents."""
    unet_attention: tuple[bool, ...] = (True, True, True)
    """Which of the UNet's blocks have attention. The first of SDXL's has none; views that share it were seen to learn
    to agree there first."""
    control_attention: tuple[bool, ...] = (False, False, True)
    """Which of the ControlNet's blocks have attention."""
    head_channels: int = 32
    """Channels of one attention head of the UNet."""
    control_channels: tuple[int, ...] = (32, 32, 48)
    """The ControlNet's own picture encoder; as many entries as the autoencoder has blocks."""
    vae_channels: tuple[int, ...] = (16, 48, 64)
    """Autoencoder: every block but the last halves the picture."""
    latent_channels: int = 8
    """Channels of the latents."""
    text_channels: int = 64
    """Width of each text encoder and of the pooled prompt."""
    text_layers: int = 2
    """Layers of each text encoder; the prompt's tokens leave before the last one, as in SDXL."""
    text_tokens: int = 32
    """Longest prompt in tokens, start and end included."""
    norm_groups: int = 1
    """Groups of every group norm of UNet and ControlNet. One: a small network that predicts pictures needs their
    overall colour, which norms of few channels would take away."""
    vae_norm_groups: int = 1
    """Groups of every group norm of the autoencoder."""
    sample_size: int = 32
    """Native height and width of the latents."""
    picture_channels: int = DEPTH_CHANNELS + CHANNELS
    """Channels of the ControlNet's picture: of depth, and of guides if it sees them."""


EMBEDDED = Size()
STAND_IN = Size((16, 32), (True, True), (True, True), 8, (8, 8, 8), (8, 8, 16), 4, 16, 2, 32, 4, 4, 8, DEPTH_CHANNELS)

TIME_CHANNELS = 8
"""Channels of each of the six numbers of SDXL's size conditioning."""
MOST_STEPS = 40
"""Largest number of denoising steps at full strength; training uses the levels of eight steps."""


def build_tokenizer(words: Iterable[str], max_length: int) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary holds `words` whole; any other text falls back to pieces and bytes.

    Args:
        words: Words of the letters a to z that become one token each.
        max_length: Tokens of a padded prompt.
    """
    alphabet = sorted(ByteLevel.alphabet())
    merges: Any = learn_merges(words)
    learned = (left + right for left, right in merges)
    entries = dict.fromkeys([*alphabet, *(letter + END_OF_WORD for letter in alphabet), *learned])
    vocabulary = {entry: index for index, entry in enumerate([*entries, START, END])}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=max_length)


def learn_merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte pair encoding: merge the most frequent pair of neighbours until every word is one token.

    Of pairs as frequent as each other the first in the alphabet is taken, so that the same words always make the same
    tokenizer, in every process; the tokenizers library leaves that to chance.
    """
    spelled = [(*word[:-1], word[-1] + END_OF_WORD) for word in sorted(set(words))]
    merges: list[tuple[str, str]] = []
    while any(len(pieces) > 1 for pieces in spelled):
        counts = Counter(pair for pieces in spelled for pair in pairwise(pieces))
        merges.append(min(counts, key=lambda pair: (-counts[pair], pair)))
        spelled = [_joined(pieces, merges[-1]) for pieces in spelled]
    return merges


def _joined(pieces: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """Merge every occurrence of a pair, from the left."""
    joined: list[str] = []
    rest = list(pieces)
    while rest:
        whole = tuple(rest[:2]) == pair
        joined.append("".join(pair) if whole else rest[0])
        del rest[: 2 if whole else 1]
    return tuple(joined)


def build_unet(size: Size) -> UNet2DConditionModel:
    """An SDXL-class UNet: text-time conditioning, cross-attention to both text encoders' tokens."""
    kinds = [("CrossAttn" if attends else "") for attends in size.unet_attention]
    unet = UNet2DConditionModel(
        sample_size=size.sample_size,
        # The ControlNet's middle is added where the UNet's own would be: at 4 × 4 one of them is enough.
        mid_block_type=None,
        out_channels=size.latent_channels,
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        **_shared_arguments(size, size.unet_attention),
    )
    return start_residuals_at_zero(unet)


def build_controlnet(size: Size) -> ControlNetModel:
    """A depth ControlNet that fits `build_unet`.

    Its outputs do not start at zero, as usual: there is no trained UNet to protect, and both learn faster so.
    """
    controlnet = ControlNetModel(
        conditioning_channels=size.picture_channels,
        conditioning_embedding_out_channels=size.control_channels,
        **_shared_arguments(size, size.control_attention),
    )
    outputs = [*controlnet.controlnet_down_blocks, controlnet.controlnet_mid_block]
    for convolution in outputs:
        convolution.reset_parameters()
    start_at_full_strength(controlnet.controlnet_cond_embedding)
    return start_residuals_at_zero(controlnet)


@torch.no_grad()
def start_at_full_strength(picture_encoder: nn.Module) -> None:
    """Scale the picture encoder's weights so that they keep the picture's variance; it has no norms."""
    for module in picture_encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")


@torch.no_grad()
def start_residuals_at_zero(model: Model) -> Model:
    """Lets every residual branch begin as nothing: a short training then starts from a shallow network.

    A transformer is one branch: what is inside begins as usual, or nothing in it would learn at first.
    """
    for name, module in model.named_modules():
        if name.endswith(("conv2", "proj_out")) and isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return model


def _shared_arguments(size: Size, attention: tuple[bool, ...]) -> dict[str, Any]:
    return {
        "in_channels": size.latent_channels,
        "down_block_types": tuple(f"{'CrossAttn' if on else ''}DownBlock2D" for on in attention),
        "block_out_channels": size.unet_channels,
        "layers_per_block": 1,
        "transformer_layers_per_block": 1,
        "cross_attention_dim": 2 * size.text_channels,
        # diffusers' historical name: these are numbers of heads.
        "attention_head_dim": tuple(channels // size.head_channels for channels in size.unet_channels),
        "norm_num_groups": size.norm_groups,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": TIME_CHANNELS,
        "projection_class_embeddings_input_dim": size.text_channels + 6 * TIME_CHANNELS,
    }


def build_vae(size: Size) -> AutoencoderKL:
    """A KL autoencoder that halves the picture once for every block but the last."""
    blocks = len(size.vae_channels)
    # diffusers types these as one-tuples.
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks,
        "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "block_out_channels": size.vae_channels,
    }
    return AutoencoderKL(
        **shape,
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=size.vae_norm_groups,
        mid_block_add_attention=False,
        sample_size=size.sample_size * 2 ** (blocks - 1),
        force_upcast=False,
        scaling_factor=1.0,
    )


def build_text_encoders(size: Size, tokenizer: CLIPTokenizer) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Build two small CLIP text encoders for one tokenizer; the second one also pools and projects the prompt."""
    marks: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=size.text_channels,
        intermediate_size=2 * size.text_channels,
        projection_dim=size.text_channels,
        num_hidden_layers=size.text_layers,
        num_attention_heads=4,
        max_position_embeddings=size.text_tokens,
        hidden_act="gelu",
        **marks,
    )
    return CLIPTextModel(config), CLIPTextModelWithProjection(config)


def build_scheduler() -> LCMScheduler:
    """Steps that predict the clean latents and add new noise for the next level; the noisiest one is pure noise.

    Noise covers a picture of few latents sooner than one of many. SDXL's noise-to-signal ratio divided by four is
    nearly √ᾱ = 1 - (t / 1000)³, which these betas give.
    """
    return LCMScheduler(
        num_train_timesteps=1000,
        beta_schedule="scaled_linear",
        beta_start=1e-6,
        beta_end=1e-3,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        original_inference_steps=MOST_STEPS,
        set_alpha_to_one=True,
    )


def noise_levels(steps: int) -> list[int]:
    """Timesteps of a number of steps at full strength, noisiest first."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


def build_pipeline(size: Size = EMBEDDED, seed: int = 0) -> StableDiffusionXLControlNetImg2ImgPipeline:
    """The whole pipeline with random weights drawn from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tokenizer = build_tokenizer([*style_words(), *COMMON_WORDS], size.text_tokens)
        text_encoder, text_encoder_2 = build_text_encoders(size, tokenizer)
        return StableDiffusionXLControlNetImg2ImgPipeline(
            vae=build_vae(size),
            text_encoder=text_encoder,
            text_encoder_2=text_encoder_2,
            tokenizer=tokenizer,
            tokenizer_2=tokenizer,
            unet=build_unet(size),
            controlnet=build_controlnet(size),
            scheduler=build_scheduler(),  # pyright: ignore[reportArgumentType]
            add_watermarker=False,
        )
