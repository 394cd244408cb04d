"""Steps that are run to see how a layout does, without a trace in the training. Imported after the engine."""

from __future__ import annotations

import gc
import logging
from typing import TYPE_CHECKING

import torch

from chatbot_sft.train import packing
from chatbot_sft.train.evaluation import score_batch
from chatbot_sft.train.graphs import CapturedLayers, CaptureFailed
from chatbot_sft.train.layout import Layout, uncaptured
from chatbot_sft.train.randomness import undisturbed
from chatbot_sft.train.rows import StepRows
from chatbot_sft.train.tuning import Measurement, Plan, Trial

if TYPE_CHECKING:
    from chatbot_sft.train.batches import Batches, Pack
    from chatbot_sft.train.step import Step

log = logging.getLogger(__name__)

# The relative difference of one step's loss between layouts that compute the same.
FLOAT32_NOISE, FLOAT16_NOISE = 1e-4, 5e-3


def trial(step: Step, batches: Batches, steps: int) -> Trial:
    """The typical and the longest step of a run of `steps`, and a way to run them."""

    def size(packs: list[Pack]) -> int:
        return sum(batches.lengths[row] for pack in packs for row in pack)

    of_epoch = sorted(batches.epoch(0), key=size)
    from_long_to_short = sorted(batches.packs, key=lambda pack: -size([pack]))
    count = step.args.per_device_train_batch_size
    typical, longest = (
        StepRows([batches.rows[pack] for pack in packs[:count]])
        for packs in (of_epoch[len(of_epoch) // 2], from_long_to_short)
    )
    shapes = {
        CapturedLayers.length(max(batches.lengths[row] for pack in packs for row in pack))
        for packs in of_epoch
    }
    margin = step.settings.training.memory_margin
    return Trial(step.trial_run, typical, longest, steps, margin, _tolerance(step), len(shapes))


def packed_plan(step: Step, batches: Batches, layouts: list[Layout], steps: int) -> Plan | None:
    """The first of `layouts`, all packed, in which the largest step of the run leaves `memory_margin` of the
    card free: none of the others is faster. None where packed conversations are not what padded ones are.
    """
    rows = largest(batches, steps)
    total = torch.cuda.get_device_properties(step.args.device).total_memory
    limit = (1 - step.settings.training.memory_margin) * total
    measured: list[Measurement] = []
    for layout in layouts:
        step.pack(packing.shapes(batches, steps, layout.captured))
        if not measured and (different := disagreement(step, rows)):
            log.warning("layout: not packed: %s", different)
            return None
        torch.cuda.reset_peak_memory_stats()
        try:
            with undisturbed():
                step.trial_run(layout, rows)
            peak = torch.cuda.max_memory_reserved()
            why = "over the memory margin" if peak > limit else None
            measured.append(Measurement(layout, peak_gb=round(peak / 1e9, 3), why_not=why))
            if why is None:
                return Plan(layout, "packed", measured)
        except torch.OutOfMemoryError:
            measured.append(Measurement(layout, why_not="out of memory"))
        except CaptureFailed as error:
            log.warning("layout: %s: cannot be captured: %s", layout.describe(batches.batch_size), error)
            return packed_plan(step, batches, [uncaptured(layout) for layout in layouts], steps)
        gc.collect()
        torch.cuda.empty_cache()
    return Plan(layouts[-1], "no layout fits the memory margin; the most frugal one is taken", measured)


def largest(batches: Batches, steps: int) -> StepRows:
    """The step with the most tokens of a run of `steps`."""
    return StepRows([batches.rows[pack] for pack in packing.largest(batches, steps)])


def disagreement(step: Step, rows: StepRows) -> str | None:
    """How the loss of the shortest two conversations of `rows`, packed, differs from that of a padded batch:
    an architecture may do in its attention what ours does not know. None where it is the same.
    """
    two = sorted(rows.rows, key=len)[:2]
    count = sum(row.trained_tokens for row in two)
    if not count:
        return None
    device = step.args.device
    with step.inference(), undisturbed():
        step.model.eval()
        padded = score_batch(step.model, two, step.pad, device, step.autocast)[0].item() / count
        packed = step.passes().loss(two, torch.tensor(count, device=device)).item()
    if abs(packed - padded) <= _tolerance(step) * abs(padded):
        return None
    return f"two conversations have loss {packed:.4f} when packed, {padded:.4f} when padded"


def _tolerance(step: Step) -> float:
    exact = step.precision is None and step.model.dtype == torch.float32
    return FLOAT32_NOISE if exact else FLOAT16_NOISE


def capture(step: Step, batches: Batches) -> None:
    """Capture every shape that the run will meet, the largest first: the smaller ones then fit into its
    memory, and none comes as a surprise.
    """
    step.captured = None
    gc.collect()
    torch.cuda.empty_cache()
    by_shape: dict[int, list[Pack]] = {}
    for packs in batches.epoch(0):
        for group in (
            packs[start : start + step.layout.packs] for start in range(0, len(packs), step.layout.packs)
        ):
            if len(group) == step.layout.packs:
                length = CapturedLayers.length(max(batches.lengths[row] for pack in group for row in pack))
                by_shape.setdefault(length, list(group))
    for length in sorted(by_shape, reverse=True):
        step.trial_run(step.layout, StepRows([batches.rows[pack] for pack in by_shape[length]]))
