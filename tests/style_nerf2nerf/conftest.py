"""Networks that several files of tests share."""

import pytest

from style_nerf2nerf.vgg19 import VGG19Features
from vgg import SHALLOW


@pytest.fixture(scope="session")
def network() -> VGG19Features:
    """VGG19 with random weights, all style layers."""
    return VGG19Features("random")


@pytest.fixture(scope="session")
def shallow() -> VGG19Features:
    """VGG19 with random weights, the first three layers."""
    return VGG19Features("random", layers=SHALLOW)
