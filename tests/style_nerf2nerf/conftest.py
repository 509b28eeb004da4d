"""Networks that several files of tests share."""

import pytest

from style_nerf2nerf.restyler.restyler import Restyler
from style_nerf2nerf.vgg19 import VGG19Features
from vgg import SHALLOW
from view_models import stand_in_pipeline


@pytest.fixture(scope="module")
def restyler() -> Restyler:
    """The stand-in pipeline with random weights."""
    return Restyler(stand_in_pipeline(), "test")


@pytest.fixture(scope="session")
def network() -> VGG19Features:
    """VGG19 with random weights, all style layers."""
    return VGG19Features("random")


@pytest.fixture(scope="session")
def shallow() -> VGG19Features:
    """VGG19 with random weights, the first three layers."""
    return VGG19Features("random", layers=SHALLOW)
