"""Steps that are run to see how a layout does, without a trace in the training. Imported after the engine."""

from __future__ import annotations

import contextlib
import functools
import gc
import logging
from typing import TYPE_CHECKING, Any

import torch

from chatbot_sft import distributed
from chatbot_sft.train import packing
from chatbot_sft.train.graphs import CapturedLayers, CaptureFailed
from chatbot_sft.train.layout import Layout, uncaptured_ladder
from chatbot_sft.train.randomness import undisturbed
from chatbot_sft.train.rows import StepRows, sequences
from chatbot_sft.train.scores import padded_scores
from chatbot_sft.train.tuning import Measurement, Plan, Trial, hungriest

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
    return Trial(
        step.use_layout,
        step.trial_run,
        typical,
        longest,
        steps,
        margin,
        pair_cost(step.model),
        _tolerance(step),
        len(shapes),
    )


def pair_cost(model: Any) -> float:
    """What attention computes for a pair of tokens, as a share of what the layers compute for a token: 4 floating
    point operations an element of the hidden state in each layer, beside 2 a parameter.
    """
    text = model.config.get_text_config()
    return 2 * text.hidden_size * text.num_hidden_layers / model.num_parameters()


def packed_plan(step: Step, batches: Batches, layouts: list[Layout], steps: int) -> Plan | None:
    """The first of `layouts`, all packed, in which the largest step of the run leaves `memory_margin` of the
    card free, in every process: none of the others is faster. None where packed conversations are not what
    padded ones are, which runs on one base are asked once.
    """
    rows = largest(batches, steps)
    measured: list[Measurement] = []
    step.pack(functools.partial(packing.shapes, batches, steps), layouts[0])
    if not step.captures.packs:
        if different := agreed(disagreement(step, rows)):
            log.warning("layout: not packed: %s", different)
            return None
        step.captures.packs = True
    left, first = list(layouts), True
    while left:
        layout = left.pop(0)
        uncapturable: str | None = None
        try:
            measurement = _fitted(step, layout, rows, first)
        except CaptureFailed as error:
            measurement, uncapturable = Measurement(layout), str(error)
        first = False
        if uncapturable := agreed(uncapturable):
            described = layout.describe(batches.batch_size)
            log.warning("layout: %s: cannot be captured: %s", described, uncapturable)
            tried = [found.layout for found in measured]
            left = [other for other in uncaptured_ladder(layout, batches.batch_size) if other not in tried]
            continue
        if measurement.why_not and step.captures.let_go_others(step.passes().captured):
            left.insert(0, layout)  # there may be room where the runs before have left graphs
            continue
        measured.append(hungriest(distributed.gathered(measurement)))
        if measured[-1].why_not is None:
            return Plan(layout, "packed", measured)
    return Plan(
        measured[-1].layout, "no layout fits the memory margin; the most frugal one is taken", measured
    )


def agreed(objection: str | None) -> str | None:
    """The first process's `objection` that has one: what one cannot do none of them does."""
    return next(filter(None, distributed.gathered(objection)), None)


def _fitted(step: Step, layout: Layout, rows: StepRows, first: bool) -> Measurement:
    """Whether a step of `rows` leaves the memory margin free in this process; `first`: no other was tried before."""
    total = torch.cuda.get_device_properties(step.args.device).total_memory
    try:
        step.use_layout(layout)
        if not first:  # else what the layout before held is in this one's peak
            gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with undisturbed():
            step.trial_run(layout, rows)
    except torch.OutOfMemoryError:
        return Measurement(layout, why_not="out of memory")
    peak = torch.cuda.max_memory_reserved()
    fits = peak <= (1 - step.settings.training.memory_margin) * total
    return Measurement(
        layout, peak_gb=round(peak / 1e9, 3), why_not=None if fits else "over the memory margin"
    )


def largest(batches: Batches, steps: int) -> StepRows:
    """The step with the most tokens of a run of `steps`."""
    return StepRows([batches.rows[pack] for pack in packing.largest(batches, steps)])


def disagreement(step: Step, rows: StepRows) -> str | None:
    """How the loss of the shortest two conversations of `rows`, packed, differs from that of a padded batch:
    an architecture may do in its attention what ours does not know. None where it is the same.
    """
    two = sorted(sequences(rows.rows), key=len)[:2]
    count = sum(row.trained_tokens for row in two)
    if not count:
        return None
    device = step.args.device
    with step.inference(), undisturbed():
        step.model.eval()
        padded = padded_scores(step, two)[:, 0].sum().item() / count
        packed = step.passes().loss(two, torch.tensor(count, device=device)).item()
    if abs(packed - padded) <= _tolerance(step) * abs(padded):
        return None
    return f"two conversations have loss {packed:.4f} when packed, {padded:.4f} when padded"


def _tolerance(step: Step) -> float:
    exact = step.precision is None and step.model.dtype == torch.float32
    return FLOAT32_NOISE if exact else FLOAT16_NOISE


def capture(step: Step, batches: Batches) -> None:
    """Capture every shape that the run will meet in this process, the largest first: the smaller ones then fit
    into its memory, and none comes as a surprise.
    """
    step.captured = None
    gc.collect()
    torch.cuda.empty_cache()
    by_shape: dict[int, list[Pack]] = {}
    for packs in map(batches.own, batches.epoch(0)):
        for group in (
            packs[start : start + step.layout.packs] for start in range(0, len(packs), step.layout.packs)
        ):
            if len(group) == step.layout.packs:
                length = CapturedLayers.length(max(batches.lengths[row] for pack in group for row in pack))
                by_shape.setdefault(length, list(group))
    # What fails here fails again in the step that meets it, which goes on in another layout.
    with contextlib.suppress(CaptureFailed, torch.OutOfMemoryError):
        for length in sorted(by_shape, reverse=True):
            step.trial_run(step.layout, StepRows([batches.rows[pack] for pack in by_shape[length]]))
