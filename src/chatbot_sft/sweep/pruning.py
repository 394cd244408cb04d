"""Which of the jobs under way end now: one of Optuna's pruners judges their held-out losses, or golden answers.

Optuna's pruners are made for trials that come one after another: what they say of a trial depends on those
that were asked about before it. Jobs that take turns grow together, so each is judged as if it had come last:
with the curves of all the others before it. Nothing is kept between two judgements.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

Curves = Mapping[int, Mapping[int, float]]  # job → step → what it is judged by

HALVING, BRACKETS = 2, 3  # of so many jobs one goes on, at each rung
# Halving spares what has come to half of a run: to end one of the last two saves little, and it may be the
# winner, as the order of close ones still changes while the learning rate falls.
SPARED = 0.5
NAME = "judged"  # Hyperband chooses a job's bracket by it, and by the job's number
FEWEST = 2  # others with a loss at the step: fewer have no median to speak of
PATIENCE = 2  # evaluations without a better loss, before the median counts


def worst(
    name: str, curves: Curves, asked: Collection[int], last: int | None, maximise: bool = False
) -> list[int]:
    """Those of `asked` that the pruner `name` ends by the `curves` of all; `last` is the last step of a run."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sign = -1 if maximise else 1
    known = {
        job: {step: sign * value for step, value in curve.items()} for job, curve in curves.items() if curve
    }
    until = SPARED * last if last and name == "halving" else math.inf
    judged = [job for job in asked if job in known and max(known[job]) < until]
    if len(known) < 2 or not judged:
        return []
    first = min(min(curve) for curve in known.values())
    trials = _seen(_pruner(name, first, last), known)
    return [job for job in judged if _ends(_pruner(name, first, last), trials, job, known[job])]


def _pruner(name: str, first: int, last: int | None) -> optuna.pruners.BasePruner:
    """A rung of halving is at the `first` evaluation, and at each step that is twice as far."""
    from optuna import pruners

    if name == "hyperband":
        most = max(first, last or first)
        return pruners.HyperbandPruner(min_resource=first, max_resource=most, reduction_factor=BRACKETS)
    if name == "halving":
        return pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=HALVING)
    median = pruners.MedianPruner(n_startup_trials=0, n_warmup_steps=first + 1, n_min_trials=FEWEST)
    if name == "median":
        return median
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is experimental
        return pruners.PatientPruner(median, patience=PATIENCE)


def _study(
    pruner: optuna.pruners.BasePruner, storage: optuna.storages.BaseStorage | None = None
) -> optuna.Study:
    import optuna

    return optuna.create_study(storage=storage, study_name=NAME, direction="minimize", pruner=pruner)


def _seen(pruner: optuna.pruners.BasePruner, curves: Curves) -> list[FrozenTrial]:
    """A trial for every job number up to the last, with what the pruner notes of each as its curve grows."""
    study = _study(pruner)
    for number in range(max(curves) + 1):
        _grow(study.ask(), curves.get(number, {}))
    return study.trials


def _ends(
    pruner: optuna.pruners.BasePruner, trials: list[FrozenTrial], job: int, curve: Mapping[int, float]
) -> bool:
    """What the pruner says of `job` after it has seen all the others."""
    from optuna.storages import InMemoryStorage
    from optuna.trial import Trial, TrialState, create_trial

    storage = InMemoryStorage()
    study = _study(pruner, storage)
    for trial in trials:
        losses = trial.intermediate_values
        if trial.number == job:
            study.add_trial(create_trial(state=TrialState.RUNNING))
        elif losses:
            noted = create_trial(
                value=losses[max(losses)], intermediate_values=losses, system_attrs=trial.system_attrs
            )
            study.add_trial(noted)
        else:
            study.add_trial(create_trial(state=TrialState.FAIL))
    key = storage.get_trial_id_from_study_id_trial_number(storage.get_study_id_from_name(NAME), job)
    return _grow(Trial(study, key), curve)


def _grow(trial: optuna.trial.Trial, curve: Mapping[int, float]) -> bool:
    """Report a curve step by step; what the pruner says at its end."""
    said = False
    for step in sorted(curve):
        trial.report(curve[step], step)
        said = trial.should_prune()
    return said
