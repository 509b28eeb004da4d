"""Encode views into latents and decode them: one view at a time, in tiles where memory runs out.

A decoder's activations are wide: for SDXL at 1024² in half precision 1.6 GB a view, and as much again for convolutions.
One view at a time needs that once. Where it is too much, the view is cut into overlapping tiles, which diffusers
blends; tiles are halved until they fit. Only tiles change the result, by what a convolution sees beyond their edges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.restyler.compute.memory import empty_cache
from style_nerf2nerf.restyler.sizes import pixels_per_cell

SMALLEST_TILE = 16
"""Latent cells along the smallest tile's side."""


class ViewCoder:
    """Encodes and decodes views with a pipeline's autoencoder."""

    tile: int | None
    """Side of a tile in latent cells; None while whole views fit into the memory."""

    def __init__(self, vae: AutoencoderKL, device: torch.device, on_tiles: Callable[[int], None] | None = None) -> None:
        """Use an autoencoder, without moving it.

        Args:
            vae: The autoencoder.
            device: Device on which it is used.
            on_tiles: Called with the side of the tiles in pixels when memory ran out.
        """
        self.vae, self.device, self.tile = vae, device, None
        self._on_tiles = on_tiles
        self.scale = pixels_per_cell(vae)
        """Pixels along a latent cell's side."""

    @property
    def _config(self) -> Any:
        return self.vae.config

    @torch.no_grad()
    def encode(
        self, picture: Float[Tensor, "3 height width"], generator: torch.Generator, dtype: torch.dtype
    ) -> Float[Tensor, "channels tall wide"]:
        """A view's latents, drawn from the encoder's distribution and scaled as the UNet expects them.

        The draw is made in float32 on the CPU, so that every precision and device starts from the same one.

        Args:
            picture: The view in [0, 1], on the CPU.
            generator: Source of the draw, on the CPU.
            dtype: Type of the latents.
        """
        pixels = 2 * picture[None] - 1
        shape = (1, self._config.latent_channels, picture.shape[-2] // self.scale, picture.shape[-1] // self.scale)
        noise = torch.randn(shape, generator=generator)

        def call() -> Tensor:
            latents = self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]
            return latents.mean + latents.std * noise.to(self.device, latents.mean.dtype)

        drawn = self._within_memory(call, max(shape[-2:]))
        mean, deviation = self._statistics(drawn)
        return ((drawn - mean) * self._config.scaling_factor / deviation).to(dtype)[0]

    @torch.no_grad()
    def decode(self, latent: Float[Tensor, "channels tall wide"]) -> Float[Tensor, "3 height width"]:
        """A view's picture in [0, 1], in float32 on the CPU."""

        def call() -> Tensor:
            mean, deviation = self._statistics(latent)
            clean = latent[None].to(self.device) * deviation / self._config.scaling_factor + mean
            decoded: Any = self.vae.decode(clean.to(self.vae.dtype))
            return decoded.sample.float().cpu()

        picture = self._within_memory(call, max(latent.shape[-2:]))
        return (picture[0] / 2 + 0.5).clamp(0, 1)

    def _statistics(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each latent channel, where the configuration names them; else 0 and 1."""
        mean, deviation = self._config.latents_mean or 0.0, self._config.latents_std or 1.0
        return tuple(
            torch.tensor(each, device=self.device, dtype=like.dtype).reshape(1, -1, 1, 1) for each in (mean, deviation)
        )  # pyright: ignore[reportReturnType]

    def _within_memory(self, call: Callable[[], Tensor], cells: int) -> Tensor:
        """Call the autoencoder; where memory runs out, repeat the call in smaller tiles."""
        # An autoencoder that was not made for it overflows in float16: the pipeline takes the same care.
        upcast = self._config.force_upcast and self.vae.dtype == torch.float16
        before = self.vae.use_tiling
        if upcast:
            self.vae.float()
        try:
            while True:
                self._set_tiles()
                try:
                    return call()
                except torch.OutOfMemoryError as error:
                    tile = (self.tile or cells) // 2
                    if tile < min(SMALLEST_TILE, cells // 2):
                        raise UserError(
                            "Encoding and decoding one view still needs more memory than there is: choose a smaller "
                            "--pipeline.restyle.size."
                        ) from error
                self.tile = tile
                if self._on_tiles:
                    self._on_tiles(tile * self.scale)
                empty_cache()  # only here is the memory of what failed free
        finally:
            self.vae.use_tiling = before
            if upcast:
                self.vae.half()

    def _set_tiles(self) -> None:
        self.vae.use_tiling = self.tile is not None
        if self.tile is not None:
            self.vae.tile_latent_min_size = self.tile
            self.vae.tile_sample_min_size = self.tile * self.scale
