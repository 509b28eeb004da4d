"""The table of what densification is worth: every variant trained for real, as short as it gets."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from escher_models import tiny
from eschernet_prior import few_views
from eschernet_prior.base.images import read_image
from eschernet_prior.few_views import ALONE, DENSIFIED, LEFT_OUT, MORE, TRUE, FewViewsOptions, FieldRow
from eschernet_prior.procedural.dataparser import FIELD_OF_VIEW
from eschernet_prior.procedural.scenes import find_scene, render


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> FewViewsOptions:
    """One object, two photos, three steps."""
    prior = tmp_path_factory.mktemp("prior")
    tiny(image_size=32).save_pretrained(prior)
    return FewViewsOptions(
        out=tmp_path_factory.mktemp("table"),
        prior=str(prior),
        objects=1,
        photos=(2,),
        views=3,
        steps=3,
        held_out=2,
        resolution=48,
        close_look=2,
        close_objects=1,
    )


@pytest.fixture(scope="module")
def means(options, cache) -> dict:
    return few_views.main(options)


def test_every_variant_is_measured(means, options):
    assert set(means["by_photos"]) == {ALONE, DENSIFIED}
    assert set(means["close_look"]) == {ALONE, DENSIFIED, *LEFT_OUT, TRUE, MORE}
    scores = [score for part in (means["by_photos"][ALONE], means["close_look"]) for score in part.values()]
    assert all(9.5 < score["psnr"] < 12 and 0.55 < score["ssim"] < 0.7 for score in scores)  # 10.8 dB, 0.61
    assert (options.out / "metrics_3_views.json").is_file()
    assert read_image(options.out / "fields_3_views.png").shape[2] > 3 * 2 * 48


def test_what_was_measured_with_other_options_does_not_count(means, options):
    alone, densified = (FieldRow(options.names[0], 2, variant) for variant in (ALONE, DENSIFIED))
    for change, kept in (
        ({"steps": 4}, False),
        ({"resolution": 32}, False),
        ({"views": 4}, True),
        ({"prior": "x"}, True),
    ):
        changed = replace(options, **change)
        assert (alone.scores(changed) is not None) == kept
        assert densified.scores(changed) is None


def test_what_is_measured_is_not_trained_again(means, options, monkeypatch):
    def train(*_):
        raise AssertionError("trained again")

    monkeypatch.setattr(few_views, "measure", train)
    assert few_views.main(options) == means
    FieldRow(options.names[0], 2, ALONE).file(options).unlink()
    with pytest.raises(AssertionError, match="trained again"):
        few_views.main(options)


def managers(options: FewViewsOptions, means: dict, variant: str):
    config = few_views.configured(FieldRow(options.names[0], 2, variant), options)
    config.set_timestamp()
    return config.pipeline.datamanager.setup(device="cpu")


def test_true_views_look_from_where_generated_ones_do(means, options):
    """At the prior's size, from the same poses, and like photos taken there; beside as many photos of the capture."""
    densified, true, more = (managers(options, means, variant) for variant in (DENSIFIED, TRUE, MORE))
    cameras = true.train_dataset.cameras
    assert torch.equal(cameras.camera_to_worlds, densified.train_dataset.cameras.camera_to_worlds)
    assert torch.equal(cameras.fx, densified.train_dataset.cameras.fx)
    assert cameras.width.flatten().tolist() == [48, 48] + [32] * 3
    assert true.train_dataset[2]["image"].shape == (32, 32, 3)
    scene = find_scene(true.config.dataparser.scene, background=False)
    photo = render(scene, cameras.camera_to_worlds[:1], 48, 48, FIELD_OF_VIEW).colour[0]
    assert float((photo - true.train_dataset[0]["image"]).abs().mean()) < 0.02, "renders are like photos"
    _, batch = true.next_train(0)
    assert torch.equal(batch["trust"], torch.ones(len(batch["trust"])))
    assert more.densified is None
    assert more.train_dataset.cameras.width.flatten().tolist() == [48] * 5
    assert torch.equal(more.eval_dataset.cameras.camera_to_worlds, true.eval_dataset.cameras.camera_to_worlds)


def test_scenes_are_numbered_or_named():
    assert FewViewsOptions(objects=2, first_object=7).names == ["7", "8"]
    measured = list(few_views.fields(FewViewsOptions(scenes=("bear",), photos=(3,))))
    assert {field.scene for field in measured} == {"bear"}
    assert [field.variant for field in measured] == [ALONE, DENSIFIED, *LEFT_OUT, TRUE, MORE]


def test_a_file_of_scores_names_its_field():
    named = {
        variant: FieldRow("7", 3, variant).file(FewViewsOptions(out=Path("x"))).name
        for variant in (ALONE, "without agreement")
    }
    assert named == {ALONE: "7_03_photos_alone.json", "without agreement": "7_03_without_agreement_15_views.json"}
