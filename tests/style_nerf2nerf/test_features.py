"""The style loss and the other terms on VGG19's features: what they do to pixels, masks and blending."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from style_nerf2nerf.features import StyleLoss, StyleTargets, feature_difference, gram_loss
from style_nerf2nerf.swd import random_directions
from style_nerf2nerf.vgg19 import STYLE_LAYERS, VGG19Features, random_weights
from vgg import SHALLOW, images, naive_features


def seeded(features: VGG19Features, **kwargs: object) -> StyleLoss:
    return StyleLoss(features, generator=torch.Generator().manual_seed(5), **kwargs)  # type: ignore[arg-type]


def test_style_loss_is_the_mean_over_layers_of_a_plain_sort(network):
    rendered, target = images(1, 1, 3, 32, 32).requires_grad_(), images(2, 1, 3, 32, 32)
    value = seeded(network)(rendered, target)
    generator, expected = torch.Generator().manual_seed(5), torch.zeros(())
    for a, b in zip(naive_features(network, rendered), naive_features(network, target)):
        directions = random_directions(a.shape[1], a.shape[1], generator)
        rows = [(directions @ f.flatten(2)).sort(dim=2).values for f in (a, b)]
        expected = expected + F.mse_loss(*rows) / 12
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    gradients = [torch.autograd.grad(loss, rendered)[0] for loss in (value, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-2, atol=1e-3 * gradients[1].abs().max().item())


def test_random_weights_see_colour_as_well_as_light(network):
    """A change of hue at equal light against a change of light of the same length, in every layer."""
    picture = images(3, 1, 3, 64, 64) * 0.4 + 0.3
    push = lambda *colour: picture + 0.1 * F.normalize(torch.tensor(colour), dim=0).view(3, 1, 1)  # noqa: E731

    def share(features: VGG19Features) -> dict[str, float]:
        seen = seeded(features)
        here = features(picture)
        light = seen.distances(features(push(1.0, 1.0, 1.0)), here)
        hue = seen.distances(features(push(1.0, 0.0, -1.0)), here)
        return {name: float(hue[name] / light[name]) for name in STYLE_LAYERS}

    assert min(share(network).values()) > 1, "colour counts"
    blind = VGG19Features("random")
    blind.network.load_state_dict(random_weights(blind.network.state_dict(), chroma=0.0))
    assert max(share(blind).values()) < 0.9 * min(share(network).values())


def test_random_weights_tell_restyled_views_from_photos(network, shared):
    def view(folder: str, i: int) -> Tensor:
        image = Image.open(sorted((shared / "data/bear" / folder).iterdir())[i]).convert("RGB").resize((64, 64))
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255

    def mask(i: int) -> Tensor:
        image = Image.open(sorted((shared / "data/bear/masks_4").iterdir())[i]).convert("L").resize((64, 64))
        return torch.from_numpy(np.array(image))[None, None].float() / 255

    loss, within, across = seeded(network), 0.0, 0.0
    for i in (0, 40, 80):
        styled = loss.encode(view("styled_grizzly_4", i))
        photo, beside = loss.encode(view("images_4", i)), loss.encode(view("styled_grizzly_4", i + 3))
        across += loss.blended(styled, [(1, photo)], mask(i)).item()
        within += loss.blended(styled, [(1, beside)], mask(i), mask(i + 3)).item()
    assert across > 1.2 * within


def test_bfloat16_features_are_near_and_sorted_in_float32(network):
    narrow = VGG19Features("random", layers=SHALLOW, feature_dtype=torch.bfloat16)
    rendered, target = images(0, 1, 3, 32, 32).requires_grad_(), images(1, 1, 3, 32, 32)
    assert narrow(rendered)["conv1_2"].dtype == torch.bfloat16
    wide = VGG19Features("random", layers=SHALLOW)
    value, expected = seeded(narrow)(rendered, target), seeded(wide)(rendered, target)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected, rtol=0.05, atol=0)
    value.backward()
    assert rendered.grad is not None
    assert rendered.grad.abs().max() > 0


def test_loss_is_zero_on_itself_and_takes_targets_of_other_sizes(network):
    x = images(0, 2, 3, 32, 32)
    loss = seeded(network)
    assert loss(x, x).item() == pytest.approx(0, abs=1e-9)
    other = images(1, 2, 3, 48, 40)
    assert loss(x, other).item() > 1e-3
    with pytest.raises(ValueError, match="as many target images"):
        loss(x, other[:1])


def test_encoded_targets_give_the_same_loss_and_carry_no_gradient(shallow):
    rendered, target = images(0, 1, 3, 16, 16).requires_grad_(), images(1, 1, 3, 16, 16).requires_grad_()
    features = seeded(shallow).encode(target)
    assert not any(feature.requires_grad for feature in features.values())
    assert torch.equal(seeded(shallow)(rendered, features), seeded(shallow)(rendered, target))


def test_layers_and_directions_can_be_chosen(shallow):
    x, y = images(0, 1, 3, 16, 16), images(1, 1, 3, 16, 16)
    distances = seeded(shallow).distances(shallow(x), shallow(y))
    torch.testing.assert_close(seeded(shallow)(x, y), torch.stack(list(distances.values())).mean())
    weighted = seeded(shallow, layer_weights={"conv1_1": 3.0, "conv2_1": 1.0})
    parts = seeded(shallow, layer_weights={"conv1_1": 3.0, "conv2_1": 1.0}).distances(shallow(x), shallow(y))
    torch.testing.assert_close(weighted(x, y), (3 * parts["conv1_1"] + parts["conv2_1"]) / 4)
    assert seeded(shallow, num_directions=4)(x, y).item() == pytest.approx(distances["conv1_1"].item(), rel=1)
    for wrong in ({"conv4_4": 1.0}, {"conv1_1": 0.0}, {"conv1_1": -1.0}, {}):
        with pytest.raises(ValueError, match="Layer weights"):
            StyleLoss(shallow, layer_weights=wrong)
    with pytest.raises(ValueError, match="at least one direction"):
        StyleLoss(shallow, num_directions=0)


def test_blending_is_exact_at_its_ends_and_linear_between(shallow):
    x = images(0, 1, 3, 16, 16).requires_grad_()
    a, b = (shallow(images(seed, 1, 3, 16, 16)) for seed in (1, 2))
    for weights, target in (((1, 0), a), ((0, 1), b)):
        blend = seeded(shallow).blended(shallow(x), list(zip(weights, (a, b))))
        single = seeded(shallow)(x, target)
        assert torch.equal(blend, single)
        assert torch.equal(*(torch.autograd.grad(loss, x)[0] for loss in (blend, single)))
    between = seeded(shallow).blended(shallow(x), [(0.25, a), (0.75, b)])
    torch.testing.assert_close(between, 0.25 * seeded(shallow)(x, a) + 0.75 * seeded(shallow)(x, b))
    with pytest.raises(ValueError, match="weights"):
        seeded(shallow).blended(shallow(x), [(0, a), (0, b)])


def test_features_given_are_left_alone(shallow):
    features = shallow(images(0, 1, 3, 16, 16))
    target = dict(features)
    seeded(shallow).blended(features, [(1, target)])
    assert tuple(features) == tuple(target) == SHALLOW


def test_a_mask_looks_at_nothing_outside(shallow):
    """With one layer of 3×3 taps, the pixels two away from the mask have neither influence nor gradient."""
    loss = StyleLoss(shallow, layer_weights={"conv1_1": 1.0}, generator=torch.Generator().manual_seed(0))
    mask = torch.zeros(2, 1, 16, 16)
    mask[0, :, 4:10, 4:10] = mask[1, :, 2:12, 8:] = 1  # of different pixel counts
    x, y = images(0, 2, 3, 16, 16), images(1, 2, 3, 16, 16)
    outside = F.max_pool2d(mask, 3, stride=1, padding=1) == 0

    def value(x: Tensor, y: Tensor) -> Tensor:
        assert loss.generator is not None
        loss.generator.manual_seed(0)
        return loss(x, y, mask)

    expected = value(x, y)
    changed = torch.where(outside, torch.rand_like(x), x)
    torch.testing.assert_close(value(changed, torch.where(outside, torch.rand_like(y), y)), expected)
    x.requires_grad_()
    value(x, y).backward()
    assert x.grad is not None
    assert x.grad[outside.expand_as(x)].abs().max() == 0
    assert x.grad[mask.bool().expand_as(x)].abs().min() > 0


def test_masks_by_image_average_and_full_masks_change_nothing(shallow):
    x, y = images(0, 2, 3, 16, 16), images(1, 2, 3, 24, 24)
    full = torch.ones(2, 1, 16, 16)
    torch.testing.assert_close(seeded(shallow)(x, y, full), seeded(shallow)(x, y))
    torch.testing.assert_close(seeded(shallow)(x, y, None, full), seeded(shallow)(x, y))
    half = full.clone()
    half[0] = 0  # this image selects nothing: only the other one counts
    alone = seeded(shallow)(x[1:], y[1:], full[1:])
    torch.testing.assert_close(seeded(shallow)(x, y, half), alone)
    with pytest.raises(ValueError, match="selects nothing"):
        seeded(shallow)(x, y, 0 * full)
    with pytest.raises(ValueError, match="mask must be"):
        seeded(shallow)(x, y, full[:1])


def test_layers_too_coarse_for_a_mask_are_left_out(network):
    mask = torch.zeros(1, 1, 64, 64)
    mask[:, :, 10:13, 10:13] = 1
    features = network(images(0, 1, 3, 64, 64))
    found = seeded(network).distances(features, network(images(1, 1, 3, 64, 64)), mask)
    assert {name[:5] for name in found} == {"conv1", "conv2"}


def test_targets_are_kept_up_to_a_bound(shallow):
    views = images(0, 3, 3, 16, 16)
    loss = seeded(shallow)
    one = sum(feature[:1].numel() for feature in shallow(views).values()) * 2  # bytes in half precision
    targets = StyleTargets(loss, views, max_bytes=2 * one)
    first = targets[0]
    assert len(targets) == 3
    assert all(first[name].data_ptr() == targets[0][name].data_ptr() for name in SHALLOW)
    targets[1], targets[2]
    assert targets.bytes_kept == 2 * one
    assert all(torch.equal(targets[2][name], loss.encode(views[2:])[name].half()) for name in SHALLOW)
    x = images(4, 1, 3, 16, 16)
    torch.testing.assert_close(seeded(shallow)(x, first), seeded(shallow)(x, views[:1]), rtol=1e-3, atol=0)


def test_terms_in_place_and_gram_terms(network):
    x, y = images(0, 1, 3, 32, 32).requires_grad_(), images(1, 1, 3, 32, 32)
    a, b = network(x), network(y)
    layers = ["conv1_1", "conv4_2"]
    expected = torch.stack([(a[name] - b[name]).square().mean() for name in layers]).mean()
    torch.testing.assert_close(feature_difference(a, b, layers), expected)
    mask = torch.zeros(1, 32, 32)
    mask[:, :, :8] = 1
    left = (a["conv1_1"] - b["conv1_1"])[..., :8].square().mean()
    torch.testing.assert_close(feature_difference(a, b, ["conv1_1"], mask), left)
    with pytest.raises(ValueError, match="must have the same size"):
        feature_difference(a, network(images(0, 1, 3, 40, 40)), layers)
    with pytest.raises(ValueError, match="at least one layer"):
        feature_difference(a, b, [])

    f, g = a["conv2_1"], b["conv2_1"]
    grams = [torch.einsum("bchw,bdhw->bcd", t, t) / t.shape[2:].numel() for t in (f, g)]
    torch.testing.assert_close(gram_loss(a, b, ["conv2_1"]), (grams[0] - grams[1]).square().mean())
    turned = {"conv2_1": g.flip(2, 3)}  # the same pixels elsewhere
    assert gram_loss(turned, b).item() < 1e-6 * gram_loss(a, b, ["conv2_1"]).item()
    (feature_difference(a, b, layers) + gram_loss(a, b)).backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_windows_are_the_mean_over_their_parts(shallow):
    """Sizes of which no side can be divided by four, masked and not."""
    a, b = shallow(images(0, 1, 3, 16, 16)), shallow(images(1, 1, 3, 16, 16))
    mask = torch.zeros(1, 1, 16, 16)
    mask[..., :12] = 1
    parts = [(slice(row, row + 8), slice(column, column + 8)) for row in (0, 8) for column in (0, 8)]
    (name,) = layer = SHALLOW[:1]
    weights = dict.fromkeys(layer, 1.0)
    whole = seeded(shallow, layer_weights=weights)
    quarters = [
        float(seeded(shallow, layer_weights=weights).distances({**a, name: a[name][:, :, rows, columns]},
                                                               {**b, name: b[name][:, :, rows, columns]})[name])
        for rows, columns in parts
    ]  # fmt: skip
    expected = (float(whole.distances(a, b)[name]) + float(np.mean(quarters))) / 2
    assert float(seeded(shallow, layer_weights=weights, windows=(1, 2)).distances(a, b)[name]) == pytest.approx(
        expected, rel=1e-5
    )
    full = torch.ones(1, 1, 16, 16)
    assert float(seeded(shallow, layer_weights=weights, windows=(1, 2)).distances(a, b, full)[name]) == pytest.approx(
        expected, rel=1e-5
    )
    # Two quarters are whole, of the other two one half is inside: they count half.
    inside = [
        float(seeded(shallow, layer_weights=weights).distances({**a, name: a[name][:, :, rows, columns]},
                                                               {**b, name: b[name][:, :, rows, columns]},
                                                               mask[:, :, rows, columns])[name])
        for rows, columns in parts
    ]  # fmt: skip
    expected = float(np.average(inside, weights=[2, 1, 2, 1]))
    assert float(seeded(shallow, layer_weights=weights, windows=(2,)).distances(a, b, mask)[name]) == pytest.approx(
        expected, rel=1e-5
    )


@pytest.mark.parametrize(("windows", "placed"), [((1,), False), ((1, 2), True)])
def test_windows_put_colours_where_they_belong(shallow, windows, placed):
    target = torch.zeros(1, 3, 16, 16)
    target[:, 0, :, :8] = target[:, 2, :, 8:] = 0.9
    pixels = images(2, 1, 3, 16, 16).requires_grad_()
    loss = seeded(shallow, windows=windows)
    features = loss.encode(target)
    optimizer = torch.optim.Adam([pixels], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(pixels, features).backward()
        optimizer.step()
    wrong = (pixels.detach()[:, :, :, [3, 12]] - target[:, :, :, [3, 12]]).abs().mean()
    assert (float(wrong) < 0.12) == placed


def test_descent_on_pixels_brings_the_style_over(shallow):
    """From noise towards a picture of another colour and grain: the loss falls, and the colours arrive."""
    target = images(5, 1, 3, 32, 32) * torch.tensor([0.9, 0.5, 0.2]).view(3, 1, 1)
    pixels = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = seeded(shallow)
    features = loss.encode(target)
    start = loss(pixels, features).item()
    optimizer = torch.optim.Adam([pixels], lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        loss(pixels, features).backward()
        optimizer.step()
    assert loss(pixels, features).item() < 0.05 * start
    torch.testing.assert_close(pixels.mean((2, 3)), target.mean((2, 3)), atol=0.03, rtol=0)
