"""Fetching and checking all models: what is here, what is missing or damaged, without the network."""

import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import VGG19_Weights

from clipseg import save_clipseg
from eschernet_prior.base.errors import UserError
from hub_cache import BRANCH_COMMIT, put_into_cache, sdxl_cache
from style_nerf2nerf.embedded.models import STAND_IN, build_pipeline, build_unet
from style_nerf2nerf.models import PARTS, ModelsOptions, main
from style_nerf2nerf.restyler.models.hub import CLIPSEG, LIGHTNING


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and none of torchvision's."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path / "hub"


@pytest.fixture
def sdxl(cache, tmp_path):
    """SDXL's three repositories and VGG19, small or empty."""
    (tmp_path / "work").mkdir()
    vgg = tmp_path / "torch" / "hub" / "checkpoints" / VGG19_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[1]
    vgg.parent.mkdir(parents=True)
    vgg.write_bytes(bytes(10))
    return sdxl_cache(cache, tmp_path / "work", build_pipeline(STAND_IN))


def test_everything_that_is_downloaded_is_listed_with_its_licence():
    assert {part.purpose for part in PARTS} == {"style-nerf2nerf", "eschernet-nerfacto", "ip-adapter", "fast", "words"}
    assert all(part.licence for part in PARTS)


def test_an_empty_machine_is_told_what_is_missing(cache, capsys):
    with pytest.raises(UserError, match="4 of the parts for style-nerf2nerf"):
        main(ModelsOptions("check"))
    said = " ".join(capsys.readouterr().out.split())
    assert "stabilityai/stable-diffusion-xl-base-1.0 is not in the local cache" in said
    assert "VGG19 (ImageNet)" in said
    assert "RAIL++-M" in said


def test_a_machine_with_everything_is_told_so(sdxl, cache, tmp_path, capsys):
    lora = {}
    for name, module in build_unet(STAND_IN).named_modules():
        if name.endswith("attn1.to_q"):
            lora[f"unet.{name}.lora_A.weight"] = torch.ones(2, module.in_features)
            lora[f"unet.{name}.lora_B.weight"] = torch.ones(module.out_features, 2)
    save_file(lora, tmp_path / "lora.safetensors")
    put_into_cache(cache, LIGHTNING.repository, "main", {LIGHTNING.weights[0]: tmp_path / "lora.safetensors"})
    clipseg = save_clipseg(tmp_path / "clipseg")
    put_into_cache(cache, CLIPSEG.repository, "main", {path.name: path for path in clipseg.iterdir()})
    main(ModelsOptions("check", ("style-nerf2nerf", "fast", "words")))
    said = capsys.readouterr().out
    assert "All 6 parts are complete" in said
    assert BRANCH_COMMIT[:12] in said
    assert sdxl["vae"].name[:12] in said
    assert "Memory of a GPU in GB" in said


def test_a_damaged_file_is_named(sdxl, capsys):
    weights = sdxl["controlnet"] / "diffusion_pytorch_model.fp16.safetensors"
    blob = weights.resolve()
    blob.write_bytes(blob.read_bytes()[:-8])
    with pytest.raises(UserError, match="1 of the parts for"):
        main(ModelsOptions("check"))
    assert "is incomplete or damaged" in capsys.readouterr().out


def test_fetching_downloads_only_what_is_missing(sdxl, monkeypatch, capsys):
    def refuse(*args, **options):
        assert options["local_files_only"], "everything is here"
        return real(*args, **options)

    import huggingface_hub

    real = huggingface_hub.snapshot_download
    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    main(ModelsOptions("fetch"))
    assert "All 4 parts are complete" in capsys.readouterr().out
