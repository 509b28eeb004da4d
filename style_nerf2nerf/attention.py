"""Self-attention shared by all views of a scene, as a diffusers attention processor.

Vocabulary: a *group* is `views` consecutive entries of the batch, the views of one scene under one prompt (with
classifier-free guidance a batch is two groups: all unconditional views, then all conditional ones). *Self-attention*
is every module named `attn1`; cross-attention to the prompt (`attn2`) is not changed.

Inside a group every view's queries attend to the keys and values of all views (Style-NeRF2NeRF, eq. 3):

    out_i = softmax(q_i · [k_1 … k_V]ᵀ / √d) [v_1 … v_V]

which is ordinary attention over the concatenated tokens of all views: a reshape, without copies of keys. The options
are those of StyleAligned (Hertz et al., CVPR 2024, arXiv 2312.02133): normalising queries and keys to the statistics of
a reference view (AdaIN) that attends to itself only, sharing in some layers only, and a strength that scales the weight
of other views' tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from jaxtyping import Float
from torch import Tensor, nn

from eschernet_prior.base.sampling import evenly_spaced

Layers = Callable[[str], bool]
"""Given a self-attention module's name, returns whether it is shared."""
VANISHING = -80.0
"""Logarithm of a negligible weight that remains finite in half precision after scaling."""


@contextmanager
def share_attention(
    unet: nn.Module,
    num_views: int,
    *,
    reference_view: int | None = None,
    adain: bool = True,
    isolate_reference: bool = False,
    strength: float = 1.0,
    keyframes: int | None = None,
    layers: Layers | None = None,
) -> Iterator[None]:
    """Let all views of a group attend to each other inside the context.

    Args:
        unet: Any module with diffusers `Attention` modules named `attn1`.
        num_views: Views in a group; the batch is groups × views, views consecutive. One view: no change.
        reference_view: Index of the reference view, if any.
        adain: First normalise queries and keys of all views to the reference view's mean and deviation.
        isolate_reference: Let the reference view attend to itself only, because it is given.
        strength: Factor on the softmax weight of other views' tokens, 1 for equal weights, 0 for no sharing.
        keyframes: Share only this many views, evenly spaced, with all others; see `Sharing.visible_to`. Default: all.
        layers: Given a self-attention module's name, returns whether it is shared; default: all.

    Raises:
        ValueError: If an argument is out of range; inside the context, if a batch is not a multiple of `num_views`.
    """
    sharing = Sharing(num_views, reference_view, adain, isolate_reference, strength, keyframes)
    modules = shared_modules(unet, layers) if num_views > 1 else []
    with processor_in_place(modules, SharedAttention(sharing)):
        yield


@dataclass(frozen=True)
class Sharing:
    """How the views of a group attend to each other; see `share_attention`."""

    num_views: int
    reference_view: int | None = None
    adain: bool = True
    isolate_reference: bool = False
    strength: float = 1.0
    keyframes: int | None = None

    def __post_init__(self) -> None:
        if self.num_views < 1:
            raise ValueError(f"num_views must be at least 1, not {self.num_views}.")
        if self.reference_view is not None and not 0 <= self.reference_view < self.num_views:
            raise ValueError(f"reference_view must be one of the {self.num_views} views, not {self.reference_view}.")
        if not 0.0 <= self.strength <= 1.0:
            raise ValueError(f"strength must be in [0, 1], not {self.strength}.")
        if self.keyframes is not None and self.keyframes < 1:
            raise ValueError(f"keyframes must be at least 1, not {self.keyframes}.")

    @property
    def adopted_view(self) -> int | None:
        """The view to whose mean and deviation queries and keys are normalised, if any."""
        return self.reference_view if self.adain else None

    @property
    def isolated_view(self) -> int | None:
        """The view that attends to itself only, if any."""
        return self.reference_view if self.isolate_reference else None

    def visible_to(self, view: int) -> tuple[int, ...]:
        """The views whose tokens a view attends to, ascending.

        Without keyframes these are all views; an isolated view sees only itself. With K keyframes among V views every
        view sees the keyframes, the isolated view and the views of its own window, between two consecutive keyframes.
        Attention costs V·(K + V/K) pairs of views instead of V².
        """
        if view == self.isolated_view:
            return (view,)
        if self.keyframes is None:
            return tuple(range(self.num_views))
        made = [each for each in range(self.num_views) if each != self.isolated_view]
        keyframes = [made[index] for index in evenly_spaced(self.keyframes, len(made))]
        begin = max((each for each in keyframes if each <= view), default=-1)
        end = min((each for each in keyframes if each > view), default=self.num_views)
        window = range(begin + 1, end) if view not in keyframes else ()
        isolated = () if self.isolated_view is None else (self.isolated_view,)
        return tuple(sorted({*keyframes, *window, *isolated}))


