"""What the viewer's control panel offers while a field is restyled.

The viewer calls back from its own threads. Nothing here touches the field: a button leaves a request behind that the
training takes at the next step boundary (`style_nerf2nerf.trainer`), fields and sliders are read there.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Literal

from nerfstudio.viewer.viewer_elements import (
    ViewerButton,
    ViewerDropdown,
    ViewerElement,
    ViewerSlider,
    ViewerText,
)
from torch import nn
from viser import GuiMarkdownHandle, ViserServer

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.rounds.storage import RoundSettings

ViewerRequest = Literal["restyle", "undo"]
"""What a button asks for."""
CURRENT, ORIGINAL, RESTYLED = "current field", "original field", "restyled view of the nearest camera"
"""What the viewer can show."""
TELL_EVERY = 0.5
"""Seconds between two updates of the status line."""
REMEMBERED = 20
"""Parts of a stage that the time left is reckoned from."""


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


class StatusLine(ViewerElement[str]):
    """A line of text in the panel; nerfstudio has no element for one."""

    def __init__(self, text: str) -> None:
        """Begin with a text."""
        super().__init__("Status")
        self.text = text
        self._handle: GuiMarkdownHandle | None = None

    def _create_gui_handle(self, viser_server: ViserServer) -> None:
        self._handle = viser_server.gui.add_markdown(_plain(self.text))

    def install(self, viser_server: ViserServer) -> None:
        """Called by the viewer when it builds its panel."""
        self._create_gui_handle(viser_server)

    def show(self, text: str) -> None:
        """Replace the text; from any thread."""
        self.text = text
        if self._handle is not None:
            self._handle.content = _plain(text)


class StylePanel(nn.Module):
    """The controls of a run: what the next round shall look like, buttons, what to see, and a status line."""

    def __init__(
        self, settings: RoundSettings, strength: float, check: Callable[[RoundSettings], None], prompts: bool
    ) -> None:
        """Make the controls; the viewer shows them once it starts.

        Args:
            settings: where they stand at first.
            strength: of the next round as the configuration has it, in (0, 1].
            check: refuses settings that cannot work, with a UserError.
            prompts: whether views are restyled by words; not where their pictures are given.
        """
        super().__init__()
        self._check = check
        self._lock = threading.Lock()
        self._request: ViewerRequest | None = None
        self._offered = round(strength, 2)
        self._status = StatusLine("Starting.")
        self._see = ViewerDropdown("See", CURRENT, [CURRENT, ORIGINAL, RESTYLED], hint="What the viewer shows.")
        self._prompt = ViewerText(
            "Prompt", settings.prompt, hint="What the scene shall look like, from the next round on."
        )
        self._negative = ViewerText("Negative prompt", settings.negative_prompt, hint="What it shall not look like.")
        self._strength = ViewerSlider(
            "Strength",
            self._offered if settings.strength is None else settings.strength,
            0.01,
            1.0,
            0.01,
            hint="How far the next round may leave what it sees.",
        )
        self._guidance = ViewerSlider(
            "Guidance",
            settings.guidance_scale,
            0.0,
            max(20.0, settings.guidance_scale),
            0.1,
            hint="How closely it follows the prompt.",
        )
        restyle = ViewerButton("Restyle now", lambda _: self.ask("restyle"))
        undo = ViewerButton("Undo round", lambda _: self.ask("undo"))
        words = [self._prompt, self._negative, self._strength, self._guidance] if prompts else []
        # The viewer shows elements in the order of their attributes' names.
        for place, element in enumerate([self._status, self._see, *words, restyle, undo]):
            setattr(self, f"control_{place}", element)
        self.num_begun = 0
        """Rounds that can be taken back; the training keeps it."""

    @property
    def see(self) -> str:
        """What the viewer is to show: one of CURRENT, ORIGINAL and RESTYLED."""
        return self._see.value

    @property
    def pending(self) -> bool:
        """Whether a button was pressed and nothing has been done about it yet."""
        return self._request is not None

    def settings(self) -> RoundSettings:
        """What the next round shall look like, as the fields and sliders stand now."""
        strength = float(self._strength.value)
        return RoundSettings(
            self._prompt.value,
            self._negative.value,
            float(self._guidance.value),
            None if strength == self._offered else strength,
        )

    def offer_strength(self, strength: float) -> None:
        """Let the slider show the strength of the next round, unless somebody has moved it.

        Args:
            strength: in (0, 1], as the configuration has it.
        """
        moved = float(self._strength.value) != self._offered
        self._offered = round(strength, 2)
        if not moved:
            self._strength.value = self._offered

    def ask(self, request: ViewerRequest) -> None:
        """Queue a request for the next step boundary, or say in the status line what is wrong; from any thread."""
        try:
            if request == "restyle":
                self._check(self.settings())
            elif self.num_begun == 0:
                raise UserError("There is no round to undo yet.")
        except UserError as error:
            self._status.show(str(error))
            return
        with self._lock:
            self._request = request
        self._status.show("A round is queued." if request == "restyle" else "The last round is being undone.")

    def take(self) -> ViewerRequest | None:
        """The last request that nothing has been done about; it is not handed out again."""
        with self._lock:
            request, self._request = self._request, None
        return request

    def tell(self, text: str) -> None:
        """Show a text in the status line; from any thread."""
        self._status.show(text)

    @property
    def told(self) -> str:
        """What the status line says."""
        return self._status.text


class StageProgress:
    """How far a stage is and how long it will still take, told a few times a second."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        """Nothing is told before a stage begins.

        Args:
            tell: is given the text.
            clock: seconds.
        """
        self._tell, self._clock = tell, clock
        self._title, self._told = "", float("-inf")
        self._last: tuple[int, float] = (0, 0.0)
        self._paces: deque[float] = deque(maxlen=REMEMBERED)

    def begin(self, title: str, done: int = 0) -> None:
        """A stage begins, of whose parts some may be done already."""
        self._title, self._last = title, (done, self._clock())
        self._paces.clear()
        self._told = self._clock()
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
        if now - self._told < TELL_EVERY and done < total:
            return
        self._told = now
        left = ""
        if self._paces and done < total:
            minutes, seconds = divmod(round((total - done) * statistics.median(self._paces)), 60)
            left = f", {minutes}:{seconds:02d} left"
        self._tell(f"{self._title}: {done} of {total}{left}")


def _plain(text: str) -> str:
    """Text whose characters mean nothing in Markdown."""
    return "".join(f"\\{letter}" if letter in "\\`*_{}[]<>#|!~$" else letter for letter in text)
