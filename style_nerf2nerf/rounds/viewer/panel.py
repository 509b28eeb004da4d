"""The viewer's control panel: selects what is shown of a run and, during training, the settings of the next round.

The viewer calls back from its own threads. Callbacks do not change the field: the press of a button is queued together
with the values of the controls, and the trainer handles it between two steps (`style_nerf2nerf.trainer`).
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerCheckbox,
    ViewerDropdown,
    ViewerElement,
    ViewerSlider,
    ViewerText,
)
from viser import GuiMarkdownHandle, ViserServer

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.rounds.mask_shapes import MaskShape
from style_nerf2nerf.rounds.storage import RoundSettings

Button = Literal["restyle", "undo"]
"""The buttons that change the training."""
CURRENT, ORIGINAL, RESTYLED = "now", "before", "restyled view"
"""What the viewer can show: the present field, the field before the first round, or the nearest restyled view."""
STARTS: dict[str, Literal["photos", "current"]] = {"the photos' field": "photos", "the field as it is": "current"}
"""The fields from which a round with new prompts can start, by their names in the panel."""
EVERYTHING, BOX, SPHERE = "everything", "inside a box", "inside a sphere"
"""The regions that a round may change; "everything" is still limited by the run's own masks."""
UPDATE_EVERY = 0.5
"""Seconds between two updates of the status line."""
REMEMBERED = 20
"""Number of recent parts of a stage from which the remaining time is estimated."""


class TextLine(ViewerElement[str]):
    """A line of text in the panel, for which nerfstudio has no element."""

    def __init__(self, name: str, text: str) -> None:
        """Set the initial text.

        Args:
            name: Name of the element, which the viewer does not show.
            text: Any characters; Markdown in it is not interpreted.
        """
        super().__init__(name)
        self.text = text
        self._handle: GuiMarkdownHandle | None = None

    def _create_gui_handle(self, viser_server: ViserServer) -> None:
        self._handle = viser_server.gui.add_markdown(_plain(self.text))

    def install(self, viser_server: ViserServer) -> None:
        """Create the element; called when the panel is built."""
        self._create_gui_handle(viser_server)

    def show(self, text: str) -> None:
        """Replace the text; can be called from any thread."""
        if text == self.text:
            return
        self.text = text
        if self._handle is not None:
            self._handle.content = _plain(text)


class StyleMixer:
    """One slider per style, which sets its weight in the losses from the next step on."""

    def __init__(self, styles: Sequence[str], weights: Sequence[float]) -> None:
        """Create the sliders for the panel.

        Args:
            styles: Name of each style.
            weights: Initial values of the sliders, in [0, 1].
        """
        self.sliders: list[ViewerSlider[float]] = [
            ViewerSlider(f"Style {number}: {style}", float(weight), 0.0, 1.0, 0.01, hint="Share of this style.")
            for number, (style, weight) in enumerate(zip(styles, weights), start=1)
        ]

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the styles, at least 0; equal if all sliders are at 0."""
        weights = tuple(float(slider.value) for slider in self.sliders)
        return weights if any(weights) else (1.0,) * len(weights)


class ViewControls:
    """Controls that select the field to show, and the interpolation between the original and the restyled field."""

    def __init__(self, restyled_views: bool) -> None:
        """Create the controls.

        Args:
            restyled_views: Whether restyled views can be shown, which requires a training.
        """
        self.on_change: Callable[[], None] = lambda: None
        """Called when the selection changes; from any thread."""
        self.keep: Callable[[float], str] | None = None
        """Function that saves the field at an amount of style and returns a message; None if fields cannot be saved."""
        self.status = TextLine("Status", "Starting.")
        choices = [CURRENT, ORIGINAL, RESTYLED] if restyled_views else [CURRENT, ORIGINAL]
        self._see = ViewerDropdown("See", CURRENT, choices, cb_hook=lambda _: self.on_change())
        self._amount: ViewerSlider[float] = ViewerSlider(
            "Style shown",
            1.0,
            0.0,
            1.0,
            0.05,
            cb_hook=lambda _: self.on_change(),
            hint="Interpolates between the photos' field (0) and the restyled field (1), without training.",
        )
        self._keep = ViewerButton("Keep this amount", lambda _: self._save())

    @property
    def elements(self) -> list[ViewerElement]:
        """The controls in order."""
        return [self.status, self._see, self._amount, self._keep]

    @property
    def see(self) -> str:
        """The selection: one of CURRENT, ORIGINAL and RESTYLED."""
        return self._see.value

    @property
    def amount(self) -> float:
        """The amount of style to show, from 0, the photos' field, to 1, the present field."""
        return float(self._amount.value)

    def _save(self) -> None:
        if self.keep is None:
            return
        try:
            self.status.show(self.keep(self.amount))
        except UserError as error:
            self.status.show(str(error))


