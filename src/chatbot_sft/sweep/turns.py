"""Jobs that take turns in one process, so that their curves grow together, and a pruner that ends the worst early."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence

from chatbot_sft.config.schema import PASSED
from chatbot_sft.preemption import Preempted
from chatbot_sft.run.turn import Pruned, Turn
from chatbot_sft.sweep.directory import Point
from chatbot_sft.sweep.worker import Taken, Worker


class InTurns(Worker):
    """Begins all jobs that are free and gives each its turn; with other workers its share of them, with a sampler
    one at a time.
    """

    def _work(self) -> None:
        """All jobs that are free, a turn each until they end; those that a sampler chooses, one at a time."""
        points = self.queue.points()
        live: list[Taken] = []
        try:
            while self._filled(live, points):
                asked = [taken for taken in list(live) if self._turn(taken, live)]
                for taken, reason in self._worst(asked):
                    self._advance(taken, live, Pruned(reason))
                if self.queue.late:
                    raise Preempted(self._timeout_name)
        except (Preempted, KeyboardInterrupt) as stop:
            end_all(live, stop)
            raise

    def _filled(self, live: list[Taken], points: Iterator[Point]) -> bool:
        """Begin what may begin now; whether there is anything to go on with."""
        from chatbot_sft import pipeline

        most = 1 if self.settings.sampler else self._share
        while len(live) < most and (point := next(points, None)):
            if taken := self._take(point):
                job = taken.job
                taken.turns = pipeline.turns(
                    job.settings, job.command, self._began(), job.named, self.warm, self.settings.turn
                )
                live.append(taken)
        return bool(live)

    @property
    def _share(self) -> int:
        """How many jobs take turns in this process: with other workers not all of them."""
        return math.ceil(self.queue.share_of(len(self.queue.study.points)))

    def _turn(self, taken: Taken, live: list[Taken]) -> bool:
        """A turn of a job; whether it may be judged now: it goes on, and has another held-out loss."""
        turn = self._advance(taken, live)
        if turn is None or self.trials is None:
            return False
        taken.steps = turn.steps
        value = turn.passed if self.settings.judged_by_answers else turn.eval_loss
        if value is None:
            return False
        self.trials.report(taken.entry.number, turn.step, value)
        self._page()
        return taken.entry.number != self.settings.revive

    def _worst(self, asked: Sequence[Taken]) -> Iterator[tuple[Taken, str]]:
        """Those that the pruner ends, and why."""
        from chatbot_sft.sweep import pruning

        if not asked or self.trials is None or self.settings.pruner is None:
            return
        curves = self.trials.curves()
        last = max(taken.steps or 0 for taken in asked) or None
        numbers, answers = [taken.entry.number for taken in asked], self.settings.judged_by_answers
        maximise = answers and self.settings.directions == ["maximise"]
        ended = pruning.worst(self.settings.pruner, curves, numbers, last, maximise)
        for taken in asked:
            if taken.entry.number in ended:
                step, value = max(curves[taken.entry.number].items())
                what = PASSED if answers else "held-out loss"
                yield (
                    taken,
                    f"sweep.pruner={self.settings.pruner}: {what} {value:.3f} at step {step}; others are"
                    f" better (sweep.revive={taken.entry.number} goes on with it)",
                )

    def _advance(self, taken: Taken, live: list[Taken], thrown: Pruned | None = None) -> Turn | None:
        """A turn of a job; None where it has ended."""
        assert taken.turns is not None
        with self._recorded(taken), taken.job.environment():
            try:
                return taken.turns.throw(thrown) if thrown else next(taken.turns)
            except StopIteration as ended:
                self._ended(taken, ended.value)
        live.remove(taken)
        taken.claim.close()
        return None


def end_all(live: Sequence[Taken], stop: Preempted | KeyboardInterrupt) -> None:
    """End all that are under way in good order: `stop` has reached one of them."""
    for taken in live:
        again = Preempted(stop.signal) if isinstance(stop, Preempted) else KeyboardInterrupt()
        with contextlib.suppress(Preempted, KeyboardInterrupt, StopIteration):
            assert taken.turns is not None
            taken.turns.throw(again)
        taken.claim.close()
