"""Which kernels the networks run on: the attention's, and the memory layout of convolutions.

Shared attention is one plain call of `scaled_dot_product_attention` without a mask, so that every kernel of torch can
answer it. Which one is fastest depends on the GPU, on the number of views and on torch's version.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from eschernet_prior.base.errors import UserError

AttentionKernel = Literal["auto", "flash", "cudnn", "efficient", "math"]
"""What a person may ask for; auto leaves the choice to torch."""
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
"""torch's names."""
ON_CPU = ("auto", "flash", "math")
"""Those that torch has for a CPU."""


def check_kernel(kernel: str, device: torch.device) -> None:
    """Refuses kernels that a device does not have.

    Raises:
        UserError: If there is no such kernel.
    """
    known = ("auto", *BACKENDS) if device.type != "cpu" else ON_CPU
    if kernel not in known:
        name = device.type.upper()
        raise UserError(f"There is no attention kernel {kernel!r} on a {name}: choose {', '.join(known)}.")


@contextmanager
def attention_kernel(kernel: AttentionKernel) -> Iterator[None]:
    """Lets attention run on one kernel while the context lasts; where that cannot answer, on another of torch's.

    Args:
        kernel: Which.
    """
    if kernel == "auto":
        yield
        return
    others = [backend for backend in BACKENDS.values() if backend != BACKENDS[kernel]]
    with sdpa_kernel([BACKENDS[kernel], *others], set_priority=True):
        yield


def lay_out(networks: list[nn.Module], channels_last: bool) -> None:
    """Brings the networks' convolutions into a memory layout; results differ by rounding only.

    Args:
        networks: They are changed in place.
        channels_last: Channels innermost, which convolutions on tensor cores read without copies.
    """
    layout = torch.channels_last if channels_last else torch.contiguous_format
    for network in networks:
        network.to(memory_format=layout)  # pyright: ignore[reportCallIssue]
