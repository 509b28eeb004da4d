"""Whole views: chunked rendering has the gradient of rendering at once, and depth lies along the optical axis."""

import weakref

import pytest
import torch
from nerfstudio.data.scene_box import SceneBox

from eschernet_prior.base.field import FieldModelConfig, small_field, z_depth
from style_nerf2nerf import rendering
from style_nerf2nerf.rendering import outputs_as_rendered, render_for_training, render_view

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


def jittered_gradient(model, camera, rays_per_chunk: int) -> torch.Tensor:
    """Of samples that are placed at random, with the same random numbers whatever the chunks."""
    model.zero_grad()
    torch.manual_seed(1)
    view = render_for_training(model, camera, rays_per_chunk)
    (view.colour.square().mean() + view.depth.mean()).backward()
    return torch.cat([p.grad.flatten() for p in model.field.parameters() if p.grad is not None])


def test_two_passes_have_the_plain_gradient_of_the_very_samples_that_made_the_image(model, camera, monkeypatch):
    chunked = jittered_gradient(model, camera, 16)
    monkeypatch.setattr(rendering._TwoPasses, "apply", lambda chunks, *_: torch.cat([chunk() for chunk in chunks]))
    plain = jittered_gradient(model, camera, 16)
    assert torch.allclose(chunked, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))
    model.proposal_sampler.eval()
    assert not torch.allclose(jittered_gradient(model, camera, 16), plain, rtol=0, atol=1e-3 * float(plain.abs().max()))


class Context:
    """What a native library keeps of a forward pass until its backward."""


class NativeMLP(torch.autograd.Function):
    """Keeps its context as tinycudann's module does: on the graph's node, where no hook on saved tensors reaches it."""

    @staticmethod
    def forward(ctx, x, kept, peak):
        ctx.native = Context()
        kept.add(ctx.native)
        peak.append(len(kept))
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad, None, None


def test_only_one_chunk_is_held_also_where_a_library_keeps_its_own_context(model, camera):
    kept, peak = weakref.WeakSet(), []
    forward = model.field.mlp_head.forward
    model.field.mlp_head.forward = lambda x: NativeMLP.apply(forward(x), kept, peak)
    view = render_for_training(model, camera, 6)
    assert len(kept) == 1, "of eight chunks only the last one keeps what it computed"
    view.colour.sum().backward()
    assert max(peak) <= 2, "the last chunk's and the one that is rendered again"
    assert len(peak) == 8 + 7
    del view
    assert len(kept) == 0


def test_rays_are_rendered_as_views_are(model, camera):
    """No photo's appearance and no correction of its pose, whichever camera a ray belongs to."""
    appearance = small_field(FieldModelConfig(average_init_density=1.0))
    appearance.use_appearance_embedding = True
    appearance.camera_optimizer.mode = "SO3xR3"
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    field = appearance.setup(scene_box=box, num_train_data=3, metadata={}).train()
    field.proposal_sampler.eval()
    with torch.no_grad():
        field.camera_optimizer.pose_adjustment.add_(0.3)
        field.field.embedding_appearance.embedding.weight.mul_(5)
    view = render_for_training(field, camera, HEIGHT * WIDTH)
    for index in (0, 2):
        rays = camera.generate_rays(camera_indices=0, keep_shape=True).flatten()
        rays.camera_indices = torch.full_like(rays.camera_indices, index)
        outputs = outputs_as_rendered(field, rays)
        torch.testing.assert_close(outputs["rgb"], view.colour.flatten(1).T, atol=1e-5, rtol=0)
    assert len(outputs["weights_list"]) == 3
    assert not torch.allclose(field(rays)["rgb"], outputs["rgb"], atol=1e-3), "a photo's ray has both"


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
