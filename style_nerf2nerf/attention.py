"""Self-attention shared by all views of a scene, as a diffusers attention processor.

Vocabulary: a *group* is ``views`` consecutive entries of the batch, the views of one scene under one prompt (with
classifier-free guidance a batch is two groups: all unconditional views, then all conditional ones). *Self-attention*
is every module named ``attn1``; cross-attention to the prompt (``attn2``) is left alone.

Inside a group every view's queries see the keys and the values of all views (Style-NeRF2NeRF, eq. 3):

    out_i = softmax(q_i · [k_1 … k_V]ᵀ / √d) [v_1 … v_V]

which is ordinary attention over the views' tokens laid end to end: one reshape, no copy of a key. The options are
those of StyleAligned: a reference view whose statistics the queries and keys take over (AdaIN), sharing in some
layers only, and a strength that scales the weight of other views' tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn


@contextmanager
def share_attention(
    unet: nn.Module,
    num_views: int,
    *,
    reference_view: int | None = None,
    strength: float = 1.0,
    layers: Callable[[str], bool] | None = None,
) -> Iterator[None]:
    """Lets all views of a group attend to each other while the context lasts.

    Args:
        unet: Any module that holds diffusers ``Attention`` modules named ``attn1``.
        num_views: Views in a group; the batch is groups × views, views consecutive. With one view nothing changes.
        reference_view: If given, queries and keys of every view first take over this view's mean and deviation.
        strength: Factor on the softmax weight of other views' tokens, 1 for equal standing, 0 for no sharing.
        layers: Given a self-attention module's name, says whether it is shared; all of them if None.

    Raises:
        ValueError: If an argument is out of range; inside the context, if a batch is not a multiple of ``num_views``.
    """
    if num_views < 1:
        raise ValueError(f"num_views must be at least 1, not {num_views}.")
    if reference_view is not None and not 0 <= reference_view < num_views:
        raise ValueError(f"reference_view must be one of the {num_views} views, not {reference_view}.")
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must lie in [0, 1], not {strength}.")
    found: list[tuple[Attention, object]] = []
    try:
        if num_views > 1:
            processor = SharedAttention(num_views, reference_view, strength)
            for name, module in unet.named_modules():
                if isinstance(module, Attention) and name.split(".")[-1] == "attn1" and (not layers or layers(name)):
                    found.append((module, module.processor))
                    module.set_processor(processor)  # pyright: ignore[reportArgumentType]
        yield
    finally:
        for module, before in found:
            module.set_processor(before)  # pyright: ignore[reportArgumentType]


class SharedAttention:
    """The processor that ``share_attention`` puts into every shared self-attention."""

    def __init__(self, num_views: int, reference_view: int | None = None, strength: float = 1.0):
        self.num_views = num_views
        self.reference_view = reference_view
        self.strength = strength

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "batch tokens channels"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Attention of each view's tokens over its whole group's.

        Raises:
            ValueError: If the batch is no multiple of ``num_views``, or a mask or foreign tokens are given.
        """
        batch = hidden_states.shape[0]
        if batch % self.num_views:
            raise ValueError(f"A batch of {batch} cannot be divided into groups of {self.num_views} views.")
        if attention_mask is not None or encoder_hidden_states is not None:
            raise ValueError("Shared self-attention takes neither a mask nor tokens of another sequence.")
        query, key, value = (project(hidden_states) for project in (attn.to_q, attn.to_k, attn.to_v))
        if self.reference_view is not None:
            query, key = (self._adopt(tokens, self.reference_view) for tokens in (query, key))
        query, key, value = (self._lay_end_to_end(tokens, attn.heads) for tokens in (query, key, value))
        mixed = self._attend(query, key, value)
        mixed = mixed.transpose(1, 2).reshape(batch, -1, attn.heads * value.shape[-1])
        out = attn.to_out[1](attn.to_out[0](mixed))
        return out / attn.rescale_output_factor

    def _lay_end_to_end(
        self, tokens: Float[Tensor, "batch tokens inner"], heads: int
    ) -> Float[Tensor, "groups heads group_tokens head"]:
        batch, length, inner = tokens.shape
        groups = batch // self.num_views
        return tokens.view(groups, self.num_views * length, heads, inner // heads).transpose(1, 2)

    def _adopt(self, tokens: Float[Tensor, "batch tokens inner"], view: int) -> Float[Tensor, "batch tokens inner"]:
        """AdaIN over each view's tokens: ``(x - mean) / std · std_ref + mean_ref``, channel by channel."""
        views = tokens.unflatten(0, (-1, self.num_views))
        mean = views.mean(dim=2, keepdim=True)
        deviation = (views.var(dim=2, keepdim=True, unbiased=False) + 1e-5).sqrt()
        reference = slice(view, view + 1)
        return ((views - mean) / deviation * deviation[:, reference] + mean[:, reference]).flatten(0, 1)

    def _attend(
        self,
        query: Float[Tensor, "groups heads tokens head"],
        key: Float[Tensor, "groups heads tokens head"],
        value: Float[Tensor, "groups heads tokens head"],
    ) -> Float[Tensor, "groups heads tokens head"]:
        """Softmax attention; a strength below 1 adds its logarithm to the logits between different views.

        The term depends on (query's view, key's view) only, so it rides on extra channels, one a view, instead of a
        mask over all pairs of tokens: ``q' = [q, onehot]``, ``k' = [k, log(strength)·√d·(1 - onehot)]``.
        """
        head = query.shape[-1]
        scale = head**-0.5
        if self.strength < 1.0:
            # exp(-80) vanishes beside any weight and stays finite in half precision after the division by scale.
            bias = max(math.log(self.strength), -80.0) if self.strength > 0 else -80.0
            extra = -self.num_views % 8
            own = torch.eye(self.num_views, dtype=query.dtype, device=query.device)
            own = own.repeat_interleave(query.shape[2] // self.num_views, dim=0).expand(*query.shape[:3], -1)
            query = F.pad(torch.cat([query, own], -1), (0, extra))
            key = F.pad(torch.cat([key, (1 - own) * (bias / scale)], -1), (0, extra))
            value = F.pad(value, (0, self.num_views + extra))
        return F.scaled_dot_product_attention(query, key, value, scale=scale)[..., :head]
