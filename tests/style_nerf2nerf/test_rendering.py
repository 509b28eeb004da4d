"""Whole views: chunked rendering has the gradient of rendering at once, and depth lies along the optical axis."""

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox

from eschernet_prior.base.field import FieldModelConfig, small_field, z_depth
from style_nerf2nerf import rendering
from style_nerf2nerf.rendering import render_for_training, render_view

HEIGHT, WIDTH = 6, 8


@pytest.fixture
def model():
    torch.manual_seed(0)
    config = small_field(FieldModelConfig(average_init_density=1.0, eval_num_rays_per_chunk=16))
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    field = config.setup(scene_box=box, num_train_data=3, metadata={})
    field.proposal_sampler.single_jitter = True
    return field.train()


def gradient(model, camera, rays_per_chunk: int) -> torch.Tensor:
    model.zero_grad()
    model.proposal_sampler.eval()  # no jitter: both renderings see the same samples
    view = render_for_training(model, camera, rays_per_chunk)
    assert view.colour.shape == (3, HEIGHT, WIDTH)
    assert view.depth.shape == (1, HEIGHT, WIDTH)
    both = torch.cat([view.colour, view.depth])
    (both * torch.linspace(0, 1, both.numel()).reshape(both.shape)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.field.parameters() if p.grad is not None])


def test_chunks_have_the_gradient_of_the_whole(model, camera):
    whole = gradient(model, camera, HEIGHT * WIDTH)
    for chunk in (7, 16):
        assert torch.allclose(gradient(model, camera, chunk), whole, atol=1e-5 * float(whole.abs().max()))
    assert whole.abs().max() > 0


def test_a_window_is_that_part_of_the_view(model, camera):
    model.proposal_sampler.eval()
    with torch.no_grad():
        whole, part = (render_for_training(model, camera, 16, window) for window in (None, (1, 3, 4, 5)))
    assert part.colour.shape == (3, 4, 5)
    assert torch.allclose(part.colour, whole.colour[:, 1:5, 3:8], atol=1e-6)
    assert torch.allclose(part.depth, whole.depth[:, 1:5, 3:8], atol=1e-5)


def test_jitter_is_the_same_when_a_chunk_is_recomputed(model, camera, monkeypatch):
    """The gradient of a jittered rendering is that of the very samples which made the image."""

    def jittered_gradient() -> torch.Tensor:
        model.zero_grad()
        torch.manual_seed(1)
        render_for_training(model, camera, 16).colour.sum().backward()
        return torch.cat([p.grad.flatten() for p in model.field.parameters() if p.grad is not None])

    checkpointed = jittered_gradient()
    monkeypatch.setattr(rendering, "checkpoint", lambda function, *args, use_reentrant: function(*args))
    assert torch.allclose(jittered_gradient(), checkpointed, atol=1e-5 * float(checkpointed.abs().max()))


def test_rendering_leaves_the_proposal_schedule_alone(model, camera):
    model.proposal_sampler._steps_since_update = 3
    render_for_training(model, camera, 16)
    assert model.proposal_sampler._steps_since_update == 3


def test_rendering_a_view_keeps_the_mode(model, camera):
    view = render_view(model, camera)
    assert model.training
    assert view.colour.shape == (3, HEIGHT, WIDTH)
    assert view.depth.shape == (1, HEIGHT, WIDTH)
    assert 0 <= view.colour.min() <= view.colour.max() <= 1


def test_depth_of_a_fronto_parallel_plane_is_constant(camera):
    directions = camera.generate_rays(camera_indices=0, keep_shape=True).directions
    along_ray = 2.5 / -directions[..., 2:]
    assert torch.allclose(z_depth(along_ray, directions, camera), torch.tensor(2.5), atol=1e-5)
