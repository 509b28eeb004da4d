"""Run UNet and ControlNet on all views of a scene with the memory of a few; equal to one call on all views.

Vocabulary: a *half* is one entry for each view, under the prompt or under the negative one; a *batch* is the views
that are processed at a time, `BatchLimit.views_per_batch` of them.

All modules except shared self-attention process views independently and are called batch by batch. In shared
self-attention, keys and values of all views, including those of other processes, are computed before the first query is
processed, and queries are processed batch by batch. Memory for waiting views (the residual stream, skip connections,
ControlNet residuals, keys and values of one layer) grows linearly with the number of views, never quadratically. Halves
are independent and are processed one after the other, unless memory suffices for both (`BatchLimit.halves_together`).

With offloading, keys and values are kept in the CPU's memory and moved to the device one head at a time; skip
connections and ControlNet residuals are kept there until the UNet's second half needs them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from jaxtyping import Float
from torch import Tensor

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.attention import (
    Layers,
    SharedAttention,
    Sharing,
    adain,
    attend_to_views,
    lay_end_to_end,
    processor_in_place,
    project_out,
    shared_modules,
    statistics,
)
from style_nerf2nerf.restyler.compute.chunks import (
    batch_of,
    forward_replaced,
    in_chunks,
    modules_in_chunks,
    rows_of,
    to_device,
)
from style_nerf2nerf.restyler.compute.distributed import ProcessGroup, ProcessState, RepeatError


class BatchLimit:
    """Number of views that are processed at a time; reduced when memory runs out."""

    def __init__(
        self, views_per_batch: int, on_less: Callable[[int], None] | None = None, halves_together: bool = False
    ):
        """Begins with a number of views; `on_less` is called with each smaller one.

        Args:
            views_per_batch: Views that are worked on at a time.
            on_less: Called with the new number when memory ran out.
            halves_together: Work on everything at once as long as the memory lasts.
        """
        self.views_per_batch = views_per_batch
        self.halves_together = halves_together
        self._on_less = on_less

    @property
    def entries(self) -> int:
        """Entries of a batch that may be worked on at a time."""
        return sys.maxsize if self.halves_together else self.views_per_batch

    @property
    def is_smallest(self) -> bool:
        """Whether the limit cannot be reduced further."""
        return self.views_per_batch == 1 and not self.halves_together

    def reduce(self) -> None:
        """Halve the number of views, and process the halves separately."""
        if not self.is_smallest:
            self.halves_together = False
            self.views_per_batch = max(1, self.views_per_batch // 2)
            if self._on_less:
                self._on_less(self.views_per_batch)


@contextmanager
def in_lockstep(
    unet: UNet2DConditionModel,
    controlnet: ControlNetModel,
    sharing: Sharing | None,
    limit: BatchLimit,
    *,
    num_views: int,
    layers: Layers | None = None,
    group: ProcessGroup | None = None,
    offload: bool = False,
) -> Iterator[None]:
    """Replace the forwards of UNet and ControlNet, as called by a pipeline, to work batch by batch inside the context.

    The UNet must get the ControlNet's return value, because the ControlNet's call is deferred until then. Not
    differentiable.

    Args:
        unet: The UNet; a batch is halves × this process's views, views consecutive.
        controlnet: Its ControlNet.
        sharing: How the views see each other; None if they do not.
        limit: How many views are worked on at a time. Memory that runs out makes it slower, and the call is repeated.
        num_views: The scene's views, those of other processes included.
        layers: Which self-attention is shared; all if None.
        group: The processes that hold the views; this one alone if None.
        offload: Keep what waits in the CPU's memory.

    Raises:
        UserError: Inside the context, if one view at a time is too much for the memory.
    """
    group = group or ProcessGroup()
    attentions = shared_modules(unet, layers) if sharing else []
    with ExitStack() as stack:
        if sharing:
            stack.enter_context(
                processor_in_place(attentions, LockstepAttention(sharing, limit, group, offload=offload))
            )
        if attentions:
            stack.enter_context(modules_in_chunks(unet, set(attentions), lambda: limit.entries))
        if offload:
            stack.enter_context(_skips_on_cpu(unet))
        calls = _Calls(unet, controlnet, limit, group, group.counts(num_views)[group.rank], bool(attentions), offload)
        stack.enter_context(forward_replaced(controlnet, calls.control))
        stack.enter_context(forward_replaced(unet, calls.denoise))
        yield


class DeferredControlNetCall:
    """A ControlNet's call that is deferred until the UNet needs its result."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        self.args, self.kwargs = args, {**kwargs, "return_dict": False}


