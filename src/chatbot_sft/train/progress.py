"""What is shown while training runs, and the figures of its speed for the report."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chatbot_sft.logs import displayed
from chatbot_sft.report.words import duration
from chatbot_sft.run.wait import Wait

log = logging.getLogger(__name__)

OFTEN = 1.0  # seconds between two words to those who watch from outside


# What every entry of a log has; the rest of it is an objective's.
LOGGED = ("loss", "grad_norm", "learning_rate", "epoch", "step")


class Progress:
    """On a terminal a bar with loss, tokens per second and time left; elsewhere, and where one display shows all
    runs, a line every tenth of the run. `file` has it about every second.

    `losses` keeps (step, loss) as logged; `step_ends` the clock after each optimizer step, stopped while the
    model is evaluated or saved, `step_tokens` the tokens trained by then.
    """

    def __init__(self, wait: Wait, file: Path | None = None) -> None:
        self.wait = wait  # until the first step has ended
        self.file = file
        self._filed = 0.0  # when it was written
        self.losses: list[tuple[int, float]] = []
        self.figures: list[dict[str, float]] = []  # what an objective reports, with each of the losses
        self.step_ends: list[float] = []
        self.step_tokens: list[int] = []
        self._bar: tqdm | None = None
        # Seconds from the run's start to the end of its first step.
        self.first_step_after: float | None = None
        self.waited: dict[str, float] = {}  # the parts of it
        self.passed: float | None = None  # the last share of golden cases
        self._evaluating = 0.0

    def begin(self, state: Any) -> None:
        """As training begins; `state` is a transformers.TrainerState, here and below."""
        self.step_ends, self.step_tokens = [time.perf_counter()], [state.num_input_tokens_seen]
        # Those of a resumed run's former starts.
        entries = [entry for entry in state.log_history if "loss" in entry]
        self.losses = [(entry["step"], entry["loss"]) for entry in entries]
        self.figures = [{name: entry[name] for name in entry if name not in LOGGED} for entry in entries]
        terminal = sys.__stderr__  # what `quiet` puts in place of sys.stderr is none
        if terminal is not None and terminal.isatty() and state.is_world_process_zero and not displayed():
            self._bar = tqdm(
                total=state.max_steps,
                initial=state.global_step,
                unit="step",
                file=terminal,
                dynamic_ncols=True,
            )

    def step(self, state: Any) -> None:
        """A step has ended."""
        self.step_ends.append(time.perf_counter() - self._evaluating)
        self.step_tokens.append(state.num_input_tokens_seen)
        if self.first_step_after is None:
            self.wait.end("first_step")
            self.first_step_after, self.waited = self.wait.seconds, self.wait.parts
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def log(self, state: Any, loss: float, figures: Mapping[str, float] | None = None) -> None:
        """Show the mean loss of the steps since the last call; `figures` are of the same steps."""
        self.losses.append((state.global_step, loss))
        self.figures.append(dict(figures or {}))
        self._note(state, loss)
        rate = self.tokens_per_second() or 0.0
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {rate:,.0f} tokens/s")
        elif (
            state.global_step in (1, state.max_steps)
            or state.global_step % max(1, state.max_steps // 10) == 0
        ):
            log.info(
                "step %d/%d  loss %.3f  %s tokens/s  %s left",
                state.global_step,
                state.max_steps,
                loss,
                f"{rate:,.0f}",
                duration(self._left(state)),
            )

    def _left(self, state: Any) -> float:
        """Seconds of training that are left, at the mean speed."""
        trained, steps = self.step_ends[-1] - self.step_ends[0], max(1, len(self.step_ends) - 1)
        return float((state.max_steps - state.global_step) * trained / steps)

    def _note(self, state: Any, loss: float) -> None:
        """For those who watch; a full disk is no reason to stop."""
        if self.file is None or not state.is_world_process_zero or time.monotonic() - self._filed < OFTEN:
            return
        self._filed = time.monotonic()
        left = self._left(state)
        known = {"step": state.global_step, "steps": state.max_steps, "loss": loss, "left": left}
        known |= {} if self.passed is None else {"passed": self.passed}
        temporary = self.file.with_suffix(".new")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(known), encoding="utf-8")
            temporary.replace(self.file)

    def pause(self) -> None:
        """The model was evaluated or saved since the last step: that is no training time."""
        if self.step_ends:
            self._evaluating += time.perf_counter() - self._evaluating - self.step_ends[-1]

    def end(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self.file is not None:
            with contextlib.suppress(OSError):
                self.file.unlink()

    def tokens_per_second(self) -> float | None:
        """Real (unpadded) tokens per second over the later half of the steps: the first ones warm up. None
        where no step was made: a run that was resumed at its end.
        """
        half = len(self.step_ends) // 2
        if len(self.step_ends) < 2:
            return None
        tokens = self.step_tokens[-1] - self.step_tokens[half - 1]
        return tokens / (self.step_ends[-1] - self.step_ends[half - 1])

    def seconds_per_step(self) -> float | None:
        """Over the same steps."""
        half = len(self.step_ends) // 2
        return (
            (self.step_ends[-1] - self.step_ends[half - 1]) / (len(self.step_ends) - half) if half else None
        )
