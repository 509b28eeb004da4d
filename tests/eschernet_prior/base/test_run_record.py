"""A run's record of its capture: which captures the run can be continued with."""

import json
from pathlib import Path

import numpy as np
import pytest

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.run_record import record_capture, refuse_other_capture, refuse_other_poses


def identity(**changed) -> dict:
    """What a run records of a capture; None takes an entry out."""
    record = {
        "data": "/photos",
        "dataparser": {"kind": "NerfstudioDataParserConfig", "downscale_factor": None},
        "files": "0123",
        "cameras": [0.5, 1.0],
        "transform": np.eye(4)[:3].tolist(),
        "scale": 1.0,
    } | changed
    return {name: value for name, value in record.items() if value is not None}


OTHERS = {
    "options": ({"dataparser": {"downscale_factor": 2}}, {}, "downscale_factor = 2 and cannot be continued with None"),
    "files": ({"files": "4567"}, {}, "started with other data"),
    "cameras": ({"cameras": [0.5, 1.1]}, {}, "started with other data"),
    "fewer cameras": ({"cameras": [0.5]}, {}, "started with other data"),
    "another dataparser": (
        {"dataparser": {"kind": "PhotosDataParserConfig"}, "files": None, "cameras": None},
        {},
        "kind = PhotosDataParserConfig",
    ),
    "another folder": ({"data": "/a", "files": None, "cameras": None}, {"files": None, "cameras": None}, "other data"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_run_is_continued_with_its_own_capture_only(tmp_path: Path, other: str):
    theirs, ours, words = OTHERS[other]
    record_capture(tmp_path, "method", identity(**theirs))
    with pytest.raises(UserError, match=words):
        refuse_other_capture(tmp_path, identity(**ours))
    record_capture(tmp_path, "method", identity())
    refuse_other_capture(tmp_path, identity(data="/moved"))
    refuse_other_poses(tmp_path, identity(files="smaller pictures"))
    (tmp_path / "dataparser_transforms.json").write_text(json.dumps({"transform": identity()["transform"], "scale": 2}))
    for refuse in (refuse_other_capture, refuse_other_poses):
        with pytest.raises(UserError, match=r"frame|other poses"):
            refuse(tmp_path, identity())