class _Calls:
    """Replacements of the forwards of ControlNet and UNet."""

    def __init__(
        self,
        unet: UNet2DConditionModel,
        controlnet: ControlNetModel,
        limit: BatchLimit,
        group: ProcessGroup,
        views: int,
        together: bool,
        offload: bool,
    ):
        self._unet, self._controlnet = unet.forward, controlnet.forward
        self._limit, self._group, self._views, self._together, self._offload = limit, group, views, together, offload

    def control(self, *args: Any, **kwargs: Any) -> tuple[DeferredControlNetCall, DeferredControlNetCall]:
        """Record the call; the result replaces the residuals of the down blocks and of the middle block."""
        later = DeferredControlNetCall(args, kwargs)
        return later, later

    @torch.no_grad()
    def denoise(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """The UNet's prediction, with the ControlNet's if the call says so."""
        while True:
            try:
                sample = self._all_halves(args, kwargs)
                self._group.agree()
                return UNet2DConditionOutput(sample=sample) if return_dict else (sample,)
            except torch.OutOfMemoryError as error:
                if self._limit.is_smallest:
                    raise UserError(
                        "There is not enough memory to restyle one view at a time: use a smaller working size, fewer "
                        "views, or offloading."
                    ) from error
                state = ProcessState.AGAIN
            except RepeatError:
                state = ProcessState.WELL
            # The failed call's memory is only free here, after the error and its frames are gone.
            if state is ProcessState.AGAIN:
                with suppress(RepeatError):
                    self._group.agree(state)
            self._limit.reduce()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _all_halves(self, args: tuple, kwargs: dict[str, Any]) -> Float[Tensor, "batch channels tall wide"]:
        batch = batch_of((args, kwargs)) or 0
        if batch % self._views:
            raise ValueError(f"A batch of {batch} cannot be divided into halves of {self._views} views.")
        length = self._views if self._together and not self._limit.halves_together else self._limit.entries
        samples = []
        for first in range(0, batch, length):
            rows = slice(first, first + length)
            some_args, some_kwargs = rows_of((args, kwargs), batch, rows)
            later = kwargs.get("down_block_additional_residuals")
            if isinstance(later, DeferredControlNetCall):
                down, middle = self._residuals(later, batch, rows)
                some_kwargs |= {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
            samples.append(self._unet(*some_args, return_dict=False, **some_kwargs)[0])
        return torch.cat(samples)

    def _residuals(self, later: DeferredControlNetCall, batch: int, rows: slice) -> tuple[list[Tensor], Tensor]:
        def residuals(*args: Any, **kwargs: Any) -> tuple[list[Tensor], Tensor]:
            down, middle = self._controlnet(*args, **kwargs)
            # The UNet uses the first and the middle residual at once, the others later with the skip connections.
            return [down[0], *(to_device(down[1:], "cpu") if self._offload else down[1:])], middle

        args, kwargs = rows_of((later.args, later.kwargs), batch, rows)
        return in_chunks(residuals, self._limit.entries, *args, **kwargs)


class LockstepAttention(SharedAttention):
    """The processor of a self-attention that all views share, queries answered batch by batch."""

    def __init__(self, sharing: Sharing, limit: BatchLimit, group: ProcessGroup, offload: bool = False):
        super().__init__(sharing)
        self._limit, self._group, self._offload = limit, group, offload
        self._own = group.own(sharing.num_views)

    def attend(
        self, attn: Any, hidden_states: Float[Tensor, "batch tokens channels"]
    ) -> Float[Tensor, "batch tokens channels"]:
        """Attention of the tokens of this process's views over all views', half by half."""
        halves = hidden_states.split(self._own.stop - self._own.start)
        return torch.cat([self._half(attn, half) for half in halves])

    def _half(self, attn: Any, hidden_states: Float[Tensor, "views tokens channels"]) -> Tensor:
        device, size = hidden_states.device, self._limit.entries
        waiting = torch.device("cpu") if self._offload else device

        def projected(project: Callable[[Tensor], Tensor]) -> Float[Tensor, "views tokens inner"]:
            return in_chunks(lambda some: project(some).to(waiting), size, hidden_states)

        query, key, value = (projected(project) for project in (attn.to_q, attn.to_k, attn.to_v))
        if self.sharing.adopted_view is not None:
            query, key = (self._adain(tokens, self.sharing.adopted_view) for tokens in (query, key))
        width, heads_at_a_time = query.shape[-1] // attn.heads, 1 if self._offload else attn.heads
        for head in range(0, attn.heads, heads_at_a_time):
            channels = slice(head * width, (head + heads_at_a_time) * width)
            self._answer(query[..., channels], key[..., channels], value[..., channels], heads_at_a_time, device)
        return in_chunks(lambda mixed: project_out(attn, mixed.to(device)), size, query)

    def _adain(self, tokens: Float[Tensor, "views tokens inner"], view: int) -> Float[Tensor, "views tokens inner"]:
        """AdaIN to a view that another process may hold."""
        holder = self._group.holder(view, self.sharing.num_views)
        here = view - self._own.start if holder == self._group.rank else 0
        mean, deviation = (self._group.from_one(part, holder) for part in statistics(tokens[here]))
        return in_chunks(lambda some: adain(some, mean, deviation), self._limit.entries, tokens)

    def _answer(
        self,
        query: Float[Tensor, "views tokens inner"],
        key: Float[Tensor, "views tokens inner"],
        value: Float[Tensor, "views tokens inner"],
        heads: int,
        device: torch.device,
    ) -> None:
        """Overwrite queries by the results of attention."""
        keys, values = (
            lay_end_to_end(self._group.gather(tokens, self.sharing.num_views)[None].to(device), heads)
            for tokens in (key, value)
        )
        for first in range(0, len(query), self._limit.entries):
            some = query[first : first + self._limit.entries]
            asked = lay_end_to_end(some[None].to(device), heads)
            mixed = attend_to_views(asked, keys, values, self.sharing, self._own.start + first)
            some.copy_(mixed[0].transpose(0, 1).reshape(some.shape))


@contextmanager
def _skips_on_cpu(unet: UNet2DConditionModel) -> Iterator[None]:
    """Keep skip connections in the CPU's memory between the blocks that write and read them."""

    def put_away(block: Any, args: Any, output: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        hidden, skips = output
        return hidden, to_device(skips, "cpu")

    def bring_back(block: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        skips = kwargs["res_hidden_states_tuple"]
        return args, kwargs | {"res_hidden_states_tuple": to_device(skips, kwargs["hidden_states"].device)}

    hooks = [block.register_forward_hook(put_away) for block in unet.down_blocks]
    hooks += [block.register_forward_pre_hook(bring_back, with_kwargs=True) for block in unet.up_blocks]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
