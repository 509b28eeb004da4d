"""What the viewer's control panel offers while a field is restyled."""

from __future__ import annotations

from collections.abc import Sequence

from nerfstudio.viewer.viewer_elements import ViewerSlider
from torch import nn


class StyleMixer(nn.Module):
    """One slider a style: how much of it goes into the field from the next step on.

    A module without parameters, because the viewer looks for sliders on modules only.
    """

    def __init__(self, styles: Sequence[str], weights: Sequence[float]) -> None:
        """Make the sliders; the viewer shows them once it starts.

        Args:
            styles: what each style is called.
            weights: where the sliders stand at first, in [0, 1].
        """
        super().__init__()
        self._sliders: list[ViewerSlider[float]] = []
        for number, (style, weight) in enumerate(zip(styles, weights), start=1):
            slider = ViewerSlider(
                f"Style {number}: {style}", float(weight), 0.0, 1.0, 0.01, hint="Share of this style."
            )
            self._sliders.append(slider)
            setattr(self, f"style_{number}", slider)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the styles, at least 0; where all sliders stand at 0, all alike."""
        weights = tuple(float(slider.value) for slider in self._sliders)
        return weights if any(weights) else (1.0,) * len(weights)
