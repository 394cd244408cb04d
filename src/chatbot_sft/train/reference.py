"""What the reference makes of every row: the log-probability of each of its sequences, computed once before training
and kept in the cache by content, so that every later run of the same rows from the same weights reads it.

The reference is the model as training begins, or `objective.reference`, an earlier adapter on the same base. Imported
after the engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy
import torch

from chatbot_sft import cache, distributed
from chatbot_sft.config import Config
from chatbot_sft.model.base import weights_fingerprint
from chatbot_sft.model.earlier import fingerprint, reference_fingerprint
from chatbot_sft.train.batches import PackedDataset
from chatbot_sft.train.evaluation import Part, score_table
from chatbot_sft.train.layout import uncaptured
from chatbot_sft.train.randomness import undisturbed
from chatbot_sft.train.rows import StepRows

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.train.job import Job
    from chatbot_sft.train.step import Step

log = logging.getLogger(__name__)

PART, FILE = "references", "logps.npy"
NAME = "reference"  # of the adapter, while it is in the model
# Of whose `_target_` it is known what they make of a base, where it is ours.
STAGES = ("model", "lora", "training")
# Initialisations of an adapter that are no change at all.
ZERO = (True, "gaussian")


def refer(job: Job, step: Step) -> None:
    """Give the training rows of `job` what the reference makes of them, in the layout of training."""
    if not step.objective.refers:
        return
    rows = job.batches.rows
    rows.reference = _known(job, step, rows, lambda: _of_training(job, step))


def refer_held_out(job: Job, step: Step) -> None:
    """The same for the held-out rows, as these are evaluated; `job` has not begun."""
    if not step.objective.refers or job.eval_dataset is None or job.held_out_reference is not None:
        return
    rows = PackedDataset(job.eval_dataset, job.beside)

    def compute() -> numpy.ndarray:
        with step.inference(), undisturbed(), as_reference(job, step):
            table = score_table(step, rows, "reference: held-out conversations, batches")
        return (-table[:, :, 0]).float().numpy()

    job.held_out_reference = _known(job, step, rows, compute)


def _known(job: Job, step: Step, rows: PackedDataset, compute: Callable[[], numpy.ndarray]) -> numpy.ndarray:
    """What `compute` gives, or what an earlier run of the same rows and weights has kept of it."""
    key = _key(job, step, rows)
    there = cache.find(PART, key) if key else None
    if all(distributed.gathered(there is not None)):
        log.info("reference: %s rows, as an earlier run has found", f"{len(rows):,}")
        known: numpy.ndarray = numpy.load(there / FILE)  # type: ignore[operator]  # None is no True
        return known
    began = time.perf_counter()
    values = compute()
    log.info("reference: %s rows in %.1f s", f"{len(rows):,}", time.perf_counter() - began)
    if key:
        cache.cached(
            PART, key, lambda folder: numpy.save(folder / FILE, values), "reference: log-probabilities"
        )
    return values


def _of_training(job: Job, step: Step) -> numpy.ndarray:
    """Step by step as in the first epoch, so that no micro-batch is of another size than in training."""
    batches = job.batches
    columns = batches.sequences + bool(job.beside)
    values = torch.zeros(len(batches.rows), columns, device=job.args.device)
    steps = batches.epoch(0)
    part = Part("reference: steps", len(steps))
    with undisturbed(), as_reference(job, step):
        for number, packs in enumerate(steps, 1):
            rows = StepRows([batches.rows[pack] for pack in batches.even(packs)])
            numbers = [row.number for row in rows.rows]
            own = _scores(step, rows, False, number)
            values[numbers, : batches.sequences] = own.view(len(numbers), batches.sequences)
            if job.beside:
                values[numbers, -1] = _scores(step, rows, True, number)
            part.advance()
    if job.args.world_size > 1:
        torch.distributed.all_reduce(values)
    return values.cpu().numpy()


def _scores(step: Step, rows: StepRows, beside: bool, number: int) -> torch.Tensor:
    scores = step.in_some_layout(lambda: step.scores(rows, beside), rows, number)
    if scores is None:
        assert step.failure is not None
        raise step.failure
    return scores


@contextlib.contextmanager
def as_reference(job: Job, step: Step) -> Iterator[None]:
    """`step.model` is the reference meanwhile."""
    reference = job.settings.objective.reference
    if reference is not None:
        with _other_adapter(step, reference):
            yield
    elif job.beginning is not None:
        with _other_weights(step, job.beginning):
            yield
        job.beginning = None
    else:
        yield


@contextlib.contextmanager
def _other_weights(step: Step, weights: list[torch.Tensor]) -> Iterator[None]:
    """`weights` in place of those that are trained."""
    step.gradients.whole()
    now = [parameter.detach().clone() for parameter in step.trained]
    _put(step.trained, weights)
    try:
        yield
    finally:
        step.gradients.whole()
        _put(step.trained, now)


def _put(parameters: list[torch.nn.Parameter], weights: list[torch.Tensor]) -> None:
    with torch.no_grad():
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.copy_(weight)


@contextlib.contextmanager
def _other_adapter(step: Step, folder: str) -> Iterator[None]:
    """The adapter in `folder` in place of the one that is trained. It may be of another shape, and is in no graph."""
    model, layout, active = step.model, step.layout, step.model.active_adapter
    step.gradients.whole()
    model.load_adapter(folder, adapter_name=NAME, is_trainable=False)
    model.set_adapter(NAME)
    step.layout = uncaptured(layout)
    try:
        yield
    finally:
        model.set_adapter(active)
        model.delete_adapter(NAME)
        step.layout = layout


def _key(job: Job, step: Step, rows: PackedDataset) -> str | None:
    """All that decides the values; None where a class of the user's own may."""
    settings = job.settings
    if any(settings[name]["_target_"] != Config()[name]["_target_"] for name in STAGES):
        return None
    decided = [
        weights_fingerprint(settings),
        reference_fingerprint(settings) or fingerprint(settings) or _beginning(settings),
        str(step.model.dtype),
        step.precision,
        settings.model.load_in_4bit,
        settings.model.load_in_fp8,
        settings.model.new_tokens,
        step.engine.NAME,
        job.beside,
        _content(rows.dataset),
    ]
    return hashlib.sha256(json.dumps(decided).encode()).hexdigest()[:32]


def _beginning(settings: Config) -> Any:
    """What an adapter that is new changes before training; None where that is nothing."""
    lora = settings.lora
    if settings.full_finetuning or (lora.init_lora_weights in ZERO and not lora.use_dora):
        return None
    return [settings["lora"], settings.seed]


def _content(dataset: Dataset) -> str:
    """A hash of all that is computed with, in the rows' order."""
    digest = hashlib.sha256()
    names = [name for name in ("input_ids", "labels", "parts", "kinds") if name in dataset.column_names]
    for batch in dataset.select_columns(names).with_format("arrow").iter(1000):
        for name in names:
            column = batch[name].combine_chunks()
            digest.update(column.value_lengths().to_numpy(zero_copy_only=False).tobytes())
            values = column.flatten()
            text = name == "kinds"
            digest.update(
                ",".join(values.to_pylist()).encode()
                if text
                else values.to_numpy(zero_copy_only=False).tobytes()
            )
    return digest.hexdigest()
