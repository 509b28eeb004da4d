"""Checkpoints of the prior on disk: our own layout, the published one, and what is refused."""

import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UniPCMultistepScheduler
from safetensors.torch import load_file, save_file

from escher_models import inputs, tiny
from eschernet_prior import weight_files
from eschernet_prior.base.errors import UserError
from eschernet_prior.image_encoder import ConvNeXtV2Tokens
from eschernet_prior.pipeline import EscherNetPipeline


@pytest.mark.parametrize("dof", ["6dof", "4dof"])
def test_own_layout_round_trip(tmp_path, dof):
    pipeline, given = tiny(dof, image_size=24), inputs()
    pipeline.scheduler = UniPCMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.save_pretrained(tmp_path)
    again = EscherNetPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again, DiffusionPipeline)
    assert (again.config["cape"], again.config["image_size"]) == (dof, 24)
    assert isinstance(again.scheduler, UniPCMultistepScheduler)
    before, after = (
        pipe(*given, 2, generator=torch.manual_seed(0), output_type="pt").images for pipe in (pipeline, again)
    )
    assert torch.equal(before, after)
    assert after.shape[-1] == 24
    with pytest.raises(UserError, match=f"trained with CaPE {dof}"):
        EscherNetPipeline.from_pretrained(tmp_path, cape="4dof" if dof == "6dof" else "6dof")


