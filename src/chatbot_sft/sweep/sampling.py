"""The trials of Optuna's samplers and pruners (`sweep.sampler`, `sweep.pruner`), in a journal in the sweep.

A trial of the journal and the point of the same number are one job. Each trial is asked for by a sampler
that is seeded with `seed` and the trial's number: a killed sweep goes on as it would have gone on. Optuna is
imported where one is asked for, and no earlier.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.config import SweepConfig
from chatbot_sft.errors import UserError
from chatbot_sft.extras import install
from chatbot_sft.run.report import Report
from chatbot_sft.sweep.directory import Point, Sweep
from chatbot_sft.sweep.points import Axis, Space
from chatbot_sft.sweep.study import value

if TYPE_CHECKING:
    import optuna

log = logging.getLogger(__name__)

NAME = "sweep"  # of the study in its journal
DAMAGED = "study.log.damaged"
MADE_AGAIN = "study.log.new"


def check_installed(setting: str, package: str = "optuna", how: str | None = None) -> None:
    """Raises UserError where `setting` needs a package that is not there."""
    if importlib.util.find_spec(package) is None:
        raise UserError(f"{setting}: needs {package}; {how or install('sweep')}")


@dataclass
class Trials:
    """The trials of a sweep: with a sampler it chooses their points, with a pruner they have the curves."""

    settings: SweepConfig
    space: Space
    seed: int

    @classmethod
    def of(cls, settings: SweepConfig, space: Space, seed: int) -> Trials | None:
        """Raises UserError where a package is missing; None for a sweep that needs no Optuna."""
        for name, asked in (("sampler", settings.sampler), ("pruner", settings.pruner)):
            if asked:
                check_installed(f"sweep.{name}={asked}")
        if settings.sampler == "cmaes":
            check_installed("sweep.sampler=cmaes", "cmaes", "pip install cmaes")
            if lists := [axis.typed for axis in space.axes if axis.quantity is None]:
                log.warning(
                    "sweep: cmaes chooses numbers of intervals and ranges; drawn at random: %s",
                    "  ".join(lists),
                )
        return cls(settings, space, seed) if settings.sampler or settings.pruner else None

    def open(self, place: Sweep, alone: bool = True) -> None:
        """Open the journal. One that was cut or damaged is made again from what the jobs have left, if no other
        process is writing it.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.place = place
        if not alone:
            with place.alone():  # the first worker may be the first to open it
                self.study = self._opened(place.journal_file)
                self._restore(place)
            return
        cut_line(place)
        try:
            self.study = self._opened(place.journal_file)
        except (ValueError, KeyError, AssertionError) as error:
            place.journal_file.replace(place.folder / DAMAGED)
            log.warning("sweep: study.log was damaged (%s); it is made again from the jobs' reports", error)
            self.study = self._opened(place.journal_file)
        self._restore(place)

    def _opened(self, journal: Path) -> optuna.Study:
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        kinds = optuna.study.StudyDirection
        directions = [
            kinds.MAXIMIZE if one == "maximise" else kinds.MINIMIZE for one in self.settings.directions
        ]
        self.storage = JournalStorage(JournalFileBackend(str(journal)))
        return optuna.create_study(
            storage=self.storage, study_name=NAME, directions=directions, load_if_exists=True
        )

    def _restore(self, place: Sweep) -> None:
        """Trials for points whose own are not in the journal: it was damaged, or is gone."""
        found = place.study()
        for point in (found.points if found else [])[len(self.study.trials) :]:
            self.study.enqueue_trial(self._params(point))
            self.study.ask()
        for number in range(len(self.study.trials)):
            self._choose(number)

    def begin_anew(self, numbers: Collection[int]) -> list[int]:
        """Forget what an earlier start has told of these jobs, which run again from their first step: it may be of
        other data, and would judge others. Returns those of which there was anything. No other process may have the
        journal open.
        """
        from optuna.trial import TrialState, create_trial

        trials = self.study.trials
        known = [
            number
            for number in numbers
            if trials[number].intermediate_values or trials[number].state.is_finished()
        ]
        if known:
            made = self.place.folder / MADE_AGAIN
            made.unlink(missing_ok=True)
            self.study = self._opened(made)
            for trial in trials:
                begun = create_trial(
                    state=TrialState.RUNNING,
                    params=trial.params,
                    distributions=trial.distributions,
                    system_attrs=trial.system_attrs,
                )
                self.study.add_trial(begun if trial.number in known else trial)
            made.replace(self.place.journal_file)
            self.study = self._opened(self.place.journal_file)
        return known

    @property
    def _chosen(self) -> list[Axis]:
        """The axes that the sampler chooses on: none for a sweep that runs every combination."""
        return self.space.axes if self.settings.sampler else []

    def _params(self, point: Point) -> dict[str, Any]:
        given = dict(word.split("=", 1) for word in point.overrides)
        return {axis.key: _number(axis, given[axis.key]) for axis in self._chosen}

    def points(self) -> Iterator[list[str]]:
        """The overrides of every trial there is, by number."""
        for trial in self.study.trials:
            yield [_override(axis, trial.params[axis.key]) for axis in self._chosen]

    def ask(self) -> bool:
        """Choose one more point; False where there are as many as were asked for."""
        number = len(self.study.trials)
        if self.settings.sampler is None or (
            self.settings.trials is not None and number >= self.settings.trials
        ):
            return False
        self._seed(number)
        self.study.ask()
        self._choose(number)
        return True

    def _seed(self, number: int) -> None:
        if self.settings.sampler:
            self.study.sampler = _sampler(self.settings.sampler, self.seed + number)

    def _choose(self, number: int) -> None:
        """Have the sampler choose what trial `number` has no value for yet: a start may have been killed."""
        if set(self.study.trials[number].params) == {axis.key for axis in self._chosen}:
            return
        self._seed(number)
        trial = self._trial(number)
        for axis in self._chosen:
            _suggest(trial, axis)

    def _trial(self, number: int) -> optuna.Trial:
        import optuna

        study = self.storage.get_study_id_from_name(NAME)
        key = self.storage.get_trial_id_from_study_id_trial_number(study, number)
        return optuna.trial.Trial(self.study, key)

    def report(self, number: int, step: int, judged_by: float) -> None:
        """A point of a job's curve; one that is there already stays."""
        trial = self.study.trials[number]
        if step not in trial.intermediate_values and not trial.state.is_finished():
            self._trial(number).report(judged_by, step)

    def curves(self) -> dict[int, dict[int, float]]:
        """Job → step → what it is judged by."""
        return {trial.number: trial.intermediate_values for trial in self.study.trials}

    def tell(self, number: int, report: Report, pruned: bool = False) -> None:
        """What a job came to. One that failed is not told: it may run again."""
        from optuna.trial import TrialState

        values = [value(report, metric) for metric in self.settings.metrics]
        told = [one for one in values if one is not None]
        with self.place.alone():  # another worker may be telling it too
            if pruned and self.study.trials[number].intermediate_values:
                self.study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
            elif len(told) == len(values):
                self.study.tell(number, told, skip_if_finished=True)


