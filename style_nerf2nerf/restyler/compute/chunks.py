"""Process a batch in chunks.

Modules that process the entries of a batch independently (a convolution, a norm, a feed-forward layer, a ControlNet)
give the same result in chunks, with the memory of one chunk. Arguments and results are *trees*: tensors,
and tuples, lists and dictionaries of trees. A tensor belongs to the batch if its first side is as long as that of the
first tensor of all arguments; everything else is passed to every chunk unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn


def batch_of(tree: Any) -> int | None:
    """Batch size: length of the first dimension of the first tensor; None without a tensor."""
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
    """Concatenate the results of consecutive chunks; tuples and lists element by element."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return type(parts[0])(joined(list(places)) for places in zip(*parts, strict=True))


def in_chunks(call: Callable[..., Any], size: int, *args: Any, **kwargs: Any) -> Any:
    """Call on a whole batch, in chunks of at most `size` entries."""
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
    """Process everything below `root` except the modules in `whole` in chunks, inside the context.

    Args:
        root: a module; its forward and those of the parents of `whole` get the whole batch.
        whole: Modules that need the whole batch.
        size: Returns the chunk size, called before every call.
    """
    with ExitStack() as stack:
        for module in _separable(root, whole):
            stack.enter_context(forward_replaced(module, _chunked(module.forward, size)))
        yield


def _chunked(forward: Callable[..., Any], size: Callable[[], int]) -> Callable[..., Any]:
    return lambda *args, **kwargs: in_chunks(forward, size(), *args, **kwargs)


def _separable(module: nn.Module, whole: set[nn.Module]) -> Iterator[nn.Module]:
    """The largest callable modules without any module of `whole`."""
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
    """Replace the module's forward inside the context; hooks and attributes are kept."""
    found = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if found is None:
            del module.forward
        else:
            module.forward = found
