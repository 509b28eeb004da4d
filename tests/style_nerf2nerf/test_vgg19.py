"""VGG19's features: its layers, its gradient, and where weights come from."""

import io
import pickle
import urllib.error

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models.vgg import cfgs, make_layers

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.vgg19 import STYLE_LAYERS, VGG19Features, opponent_colours, random_weights
from vgg import SHALLOW, images, naive_features


def test_twelve_layers_with_their_shapes(network):
    features = network(images(0, 2, 3, 64, 72))
    assert tuple(features) == STYLE_LAYERS
    for name, feature in features.items():
        block = int(name[4])
        assert feature.shape == (2, 32 * 2**block, 64 // 2 ** (block - 1), 72 // 2 ** (block - 1))
        assert feature.min() >= 0
        assert (feature > 0).float().mean() > 0.1
    assert not network.training
    assert not any(p.requires_grad for p in network.parameters())


def test_features_and_gradient_are_those_of_the_plain_network():
    """In double precision: rounding would switch single ReLUs differently."""
    exact = VGG19Features("random", feature_dtype=torch.float64)
    x = images(1, 2, 3, 35, 33).requires_grad_()  # odd sizes: pooling drops the last row and column
    ours, theirs = list(exact(x).values()), naive_features(exact, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    gradients = [torch.autograd.grad(sum((f**2).mean() for f in features), x)[0] for features in (ours, theirs)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


def test_random_weights_do_not_depend_on_the_layers_chosen(network, shallow):
    x = images(0, 1, 3, 32, 32)
    all_of_them, some = network(x), shallow(x)
    assert tuple(some) == SHALLOW
    assert all(torch.equal(all_of_them[name], some[name]) for name in SHALLOW)
    again = VGG19Features("random", layers=reversed(SHALLOW))
    assert all(torch.equal(again(x)[name], some[name]) for name in SHALLOW)


def test_random_filters_are_orthogonal_and_repeatable():
    state = {"0.weight": torch.empty(64, 3, 3, 3), "2.weight": torch.empty(64, 64, 3, 3), "0.bias": torch.empty(64)}
    weights = random_weights(state)
    on_opponents = torch.einsum("fcyx,cd->fdyx", weights["0.weight"], opponent_colours().inverse())
    columns, rows = on_opponents.flatten(1), weights["2.weight"].flatten(1)
    torch.testing.assert_close(columns.T @ columns, 2 * 64 / 27 * torch.eye(27), atol=1e-4, rtol=0)
    torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(64), atol=1e-4, rtol=0)
    assert not weights["0.bias"].any()
    # Fixed for good: what was measured with these weights has to stay comparable.
    fixed = torch.tensor([0.04142, 0.27399, 0.26166, -0.12711])
    torch.testing.assert_close(columns.reshape(64, 3, 9)[0, 0, :4], fixed, atol=1e-4, rtol=0)


def test_opponent_colours_are_orthogonal_and_grey_is_light_alone():
    axes = opponent_colours(chroma=4.0)
    torch.testing.assert_close(axes @ axes.T, torch.diag(torch.tensor([1.0, 16.0, 16.0])), atol=1e-5, rtol=0)
    torch.testing.assert_close(axes @ torch.ones(3), torch.tensor([3**0.5, 0.0, 0.0]), atol=1e-6, rtol=0)


def test_small_images_are_refused_by_the_deepest_layer(network, shallow):
    assert (network.min_size, shallow.min_size) == (32, 8)
    network(images(0, 1, 3, 32, 40))
    shallow(images(0, 1, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 32 px high and wide for conv4_4, got 31 × 64"):
        network(torch.zeros(1, 3, 31, 64))
    with pytest.raises(ValueError, match="must be \\(batch, 3, height, width\\)"):
        network(torch.zeros(3, 64, 64))


def test_autocast_does_not_reach_the_network(shallow):
    x = images(0, 1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = shallow(x)
    assert torch.equal(features["conv2_1"], shallow(x)["conv2_1"])


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty torch hub cache, its checkpoints folder, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*_args: object, **_kwargs: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_imagenet_without_network_says_what_to_do(hub):
    with pytest.raises(UserError) as refusal:
        VGG19Features("imagenet")
    message = str(refusal.value)
    assert "no network" in message
    assert f"place vgg19-dcbb9e9d.pth in {hub}" in message
    assert 'vgg_weights="random"' in message
    assert "\n" not in message


def test_imagenet_weights_come_from_the_hub_cache_even_if_only_features(hub):
    state = {f"features.{k}": torch.randn_like(v) for k, v in make_layers(cfgs["E"]).state_dict().items()}
    torch.save(state, hub / "vgg19-dcbb9e9d.pth")
    features = VGG19Features("imagenet", layers=SHALLOW)
    assert torch.equal(features.network[0].weight, state["features.0.weight"])


def test_damaged_imagenet_weights_are_refused(hub):
    (hub / "vgg19-dcbb9e9d.pth").write_bytes(b"half a download")
    with pytest.raises(UserError, match=r"damaged.*delete .*vgg19-dcbb9e9d\.pth"):
        VGG19Features("imagenet")


def test_weights_that_run_code_are_refused(hub):
    (hub / "vgg19-dcbb9e9d.pth").write_bytes(pickle.dumps({"features.0.weight": io.StringIO}))
    with pytest.raises(UserError, match="damaged"):
        VGG19Features("imagenet")


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_from_a_file(tmp_path, network, suffix):
    path = tmp_path / f"vgg{suffix}"
    state = {f"features.{name}": tensor.contiguous() for name, tensor in network.network.state_dict().items()}
    state["classifier.0.weight"] = torch.zeros(1)
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    x = images(0, 1, 3, 32, 32)
    loaded = VGG19Features(path, layers=SHALLOW)(x)
    assert all(torch.equal(loaded[name], network(x)[name]) for name in SHALLOW)


def test_wrong_weights_and_layers_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r".safetensors or .pth file; there is no imagnet"):
        VGG19Features("imagnet")
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "part.safetensors")
    with pytest.raises(UserError, match=r"features\.0\.bias is missing"):
        VGG19Features(tmp_path / "part.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read"):
        VGG19Features(tmp_path / "broken.safetensors")
    with pytest.raises(UserError, match="no layer conv9_1"):
        VGG19Features("random", layers=["conv9_1"])
