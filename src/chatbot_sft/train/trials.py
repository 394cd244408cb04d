"""Steps that are run to see how a layout does, without a trace in the training. Imported after the engine."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import torch

from chatbot_sft.train.graphs import CapturedLayers
from chatbot_sft.train.rows import StepRows
from chatbot_sft.train.tuning import Trial

if TYPE_CHECKING:
    from chatbot_sft.train.batches import Batches, Pack
    from chatbot_sft.train.step import Step

FLOAT32_NOISE, FLOAT16_NOISE = (
    1e-4,
    5e-3,
)  # relative difference of one step's loss between layouts that compute the same


def trial(step: Step, batches: Batches, steps: int) -> Trial:
    """The typical and the longest step of a run of `steps`, and a way to run them."""

    def size(packs: list[Pack]) -> int:
        return sum(batches.lengths[row] for pack in packs for row in pack)

    of_epoch = sorted(batches.epoch(0), key=size)
    longest = sorted(batches.packs, key=lambda pack: -size([pack]))
    count = step.args.per_device_train_batch_size
    typical, longest = (
        StepRows([batches.rows[pack] for pack in packs[:count]])
        for packs in (of_epoch[len(of_epoch) // 2], longest)
    )
    shapes = {
        CapturedLayers.length(max(batches.lengths[row] for pack in packs for row in pack))
        for packs in of_epoch
    }
    exact = step.precision is None and step.model.dtype == torch.float32
    tolerance = FLOAT32_NOISE if exact else FLOAT16_NOISE
    return Trial(
        step.trial_run, typical, longest, steps, step.settings.training.memory_margin, tolerance, len(shapes)
    )


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
