"""Loading from the hub's cache and from folders: by their files alone, checked before anything long starts."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eschernet_prior.base.errors import UserError
from hub_cache import sdxl_cache
from style_nerf2nerf.embedded.models import STAND_IN, build_pipeline
from style_nerf2nerf.restyler.compute.precision import choose_dtype
from style_nerf2nerf.restyler.models.files import check_models, weight_files
from style_nerf2nerf.restyler.models.folders import locate_models
from style_nerf2nerf.restyler.restyler import Restyler


@pytest.fixture
def no_network(monkeypatch):
    """Every attempt to connect fails at once and is recorded; the hub is not told to stay offline."""
    attempts = []

    def refuse(self, address):
        attempts.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **_: refuse(None, args))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return attempts


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("models")
    build_pipeline(STAND_IN).save_pretrained(path)
    return path


def test_a_cache_with_what_is_fetched_loads_without_the_network(cache, tmp_path, no_network, capfd):
    (tmp_path / "work").mkdir()
    sdxl_cache(cache, tmp_path / "work", build_pipeline(STAND_IN))
    check_models(locate_models("sdxl"))
    restyler = Restyler.from_pretrained("sdxl")
    assert restyler.pipeline.unet.dtype == torch.float32
    assert Restyler.from_pretrained("sdxl", dtype=torch.float16).pipeline.vae.dtype == torch.float16
    assert not no_network
    printed = "".join(capfd.readouterr())
    assert "not known" not in printed
    assert "rror" not in printed
    commits = restyler.provenance()["models"]
    assert commits["controlnet"].startswith("diffusers/controlnet-depth-sdxl-1.0@")
    assert all(len(commit.partition("@")[2]) == 40 for commit in commits.values())


@pytest.mark.parametrize(
    ("part", "name"), [("base", "unet/diffusion_pytorch_model.fp16.safetensors"), ("vae", "config.json")]
)
def test_a_cache_that_lacks_a_file_is_refused_before_it_is_used(cache, tmp_path, part, name):
    (tmp_path / "work").mkdir()
    snapshots = sdxl_cache(cache, tmp_path / "work", build_pipeline(STAND_IN))
    (snapshots[part] / name).unlink()
    with pytest.raises(UserError, match=name.replace(".", r"\.")):
        locate_models("sdxl", offline=True)
    with pytest.raises(UserError, match="connect to the network once"):
        locate_models("sdxl")


def damage(folder: Path, name: str, change) -> None:
    path = folder / name
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("network", "file", "change", "words"),
    [
        ("unet", "diffusion_pytorch_model", lambda t: t.pop("conv_in.weight"), "1 missing.*conv_in.weight"),
        ("text_encoder", "model", lambda t: t.update(more=torch.ones(1)), "1 unknown.*more"),
        ("controlnet", "diffusion_pytorch_model", lambda t: t.update({"conv_in.bias": torch.ones(3)}), "another shape"),
        ("vae", "diffusion_pytorch_model", lambda t: t.update({"encoder.conv_in.bias": torch.ones(8).char()}), "I8"),
    ],
)
def test_weights_that_do_not_fit_are_found_in_their_headers(folder, tmp_path, network, file, change, words):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(copy / network, f"{file}.safetensors", change)
    with pytest.raises(UserError, match=words):
        check_models(locate_models(copy))


def test_what_is_missing_or_cut_short_is_named(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match="incomplete or damaged"):
        check_models(locate_models(copy))
    weights.unlink()
    with pytest.raises(UserError, match="holds no weights"):
        check_models(locate_models(copy))
    shutil.rmtree(copy / "controlnet")
    (copy / "unet" / "config.json").write_text(json.dumps({"_class_name": "FluxTransformer2DModel"}))
    with pytest.raises(UserError, match="FluxTransformer2DModel"):
        check_models(locate_models(copy))


def test_variants_are_found_and_that_of_the_precision_is_preferred(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    unet = copy / "unet"
    (unet / "diffusion_pytorch_model.safetensors").rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    assert weight_files(unet).variant == "fp16"
    restyler = Restyler.from_pretrained(copy)
    plain = Restyler.from_pretrained(folder)
    for name, weight in plain.pipeline.unet.state_dict().items():
        assert torch.equal(restyler.pipeline.unet.state_dict()[name], weight)
    shutil.copy(unet / "diffusion_pytorch_model.fp16.safetensors", unet / "diffusion_pytorch_model.safetensors")
    assert weight_files(unet).variant is None
    assert weight_files(unet, torch.float16).variant == "fp16"
    assert weight_files(unet, torch.bfloat16).variant is None


def test_models_in_shards_are_checked_and_loaded(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    pipeline = build_pipeline(STAND_IN)
    for variant in (None, "fp16"):
        shutil.rmtree(copy / "unet")
        pipeline.unet.save_pretrained(copy / "unet", max_shard_size="300KB", variant=variant)
        assert len(weight_files(copy / "unet").paths) > 1
        check_models(locate_models(copy))
        Restyler.from_pretrained(copy)
    weight_files(copy / "unet").paths[0].unlink()
    with pytest.raises(UserError, match="is missing"):
        check_models(locate_models(copy))


@pytest.mark.parametrize(
    ("asked", "device", "parameters", "files", "expected"),
    [
        ("auto", "cpu", 10_000_000, torch.float16, torch.float32),
        ("auto", "cpu", 999_999_999, torch.float16, torch.float32),
        ("auto", "cpu", 1_000_000_001, torch.float16, torch.bfloat16),
        ("auto", "cuda", 10_000_000, torch.float32, torch.float32),
        ("auto", "cuda", 4_000_000_000, torch.float16, torch.float16),
        ("auto", "cuda", 4_000_000_000, torch.bfloat16, torch.bfloat16),
        ("fp16", "cpu", 1, torch.float32, torch.float16),
        ("bf16", "cuda", 1, torch.float32, torch.bfloat16),
        ("float32", "cuda", 4_000_000_000, torch.float16, torch.float32),
    ],
)
def test_the_precision_follows_device_size_and_files(asked, device, parameters, files, expected):
    assert choose_dtype(asked, device, parameters, files) == expected


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float16)])
def test_full_precision_files_on_a_gpu_take_what_it_computes_in(monkeypatch, native, expected):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: native)
    assert choose_dtype("auto", "cuda", 4_000_000_000) == expected


def test_an_unknown_precision_lists_those_there_are():
    with pytest.raises(UserError, match="auto, float32, bf16, fp16"):
        choose_dtype("int8", "cpu", 1)
