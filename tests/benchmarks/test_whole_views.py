"""A whole view with gradients: peak memory in chunks against all rays at once, at 64², 128² and 256².

    uv run pytest tests/benchmarks/test_whole_views.py

prints both for each resolution. The field is the tiny methods'; a chunk has 4,096 rays. Peak memory is the largest sum
of the sizes of all tensors alive at a time, beside the field's weights, forward and backward.
"""

import pytest
import torch
from live_bytes import peak_of
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox

from eschernet_prior.base.field import FieldModelConfig, small_field
from style_nerf2nerf.rendering import render_for_training

CHUNK = 4096


def gradient_of_a_view(model, size: int, rays_per_chunk: int) -> None:
    pose = torch.eye(4)[:3]
    pose[2, 3] = 1.5
    camera = Cameras(pose[None], fx=float(size), fy=float(size), cx=size / 2, cy=size / 2, width=size, height=size)
    model.zero_grad(set_to_none=True)
    view = render_for_training(model, camera, rays_per_chunk)
    (view.colour.square().mean() + view.depth.mean()).backward()


@pytest.mark.parametrize("size", [64, 128, 256])
def test_a_whole_view_in_chunks_against_all_at_once(benchmark, capsys, size):
    torch.manual_seed(0)
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    model = small_field(FieldModelConfig()).setup(scene_box=box, num_train_data=3, metadata={}).train()
    gradient_of_a_view(model, 16, CHUNK)  # what is made once
    whole, chunked = (
        peak_of([model], lambda rays=rays: gradient_of_a_view(model, size, rays)) for rays in (size**2, CHUNK)
    )
    benchmark.pedantic(gradient_of_a_view, args=(model, size, CHUNK), rounds=1)
    benchmark.extra_info.update(whole_mib=whole / 2**20, chunked_mib=chunked / 2**20)
    with capsys.disabled():
        print(
            f"\nview of {size}²: at once {whole / 2**20:.0f} MiB, in chunks of {CHUNK:,} {chunked / 2**20:.0f} MiB, "
            f"{chunked / whole:.2f} of it; {benchmark.stats.stats.min:.1f} s"
        )