@dataclass(frozen=True)
class Press:
    """A pressed button, and the values of the controls at that time."""

    button: Button
    settings: RoundSettings


class StylePanel:
    """The controls of a training: settings of the next round, a description of it, and the buttons."""

    def __init__(
        self,
        settings: RoundSettings,
        strength: Callable[[RoundSettings], float],
        check: Callable[[RoundSettings], None],
        prompts: bool,
        status: TextLine | None = None,
    ) -> None:
        """Create the controls.

        Args:
            settings: Initial values.
            strength: Function that returns the configured strength of a round with these settings, in (0, 1].
            check: Function that raises a UserError for settings that cannot be used.
            prompts: Whether views are restyled by a prompt; otherwise restyled pictures are given.
            status: The line that shows the current stage; default: a new one.
        """
        self._strength_of, self._check = strength, check
        self._lock = threading.Lock()
        self._presses: deque[Press] = deque()
        self.describe: Callable[[RoundSettings], str] | None = None
        """Function that describes the round that the button would start."""
        self.being_made: RoundSettings | None = None
        """Settings of the round that is being restyled; None if there is none."""
        self.num_begun = 0
        """Number of the last round, if it can be undone, else 0; updated by the training."""
        self._status = status or TextLine("Status", "Starting.")
        self._plan = TextLine("Plan", "")
        self.shape: Callable[[], MaskShape | None] = lambda: None
        """Function that returns the box or sphere that limits the next round; None if there is none."""
        self.on_shape: Callable[[], None] = lambda: None
        """Called when the type, the size or the visibility of the shape changes."""

        def changed(_: object) -> None:
            self.refresh()

        def reshaped(_: object) -> None:
            self.on_shape()
            self.refresh()

        self._limit = ViewerDropdown("May change", EVERYTHING, [EVERYTHING, BOX, SPHERE], cb_hook=reshaped)
        self._half: ViewerSlider[float] = ViewerSlider(
            "Its size",
            0.3,
            0.02,
            1.0,
            0.01,
            cb_hook=reshaped,
            hint="As a share of the distance from the camera to the scene.",
        )
        self._overlay = ViewerCheckbox("Show what may change", True, cb_hook=reshaped)
        self._prompt = ViewerText("Prompt", settings.prompt, cb_hook=changed)
        self._negative = ViewerText("Negative prompt", settings.negative_prompt, cb_hook=changed)
        start = next(name for name, value in STARTS.items() if value == settings.start)
        self._start = ViewerDropdown("New words start from", start, list(STARTS), cb_hook=changed)
        self._offered = round(strength(settings), 2)
        self._strength: ViewerSlider[float] = ViewerSlider(
            "Strength",
            self._offered if settings.strength is None else settings.strength,
            0.01,
            1.0,
            0.01,
            cb_hook=changed,
        )
        most = max(20.0, settings.guidance_scale)
        self._guidance: ViewerSlider[float] = ViewerSlider("Guidance", settings.guidance_scale, 0.0, most, 0.1)
        self._restyle = ViewerButton("Restyle now", lambda _: self.ask("restyle"))
        self._undo = ViewerButton("Undo round", lambda _: self.ask("undo"))
        self._prompts = prompts

    @property
    def elements(self) -> list[ViewerElement]:
        """The controls in order."""
        words = [self._prompt, self._negative, self._start, self._strength, self._guidance] if self._prompts else []
        limits = [self._limit, self._half, self._overlay]
        return [*words, self._plan, self._restyle, self._undo, *limits]

    @property
    def limit(self) -> str:
        """The region that the next round may change: one of EVERYTHING, BOX and SPHERE."""
        return self._limit.value

    @property
    def half(self) -> float:
        """Half the size of the box or sphere, as a share of the distance from the camera to the scene."""
        return float(self._half.value)

    @property
    def overlay(self) -> bool:
        """Whether regions that may not change are darkened."""
        return self._overlay.value

    @property
    def pending(self) -> bool:
        """Whether a request is waiting to be handled."""
        return bool(self._presses)

    def settings(self) -> RoundSettings:
        """Settings of the next round from the present values of the controls."""
        strength = float(self._strength.value)
        return RoundSettings(
            self._prompt.value,
            self._negative.value,
            float(self._guidance.value),
            None if strength == self._offered else strength,
            STARTS[self._start.value],
            self.shape(),
        )

    def refresh(self) -> None:
        """Update the description of the next round; a strength that was not changed by hand follows the prompts."""
        moved = float(self._strength.value) != self._offered
        self._offered = round(self._strength_of(self.settings()), 2)
        if not moved and float(self._strength.value) != self._offered:
            self._strength.value = self._offered
        if self.describe is not None:
            try:
                self._check(self.settings())
                self._plan.show(self.describe(self.settings()))
            except UserError as error:
                self._plan.show(str(error))

    def ask(self, button: Button) -> None:
        """Queue a press until the next step, or show in the status line why it has no effect; from any thread.

        A second press of the same button only updates the settings of the queued one. Undo removes a queued round from
        the queue.
        """
        try:
            if button == "restyle":
                self._check(self.settings())
        except UserError as error:
            self._status.show(str(error))
            return
        with self._lock:
            said = self._queue(Press(button, self.settings()))
        self._status.show(said)

    def _queue(self, press: Press) -> str:
        last = self._presses[-1] if self._presses else None
        if press.button == "restyle":
            if last is not None and last.button == "restyle":
                self._presses[-1] = press
                return "A round is already queued; its settings were updated."
            if last is None and press.settings == self.being_made:
                return "This round is already being made."
        elif last is not None and last.button == "restyle":
            self._presses.pop()
            return "The queued round is cancelled."
        elif last is not None:
            return "The last round is already being undone."
        elif self.num_begun == 0:
            return "There is no round to undo yet."
        self._presses.append(press)
        return "A round is queued." if press.button == "restyle" else "The last round is being undone."

    def take(self) -> Press | None:
        """Remove the first press from the queue and return it."""
        with self._lock:
            return self._presses.popleft() if self._presses else None

    def tell(self, text: str) -> None:
        """Show a text in the status line; can be called from any thread."""
        self._status.show(text)

    def refuse(self, why: str) -> None:
        """Show why a press had no effect, until a control is changed."""
        self._status.show(why)
        self._plan.show(why)

    @property
    def status_text(self) -> str:
        """Text of the status line."""
        return self._status.text

    @property
    def plan(self) -> str:
        """Description of the next round."""
        return self._plan.text


