"""Attention across posed views: one diffusers attention processor for both camera positional encodings.

EscherNet, section 3.1. Set on a stock `UNet2DConditionModel` with `unet.set_attn_processor(CapeAttnProcessor())`;
the poses travel with each call, the processor holds no state:

    views = PosedViews.from_poses("6dof", source_poses, target_poses)
    unet(latents, t, reference_tokens, cross_attention_kwargs={"views": views})

Axes. A UNet batch is `(scenes views)`, the M target views of a scene consecutive. Reference tokens are
`(scenes, N tokens, channels)`, the tokens of a reference consecutive. Self-attention (attn1) runs over the tokens of
all M targets of a scene together, cross-attention (attn2) from them to the tokens of all its N references; M and N are
free. Values are never encoded. With classifier-free guidance the leading scenes of the batch are unconditional, see
`PosedViews.unconditional`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from eschernet_prior.cape import CapeKind, angles_4dof, apply_cape_4dof, apply_cape_6dof, matrices_6dof


class AttentionLayers(Protocol):
    """The parts of a diffusers `Attention` module that are used here."""

    heads: int
    to_q: nn.Module
    to_k: nn.Module
    to_v: nn.Module
    to_out: nn.ModuleList
    rescale_output_factor: float


@dataclass(frozen=True)
class PosedViews:
    """The encoded poses of one UNet call, and options that save memory or work.

    Each encoding is (scenes, views, 4, 4) matrices for 6DoF or (scenes, views, 4) angles for 4DoF.
    """

    target_queries: Float[Tensor, "scenes targets *encoding"]
    """Encodings of the target views as queries."""
    target_keys: Float[Tensor, "scenes targets *encoding"]
    """Encodings of the target views as keys of self-attention."""
    reference_keys: Float[Tensor, "conditional references *encoding"]
    """Encodings of the reference views as keys of cross-attention; conditional = scenes - unconditional."""
    unconditional: int = 0
    """Number of leading scenes of the batch whose reference tokens are zeros. The call contains neither tokens nor
    reference poses for them: attention over equal values equals that value and is not computed."""
    before_references: AttentionLayers | None = None
    """The UNet's first self-attention (see `first_self_attention`), if both halves of the batch have the same latents:
    no cross-attention precedes it, so it is computed for one half only. None: computed for both."""
    query_chunk: int | None = None
    """Query tokens of a scene per call of attention, at most: less memory, same result."""
    reference_cache: dict[AttentionLayers, tuple[Tensor, Tensor]] | None = field(default=None, repr=False)
    """Keys and values of the references by attention module, filled by the first call and reused by later ones; ignored
    when gradients are enabled. Pass the same empty dict to all calls with the same references, or None."""

    @classmethod
    def from_poses(
        cls,
        cape: CapeKind,
        source_poses: Float[Tensor, "scenes references 4 4"],
        target_poses: Float[Tensor, "scenes targets 4 4"],
        device: torch.device | str | None = None,
    ) -> PosedViews:
        """Encode world-to-camera poses (OpenGL axes) of the reference and target views, in float32.

        Args:
            cape: Encoding that the network was trained with.
            source_poses: Poses of the N reference views, on a device with float64.
            target_poses: Poses of the M target views, on a device with float64.
            device: Device of the attention; default: that of the poses.
        """
        if cape == "6dof":
            queries, keys = matrices_6dof(target_poses)
            references = matrices_6dof(source_poses)[1]
        else:
            queries = keys = angles_4dof(target_poses)
            references = angles_4dof(source_poses)
        return cls(queries.to(device), keys.to(device), references.to(device))

    def with_unconditional_half(self) -> PosedViews:
        """The scenes twice, `[unconditional..., conditional...]`, for guidance; both halves have the same poses."""
        return replace(
            self,
            target_queries=torch.cat((self.target_queries, self.target_queries)),
            target_keys=torch.cat((self.target_keys, self.target_keys)),
            unconditional=self.target_queries.shape[0],
        )


def first_self_attention(unet: nn.Module) -> AttentionLayers | None:
    """The self-attention module of a `UNet2DConditionModel` that precedes all cross-attention."""
    blocks = [*unet.get_submodule("down_blocks").children(), unet.get_submodule("mid_block")]
    names = (named for block in blocks for named in block.named_modules())
    return next((module for name, module in names if name.endswith(".attn1")), None)  # pyright: ignore[reportReturnType]


class CapeAttnProcessor:
    """Attention over all views of each scene, with CaPE on the full width of queries and keys."""

    def __call__(
        self,
        attn: AttentionLayers,
        hidden_states: Float[Tensor, "scenes*targets tokens channels"],
        encoder_hidden_states: Float[Tensor, "conditional references*tokens width"] | None = None,
        attention_mask: None = None,
        temb: Tensor | None = None,
        views: PosedViews | None = None,
    ) -> Float[Tensor, "scenes*targets tokens channels"]:
        """Attend among the targets (no `encoder_hidden_states`) or from the targets to the references."""
        if views is None:
            raise ValueError(
                'CaPE attention needs the poses: call the UNet with cross_attention_kwargs={"views": ...}.'
            )
        scenes, targets = views.target_queries.shape[:2]
        if hidden_states.shape[0] != scenes * targets:
            raise ValueError(
                f"{scenes} scenes of {targets} target views do not match a batch of {hidden_states.shape[0]}."
            )
        if attention_mask is not None:
            raise ValueError("CaPE attention does not support attention masks.")
        tokens = rearrange(hidden_states, "(s m) l c -> s m l c", s=scenes)
        if encoder_hidden_states is None:
            attended = _among_targets(attn, tokens, views)
        else:
            attended = _to_references(attn, tokens, encoder_hidden_states, views)
        for layer in attn.to_out:
            attended = layer(attended)
        return rearrange(attended, "s (m l) c -> (s m) l c", m=targets) / attn.rescale_output_factor


def _among_targets(
    attn: AttentionLayers, tokens: Float[Tensor, "scenes targets tokens channels"], views: PosedViews
) -> Float[Tensor, "scenes targets*tokens channels"]:
    """Self-attention over all target views of each scene."""
    if attn is views.before_references and views.unconditional:
        half = views.unconditional
        one = replace(views, target_queries=views.target_queries[:half], target_keys=views.target_keys[:half])
        return _among_targets(attn, tokens[:half], replace(one, unconditional=0)).repeat(2, 1, 1)
    query = _encoded_heads(attn, attn.to_q(tokens), views.target_queries)
    key = _encoded_heads(attn, attn.to_k(tokens), views.target_keys)
    return _attend(query, key, _heads(attn, attn.to_v(tokens)), views.query_chunk)


def _to_references(
    attn: AttentionLayers,
    tokens: Float[Tensor, "scenes targets tokens channels"],
    references: Float[Tensor, "conditional references*tokens width"],
    views: PosedViews,
) -> Float[Tensor, "scenes targets*tokens channels"]:
    """Cross-attention to all references of each scene; a constant for the unconditional scenes."""
    blind = views.unconditional
    query = _encoded_heads(attn, attn.to_q(tokens[blind:]), views.target_queries[blind:])
    attended = _attend(query, *_reference_keys_and_values(attn, references, views), views.query_chunk)
    if not blind:
        return attended
    constant = attn.to_v(references.new_zeros(1, 1, references.shape[-1]))  # the value of every zero token
    return torch.cat((constant.expand(blind, *attended.shape[1:]).to(attended.dtype), attended))


def _reference_keys_and_values(
    attn: AttentionLayers, references: Float[Tensor, "conditional references*tokens width"], views: PosedViews
) -> tuple[Float[Tensor, "conditional heads keys dim"], Float[Tensor, "conditional heads keys dim"]]:
    cache = None if torch.is_grad_enabled() else views.reference_cache  # a graph must not outlive its backward pass
    if cache is not None and attn in cache:
        return cache[attn]
    scenes, count = views.reference_keys.shape[:2]
    if references.shape[0] != scenes or references.shape[1] % count:
        raise ValueError(
            f"{scenes} scenes of {count} references do not fit reference tokens {tuple(references.shape)}."
        )
    per_view = rearrange(references, "s (n l) c -> s n l c", n=count)
    pair = _encoded_heads(attn, attn.to_k(per_view), views.reference_keys), _heads(attn, attn.to_v(per_view))
    if cache is not None:
        cache[attn] = pair
    return pair


def _encoded_heads(
    attn: AttentionLayers,
    features: Float[Tensor, "scenes views tokens channels"],
    encoding: Float[Tensor, "scenes views *encoding"],
) -> Float[Tensor, "scenes heads views*tokens dim"]:
    """CaPE on the full width, then the head split."""
    apply = apply_cape_6dof if encoding.ndim == 4 else apply_cape_4dof
    return _heads(attn, apply(features, encoding.unsqueeze(2)))


def _heads(
    attn: AttentionLayers, features: Float[Tensor, "scenes views tokens channels"]
) -> Float[Tensor, "scenes heads views*tokens dim"]:
    return rearrange(features, "s v l (h d) -> s h (v l) d", h=attn.heads)


def _attend(
    query: Float[Tensor, "scenes heads queries dim"],
    key: Float[Tensor, "scenes heads keys dim"],
    value: Float[Tensor, "scenes heads keys dim"],
    chunk: int | None,
) -> Float[Tensor, "scenes queries channels"]:
    """Softmax attention with logits scaled by dim^-1/2, the heads merged again."""
    pieces = query.split(chunk, dim=2) if chunk else (query,)
    attended = [F.scaled_dot_product_attention(piece, key, value) for piece in pieces]
    return rearrange(torch.cat(attended, dim=2) if len(attended) > 1 else attended[0], "s h l d -> s l (h d)")