def cut_line(place: Sweep) -> None:
    """Take the half line away that a process left which was killed while it wrote."""
    file = place.journal_file
    if not file.is_file():
        return
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        with file.open("r+b") as journal:
            journal.truncate(whole)


def _sampler(name: str, seed: int) -> optuna.samplers.BaseSampler:
    from optuna import samplers

    kinds: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
        "random": samplers.RandomSampler, "tpe": samplers.TPESampler, "nsgaii": samplers.NSGAIISampler,
        "cmaes": functools.partial(samplers.CmaEsSampler, warn_independent_sampling=False),  # said once, above
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a part of one is experimental
        return kinds[name](seed=seed)


def _suggest(trial: optuna.Trial, axis: Axis) -> None:
    """Have the trial take a value for the axis."""
    quantity = axis.quantity
    if quantity is None:
        trial.suggest_categorical(axis.key, [word.split("=", 1)[1] for (word,) in axis.values])
    elif quantity.whole:
        step = 1 if quantity.log or quantity.step is None else int(quantity.step)
        trial.suggest_int(axis.key, int(quantity.low), int(quantity.high), step=step, log=quantity.log)
    else:
        trial.suggest_float(axis.key, quantity.low, quantity.high, step=quantity.step, log=quantity.log)


def _override(axis: Axis, chosen: Any) -> str:
    return f"{axis.key}={chosen}" if axis.quantity is None else axis.at(chosen)


def _number(axis: Axis, text: str) -> Any:
    if axis.quantity is None:
        return text
    return int(text) if axis.quantity.whole else float(text)
