"""The image encoder: the original's numbers, transformers' own network, refusals, saving and loading."""

import importlib.metadata
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from escher_cases import assert_reproduced
from eschernet_prior import image_encoder
from eschernet_prior.base.errors import UserError
from eschernet_prior.image_encoder import ConvNeXtV2Tokens, official_names

SIZES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Tensor]:
    return load_file(shared / "golden" / "convnextv2_tiny_random.safetensors")


@pytest.fixture(scope="module")
def reference():
    """transformers' network with every parameter away from its initial value, GRN's included (they start at zero)."""
    from transformers import ConvNextV2Config, ConvNextV2Model

    torch.manual_seed(0)
    model = ConvNextV2Model(ConvNextV2Config(**SIZES, drop_path_rate=0.0)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def official_state(golden: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix("state."): value for key, value in golden.items() if key.startswith("state.")}


@torch.no_grad()
def test_tokens_of_the_original(golden):
    encoder = ConvNeXtV2Tokens.from_official(official_state(golden))
    assert_reproduced(encoder(golden["direct.pixel_values"]), golden["direct.tokens"])
    for name in ("preprocess", "preprocess_up"):  # larger and smaller than the network's input
        pixels = encoder.preprocess((golden[f"{name}.image_pm1"] + 1) / 2)
        assert_reproduced(encoder(pixels), golden[f"{name}.tokens"])
        assert (encoder(pixels) - golden[f"{name}.tokens_if_antialias_true"]).abs().max() > 0.1
    pixels = encoder.preprocess((golden["preprocess.image_pm1"][:1] + 1) / 2)
    assert_reproduced(pixels, golden["preprocess.pixel_values_first_image"])


@torch.no_grad()
def test_tokens_of_transformers_network(reference):
    encoder = ConvNeXtV2Tokens.from_official(reference.state_dict())
    assert dict(encoder.config)["depths"] == SIZES["depths"]
    assert encoder.width == 32
    pixels = torch.randn(2, 3, 96, 64)
    features = reference(pixels).last_hidden_state.flatten(2).mT
    expected = F.layer_norm(features, (32,), reference.layernorm.weight, reference.layernorm.bias, eps=1e-12)
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-4, atol=1e-5)


def test_preprocessing_keeps_the_original_resize():
    """Bicubic with a = -0.75 and no antialiasing, by the formula, at one output pixel."""
    encoder = ConvNeXtV2Tokens(**SIZES, image_size=10)
    images = torch.rand(1, 3, 32, 32, dtype=torch.float64)
    centre = (4 + 0.5) * 3.2 - 0.5
    first = int(centre) - 1

    def kernel(x: float, a: float = -0.75) -> float:
        x = abs(x)
        return (a + 2) * x**3 - (a + 3) * x**2 + 1 if x <= 1 else a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a

    weights = torch.tensor([kernel(centre - (first + tap)) for tap in range(4)], dtype=torch.float64)
    patch = images[0, :, first : first + 4, first : first + 4]
    expected = torch.einsum("cyx,y,x->c", patch, weights, weights)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(
        encoder.preprocess(images)[0, :, 4, 4], ((expected - mean) / std).float(), rtol=1e-4, atol=1e-5
    )


def test_full_size_network_has_the_official_keys(shared):
    import json

    official = json.loads((shared / "golden" / "official_keys.json").read_text())
    shapes = official["state_dict_shapes"]["image_encoder"]
    state = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    encoder = ConvNeXtV2Tokens.from_official(state)
    assert list(encoder.config["hidden_sizes"]) == official["configs"]["image_encoder"]["hidden_sizes"]
    assert list(encoder.config["depths"]) == official["configs"]["image_encoder"]["depths"]
    assert set(official_names(encoder.config["depths"])) == set(shapes)
    assert sum(parameter.numel() for parameter in encoder.parameters()) == official["n_params"]["image_encoder"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("layernorm.bias"), r"1 missing \(layernorm\.bias\)"),
        (lambda s: s.pop("embeddings.patch_embeddings.weight"), "not those of a ConvNeXt-V2"),
        (lambda s: s.update(surplus=torch.zeros(1)), r"1 unknown \(surplus\)"),
        (lambda s: s.update({"layernorm.bias": torch.zeros(3)}), r"layernorm\.bias \[3\] instead of \[32\]"),
        (
            lambda s: s.pop("encoder.stages.2.layers.1.grn.weight"),
            r"missing \(encoder\.stages\.2\.layers\.1\.grn\.weight\)",
        ),
        (lambda s: s.clear(), "not those of a ConvNeXt-V2"),
    ],
)
def test_wrong_weights_are_refused_in_one_sentence(reference, change, message):
    state = dict(reference.state_dict())
    change(state)
    with pytest.raises(UserError, match=message):
        ConvNeXtV2Tokens.from_official(state)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    encoder = ConvNeXtV2Tokens(**SIZES, patch_size=1, image_size=24)
    encoder.save_pretrained(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "diffusion_pytorch_model.safetensors"]
    again = ConvNeXtV2Tokens.from_pretrained(tmp_path)
    assert isinstance(again, ConvNeXtV2Tokens)
    images = torch.rand(2, 3, 64, 64)
    tokens = again(again.preprocess(images))
    assert tokens.shape == (2, 9, 32)
    assert torch.equal(tokens, encoder.eval()(encoder.preprocess(images)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_float32_pixels(reference, dtype):
    encoder = ConvNeXtV2Tokens.from_official(reference.state_dict())
    pixels = encoder.preprocess(torch.rand(1, 3, 64, 64))
    exact = encoder(pixels)
    tokens = ConvNeXtV2Tokens.from_official({k: v.to(dtype) for k, v in reference.state_dict().items()})(pixels)
    assert tokens.dtype == dtype
    assert (tokens.float() - exact).abs().max() < 0.2


def test_a_patch_size_that_timm_changes_is_refused():
    with pytest.raises(ValueError, match="patch_size 2"):
        ConvNeXtV2Tokens(**SIZES, patch_size=2)


def test_gradients_reach_every_weight():
    encoder = ConvNeXtV2Tokens(**SIZES).train()
    encoder(torch.randn(1, 3, 64, 64)).square().mean().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


def test_an_old_timm_is_named_with_the_line_that_helps(monkeypatch):
    monkeypatch.setattr(image_encoder, "version", lambda name: "0.6.7")
    with pytest.raises(UserError, match=r"timm 0\.6\.7 is installed: run `pip install 'timm>=1\.0\.20'`"):
        ConvNeXtV2Tokens(**SIZES)
    monkeypatch.undo()
    assert image_encoder.version("timm") == importlib.metadata.version("timm")
