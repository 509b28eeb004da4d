"""The losses of a retraining step: which pictures they look at, where, and how much."""

import copy
from dataclasses import replace

import pytest
import torch
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.field import small_field
from style_nerf2nerf.features import StyleLoss, VGG19Features
from style_nerf2nerf.model import StyleModelConfig
from style_nerf2nerf.pipeline import StylePipelineConfig
from style_nerf2nerf.rendering import render_for_training
from style_nerf2nerf.rounds.losses import Retraining, StyleView, depth_change, masked_mse, ray_difference

SIZE = 32
QUIET = StyleModelConfig(
    style_loss_mult=0.0,
    aligned_loss_mult=0.0,
    ray_loss_mult=0.0,
    rgb_loss_mult=0.0,
    background_loss_mult=0.0,
    aligned_layers=("conv2_1", "conv4_1"),
    vgg_weights="random",
)


@pytest.fixture(scope="module")
def style_loss() -> StyleLoss:
    return StyleLoss(VGG19Features("random", layers=("conv1_1", "conv2_1", "conv4_1")))


def picture(seed: int) -> torch.Tensor:
    return torch.rand(3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))


def cameras(views: int) -> Cameras:
    """Side by side, looking along −z."""
    poses = torch.eye(4)[:3].repeat(views, 1, 1)
    poses[:, 0, 3] = torch.arange(views)
    return Cameras(poses, fx=40.0, fy=40.0, cx=SIZE / 2, cy=SIZE / 2, width=SIZE, height=SIZE)


def view(styles: int = 1, mask: torch.Tensor | None = None) -> StyleView:
    return StyleView(tuple(picture(10 + k) for k in range(styles)), picture(1), torch.full((1, SIZE, SIZE), 2.0), mask)


def losses(config, style_loss, looked_at, image, weights=(1.0,), window=None, depth=None):
    depth = torch.full((1, *image.shape[1:]), 2.0) if depth is None else depth
    torch.manual_seed(0)  # the directions
    return Retraining(config, style_loss, [looked_at], cameras(1)).losses(0, image, depth, weights, window)


@pytest.mark.parametrize("option", ["style_loss_mult", "aligned_loss_mult", "rgb_loss_mult", "gram_loss_mult"])
def test_a_style_of_weight_one_is_exactly_the_single_style(style_loss, option):
    config = replace(QUIET, **{option: 2.0})
    single = losses(config, style_loss, view(1), picture(5))
    both = view(2)
    assert losses(config, style_loss, both, picture(5), (1.0, 0.0)) == single
    assert losses(config, style_loss, both, picture(5), (0.0, 1.0)) != single
    (loss,) = single.values()
    assert loss > 0


@pytest.mark.parametrize("option", ["style_loss_mult", "aligned_loss_mult", "rgb_loss_mult", "gram_loss_mult"])
def test_a_blend_lies_between_its_styles_whatever_the_sum_of_the_weights(style_loss, option):
    config = replace(QUIET, **{option: 1.0})
    values = [
        float(next(iter(losses(config, style_loss, view(2), picture(5), weights).values())))
        for weights in ((1, 0), (3, 1), (0, 1))
    ]
    assert values[1] == pytest.approx(0.75 * values[0] + 0.25 * values[2], rel=1e-4)


def test_the_restyled_view_itself_costs_nothing(style_loss):
    config = replace(QUIET, style_loss_mult=1.0, aligned_loss_mult=1.0, rgb_loss_mult=1.0, gram_loss_mult=1.0)
    found = losses(config, style_loss, view(), view().restyled[0])
    assert set(found) == {"style_loss", "aligned_loss", "style_rgb_loss", "gram_loss"}
    assert all(float(loss) < 1e-4 for loss in found.values()), found  # targets are kept in half precision
    content = losses(replace(QUIET, content_loss_mult=1.0), style_loss, view(), view().base)
    assert float(content["content_loss"]) < 1e-4


