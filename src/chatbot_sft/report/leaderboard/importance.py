"""How much each key moves the metric, by Optuna's evaluators, where it is installed."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence

from chatbot_sft.extras import install
from chatbot_sft.report.leaderboard.job import Job
from chatbot_sft.report.leaderboard.rows import SEED
from chatbot_sft.report.leaderboard.settings import as_number

FEWEST, FEWEST_WITHOUT_FOREST = 4, 16  # finished jobs that fANOVA, and PED-ANOVA, tell something from
Points = tuple[tuple[tuple[str, ...], float], ...]  # of each job its values, and the metric


def importance(jobs: Sequence[Job], keys: Sequence[str], maximise: bool) -> tuple[dict[str, float], str]:
    """(share by key, the largest first, and how it was told or why it was not, for a person)."""
    done = [job for job in jobs if job.completed and job.value is not None]
    compared = [key for key in keys if key != SEED and all(key in job.settings for job in done)]
    compared = [key for key in compared if len({job.settings[key] for job in done}) > 1]
    if len(done) < FEWEST or len(compared) < 2:
        return {}, ""
    if importlib.util.find_spec("optuna") is None:
        return {}, f"The importance of each key needs Optuna and scikit-learn: {install('importance')}"
    if not _forest() and len(done) < FEWEST_WITHOUT_FOREST:
        return {}, f"The importance of each key needs scikit-learn, for so few jobs: {install('importance')}"
    points = tuple(
        (tuple(job.settings[key] for key in compared), job.value or 0.0)
        for job in sorted(done, key=lambda job: job.number)
    )
    return _shares(tuple(compared), points, maximise)


@functools.lru_cache(16)
def _shares(keys: tuple[str, ...], points: Points, maximise: bool) -> tuple[dict[str, float], str]:
    """Kept as long as no further job ends: a forest takes a tenth of a second."""
    optuna = importlib.import_module("optuna")
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces every study
    try:
        study = optuna.create_study(direction="maximize" if maximise else "minimize")
        study.add_trials(_trials(keys, points))
        evaluator, how = _evaluator()
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
    finally:
        optuna.logging.set_verbosity(before)
    known = {key: float(share) for key, share in shares.items() if math.isfinite(share)}
    return known, f"{how}, from {len(points)} completed jobs" if known else ""


def _forest() -> bool:
    return importlib.util.find_spec("sklearn") is not None


def _evaluator() -> tuple[object, str]:
    """fANOVA needs scikit-learn; PED-ANOVA needs nothing, and compares the better half with all."""
    importance = importlib.import_module("optuna.importance")
    if _forest():
        return importance.FanovaImportanceEvaluator(seed=0), "Optuna's fANOVA"
    told = f"Optuna's PED-ANOVA (fANOVA, which is surer with few jobs, needs scikit-learn: {install('importance')})"
    return importance.PedAnovaImportanceEvaluator(target_quantile=0.5), told


def _trials(keys: Sequence[str], points: Points) -> list[object]:
    trial = importlib.import_module("optuna.trial")
    distributions = importlib.import_module("optuna.distributions")
    columns = [[values[at] for values, _ in points] for at in range(len(keys))]
    spaces = {}
    for key, column in zip(keys, columns, strict=True):
        numbers = [number for text in column if (number := as_number(text)) is not None]
        if len(numbers) < len(column):
            spaces[key] = distributions.CategoricalDistribution(sorted(set(column)))
            continue
        low, high = min(numbers), max(numbers)
        spaces[key] = distributions.FloatDistribution(low, high, log=logarithmic(numbers))
    return [
        trial.create_trial(
            params={
                key: text if isinstance(spaces[key], distributions.CategoricalDistribution) else float(text)
                for key, text in zip(keys, values, strict=True)
            },
            distributions=spaces,
            value=value,
        )
        for values, value in points
    ]


def logarithmic(numbers: Sequence[float]) -> bool:
    """Whether a key's values are steps of a factor rather than of a sum: 1e-5, 3e-5, 1e-4."""
    return min(numbers) > 0 and max(numbers) / min(numbers) >= 8
