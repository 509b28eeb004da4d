"""Every ns-* command on what the main job trained, in process; one real process a command is a slow test."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def test_ns_eval_scores_the_restyled_field(run: Path, tmp_path: Path, capsys):
    from nerfstudio.scripts.eval import ComputePSNR

    ComputePSNR(load_config=run / "config.yml", output_path=tmp_path / "score.json").main()
    results = json.loads((tmp_path / "score.json").read_text())["results"]
    assert results["psnr"] > 10  # 11.3 dB, against the photos, after the restyling
    assert "lpips" not in results, "nothing was downloaded, nothing is made up"
    told = " ".join(capsys.readouterr().out.split())
    assert f"PSNR ({results['psnr']:.2f} dB) and SSIM compare the restyled field with the photos" in told
    assert f"Style distance to the restyled views: {results['style_distance']:.3f}" in told
    measured = json.loads((run / "metrics.json").read_text())
    assert results["style_distance"] == pytest.approx(measured["round_02"]["style_distance_after"], rel=0.05)
    assert results["style_distance"] < 0.5 * results["style_distance_before"]  # 0.36
    assert results["style_distance_least"] == 0


def test_ns_render_dataset_writes_every_held_out_view(run: Path, tmp_path: Path):
    from nerfstudio.scripts.render import DatasetRender

    DatasetRender(
        load_config=run / "config.yml", output_path=tmp_path, split="test", rendered_output_names=["rgb"]
    ).main()
    pictures = list(tmp_path.rglob("*.jpg")) + list(tmp_path.rglob("*.png"))
    assert len(pictures) == 2
    assert np.asarray(Image.open(pictures[0])).std() > 1


def test_ns_render_interpolate_makes_a_path_of_pictures(run: Path, tmp_path: Path, ffmpeg):
    from nerfstudio.scripts.render import RenderInterpolated

    RenderInterpolated(
        load_config=run / "config.yml",
        output_path=tmp_path / "frames",
        output_format="images",
        interpolation_steps=2,
        pose_source="eval",
    ).main()
    assert len(list((tmp_path / "frames").glob("*.jpg"))) == 2


def test_ns_render_camera_path_makes_a_picture(run: Path, tmp_path: Path, ffmpeg):
    from nerfstudio.scripts.render import RenderCameraPath

    pose = np.eye(4)
    pose[2, 3] = 2.0
    path = {
        "camera_type": "perspective",
        "render_height": 16,
        "render_width": 24,
        "seconds": 1,
        "camera_path": [{"camera_to_world": pose.flatten().tolist(), "fov": 50, "aspect": 1.5}],
    }
    (tmp_path / "path.json").write_text(json.dumps(path))
    RenderCameraPath(
        load_config=run / "config.yml",
        camera_path_filename=tmp_path / "path.json",
        output_path=tmp_path / "frames",
        output_format="images",
    ).main()
    (picture,) = (tmp_path / "frames").glob("*.jpg")
    assert Image.open(picture).size == (24, 16)


def test_ns_export_pointcloud_writes_points(run: Path, tmp_path: Path, open3d):
    from nerfstudio.scripts.exporter import ExportPointCloud

    ExportPointCloud(
        load_config=run / "config.yml",
        output_dir=tmp_path,
        num_points=300,
        num_rays_per_batch=256,
        normal_method="open3d",
    ).main()
    cloud = open3d.io.read_point_cloud(str(tmp_path / "point_cloud.ply"))
    assert len(cloud.points) >= 200
