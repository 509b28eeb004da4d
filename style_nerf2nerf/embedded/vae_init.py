"""Initial weights of the small autoencoder: a block cosine transform.

A small autoencoder spends most of a short training on finding colours through its depth. This start gives them to it:
every latent holds the mean red, green and blue of its 4 × 4 pixels and the five lowest cosine coefficients of their
luma, and the decoder interpolates the colours. Residual branches start at zero, all other weights as they are; training
does the rest.

Group norm would take a picture's overall colour away, so a constant `ANCHOR` travels beside the signal and
keeps the norm's statistics constant; and since SiLU(x) - SiLU(-x) = x, signals pass the last nonlinearity as pairs ±x.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from style_nerf2nerf.embedded.patterns import LUMA

ANCHOR = 6.0
"""The constant channel; large against signals of about 1."""
LOG_VARIANCE = -6.0
"""Initial logarithm of the posterior's variance: nearly no noise."""
LATENTS = 8


def block_cosines() -> Float[Tensor, "8 3 4 4"]:
    """Weights of the eight coefficients on a block's pixels: three mean colours, five frequencies of luma."""
    places = (torch.arange(4) + 0.5) * math.pi / 4
    waves = torch.stack([torch.ones(4), places.cos(), (2 * places).cos()]) / 4
    weights = torch.zeros(LATENTS, 3, 4, 4)
    for colour in range(3):
        weights[colour, colour] = torch.outer(waves[0], waves[0])
    for index, (down, across) in enumerate(((0, 1), (1, 0), (1, 1), (0, 2), (2, 0)), start=3):
        weights[index] = 4 * torch.outer(waves[down], waves[across]) * torch.tensor(LUMA)[:, None, None]
    return weights


@torch.no_grad()
def start_as_block_cosines(vae: AutoencoderKL) -> None:
    """Writes the start into an autoencoder of widths (≥ 16, ≥ 48, ≥ 18), eight latents and one group a norm.

    Raises:
        ValueError: If the autoencoder is of another shape.
    """
    widths = tuple(vae.config["block_out_channels"])
    fits = len(widths) == 3 and all(have >= need for have, need in zip(widths, (16, 48, 18)))
    if not fits or vae.config["latent_channels"] != LATENTS or vae.config["norm_num_groups"] != 1:
        raise ValueError(f"An autoencoder of widths {widths} cannot start as a block cosine transform.")
    for name, module in vae.named_modules():
        if name.endswith("conv2") and isinstance(module, nn.Conv2d):
            _blank(module, range(module.out_channels))
    _start_encoder(vae)
    _start_decoder(vae)


def _start_encoder(vae: AutoencoderKL) -> None:
    encoder: Any = vae.encoder
    _copy(encoder.conv_in, {colour: {colour: 1.0} for colour in range(3)}, constants={3: ANCHOR})
    first, second = (block.downsamplers[0].conv for block in encoder.down_blocks[:2])
    # The strided convolution sees rows and columns 0 … 2 of each pair: taps 0 and 1 are the pair itself.
    _blank(first, range(13))
    for row in range(2):
        for column in range(2):
            for colour in range(3):
                first.weight[(row * 2 + column) * 3 + colour, colour, row, column] = 1.0
    first.weight[12, 3, 0, 0] = 1.0
    _copy(encoder.down_blocks[1].resnets[0].conv_shortcut, {channel: {channel: 1.0} for channel in range(13)})
    _blank(second, range(18))
    blocks = block_cosines()
    for row in range(4):
        for column in range(4):
            for colour in range(3):
                channel = (row % 2 * 2 + column % 2) * 3 + colour
                second.weight[:LATENTS, channel, row // 2, column // 2] = blocks[:, colour, row, column]
    second.weight[LATENTS : 2 * LATENTS] = -second.weight[:LATENTS]
    second.weight[16, 12, 0, 0], second.weight[17, 12, 0, 0] = 1.0, -1.0
    _copy(encoder.down_blocks[2].resnets[0].conv_shortcut, {channel: {channel: 1.0} for channel in range(18)})
    _undo_norm(encoder.conv_norm_out, range(18))
    pairs = {channel: {channel: 1.0, LATENTS + channel: -1.0} for channel in range(LATENTS)}
    nothing = {channel: {} for channel in range(LATENTS, 2 * LATENTS)}
    _copy(encoder.conv_out, pairs | nothing, constants=dict.fromkeys(nothing, LOG_VARIANCE))
    _copy(vae.quant_conv, {channel: {channel: 1.0} for channel in range(2 * LATENTS)})


def _start_decoder(vae: AutoencoderKL) -> None:
    decoder: Any = vae.decoder
    kept = {channel: {channel: 1.0} for channel in range(LATENTS + 1)}
    _copy(vae.post_quant_conv, {channel: {channel: 1.0} for channel in range(LATENTS)})
    _copy(decoder.conv_in, {channel: {channel: 1.0} for channel in range(LATENTS)}, constants={LATENTS: ANCHOR})
    tent = torch.tensor([0.25, 0.5, 0.25])
    for block in decoder.up_blocks[:2]:
        convolution = block.upsamplers[0].conv
        _copy(convolution, kept)
        for channel in range(LATENTS):
            convolution.weight[channel, channel] = torch.outer(tent, tent)
    _copy(decoder.up_blocks[1].resnets[0].conv_shortcut, kept)
    signs = {2 * colour + negative: {colour: 1.0 - 2 * negative} for colour in range(3) for negative in range(2)}
    anchors = {6: {LATENTS: 1.0}, 7: {LATENTS: -1.0}}
    _copy(decoder.up_blocks[2].resnets[0].conv_shortcut, signs | anchors)
    _undo_norm(decoder.conv_norm_out, range(8))
    _copy(decoder.conv_out, {colour: {2 * colour: 1.0, 2 * colour + 1: -1.0} for colour in range(3)})


def _blank(convolution: Any, channels: range | list[int]) -> None:
    convolution.weight[list(channels)] = 0.0
    convolution.bias[list(channels)] = 0.0


def _copy(convolution: Any, taps: dict[int, dict[int, float]], constants: dict[int, float] | None = None) -> None:
    """Set output channels to the given sums of input channels at the same pixel, or to constants."""
    constants = constants or {}
    _blank(convolution, [*taps, *constants])
    middle = convolution.kernel_size[0] // 2
    for channel, sources in taps.items():
        for source, weight in sources.items():
            convolution.weight[channel, source, middle, middle] = weight
    for channel, value in constants.items():
        convolution.bias[channel] = value


def _undo_norm(norm: nn.GroupNorm, channels: range) -> None:
    """Gives the channels back the scale that the norm takes: with anchors ±A in n channels it divides by A·√(2/n)."""
    norm.weight[list(channels)] = ANCHOR * math.sqrt(2 / norm.num_channels)
