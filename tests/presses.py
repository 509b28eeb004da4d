"""Somebody in front of the viewer, without one: buttons that are pressed right before a step."""

from __future__ import annotations

from collections.abc import Callable

from nerfstudio.viewer.viewer_elements import ViewerElement

from style_nerf2nerf.rounds.runner import RoundRunner
from style_nerf2nerf.rounds.viewer.panel import Button, StylePanel, ViewControls


def control(panel: StylePanel | ViewControls, name: str) -> ViewerElement:
    """The panel's element of that name."""
    (found,) = [each for each in panel.elements if each.name == name]
    return found


def press_at(setattr: Callable[..., None], step: int, button: Button, **fields: object) -> None:
    """Press a button once, right before that step, after changing fields of the panel.

    Args:
        setattr: replaces an attribute, for as long as it should.
        step: before which step.
        button: which one.
        fields: new values by the elements' names.
    """
    enter, done = RoundRunner.enter, []

    def pressed(self: RoundRunner, now: int, trainer) -> None:
        if now == step and not done:
            done.append(step)
            for name, value in fields.items():
                control(self.panel, name).value = value
            # What the button calls.
            self.panel.ask(button)
        enter(self, now, trainer)

    setattr(RoundRunner, "enter", pressed)
