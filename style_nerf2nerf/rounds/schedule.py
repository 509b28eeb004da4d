"""Schedule of a run's rounds: those that have begun, their settings, and the begin of the next; kept in the run folder.

The configuration plans the rounds. In the viewer the next round can be started early, rounds can be added, prompts can
be changed between rounds, and the last round can be undone. Each of these is recorded *before* it takes effect, so that
an interrupted run resumes with the same rounds:

    rounds.json        the rounds that have begun, their planned number, and the settings of the next one
    undo/round_01.ckpt the state of the run before that round: weights, optimizers, schedulers
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json, write_json
from style_nerf2nerf.rounds.storage import RoundsConfig, RoundSettings, Start

SCHEDULE_FILE = "rounds.json"


@dataclass(frozen=True)
class BegunRound:
    """A round that has begun."""

    begin: int
    """Its first retraining step."""
    settings: RoundSettings
    """Its settings, including the strength."""
    start: Start = "current"
    """The field from which its views were rendered and its retraining started."""


class RoundSchedule:
    """The planned and the begun rounds of a run."""

    begun: tuple[BegunRound, ...]
    """Rounds 1, 2, … in order."""
    end: int | None
    """Total steps of a run whose last round was undone; else None."""
    undoing: bool
    """Whether an undo is in progress."""
    next_settings: RoundSettings | None
    """Settings of the next round chosen in the viewer; None: the configured ones."""

    def __init__(self, run_dir: Path, config: RoundsConfig) -> None:
        """Read the run folder; nothing is written.

        The number of rounds in the file is used, unless the configured number has changed since it was written.

        Raises:
            UserError: If the file is damaged.
        """
        self.path, self.config = run_dir / SCHEDULE_FILE, config
        try:
            found: dict[str, Any] = read_json(self.path) if self.path.is_file() else {}
            self.begun = tuple(
                BegunRound(each["begin"], RoundSettings.from_json(each["settings"]), each["start"])
                for each in found.get("begun", ())
            )
            chosen = found.get("next_settings")
            self.next_settings = None if chosen is None else RoundSettings.from_json(chosen)
            self.undoing, self.end = bool(found.get("undoing", False)), found.get("end")
            self.rounds = int(found.get("rounds", config.rounds))
            if found.get("configured", config.rounds) != config.rounds:
                self.rounds = max(config.rounds, len(self.begun))
                self.end = self.end if self.rounds == len(self.begun) else None
        except (ValueError, TypeError, AttributeError, KeyError):
            raise UserError(
                f"{self.path} is damaged: restore it, or start a new run with another --timestamp."
            ) from None

    @property
    def next_begin(self) -> int | None:
        """First step of the next round, unless it is requested earlier; None after the last round."""
        if self.end is not None or len(self.begun) >= self.rounds:
            return None
        return self._after_last

    @property
    def total_steps(self) -> int:
        """Total steps of the run, including those of a field that it started from."""
        if self.end is not None:
            return self.end
        return self._after_last + (self.rounds - len(self.begun)) * self.config.retrain_steps

    @property
    def reconstruction_end(self) -> int:
        """First step of the first round."""
        return self.begun[0].begin if self.begun else self.config.reconstruction_end

    @property
    def _after_last(self) -> int:
        if not self.begun:
            return self.config.reconstruction_end
        return self.begun[-1].begin + self.config.retrain_steps

    def number_at(self, step: int) -> int:
        """The begun round of a step, counted from 1; 0 during the reconstruction."""
        return sum(each.begin <= step for each in self.begun)

    def start_of_next(self, settings: RoundSettings, step: int | None = None) -> Start:
        """The field from which the next round starts: the photos' field if its prompts are new and its settings say so.

        Args:
            settings: Settings of the round.
            step: First step of the round; None: after the last round.
        """
        before = self._before(step)
        return (
            "photos"
            if before and settings.start == "photos" and settings.words != before[-1].settings.words
            else "current"
        )

    def strength_of_next(self, settings: RoundSettings, step: int | None = None) -> float:
        """The configured strength of the next round, which decreases from round to round on the same field.

        Args:
            settings: Settings of the round, whose own strength is ignored.
            step: First step of the round; None: after the last round.
        """
        before, number = self._before(step), 1
        if self.start_of_next(settings, step) == "current":
            for each in reversed(before):
                number += 1
                if each.start == "photos":
                    break
        return self.config.strength_of(number)

    def next_number(self, step: int | None) -> int:
        """The number of a round that would begin at a step, or after the last round, counted from 1."""
        return len(self._before(step)) + 1

    def describe(self, settings: RoundSettings, step: int | None, words: bool) -> str:
        """Describe the next round for the viewer.

        Args:
            settings: Settings of the round.
            step: First step of the round; None: after the last round.
            words: Whether views are restyled by a prompt; otherwise restyled pictures are given.
        """
        number = self.next_number(step)
        photos = number == 1 or self.start_of_next(settings, step) == "photos"
        said = f"round {number} as " + (f"“{settings.prompt}”" if words else "the given pictures")
        said += ", from the photos' field" if photos else ", from the field as it is"
        if words:
            strength = self.strength_of_next(settings, step) if settings.strength is None else settings.strength
            said += f", strength {strength:.2f}"
        return said if settings.mask is None else f"{said}, only inside the {settings.mask.kind}"

    def _before(self, step: int | None) -> tuple[BegunRound, ...]:
        """The rounds before a step, without one that begins at this step."""
        return self.begun[:-1] if self.begun and self.begun[-1].begin == step else self.begun

    def begin(self, step: int, settings: RoundSettings) -> None:
        """Record that a round begins at a step.

        It replaces a last round that begins at the same step, because the field has not been trained on that round.
        """
        self.begun = self._before(step)
        start = self.start_of_next(settings)
        if settings.strength is None:
            settings = replace(settings, strength=self.strength_of_next(settings))
        self.begun = (*self.begun, BegunRound(step, settings, start))
        self.rounds, self.end = max(self.rounds, len(self.begun)), None
        self._write()

    def choose(self, settings: RoundSettings) -> None:
        """Record the settings of the next round, if they have changed."""
        if settings != self.next_settings:
            self.next_settings = settings
            self._write()

    def begin_undo(self) -> None:
        """Record that the last round is being undone, so that a resumed run completes the undo.

        Raises:
            UserError: If no round has begun.
        """
        if not self.begun:
            raise UserError("There is no round to undo.")
        self.undoing = True
        self._write()

    def finish_undo(self, step: int) -> None:
        """Record that the last round is undone, and that the run ends here unless a new round is requested.

        Args:
            step: Number of training steps so far.
        """
        self.begun, self.undoing, self.end = self.begun[:-1], False, step
        self.rounds = len(self.begun)
        self._write()

    def undo_path(self, number: int) -> Path:
        """File with the state before a round (counted from 1)."""
        return self.path.parent / "undo" / f"round_{number:02d}.ckpt"

    def _write(self) -> None:
        write_json(
            self.path,
            {
                "configured": self.config.rounds,
                "rounds": self.rounds,
                "end": self.end,
                "undoing": self.undoing,
                "begun": [asdict(each) for each in self.begun],
                "next_settings": None if self.next_settings is None else asdict(self.next_settings),
            },
        )
