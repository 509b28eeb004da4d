"""Small random models in the hub's own cache layout: blobs named by their hash, snapshots of links to them, refs."""

import hashlib
import json
import shutil
from pathlib import Path

import torch

from style_nerf2nerf.restyler.models.hub import SDXL

BRANCH_COMMIT = "a" * 40
"""What the branch `main` of a faked repository points to."""


def put_into_cache(cache: Path, repository: str, revision: str, files: dict[str, Path]) -> Path:
    """Store files as a repository's snapshot.

    Args:
        cache: The hub's cache.
        repository: Its id.
        revision: A commit, or a branch, which then points to `BRANCH_COMMIT`.
        files: What it holds, by name.

    Returns:
        The snapshot's folder.
    """
    root = cache / f"models--{repository.replace('/', '--')}"
    commit = revision
    if len(revision) != 40:
        commit = BRANCH_COMMIT
        (root / "refs").mkdir(parents=True, exist_ok=True)
        (root / "refs" / revision).write_text(commit)
    snapshot = root / "snapshots" / commit
    for name, path in files.items():
        blob = root / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.is_file():
            shutil.copy(path, blob)
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).unlink(missing_ok=True)
        (snapshot / name).symlink_to(blob)
    return snapshot


def sdxl_cache(cache: Path, work: Path, pipeline) -> dict[str, Path]:
    """The three repositories of SDXL, as much of them as is fetched, made of a small pipeline in float16.

    Args:
        cache: The hub's cache.
        work: An empty folder for what is written on the way.
        pipeline: A `StableDiffusionXLControlNetImg2ImgPipeline`.

    Returns:
        The snapshots' folders by the part's name in `SDXL`.
    """
    half = work / "half"
    pipeline.to(dtype=torch.float16).save_pretrained(half, variant="fp16")
    pipeline.vae.to(torch.float32).save_pretrained(half / "vae32")
    # The published index names the text-to-image pipeline, which has no ControlNet.
    index = json.loads((half / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionXLPipeline"
    del index["controlnet"]
    (half / "model_index.json").write_text(json.dumps(index))
    names = {
        "base": [
            path.relative_to(half)
            for path in half.rglob("*")
            if path.is_file()
            and path.parent.name not in ("controlnet", "vae32")
            and (path.parent.name != "vae" or path.suffix == ".json")
        ],
        "controlnet": [Path("controlnet", name) for name in ("config.json", *SDXL["controlnet"].weights)],
        "vae": [Path("vae32", name) for name in ("config.json", *SDXL["vae"].weights)],
    }
    return {
        part: put_into_cache(
            cache,
            SDXL[part].repository,
            SDXL[part].revision,
            {str(name if part == "base" else name.name): half / name for name in files},
        )
        for part, files in names.items()
    }
