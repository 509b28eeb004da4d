"""The numbers that the restyling networks compute with."""

from __future__ import annotations

from typing import Literal

import torch

from eschernet_prior.base.errors import UserError

Precision = Literal["auto", "float32", "bf16", "fp16"]
"""What a person may ask for."""
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""The type of each precision but `"auto"`."""
SMALL = 100_000_000
"""Parameters up to which float32 costs nothing that matters on a GPU."""
CPU_FLOAT32_BYTES = 4 * 10**9
"""Weights in float32 up to which a CPU computes in float32."""


def choose_dtype(
    precision: Precision, device: torch.device | str, parameters: int, files_dtype: torch.dtype = torch.float32
) -> torch.dtype:
    """The type that the networks are loaded in.

    `"auto"` is float32 for small networks. Large ones compute on a GPU in the half precision that their files have, or
    else in bfloat16 where the GPU computes in it and in float16 where not; on a CPU, where float32 would need more than
    4 GB for weights, in bfloat16.

    Args:
        precision: What was asked for.
        device: Where they will run.
        parameters: Numbers of all networks together.
        files_dtype: Type of most numbers in their files.

    Raises:
        UserError: If there is no such precision.
    """
    if precision != "auto":
        if precision not in DTYPES:
            raise UserError(f"There is no precision {precision!r}: choose auto, {', '.join(DTYPES)}.")
        return DTYPES[precision]
    if torch.device(device).type == "cpu":
        return torch.bfloat16 if 4 * parameters > CPU_FLOAT32_BYTES else torch.float32
    if parameters <= SMALL:
        return torch.float32
    if files_dtype in (torch.float16, torch.bfloat16):
        return files_dtype
    native = torch.device(device).type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if native else torch.float16