def test_inside_a_mask_the_style_counts_and_outside_the_base(style_loss):
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, :, : SIZE // 2] = 1
    config = replace(QUIET, style_loss_mult=1.0, rgb_loss_mult=1.0, background_loss_mult=3.0)
    looked_at = view(mask=mask)
    image = torch.where(mask > 0, looked_at.restyled[0], looked_at.base)
    perfect = losses(config, style_loss, looked_at, image)
    assert float(perfect["style_rgb_loss"]) == float(perfect["background_loss"]) == 0
    wrong_outside = losses(config, style_loss, looked_at, torch.where(mask > 0, image, picture(7)))
    assert float(wrong_outside["style_rgb_loss"]) == 0
    difference = (picture(7) - looked_at.base)[:, :, SIZE // 2 :].square().mean()
    assert float(wrong_outside["background_loss"]) == pytest.approx(3 * float(difference), rel=1e-4)
    wrong_inside = losses(config, style_loss, looked_at, torch.where(mask > 0, picture(7), image))
    # Features near the border see across it, so that even the perfect picture has some distance.
    assert float(wrong_inside["style_loss"]) > 1.5 * float(perfect["style_loss"])
    assert float(wrong_inside["background_loss"]) == 0


def test_a_view_without_anything_inside_only_keeps_its_background(style_loss):
    config = replace(QUIET, style_loss_mult=1.0, rgb_loss_mult=1.0, background_loss_mult=1.0)
    found = losses(config, style_loss, view(mask=torch.zeros(1, SIZE, SIZE)), picture(5))
    assert "style_loss" not in found
    assert float(found["style_rgb_loss"]) == 0
    assert float(found["background_loss"]) > 0


def test_patches_lie_in_the_view_and_are_fixed_by_the_step(style_loss):
    config = replace(QUIET, style_loss_mult=1.0, rgb_loss_mult=1.0, content_loss_mult=1.0, style_patch_size=24)
    retraining = Retraining(config, StyleLoss(VGG19Features("random", layers=("conv1_1",))), [view()], cameras(1))
    places = [retraining.window(step, (SIZE, SIZE)) for step in range(40)]
    assert places == [retraining.window(step, (SIZE, SIZE)) for step in range(40)]
    assert len(set(places)) > 20
    assert all(0 <= top <= 8 and 0 <= left <= 8 and (height, width) == (24, 24) for top, left, height, width in places)
    assert Retraining(QUIET, style_loss, [view()], cameras(1)).window(0, (SIZE, SIZE)) is None
    top, left, *_ = places[0]
    restyled = view().restyled[0][:, top : top + 24, left : left + 24]
    found = retraining.losses(0, restyled, torch.ones(1, 24, 24), (1.0,), places[0])
    assert float(found["style_loss"]) < 1e-6
    assert float(found["style_rgb_loss"]) == 0


def test_the_aligned_term_follows_the_restyled_view_and_the_content_term_the_base(style_loss):
    aligned, content = replace(QUIET, aligned_loss_mult=2.0), replace(QUIET, content_loss_mult=2.0)
    for config, name, own, other in (
        (aligned, "aligned_loss", view().restyled[0], view().base),
        (content, "content_loss", view().base, view().restyled[0]),
    ):
        assert set(losses(config, style_loss, view(), own)) == {name}
        assert float(losses(config, style_loss, view(), own)[name]) < 1e-4
        assert float(losses(config, style_loss, view(), other)[name]) > 0.1
        shifted = own.roll(8, dims=2)  # the same distribution elsewhere: in place it differs
        assert float(losses(config, style_loss, view(), shifted)[name]) > 0.1


def test_the_aligned_term_looks_at_nothing_outside_a_mask(style_loss):
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, :, : SIZE // 2] = 1
    config = replace(QUIET, aligned_loss_mult=1.0, aligned_layers=("conv1_1",))
    looked_at = view(mask=mask)
    image = looked_at.restyled[0].clone()
    image[:, :, SIZE // 2 + 1 :] = 0  # beyond what the outermost cells inside see
    assert float(losses(config, style_loss, looked_at, image)["aligned_loss"]) < 1e-4


def test_rays_show_the_restyled_pixels_of_all_views():
    """Rays go through the centres of their pixels, and any view's pixels come."""
    loss = StyleLoss(VGG19Features("random", layers=("conv1_1",)))
    views = [replace(view(2), base=picture(30 + k), restyled=(picture(k), picture(20 + k))) for k in range(3)]
    retraining = Retraining(QUIET, loss, views, cameras(3))
    rays, targets = retraining.rays(5, 400)
    again, _ = retraining.rays(5, 400)
    other, _ = retraining.rays(6, 400)
    assert torch.equal(rays.directions, again.directions), "a step has its own rays, also in a run that was interrupted"
    assert not torch.equal(rays.directions, other.directions)
    index = rays.origins[:, 0].round().long()
    assert set(index.tolist()) == {0, 1, 2}
    x = 40 * rays.directions[:, 0] / -rays.directions[:, 2] + SIZE / 2 - 0.5
    y = 40 * rays.directions[:, 1] / rays.directions[:, 2] + SIZE / 2 - 0.5
    column, row = x.round().long(), y.round().long()
    assert float((x - column).abs().max()) < 1e-3
    for ray in range(0, 400, 37):
        looked_at = views[int(index[ray])]
        for style in (0, 1):
            expected = looked_at.restyled[style][:, row[ray], column[ray]]
            torch.testing.assert_close(targets.restyled[style, ray], expected)
        torch.testing.assert_close(targets.base[ray], looked_at.base[:, row[ray], column[ray]])


@pytest.mark.parametrize(("kind", "optimum"), [("l2", 0.4), ("l1", 0.2), ("locked", 0.2)])
def test_where_views_contradict_each_other_rays_settle_on_mean_median_or_nearest(kind, optimum):
    """Three views say 0.2, two say 0.7."""
    wanted = torch.tensor([0.2, 0.2, 0.2, 0.7, 0.7])[:, None].expand(5, 3)
    colour = torch.full((1,), 0.35, requires_grad=True)
    optimizer = torch.optim.Adam([colour], 0.01)
    for step in range(200):
        optimizer.zero_grad()
        ray_difference(colour.expand(5, 3), wanted, kind, step / 200).mean().backward()
        optimizer.step()
    assert colour.item() == pytest.approx(optimum, abs=0.02)


def test_a_locked_ray_takes_no_notice_of_what_is_far_off_at_the_end():
    near, far = torch.full((1, 3), 0.02), torch.full((1, 3), 0.6)
    pulls = {}
    for progress in (0.0, 1.0):
        for name, wanted in (("near", near), ("far", far)):
            colour = torch.zeros(1, 3, requires_grad=True)
            ray_difference(colour, wanted, "locked", progress).sum().backward()
            pulls[name, progress] = float(colour.grad.abs().sum())
    assert pulls["far", 0.0] > 0.15 * pulls["near", 0.0]
    assert pulls["far", 1.0] < 0.03 * pulls["near", 1.0]


@pytest.mark.parametrize("kind", ["l1", "l2", "locked"])
@pytest.mark.parametrize("weights", [(3.0, 1.0), (0.25, 0.75), (0.0, 1.0)])
def test_rays_of_a_blend_have_the_mean_colour_of_its_styles(kind, weights):
    config = replace(QUIET, ray_loss_mult=2.0, ray_loss=kind)
    retraining = Retraining(config, StyleLoss(VGG19Features("random", layers=("conv1_1",))), [view(2)], cameras(1))
    _, targets = retraining.rays(0, 50)
    mean = sum(share * style for share, style in zip(weights, targets.restyled)) / sum(weights)
    least = float(retraining.ray_losses(mean, targets, weights, 0.5)["ray_loss"])
    assert least < 1e-6
    for other in (*targets.restyled, targets.base, mean + 0.01):
        found = float(retraining.ray_losses(other, targets, weights, 0.5)["ray_loss"])
        assert found > least or torch.equal(other, mean)


def test_rays_count_less_in_a_blend_and_as_ever_for_a_single_style():
    config = replace(QUIET, ray_loss_mult=2.0)
    loss = StyleLoss(VGG19Features("random", layers=("conv1_1",)))
    _, single = Retraining(config, loss, [view(1)], cameras(1)).rays(0, 50)
    both = Retraining(config, loss, [view(2)], cameras(1))
    _, targets = both.rays(0, 50)
    alone = both.ray_losses(single.base, single, (1.0,), 0.0)["ray_loss"]
    assert alone == 2 * ray_difference(single.base, single.restyled[0], "l1", 0.0).mean()
    assert both.ray_losses(targets.base, targets, (0.7, 0.0), 0.0)["ray_loss"] == alone
    mean = 0.75 * targets.restyled[0] + 0.25 * targets.restyled[1]
    blend = both.ray_losses(targets.base, targets, (3, 1), 0.0)["ray_loss"]
    assert float(blend) == pytest.approx(0.2 * float(ray_difference(targets.base, mean, "l1", 0.0).mean()), rel=1e-5)


def test_rays_outside_a_mask_follow_the_base():
    mask = torch.zeros(1, SIZE, SIZE)
    mask[:, :, : SIZE // 2] = 1
    config = replace(QUIET, ray_loss_mult=1.0, background_loss_mult=1.0)
    retraining = Retraining(
        config, StyleLoss(VGG19Features("random", layers=("conv1_1",))), [view(mask=mask)], cameras(1)
    )
    _, targets = retraining.rays(0, 300)
    right = torch.where(targets.inside > 0, targets.restyled[0], targets.base)
    assert retraining.ray_losses(right, targets, (1.0,), 0.0) == {"ray_loss": 0.0, "background_ray_loss": 0.0}
    found = retraining.ray_losses(right + 0.1 * targets.inside, targets, (1.0,), 0.0)
    assert float(found["ray_loss"]) == pytest.approx(0.1, rel=1e-4)
    assert float(found["background_ray_loss"]) == 0
    found = retraining.ray_losses(right + 0.1 * (1 - targets.inside), targets, (1.0,), 0.0)
    assert float(found["ray_loss"]) == 0
    assert float(found["background_ray_loss"]) == pytest.approx(0.01, rel=1e-4)


def test_depth_is_held_relative_to_itself_where_there_is_a_surface(style_loss):
    base = torch.tensor([[[0.0, 2.0, 4.0]]])
    assert float(depth_change(torch.tensor([[[5.0, 2.2, 4.0]]]), base)) == pytest.approx(0.05)
    assert float(depth_change(torch.zeros(1, 1, 3), base)) == 0
    found = losses(
        replace(QUIET, depth_loss_mult=2.0), style_loss, view(), picture(5), depth=torch.full((1, 32, 32), 3.0)
    )
    assert float(found["depth_loss"]) == pytest.approx(1.0)


def test_an_empty_mask_has_no_error():
    assert float(masked_mse(picture(1), picture(2), torch.zeros(1, SIZE, SIZE))) == 0


def test_a_held_density_stays_while_colours_move(camera):
    torch.manual_seed(0)
    config = small_field(StyleModelConfig(average_init_density=1.0, freeze_density=True))
    box = SceneBox(aabb=torch.tensor([[-1.0, -1, -1], [1, 1, 1]]))
    model = config.setup(scene_box=box, num_train_data=3, metadata={}).train()
    model.proposal_sampler.eval()
    model.hold_geometry()
    assert model.geometry_losses({}, torch.zeros(0, 3)) == {}, (
        "proposal networks, which place the samples, stay as they are"
    )
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        first = render_for_training(model, camera, 16)
    optimizer = torch.optim.Adam(model.get_param_groups()["fields"], 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        (render_for_training(model, camera, 16).colour - 1).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        last = render_for_training(model, camera, 16)
    assert torch.equal(first.depth, last.depth)
    assert (last.colour - first.colour).mean() > 0.02
    for name, value in model.geometry.state_dict().items():
        assert torch.equal(value, before[f"geometry.{name}"])
    model.hold_geometry()
    for name, value in model.geometry.state_dict().items():
        assert torch.equal(value, before[f"geometry.{name}"]), "what is held is not taken anew"
    again = config.setup(scene_box=box, num_train_data=3, metadata={})
    again.load_state_dict(model.state_dict())
    again.train().proposal_sampler.eval()
    with torch.no_grad():
        loaded = render_for_training(again, camera, 16)
    assert torch.allclose(loaded.depth, last.depth)
    assert torch.allclose(loaded.colour, last.colour)


@pytest.mark.parametrize(
    ("wrong", "word"),
    [
        (
            {"style_loss_mult": 0.0, "aligned_loss_mult": 0.0, "ray_loss_mult": 0.0},
            "depend on the restyled views are off",
        ),
        ({"ray_loss_mult": 0.0, "style_every": 4}, "style-every"),
        ({"style_windows": (1, 0)}, "style-windows"),
        ({"aligned_layers": ("conv9_1",)}, "conv9_1"),
        ({"content_loss_mult": -1.0}, "content-loss-mult"),
        ({"style_layers": ("conv1_1", "conv2_1"), "style_layer_weights": (1.0,)}, "2 numbers"),
        ({"more_prompts": ("",)}, "--prompt"),
    ],
)
def test_losses_that_cannot_work_are_refused(wrong, word):
    with pytest.raises(UserError, match=word):
        StylePipelineConfig(model=StyleModelConfig(**{"prompt": "a mosaic", **wrong})).check()


def test_there_is_a_weight_for_each_style():
    model = StyleModelConfig(prompt="a mosaic", more_prompts=("gold",))
    assert StylePipelineConfig(model=model).initial_weights == (0.5, 0.5)
    StylePipelineConfig(model=model, style_weights=(1.0, 0.0)).check()
    for weights in ((1.0,), (0.0, 0.0), (-1.0, 2.0)):
        with pytest.raises(UserError, match="style-weights"):
            StylePipelineConfig(model=model, style_weights=weights).check()
