"""Somebody in front of the viewer, without one: buttons that are pressed right before a step."""

from __future__ import annotations

from collections.abc import Callable

from nerfstudio.viewer.utils import parse_object
from nerfstudio.viewer.viewer_elements import ViewerElement

from style_nerf2nerf.rounds.panel import StylePanel, Wish
from style_nerf2nerf.rounds.runner import Stages


def control(panel: StylePanel, name: str) -> ViewerElement:
    """The panel's element of that name."""
    (found,) = [each for _, each in parse_object(panel, ViewerElement, "") if each.name == name]
    return found


def press_at(setattr: Callable[..., None], step: int, wish: Wish, **fields: object) -> None:
    """Press a button once, right before that step, after changing fields of the panel.

    Args:
        setattr: replaces an attribute, for as long as it should.
        step: before which step.
        wish: which button.
        fields: new values by the elements' names.
    """
    enter, done = Stages.enter, []

    def pressed(self: Stages, now: int, trainer) -> None:
        if now == step and not done:
            done.append(step)
            for name, value in fields.items():
                control(self.panel, name).value = value
            # What the button calls; the viewer would take the training lock first, which is held here.
            self.panel.ask(wish)
        enter(self, now, trainer)

    setattr(Stages, "enter", pressed)
