"""What the viewer's control panel offers: what to see of a run, and, while it is trained, what the next round does.

The viewer calls back from its own threads. Nothing here touches the field: a press of a button is kept, with what the
fields and sliders said, until the training takes it at the next step boundary (`style_nerf2nerf.trainer`).
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
"""The buttons that change what is trained."""
CURRENT, ORIGINAL, RESTYLED = "now", "before", "restyled view"
"""What the viewer can show: the field now, before the first round, or the nearest picture that it is retrained on."""
STARTS: dict[str, Literal["photos", "current"]] = {"the photos' field": "photos", "the field as it is": "current"}
"""What a round with other words can start from, by the panel's names."""
EVERYTHING, BOX, SPHERE = "everything", "inside a box", "inside a sphere"
"""What a round may change; everything includes what the run's own masks allow."""
UPDATE_EVERY = 0.5
"""Seconds between two updates of the status line."""
REMEMBERED = 20
"""Number of recent parts of a stage from which the remaining time is estimated."""


class TextLine(ViewerElement[str]):
    """A line of text in the panel, for which nerfstudio has no element."""

    def __init__(self, name: str, text: str) -> None:
        """Begin with a text.

        Args:
            name: What tests call it; the viewer shows the text alone.
            text: Any characters; none of them mean anything in Markdown here.
        """
        super().__init__(name)
        self.text = text
        self._handle: GuiMarkdownHandle | None = None

    def _create_gui_handle(self, viser_server: ViserServer) -> None:
        self._handle = viser_server.gui.add_markdown(_plain(self.text))

    def install(self, viser_server: ViserServer) -> None:
        """Called when the panel is built."""
        self._create_gui_handle(viser_server)

    def show(self, text: str) -> None:
        """Replace the text; from any thread."""
        if text == self.text:
            return
        self.text = text
        if self._handle is not None:
            self._handle.content = _plain(text)


class StyleMixer:
    """One slider a style: how much of it goes into the field from the next step on."""

    def __init__(self, styles: Sequence[str], weights: Sequence[float]) -> None:
        """Make the sliders; the panel shows them.

        Args:
            styles: What each style is called.
            weights: Where the sliders stand at first, in [0, 1].
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
    """What to see of a run: which field, and how far on the way from the photos to the restyled one."""

    def __init__(self, restyled_views: bool) -> None:
        """Make the controls.

        Args:
            restyled_views: Whether there are restyled views to see; only a training has them.
        """
        self.on_change: Callable[[], None] = lambda: None
        """Is called when something else is to be seen; from any thread."""
        self.keep: Callable[[float], str] | None = None
        """Saves the field at an amount of style and says where; None where nothing can be saved."""
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
            hint="From the photos' field at 0 to the restyled one at 1, without training.",
        )
        self._keep = ViewerButton("Keep this amount", lambda _: self._save())

    @property
    def elements(self) -> list[ViewerElement]:
        """The controls in their order."""
        return [self.status, self._see, self._amount, self._keep]

    @property
    def see(self) -> str:
        """What the viewer is to show: one of CURRENT, ORIGINAL and RESTYLED."""
        return self._see.value

    @property
    def amount(self) -> float:
        """How much of the style is to be seen, from 0, the photos' field, to 1, the field as it is."""
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
    """A button that was pressed, and where the fields and sliders stood then."""

    button: Button
    settings: RoundSettings


