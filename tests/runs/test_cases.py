"""Captures from public bug reports, where a developer has them: each is read, or refused in the right sentence."""

import re
from pathlib import Path

import pytest
from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

from eschernet_prior.base.captures.checks import check_capture
from eschernet_prior.base.errors import UserError
from eschernet_prior.densify.datamanager import ONE_LENS
from style_nerf2nerf.datamanager import RESTYLED_LENSES

HALF = NerfstudioDataParserConfig(downscale_factor=2)
PLAIN = NerfstudioDataParserConfig()
REFUSED = {
    "auto-downscaled-without-masks/capture": (PLAIN, RESTYLED_LENSES, "There is no mask .*masks_2/frame_00001.png"),
    "blender-data-without-val/capture": (BlenderDataParserConfig(), RESTYLED_LENSES, "transforms_val.json is missing"),
    "equirectangular-refused-late/capture": (PLAIN, RESTYLED_LENSES, "equirectangular cameras: only views of"),
    "fisheye-and-360-densified-as-pinhole/equirectangular": (PLAIN, ONE_LENS, "equirectangular cameras: the prior"),
    "fisheye-and-360-densified-as-pinhole/fisheye": (PLAIN, ONE_LENS, "fisheye cameras: the prior"),
    "smaller-images-of-another-size/quarter_size": (HALF, RESTYLED_LENSES, "32 × 32 pixels and its camera 64 × 64"),
    "smaller-images-of-another-size/rounded_up": (HALF, RESTYLED_LENSES, "65 × 65 pixels and its camera 64 × 64"),
}


def test_the_cases_are_read_or_refused(shared: Path):
    folders = sorted(path.parent for path in (shared / "cases").rglob("transforms*.json"))
    if not folders:
        pytest.skip("needs the cases in ../shared/cases")
    for folder in dict.fromkeys(folders):
        name = str(folder.relative_to(shared / "cases"))
        dataparser, lenses, words = REFUSED.get(name, (PLAIN, RESTYLED_LENSES, None))
        if words is None:
            assert check_capture(dataparser, folder, lenses).lines, name
        else:
            with pytest.raises(UserError) as refused:
                check_capture(dataparser, folder, lenses)
            assert re.search(words, str(refused.value)), name
