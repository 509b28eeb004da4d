"""Calls on a whole batch, made a few entries at a time.

Whatever treats the entries of a batch one by one (a convolution, a norm, a feed-forward layer, a whole ControlNet)
gives the same result in chunks and needs the memory of one chunk only. Arguments and results are *trees*: tensors,
and tuples, lists and dictionaries of trees. A tensor belongs to the batch if its first side is as long as that of the
first tensor of all arguments; everything else is handed to every chunk as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def batch_of(tree: Any) -> int | None:
    """The length of the first tensor's first side; None where there is no tensor with sides."""
    if isinstance(tree, Tensor):
        return tree.shape[0] if tree.dim() else None
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, tuple | list):
        return None
    return next((found for found in map(batch_of, tree) if found is not None), None)


def rows_of(tree: Any, batch: int, rows: slice) -> Any:
    """The tree with the given rows of every tensor that belongs to the batch."""
    return _mapped(lambda tensor: tensor[rows] if tensor.dim() and tensor.shape[0] == batch else tensor, tree)


def to_device(tree: Any, device: torch.device | str) -> Any:
    """The tree with all tensors on a device."""
    return _mapped(lambda tensor: tensor.to(device), tree)


def _mapped(change: Callable[[Tensor], Tensor], tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, dict):
        return {key: _mapped(change, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return type(tree)(_mapped(change, value) for value in tree)
    return tree


def joined(parts: list[Any]) -> Any:
    """Results of consecutive chunks as one: tensors one after the other, tuples and lists place by place."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return type(parts[0])(joined(list(places)) for places in zip(*parts, strict=True))


def in_chunks(call: Callable[..., Any], size: int, *args: Any, **kwargs: Any) -> Any:
    """The result of a call on the whole batch, made of calls on `size` entries at most."""
    batch = batch_of((args, kwargs))
    if batch is None or batch <= size:
        return call(*args, **kwargs)
    parts = []
    for first in range(0, batch, size):
        some_args, some_kwargs = rows_of((args, kwargs), batch, slice(first, first + size))
        parts.append(call(*some_args, **some_kwargs))
    return joined(parts)


@contextmanager
def modules_in_chunks(root: nn.Module, whole: set[nn.Module], size: Callable[[], int]) -> Iterator[None]:
    """Lets everything below `root` but the modules in `whole` work in chunks while the context lasts.

    Args:
        root: A module whose own forward, and those of the modules around `whole`, may see the whole batch.
        whole: Modules that must see it.
        size: Asked before every call for the entries that may be worked on at a time.
    """
    with ExitStack() as stack:
        for module in _separable(root, whole):
            stack.enter_context(forward_replaced(module, _chunked(module.forward, size)))
        yield


def _chunked(forward: Callable[..., Any], size: Callable[[], int]) -> Callable[..., Any]:
    return lambda *args, **kwargs: in_chunks(forward, size(), *args, **kwargs)


def _separable(module: nn.Module, whole: set[nn.Module]) -> Iterator[nn.Module]:
    """The largest modules that are called as such and hold none of `whole`."""
    for child in module.children():
        if child in whole:
            continue
        is_called = not isinstance(child, nn.ModuleList | nn.ModuleDict)
        if is_called and whole.isdisjoint(child.modules()):
            yield child
        else:
            yield from _separable(child, whole)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Lets `forward` stand in for the module's own while the context lasts; hooks and attributes stay."""
    found = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if found is None:
            del module.forward
        else:
            module.forward = found
