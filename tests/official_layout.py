"""A golden pipeline written out in the layout of the published checkpoints."""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

FILES = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}


def write_official(folder: Path, file: Path, suffix: str) -> Path:
    """A golden pipeline's weights and configurations in the layout of the published checkpoints."""
    with safe_open(file, "pt") as tensors:
        metadata = tensors.metadata()
        configs = {name: json.loads(metadata[f"{name}_config"]) for name in (*FILES, "scheduler")}
        for name, stem in FILES.items():
            prefix = f"state.{name}."
            state = {k.removeprefix(prefix): tensors.get_tensor(k) for k in tensors.keys() if k.startswith(prefix)}  # noqa: SIM118
            (folder / name).mkdir(parents=True)
            if suffix == "bin":
                torch.save(state, folder / name / f"{'pytorch_model' if name == 'image_encoder' else stem}.bin")
            else:
                save_file(state, folder / name / f"{stem}.safetensors")
            (folder / name / "config.json").write_text(json.dumps(configs[name]))
    ddpm = {
        "_class_name": "DDPMScheduler",
        "variance_type": "fixed_small",
        "skip_prk_steps": True,
        **configs["scheduler"],
    }
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(ddpm))
    index = {
        "_class_name": "Zero1to3StableDiffusionPipeline",
        "_diffusers_version": "0.18.2",
        "feature_extractor": [None, None],
        "image_encoder": ["CN_encoder", "CN_encoder"],
        "requires_safety_checker": True,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["unet_2d_condition", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