class StageProgress:
    """Progress and remaining time of a stage, reported a few times per second."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Set up; nothing is reported before a stage begins.

        Args:
            tell: Function that receives the text.
            clock: Function that returns the time in seconds.
        """
        self._tell, self._clock = tell, clock
        self._title, self._updated = "", float("-inf")
        self._last: tuple[int, float] = (0, 0.0)
        self._paces: deque[float] = deque(maxlen=REMEMBERED)

    def begin(self, title: str, done: int = 0) -> None:
        """Begin a stage, of which some parts may already be done."""
        self._title, self._last = title, (done, self._clock())
        self._paces.clear()
        self._updated = self._clock()
        self._tell(f"{title}.")

    def update(self, done: int, total: int) -> None:
        """Report the number of finished parts.

        The time left is estimated from the median of the last parts, which is not affected by a part that waited for
        the viewer or for a paused training.
        """
        now, (before, then) = self._clock(), self._last
        if done > before:
            self._paces.append((now - then) / (done - before))
        self._last = (done, now)
        if now - self._updated < UPDATE_EVERY and done < total:
            return
        self._updated = now
        left = ""
        if self._paces and done < total:
            minutes, seconds = divmod(round((total - done) * statistics.median(self._paces)), 60)
            left = f", {minutes}:{seconds:02d} left"
        self._tell(f"{self._title}: {done} of {total}{left}")


def _plain(text: str) -> str:
    """Escape Markdown in a text."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!~$" else letter for letter in text)
