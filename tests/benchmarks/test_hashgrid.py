"""One step of a hash grid, forward and backward: nerfstudio's torch implementation (the baseline) and ours."""

import pytest
import torch
from nerfstudio.field_components.encodings import HashEncoding

from eschernet_prior.base.hashgrid import encode

SIZES = {"small field": (8, 14), "nerfacto": (16, 19)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("which", ["nerfstudio", "ours"])
def test_one_step(benchmark, size, which):
    levels, log2_size = SIZES[size]
    grid = HashEncoding(num_levels=levels, max_res=512, log2_hashmap_size=log2_size, implementation="torch")
    points = torch.rand(8192, 3)
    benchmark.group = f"hash grid, {size}, 8192 points"

    def step() -> None:
        features = encode(grid, points) if which == "ours" else grid.pytorch_fwd(points)
        features.sum().backward()

    benchmark.pedantic(step, rounds=8, warmup_rounds=2)