def shared_modules(unet: nn.Module, layers: Layers | None = None) -> list[Attention]:
    """The self-attention modules selected by `layers`; default: all."""
    return [
        module
        for name, module in unet.named_modules()
        if isinstance(module, Attention) and name.split(".")[-1] == "attn1" and (layers is None or layers(name))
    ]


@contextmanager
def processor_in_place(modules: Iterable[Attention], processor: Any) -> Iterator[None]:
    """Set a processor on all modules inside the context; afterwards, the previous ones are restored."""
    found = [(module, module.processor) for module in modules]
    try:
        for module, _ in found:
            module.set_processor(processor)
        yield
    finally:
        for module, before in found:
            module.set_processor(before)  # pyright: ignore[reportArgumentType]


class SharedAttention:
    """The attention processor of every shared self-attention."""

    def __init__(self, sharing: Sharing):
        self.sharing = sharing

    def __call__(
        self,
        attn: Any,
        hidden_states: Float[Tensor, "batch tokens channels"],
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Float[Tensor, "batch tokens channels"]:
        """Attend within each group; called by diffusers, for self-attention without a mask.

        Raises:
            ValueError: If a mask or tokens of another sequence are given.
        """
        if attention_mask is not None or encoder_hidden_states is not None:
            raise ValueError("Shared self-attention takes neither a mask nor tokens of another sequence.")
        return self.attend(attn, hidden_states)

    def attend(
        self, attn: Any, hidden_states: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Attention of each view's tokens over its whole group's.

        Raises:
            ValueError: If the batch is not a multiple of `num_views`.
        """
        views, batch = self.sharing.num_views, hidden_states.shape[0]
        if batch % views:
            raise ValueError(f"A batch of {batch} cannot be divided into groups of {views} views.")
        query, key, value = (
            project(hidden_states).unflatten(0, (-1, views)) for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        model_view = self.sharing.adopted_view
        if model_view is not None:
            query, key = (adain(tokens, *statistics(tokens[:, model_view, None])) for tokens in (query, key))
        query, key, value = (lay_end_to_end(tokens, attn.heads) for tokens in (query, key, value))
        mixed = attend_to_views(query, key, value, self.sharing)
        mixed = mixed.transpose(1, 2).reshape(batch, -1, attn.heads * value.shape[-1])
        return project_out(attn, mixed)


def lay_end_to_end(
    tokens: Float[Tensor, "groups views tokens inner"], heads: int
) -> Float[Tensor, "groups heads group_tokens head"]:
    """Concatenate the tokens of each group's views to one sequence per head, without a copy."""
    return tokens.flatten(1, 2).unflatten(-1, (heads, -1)).transpose(1, 2)


def statistics(
    tokens: Float[Tensor, "*views tokens inner"],
) -> tuple[Float[Tensor, "*views 1 inner"], Float[Tensor, "*views 1 inner"]]:
    """Mean and deviation of each channel over a view's tokens."""
    mean = tokens.mean(dim=-2, keepdim=True)
    return mean, (tokens.var(dim=-2, keepdim=True, unbiased=False) + 1e-5).sqrt()


def adain(
    tokens: Float[Tensor, "*views tokens inner"],
    mean: Float[Tensor, "*#views 1 inner"],
    deviation: Float[Tensor, "*#views 1 inner"],
) -> Float[Tensor, "*views tokens inner"]:
    """AdaIN over each view's tokens, channel by channel: `(x - its mean) / its deviation · deviation + mean`."""
    own_mean, own_deviation = statistics(tokens)
    return (tokens - own_mean) / own_deviation * deviation + mean


def attend_to_views(
    query: Float[Tensor, "groups heads query_tokens head"],
    key: Float[Tensor, "groups heads tokens head"],
    value: Float[Tensor, "groups heads tokens head"],
    sharing: Sharing,
    first_view: int = 0,
) -> Float[Tensor, "groups heads query_tokens head"]:
    """Softmax attention of some views' tokens to those of the views that they see.

    Args:
        query: Tokens of consecutive views from `first_view` on.
        key: Tokens of all views.
        value: Tokens of all views.
        sharing: How the views attend to each other.
        first_view: Index of the queries' first view.
    """
    length = key.shape[2] // sharing.num_views
    last_view = first_view + query.shape[2] // length
    mixed = []
    for visible, run in groupby(range(first_view, last_view), sharing.visible_to):
        views = list(run)
        queries = query[:, :, (views[0] - first_view) * length : (views[-1] + 1 - first_view) * length]
        keys, values = (_tokens_of(tokens, visible, length) for tokens in (key, value))
        mixed.append(_attend(queries, keys, values, views, visible, sharing.strength))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed, dim=2)


def _tokens_of(
    tokens: Float[Tensor, "groups heads tokens head"], views: Sequence[int], length: int
) -> Float[Tensor, "groups heads some_tokens head"]:
    """The tokens of some views; of consecutive ones without a copy."""
    if views[-1] - views[0] + 1 == len(views):
        return tokens[:, :, views[0] * length : (views[-1] + 1) * length]
    index = torch.tensor(views, device=tokens.device)
    return tokens.unflatten(2, (-1, length)).index_select(2, index).flatten(2, 3)


def _attend(
    query: Float[Tensor, "groups heads query_tokens head"],
    key: Float[Tensor, "groups heads tokens head"],
    value: Float[Tensor, "groups heads tokens head"],
    query_views: Sequence[int],
    key_views: Sequence[int],
    strength: float,
) -> Float[Tensor, "groups heads query_tokens head"]:
    """Softmax attention in which the tokens of other views count `strength` times.

    A strength below 1 adds its logarithm to the logits between views. The term depends on (query's view, key's view)
    only, so it is encoded in extra channels, one per view, instead of a mask over all pairs of tokens: `q' = [q,
    onehot]`, `k' = [k, log(strength)·√d·(1 - onehot)]`.
    """
    head, scale = query.shape[-1], query.shape[-1] ** -0.5
    if strength == 1.0 or list(query_views) == list(key_views) == [query_views[0]]:
        return F.scaled_dot_product_attention(query, key, value, scale=scale)
    bias = max(math.log(strength), VANISHING) if strength > 0 else VANISHING
    channels = {view: channel for channel, view in enumerate(key_views)}  # every view sees itself
    extra, length = -len(channels) % 8, key.shape[2] // len(key_views)
    onehot = torch.eye(len(channels), dtype=query.dtype, device=query.device)
    of_query, of_key = (
        onehot[[channels[view] for view in views]].repeat_interleave(length, dim=0)
        for views in (query_views, key_views)
    )
    query = F.pad(torch.cat([query, of_query.expand(*query.shape[:3], -1)], -1), (0, extra))
    key = F.pad(torch.cat([key, ((1 - of_key) * (bias / scale)).expand(*key.shape[:3], -1)], -1), (0, extra))
    value = F.pad(value, (0, len(channels) + extra))
    return F.scaled_dot_product_attention(query, key, value, scale=scale)[..., :head]


def project_out(attn: Any, mixed: Float[Tensor, "batch tokens inner"]) -> Float[Tensor, "batch tokens channels"]:
    """Apply the output projection and rescaling."""
    return attn.to_out[1](attn.to_out[0](mixed)) / attn.rescale_output_factor