class StylePanel:
    """The controls of a training: what the next round does, what a press would do, and the buttons."""

    def __init__(
        self,
        settings: RoundSettings,
        strength: Callable[[RoundSettings], float],
        check: Callable[[RoundSettings], None],
        prompts: bool,
        status: TextLine | None = None,
    ) -> None:
        """Make the controls.

        Args:
            settings: Where they stand at first.
            strength: What the configuration has for a next round with such words, in (0, 1].
            check: Refuses settings that cannot work, with a UserError.
            prompts: Whether views are restyled by words; not where their pictures are given.
            status: The line that says what is going on; default: one of its own.
        """
        self._strength_of, self._check = strength, check
        self._lock = threading.Lock()
        self._presses: deque[Press] = deque()
        self.describe: Callable[[RoundSettings], str] | None = None
        """Says in a sentence what a press of the buttons would do."""
        self.being_made: RoundSettings | None = None
        """What a round that is being restyled was asked for; None while none is."""
        self.num_begun = 0
        """Number of the last round, if it can be undone, else 0; updated by the training."""
        self._status = status or TextLine("Status", "Starting.")
        self._plan = TextLine("Plan", "")
        self.shape: Callable[[], MaskShape | None] = lambda: None
        """Where the box or the sphere is that limits the next round; None where none is placed."""
        self.on_shape: Callable[[], None] = lambda: None
        """Is called when another kind or size of shape is chosen, or is to be seen or not."""

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
            hint="As a share of the way from the camera to the scene.",
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
        """The controls in their order."""
        words = [self._prompt, self._negative, self._start, self._strength, self._guidance] if self._prompts else []
        limits = [self._limit, self._half, self._overlay]
        return [*words, self._plan, self._restyle, self._undo, *limits]

    @property
    def limit(self) -> str:
        """What the next round may change: one of EVERYTHING, BOX and SPHERE."""
        return self._limit.value

    @property
    def half(self) -> float:
        """Half the size of the box or the sphere, as a share of the way from the camera to the scene."""
        return float(self._half.value)

    @property
    def overlay(self) -> bool:
        """Whether what may not change is shown darker."""
        return self._overlay.value

    @property
    def pending(self) -> bool:
        """Whether a request is waiting to be handled."""
        return bool(self._presses)

    def settings(self) -> RoundSettings:
        """What the next round should look like, as the fields and sliders stand now."""
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
        """Say what a press would do now; a strength that has not been moved follows the words."""
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
        """Keep a press for the next step boundary, or say in the status line why it does nothing; from any thread.

        A second press of the same button before the first was taken changes nothing but the words it takes; undoing a
        round that has not begun yet only takes it out of the queue.
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
                return "A round is queued already; it takes these settings."
            if last is None and press.settings == self.being_made:
                return "This very round is being made."
        elif last is not None and last.button == "restyle":
            self._presses.pop()
            return "The queued round is cancelled."
        elif last is not None:
            return "The last round is being undone already."
        elif self.num_begun == 0:
            return "There is no round to undo yet."
        self._presses.append(press)
        return "A round is queued." if press.button == "restyle" else "The last round is being undone."

    def take(self) -> Press | None:
        """The first press that nothing has been done about; it is not handed out again."""
        with self._lock:
            return self._presses.popleft() if self._presses else None

    def tell(self, text: str) -> None:
        """Show a text in the status line; from any thread."""
        self._status.show(text)

    def refuse(self, why: str) -> None:
        """Say why a press did nothing, until a control is changed."""
        self._status.show(why)
        self._plan.show(why)

    @property
    def told(self) -> str:
        """Text of the status line."""
        return self._status.text

    @property
    def plan(self) -> str:
        """What a press would do."""
        return self._plan.text


class StageProgress:
    """Progress and remaining time of a stage, reported a few times per second."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Set up; nothing is reported before a stage begins.

        Args:
            tell: Is given the text.
            clock: Seconds.
        """
        self._tell, self._clock = tell, clock
        self._title, self._updated = "", float("-inf")
        self._last: tuple[int, float] = (0, 0.0)
        self._paces: deque[float] = deque(maxlen=REMEMBERED)

    def begin(self, title: str, done: int = 0) -> None:
        """A stage begins, of whose parts some may be done already."""
        self._title, self._last = title, (done, self._clock())
        self._paces.clear()
        self._updated = self._clock()
        self._tell(f"{title}.")

    def update(self, done: int, total: int) -> None:
        """So many of the stage's parts are done.

        The time left is reckoned from the median of the last parts: one that waited while training was paused, or for
        the viewer, does not count.
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
    """Text whose characters mean nothing in Markdown."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!~$" else letter for letter in text)
