"""The modules that the training stages of the embedded restyler train, and their losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLControlNetImg2ImgPipeline
from jaxtyping import Float, Int
from torch import Tensor, nn

from style_nerf2nerf.attention import share_attention
from style_nerf2nerf.embedded.data import COLOUR_NAMES, STYLE_NAMES
from style_nerf2nerf.embedded.recipe import VaeRecipe

FLAT = 0.02
"""Standard deviation in 5×5 pixels, of pictures in [-1, 1], below which a place is flat."""


class Prompts(nn.Module):
    """Both text encoders."""

    def __init__(self, pipeline: StableDiffusionXLControlNetImg2ImgPipeline):
        super().__init__()
        self.text_encoder, self.text_encoder_2 = pipeline.text_encoder, pipeline.text_encoder_2

    def read(self, tokens: Int[Tensor, "prompts length"]) -> tuple[Tensor, Tensor]:
        """Each token's embedding (prompts length channels) and the pooled prompt (prompts channels), as in SDXL."""
        first = self.text_encoder(tokens, output_hidden_states=True)
        second = self.text_encoder_2(tokens, output_hidden_states=True)
        words = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], -1)
        return words, second.text_embeds


class Naming(Prompts):
    """Module of the stage `words`: text encoders, and linear classifiers of the style and the colours of a prompt."""

    def __init__(self, pipeline: StableDiffusionXLControlNetImg2ImgPipeline):
        super().__init__(pipeline)
        pooled: Any = pipeline.text_encoder_2.config.projection_dim
        words: Any = pipeline.text_encoder.config.hidden_size + pipeline.text_encoder_2.config.hidden_size
        answers = len(STYLE_NAMES) + len(COLOUR_NAMES)
        self.of_pooled, self.of_words = nn.Linear(pooled, answers), nn.Linear(words, answers)

    def forward(
        self,
        tokens: Int[Tensor, "prompts length"],
        style: Int[Tensor, " prompts"],
        colours: Float[Tensor, "prompts colours"],
    ) -> Float[Tensor, ""]:
        """Cross entropy of the style and of each colour, from the pooled prompt and from the tokens' mean.

        Args:
            tokens: The prompts.
            style: Indices into `STYLE_NAMES`.
            colours: 1 for each of `COLOUR_NAMES` that is named; all 0 where the style takes none.
        """
        words, pooled = self.read(tokens)
        takes_some = colours.amax(1, keepdim=True)
        loss = 0.01 * (pooled.square().mean() - 1).square()
        for answer in (self.of_pooled(pooled), self.of_words(words.mean(1))):
            named, tinted = answer.split([len(STYLE_NAMES), len(COLOUR_NAMES)], -1)
            apart = F.binary_cross_entropy_with_logits(tinted, colours, reduction="none") * takes_some
            loss = loss + F.cross_entropy(named, style) + 2 * apart.mean() / takes_some.mean().clamp(min=0.1)
        return loss


class Restoring(Prompts):
    """Module of the stage `diffusion`: from noisy latents, control pictures and a prompt to velocities."""

    def __init__(self, pipeline: StableDiffusionXLControlNetImg2ImgPipeline):
        super().__init__(pipeline)
        self.unet, self.controlnet = pipeline.unet, pipeline.controlnet

    def forward(
        self,
        noisy: Float[Tensor, "batch channels height width"],
        timestep: Int[Tensor, " batch"],
        tokens: Int[Tensor, "scenes length"],
        kept: Float[Tensor, "scenes 1"],
        controls: Float[Tensor, "batch _ tall wide"],
        time_ids: Float[Tensor, "batch 6"],
        num_views: int,
    ) -> Float[Tensor, "batch channels height width"]:
        """One prediction; `kept` is 0 for scenes whose prompt is dropped, `num_views` views share attention."""
        words, pooled = self.read(tokens)
        views = noisy.shape[0] // tokens.shape[0]
        prompt = {
            "encoder_hidden_states": (words * kept[..., None]).repeat_interleave(views, 0),
            "added_cond_kwargs": {
                "text_embeds": (pooled * kept).repeat_interleave(views, 0),
                "time_ids": time_ids,
            },
        }
        down, middle = self.controlnet(noisy, timestep, controlnet_cond=controls, return_dict=False, **prompt)
        with share_attention(self.unet, num_views):
            return self.unet(
                noisy,
                timestep,
                down_block_additional_residuals=down,
                mid_block_additional_residual=middle,
                return_dict=False,
                **prompt,
            )[0]


class Reconstructing(nn.Module):
    """Module of the stages `vae` and `decoder`: from pictures to latents and back."""

    def __init__(self, pipeline: StableDiffusionXLControlNetImg2ImgPipeline):
        super().__init__()
        self.vae = pipeline.vae

    def forward(
        self, pictures: Float[Tensor, "batch 3 height width"], noise: Float[Tensor, "batch channels tall wide"]
    ) -> tuple[Float[Tensor, "batch 3 height width"], Tensor]:
        """The pictures decoded from noised latents, and the mean KL divergence of a latent from a standard normal."""
        posterior = self.vae.encode(pictures).latent_dist
        decoded = self.vae.decode(posterior.mean + noise).sample
        return decoded, 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()


def reconstruction_loss(
    decoded: Float[Tensor, "batch 3 height width"], pictures: Float[Tensor, "batch 3 height width"], recipe: VaeRecipe
) -> Float[Tensor, ""]:
    """L1 and L2 on pixels, and L1 on the differences of neighbours: edges are what small autoencoders lose.

    Where a picture is flat its L1 weighs more, since that is where grain shows.
    """
    error = decoded.float() - pictures
    means = F.avg_pool2d(pictures, 5, stride=1, padding=2)
    variances = F.avg_pool2d(pictures.square(), 5, stride=1, padding=2) - means.square()
    flat = (variances.clamp(min=0).mean(1, keepdim=True).sqrt() < FLAT).to(error)
    weighted = ((1 + recipe.flat_weight * flat) * error.abs()).mean()
    return weighted + recipe.square_weight * error.square().mean() + recipe.gradient_weight * _edges(error)


def restyling_loss(error: Float[Tensor, "batch channels height width"], means_weight: float) -> Float[Tensor, ""]:
    """L1, half of L2, L1 of neighbours' differences, and L1 of the means of 8×8 latents.

    Args:
        error: Of the predicted clean latents.
        means_weight: Of the last term: colours are few numbers among many.
    """
    means = F.avg_pool2d(error, min(8, *error.shape[-2:]))
    return error.abs().mean() + 0.5 * error.square().mean() + _edges(error) + means_weight * means.abs().mean()


def _edges(error: Float[Tensor, "batch channels height width"]) -> Float[Tensor, ""]:
    """Sum of the mean absolute horizontal and vertical differences of neighbours."""
    return error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
