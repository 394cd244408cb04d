"""Which batch layout a training takes: as configured, as the run began, or the one that is measured to be the
fastest here. Says so.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError
from chatbot_sft.logs import THIRD_PARTY
from chatbot_sft.run.versions import versions
from chatbot_sft.train import packing
from chatbot_sft.train.layout import Layout, candidates, packed_ladder, uncaptured
from chatbot_sft.train.rows import StepRows
from chatbot_sft.train.tuning import Plan, Trial, cache_key, choose

if TYPE_CHECKING:
    from chatbot_sft.config import Config
    from chatbot_sft.model.engine import Engine
    from chatbot_sft.train.batches import Batches
    from chatbot_sft.train.job import Job
    from chatbot_sft.train.step import Step

log = logging.getLogger(__name__)

# tokens; data whose longest, median and 90th percentile differ by less is measured once, so that a sweep over
# seeds is too
LIKE = 32
# Optimizer steps; below, capturing costs more seconds than it saves.
WORTH_CAPTURING = 200
# Tokens, of all runs that it serves; the same of packed layouts, which are captured in any case.
WORTH_COMPILING = 400_000


def configured(settings: Config, engine: Engine, model: Any) -> Layout:
    """The layout that the configuration means to the letter."""
    training = settings.training
    padding_free = training.packing or engine.padding_free(model)
    return Layout(training.per_device_train_batch_size, padding_free, bool(engine.checkpointing(settings)))


def planned(job: Job, batches: Batches, step: Step, trial: Trial, as_configured: bool) -> Plan:
    """The layout of `job`; a run that is resumed, or replayed, keeps its own."""
    meant = configured(job.settings, step.engine, step.model)
    if as_configured:
        return Plan(meant, "as configured")
    if job.origin.layout:
        began = Layout.from_dict(job.origin.layout)
        began = uncaptured(began) if step.sharded else began
        if began.packed and (why_not := step.not_packable()):
            raise UserError(_not_packed(job, why_not))
        plan = Plan(began, "as the run began")
    elif step.sharded:
        plan = _sharded(batches, step, trial, meant)
    else:
        plan = _packed(job, batches, step, trial) or _measured(job, batches, step, trial, meant)
    if plan.layout.packed and step.packed is None:  # not tried
        step.pack(functools.partial(packing.shapes, batches, trial.steps), plan.layout)
    return plan


def _not_packed(job: Job, why_not: str) -> str:
    trained = "was trained with packed conversations, which cannot be"
    if job.origin.checkpoint is None:
        return f"task=replay: the run {trained} done here: {why_not}"
    return (
        f"training.resume: {job.origin.checkpoint.folder} {trained} gone on with here: {why_not};"
        " start afresh with training.resume=never"
    )


def told(plan: Plan, meant: Layout, batch_size: int) -> None:
    """Say which layout trains, and why; what was measured goes to run.log."""
    layout = plan.layout
    times = {
        measured.layout: f", {1000 * measured.seconds:,.0f} ms a step"
        for measured in plan.measurements
        if measured.seconds is not None
    }
    other = f"; as configured: {meant.describe(batch_size)}{times.get(meant, '')}" if meant != layout else ""
    log.info("layout: %s (%s%s%s)", layout.describe(batch_size), plan.reason, times.get(layout, ""), other)
    for row in table(plan, batch_size):
        THIRD_PARTY.info("layout measured: %s", row)


def table(plan: Plan, batch_size: int) -> list[dict[str, Any]]:
    """What was measured, for the report: times in milliseconds for the typical step, peaks in GB."""
    return [
        {
            "layout": measured.layout.describe(batch_size),
            "milliseconds": measured.seconds and round(1000 * measured.seconds, 3),
            "peak_gb": measured.peak_gb,
            "why_not": measured.why_not,
        }
        for measured in plan.measurements
    ]


def _packed(job: Job, batches: Batches, step: Step, trial: Trial) -> Plan | None:
    """A layout of packed conversations, where the engine has them and they win: on a GPU."""
    import torch

    from chatbot_sft.model.loss import quantised
    from chatbot_sft.train.trials import agreed, packed_plan

    if not torch.cuda.is_available():
        return None
    if why_not := agreed(step.not_packable()):
        log.info("layout: not packed: %s", why_not)
        return None
    compiled = step.captures.runs * packing.tokens(batches, trial.steps) >= WORTH_COMPILING
    ladder = packed_ladder(job.settings.effective_batch_size, compiled, quantised(step.model))
    plan = packed_plan(step, batches, ladder, trial.steps)
    if plan is None:
        step.packed = None
    return plan


def _sharded(batches: Batches, step: Step, trial: Trial, meant: Layout) -> Plan:
    """As configured, and packed where that can be: a pass of all processes that ran out of memory in one would
    keep the others waiting, so that nothing is tried.
    """
    import torch

    from chatbot_sft.train.trials import agreed, disagreement

    reason = "training.shard=true: nothing is tried"
    if not torch.cuda.is_available() or agreed(step.not_packable()):
        return Plan(meant, reason)
    layout = replace(meant, padding_free=False, packed=True)
    step.pack(functools.partial(packing.shapes, batches, trial.steps), layout)
    rows = StepRows([batches.rows[pack] for pack in batches.step(1)])  # the same in every process
    if different := agreed(disagreement(step, rows)):
        log.warning("layout: not packed: %s", different)
        step.packed = None
        return Plan(meant, reason)
    return Plan(layout, reason)


def _measured(job: Job, batches: Batches, step: Step, trial: Trial, meant: Layout) -> Plan:
    import torch

    settings, args = job.settings, job.args
    gpu = torch.cuda.is_available()
    capturable = gpu and trial.steps >= WORTH_CAPTURING and step.capturable()
    layouts = candidates(meant, settings.effective_batch_size, settings.training.packing, gpu, capturable)
    sizes = sorted(sum(batches.lengths[row] for row in pack) for pack in batches.packs)
    key = cache_key(
        step.model.config.to_dict(),
        [asdict(settings.model), asdict(settings.lora), args.optim],
        [-(-size // LIKE) for size in (sizes[-1], sizes[len(sizes) // 2], sizes[9 * len(sizes) // 10])],
        [trial.memory_margin, meant.as_dict(), [layout.as_dict() for layout in layouts]],
        [torch.cuda.get_device_properties(0).name if gpu else torch.get_num_threads(), args.world_size],
        {name: version for name, version in versions().items() if name != "chatbot-sft"},
    )
    return choose(layouts, meant, trial, key)