def test_loaded_weights_of_any_variant_shards_and_given_components(tmp_path):
    pipeline = tiny()
    pipeline.save_pretrained(tmp_path / "fp16", variant="fp16")
    assert (tmp_path / "fp16" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    again = EscherNetPipeline.from_pretrained(tmp_path / "fp16", variant="fp16", scheduler=DDPMScheduler())
    assert isinstance(again.scheduler, DDPMScheduler)
    with pytest.raises(UserError, match="contains no weights"):
        EscherNetPipeline.from_pretrained(tmp_path / "fp16")
    pipeline.save_pretrained(tmp_path / "shards", max_shard_size="60KB")
    assert (tmp_path / "shards" / "unet" / "diffusion_pytorch_model.safetensors.index.json").is_file()
    sharded = EscherNetPipeline.from_pretrained(tmp_path / "shards")
    for name, value in pipeline.unet.state_dict().items():
        assert torch.equal(sharded.unet.state_dict()[name], value)


def break_key(folder: Path, part: str, change) -> None:
    file = next((folder / part).glob("*.safetensors"))
    state = load_file(file)
    change(state)
    save_file(state, file)


WRONG = {
    "missing key": (
        lambda f: break_key(f, "unet", lambda s: s.pop("conv_in.bias")),
        r"weights of the UNet do not fit the network: 1 missing \(conv_in\.bias\)",
    ),
    "surplus key": (
        lambda f: break_key(f, "vae", lambda s: s.update(text=torch.zeros(1))),
        r"weights of the VAE do not fit the network: 1 unknown \(text\)",
    ),
    "wrong shape": (
        lambda f: break_key(f, "unet", lambda s: s.update({"conv_in.bias": torch.zeros(3)})),
        r"conv_in\.bias \[3\] instead of \[16\]",
    ),
    "many keys": (
        lambda f: break_key(f, "image_encoder", lambda s: [s.pop(k) for k in list(s)[:5]]),
        r"image encoder do not fit the network: 5 missing \(.*, …\)",
    ),
    "no subfolder": (lambda f: shutil.rmtree(f / "vae"), "is not a folder with weights of the prior: it has no vae"),
    "no file": (lambda f: next((f / "vae").glob("*.safetensors")).unlink(), "contains no weights"),
    "no config": (lambda f: (f / "unet" / "config.json").unlink(), "is missing"),
    "broken config": (lambda f: (f / "unet" / "config.json").write_text("{"), "not valid JSON"),
    "broken file": (
        lambda f: next((f / "unet").glob("*.safetensors")).write_bytes(b"not tensors"),
        "is damaged or contains more than tensors",
    ),
    "other latents": (
        lambda f: AutoencoderKL(block_out_channels=(8,), latent_channels=8, norm_num_groups=4).save_pretrained(
            f / "vae"
        ),
        "the UNet has 4 input and 4 output channels, the VAE's latents have 8",
    ),
    "other encoder": (
        lambda f: ConvNeXtV2Tokens([4, 8, 8, 8], [1, 1, 1, 1]).save_pretrained(f / "image_encoder"),
        "attends to tokens of 16 channels, those of the image encoder have 8",
    ),
    "foreign scheduler": (
        lambda f: (f / "scheduler" / "scheduler_config.json").write_text('{"_class_name": "AutoencoderKL"}'),
        "names a scheduler 'AutoencoderKL'",
    ),
}


@pytest.mark.parametrize("fault", WRONG)
def test_wrong_files_are_refused_in_one_sentence(tmp_path, fault):
    change, message = WRONG[fault]
    tiny().save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        EscherNetPipeline.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_code_in_a_bin_file_is_never_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    tiny().save_pretrained(tmp_path)
    next((tmp_path / "unet").glob("*.safetensors")).unlink()
    torch.save({"conv_in.bias": Evil()}, tmp_path / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match="contains more than tensors"):
        EscherNetPipeline.from_pretrained(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_official_layout_without_cape_and_unknown_places_are_refused(official, tmp_path):
    with pytest.raises(UserError, match="add cape='6dof' or cape='4dof'"):
        EscherNetPipeline.from_pretrained(official["6dof"])
    with pytest.raises(UserError, match="There is no folder"):
        EscherNetPipeline.from_pretrained(tmp_path / "absent", cape="6dof")
    with pytest.raises(UserError, match="could not be downloaded"):
        EscherNetPipeline.from_pretrained("kxic/eschernet-6dof", local_files_only=True, cache_dir=tmp_path)


def test_the_published_encoding_is_known_and_checked(official, monkeypatch):
    monkeypatch.setattr(weight_files, "locate", lambda name, **_: official["4dof"])
    assert EscherNetPipeline.from_pretrained("kxic/eschernet-4dof").config["cape"] == "4dof"
    with pytest.raises(UserError, match="was trained with CaPE 4dof, not 6dof"):
        EscherNetPipeline.from_pretrained("kxic/eschernet-4dof", cape="6dof")


def test_the_licence_is_printed_once_and_stays_with_the_weights(official, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(weight_files, "_announced", set())
    pipeline = EscherNetPipeline.from_pretrained(official["6dof"], cape="6dof")
    assert pipeline.config["image_size"] == 256
    assert capsys.readouterr().out.count("non-commercial") == 1
    EscherNetPipeline.from_pretrained(official["4dof"], cape="4dof")
    assert capsys.readouterr().out == ""
    pipeline.save_pretrained(tmp_path)
    monkeypatch.setattr(weight_files, "_announced", set())
    EscherNetPipeline.from_pretrained(tmp_path)
    assert capsys.readouterr().out.count("non-commercial") == 1
    tiny().save_pretrained(tmp_path / "ours")
    EscherNetPipeline.from_pretrained(tmp_path / "ours")
    assert capsys.readouterr().out == ""


def test_legacy_names_of_a_vaes_attention_are_known(tmp_path):
    pipeline = tiny()
    pipeline.save_pretrained(tmp_path)
    file = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    renamed = {}
    for key, value in state.items():
        for old, new in weight_files.LEGACY_ATTENTION.items():
            key = key.replace(new, old)
        renamed[key] = value
    assert renamed.keys() != state.keys()
    save_file(renamed, file)
    again = EscherNetPipeline.from_pretrained(tmp_path)
    assert all(torch.equal(value, again.vae.state_dict()[key]) for key, value in state.items())
