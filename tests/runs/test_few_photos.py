"""What nerfstudio's commands make of a field from a few photos, of which none or a single one is held out."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.scripts.train import main as train

import ns
from escher_models import tiny
from eschernet_prior.config import eschernet_nerfacto_tiny
from eschernet_prior.densify.generate import DensifyConfig
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig, cached_scene

PHOTOS = (3, 12)
"""nerfstudio holds every tenth photo out: none of the three, one of the twelve."""


@pytest.fixture(scope="module")
def few(cache, tmp_path_factory) -> dict[int, Path]:
    """Runs from captures of a few photos with alpha."""
    prior = tmp_path_factory.mktemp("prior")
    tiny(image_size=32).save_pretrained(prior)
    scene = cached_scene(ProceduralDataParserConfig(background=False, num_views=12, num_eval_views=1, resolution=32))
    meta = json.loads((scene / "transforms.json").read_text())
    lens = {name: meta[name] for name in ("w", "h", "fl_x", "fl_y", "cx", "cy")}
    runs = {}
    for count in PHOTOS:
        folder = tmp_path_factory.mktemp(f"photos_{count}")
        shutil.copytree(scene / "images", folder / "images")
        frames = [{name: frame[name] for name in ("file_path", "transform_matrix")} for frame in meta["frames"]]
        frames = [frame for frame in frames if "train" in frame["file_path"]][:count]
        (folder / "transforms.json").write_text(json.dumps({**lens, "frames": frames}))
        config = copy.deepcopy(eschernet_nerfacto_tiny.config)
        config.output_dir, config.max_num_iterations = tmp_path_factory.mktemp("outputs"), 6
        config.viewer.quit_on_train_completion = True
        config.pipeline.datamanager.dataparser = NerfstudioDataParserConfig(data=folder)
        config.pipeline.datamanager.train_num_rays_per_batch = 64
        config.pipeline.datamanager.densify = DensifyConfig(
            num_views=2, prior=str(prior), num_inference_steps=1, samples=1
        )
        train(config)
        runs[count] = ns.only_run(config.output_dir)
    return runs


@pytest.mark.parametrize("count", PHOTOS)
def test_ns_eval_scores_what_is_held_out_or_says_that_nothing_is(few, count: int, tmp_path: Path, capsys):
    from nerfstudio.scripts.eval import ComputePSNR

    pictures = tmp_path / "pictures"
    ComputePSNR(
        load_config=few[count] / "config.yml", output_path=tmp_path / "s.json", render_output_path=pictures
    ).main()
    assert json.loads((tmp_path / "s.json").read_text())["results"]["psnr"] > 5.5  # 6.5 to 6.8 dB
    assert len(list(pictures.glob("*_img_*.png"))) == (3 if count == 3 else 1)
    assert ("None of the 3 photos was held out" in capsys.readouterr().out) == (count == 3)


@pytest.mark.parametrize("count", PHOTOS)
def test_ns_render_dataset_writes_what_is_held_out_or_all_photos(few, count: int, tmp_path: Path):
    from nerfstudio.scripts.render import DatasetRender

    DatasetRender(load_config=few[count] / "config.yml", output_path=tmp_path, rendered_output_names=["rgb"]).main()
    assert len(list(tmp_path.rglob("*.jpg"))) == (3 if count == 3 else 1)


@pytest.mark.parametrize("count", PHOTOS)
def test_ns_render_interpolate_goes_from_photo_to_photo(few, count: int, tmp_path: Path, ffmpeg):
    from nerfstudio.scripts.render import RenderInterpolated

    RenderInterpolated(
        load_config=few[count] / "config.yml",
        output_path=tmp_path / "frames",
        output_format="images",
        interpolation_steps=2,
    ).main()
    photos = 3 if count == 3 else 11
    assert len(list((tmp_path / "frames").glob("*.jpg"))) == 2 * (photos - 1)
