"""What the stages of a run see of the pipeline above them."""

from __future__ import annotations

from typing import Protocol

import torch
from nerfstudio.models.base_model import Model

from style_nerf2nerf.datamanager import StyleDataManager
from style_nerf2nerf.model import StyleModel
from style_nerf2nerf.options import StylePipelineOptions


class StyledRun(Protocol):
    """A capture, the field made of it, and the options that say how it is restyled."""

    config: StylePipelineOptions
    datamanager: StyleDataManager
    _model: Model
    """The field as a training step calls it: wrapped, where there are several processes."""

    @property
    def model(self) -> StyleModel:
        """The field itself."""
        ...

    @property
    def device(self) -> torch.device | str:
        """Where the field is."""
        ...

    @property
    def style_weights(self) -> tuple[float, ...]:
        """The share of each style now."""
        ...
