"""What the model makes of the held-out conversations as it trains: loss, token accuracy, sample answers.

Imported after the engine.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm
from transformers.trainer_utils import speed_metrics

from chatbot_sft.model.sharding import sharded
from chatbot_sft.objective.sequences import PREFERRED
from chatbot_sft.report.masking import masked
from chatbot_sft.run import steps
from chatbot_sft.run.directory import EVALUATIONS
from chatbot_sft.run.report import finite
from chatbot_sft.train import scores
from chatbot_sft.train.batches import PackedDataset, row_counts
from chatbot_sft.train.judge import judged_at_once
from chatbot_sft.train.randomness import undisturbed
from chatbot_sft.train.rows import Row, filler
from chatbot_sft.train.scores import packs, score_batch

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.train.job import Job
    from chatbot_sft.train.step import Step

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two words on how far an evaluation is
# Tokens of a batch on a GPU, padding among them, where nobody asked for a size: two rows at a time keep it waiting.
TOKENS = 8192
FIGURES = ("loss", "perplexity", "token_accuracy")  # of a record; None where nothing is held out
OTHERS = ("step", "seconds", "samples")  # of a record; what is neither is an objective's


def perplexity(loss: float) -> float:
    """exp(loss); infinite where a float ends, at 709 nats."""
    return math.exp(loss) if loss < 709 else math.inf


def more_figures(record: Mapping[str, Any]) -> dict[str, float]:
    """What an objective reported in a record of `Evaluations`."""
    return {name: value for name, value in record.items() if name not in (*FIGURES, *OTHERS)}


class Part:
    """Says how far a part of an evaluation is, every `EVERY` seconds: step 0 must not pass in silence.

    One that has said something says its end too: "2 of 3" alone reads as if the third were missing.
    """

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self._begun = self._said = time.monotonic()

    def advance(self) -> None:
        self.done += 1
        due = time.monotonic() - self._said >= EVERY
        if self._said > self._begun if self.done == self.total else due:
            self._said = time.monotonic()
            with tqdm.external_write_mode(file=sys.__stderr__):
                log.info("%s: %d of %d", self.name, self.done, self.total)


def evaluate(step: Step, dataset: Dataset, number: int, which: str = "held-out") -> dict[str, float]:
    """What the model makes of the conversations in `dataset` after step `number`, however they fall into batches
    and processes; `which` ones they are is said where they take long.

    eval_loss (nats per trained token), eval_perplexity, eval_token_accuracy (share of the trained tokens that
    are the likeliest one), and times.
    """
    start = time.time()
    args, batches = step.args, batches_of(dataset, step)
    with undisturbed():
        totals = torch.zeros(3, dtype=torch.float64, device=args.device)
        for _, of_rows in scored(step, PackedDataset(dataset), batches, _name(number, which)):
            totals += of_rows.sum(dim=0)
        if args.world_size > 1:
            torch.distributed.all_reduce(totals)
        loss, right, tokens = totals.tolist()
    return _of_tokens(loss, right, tokens) | _speed(start, dataset, batches, args)


def _name(number: int, which: str) -> str:
    return f"step {number}: {which} conversations, batches"


def _of_tokens(loss: float, right: float, tokens: float) -> dict[str, float]:
    mean = loss / tokens if tokens else math.nan
    return {
        "eval_loss": mean,
        "eval_perplexity": perplexity(mean),
        "eval_token_accuracy": right / tokens if tokens else math.nan,
    }


def _speed(start: float, dataset: Dataset, batches: list[list[int]], args: Any) -> dict[str, float]:
    steps = math.ceil(len(batches) / args.world_size)
    speed: dict[str, float] = speed_metrics("eval", start, num_samples=len(dataset), num_steps=steps)
    return speed


def scored(
    step: Step, rows: PackedDataset, batches: list[list[int]], name: str
) -> Iterator[tuple[list[int], torch.Tensor]]:
    """(numbers of rows, `score_batch` of their sequences and of what stands beside each row), batch by batch, of
    this process's share. How far it is is told by `name`.
    """
    args = step.args
    starts = range(0, len(batches), args.world_size)
    rounds = [batches[start : start + args.world_size] for start in starts]  # a batch for each process
    part = Part(name, len(rounds))
    step.model.eval()
    passes = _passes(rounds, rows) if sharded(step.model) else [0] * len(rounds)
    for together, least in zip(rounds, passes, strict=True):
        own = dict(enumerate(together)).get(args.process_index, [])
        if own or least:
            found = score_batch(step, with_beside(rows[own]) if own else [filler(step.pad)], least)
            if own:
                yield own, found
        part.advance()


def score_table(step: Step, rows: PackedDataset, name: str) -> torch.Tensor:
    """(rows, sequences of a row and the one beside it, 3) float64: `score_batch`, gathered from all processes."""
    args, batches = step.args, batches_of(rows.dataset, step)
    columns = len(with_beside(rows[[0]]))
    table = torch.zeros(len(rows), columns, 3, dtype=torch.float64, device=args.device)
    for numbers, found in scored(step, rows, batches, name):
        table[numbers] = found.view(len(numbers), columns, 3)
    if args.world_size > 1:
        torch.distributed.all_reduce(table)
    return table.cpu()


def evaluate_objective(job: Job, step: Step) -> dict[str, float]:
    """What the model makes of the held-out rows by an objective: its loss and figures, over all rows at once, as
    "eval_rewards/margins" and so on. Perplexity and token accuracy are of the answers that are to become likelier.
    """
    start = time.time()
    with undisturbed():
        dataset = PackedDataset(job.eval_dataset, job.beside)
        dataset.reference = job.held_out_reference
        table = score_table(step, dataset, _name(job.state.global_step, "held-out"))
    rows = dataset[list(range(len(dataset)))]
    own = len(rows[0].sequences)
    kinds = [sequence.kinds[0] for row in rows for sequence in row.sequences]
    liked = torch.tensor([kind in PREFERRED for kind in kinds])
    figures = _of_tokens(*table[:, :own].flatten(0, 1)[liked].sum(0).tolist())
    logps = -table[:, :, 0].float()
    judged = judged_at_once(step.objective, rows, logps[:, :own].flatten(), logps[:, own:].flatten())
    figures |= {f"eval_{name}": value for name, value in judged.items()}
    batches = batches_of(job.eval_dataset, step)
    return figures | _speed(start, job.eval_dataset, batches, job.args)


def with_beside(rows: Sequence[Row]) -> list[Row]:
    """The sequences of each row, followed by what stands beside it."""
    return [one for row in rows for one in (*row.sequences, *([row.beside] if row.beside else []))]


def _passes(rounds: list[list[list[int]]], rows: PackedDataset) -> list[int]:
    """How many passes the batches of each round take, all of them as many as the longest."""
    if rows.beside:
        trained = [sum(one.trained_tokens for one in with_beside(rows[[row]])) for row in range(len(rows))]
    else:
        _, trained = row_counts(rows.dataset)
    return [
        max(1, *(math.ceil(sum(trained[row] for row in batch) / scores.CHUNK) for batch in together))
        for together in rounds
    ]


def batches_of(dataset: Dataset, step: Step) -> list[list[int]]:
    """Row numbers by batch: `training.per_device_eval_batch_size` of them, on a GPU else as many as are `TOKENS`.

    Rows of a length share a batch, and what does not fit into memory fails at once.
    """
    lengths, _ = row_counts(dataset)
    rows, of_tokens = step.args.per_device_eval_batch_size, 0
    if step.args.device.type == "cuda" and step.settings.training.per_device_eval_batch_size is None:
        of_tokens = TOKENS
    batches: list[list[int]] = []
    tokens = 0  # of the last batch
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        takes = lengths[row if packs(step) or not batches else batches[-1][0]]
        if not batches or (len(batches[-1]) >= rows and tokens + takes > of_tokens):
            batches.append([])
            tokens, takes = 0, lengths[row]
        batches[-1].append(row)
        tokens += takes
    return batches


class Evaluations:
    """Keeps, logs and writes down every evaluation.

    `records` have step, loss, perplexity, token_accuracy, seconds, and samples of prompt and answer.
    `sample` makes the samples; their time counts into `seconds`. Each record is a line of
    `folder`/evaluations.jsonl as soon as it is there, so that a run which dies loses none, and one that
    resumes goes on from the records up to its checkpoint.
    """

    def __init__(self, folder: Path, sample: Callable[[], list[dict[str, str]]]) -> None:
        self.records: list[dict[str, Any]] = []
        self.reloaded: int | None = None  # the step whose weights were loaded back after training
        self._file = folder / EVALUATIONS
        self._sample = sample

    def begin(self, state: Any) -> None:
        """As training begins, at step `state.global_step`: go on from the records up to there."""
        earlier = steps.read(self._file) if state.global_step else []
        known = {record["step"]: record for record in earlier if record["step"] <= state.global_step}
        known.update({record["step"]: record for record in self.records})
        self.records[:] = [known[step] for step in sorted(known)]
        if state.is_world_process_zero:
            self._rewrite()

    def take_over_base(self, questions: Sequence[str]) -> bool:
        """Go on from the record of the model that training began with, where an earlier start of this run
        made one and put the same `questions` to it; whether it did.
        """
        base = [record for record in steps.read(self._file) if record["step"] == 0][-1:]
        if not base or [sample["prompt"] for sample in base[0]["samples"]] != list(questions):
            return False
        self.records[:] = base
        return True

    def repeat(self, state: Any, record: Mapping[str, Any]) -> None:
        """A `record` that was made of the same weights in another run."""
        self.records[:] = [copy.deepcopy(dict(record))]
        self._append(state, self.records[0])
        if record["loss"] is not None:
            log.info("step 0: held out %.3f, as an earlier job of this process has found", record["loss"])

    def take(self, state: Any, metrics: Mapping[str, float], more: Sequence[str] = ()) -> None:
        """A record of the `metrics` that `evaluate` gave, with what an objective reports beside these."""
        figures = {name: metrics[f"eval_{name}"] for name in (*FIGURES, *more)}
        seconds = self._add(state, figures, metrics["eval_runtime"])
        margin = f", margin {figures['rewards/margins']:.3f}" if "rewards/margins" in figures else ""
        with tqdm.external_write_mode(file=sys.__stderr__):
            log.info(
                "step %d: held out %.3f%s, perplexity %.1f, %.0f%% of tokens right, %.1f s",
                self._step(state),
                figures["loss"],
                margin,
                figures["perplexity"],
                100 * figures["token_accuracy"],
                seconds,
            )

    def add(self, state: Any) -> None:
        """A record of samples alone, where nothing is held out."""
        self._add(state, dict.fromkeys(FIGURES), 0.0)

    def _step(self, state: Any) -> int:
        """The step whose weights are in the model."""
        return state.global_step if self.reloaded is None else self.reloaded

    def _add(self, state: Any, figures: Mapping[str, float | None], seconds: float) -> float:
        """One more record, with samples. Returns its seconds, with those of the samples.

        A step that has a record keeps its samples: its weights are the same.
        """
        step = self._step(state)
        before = self.at(step)
        start = time.perf_counter()
        samples = before["samples"] if before else self._sample()
        seconds = round(seconds + time.perf_counter() - start, 3)
        record = {"step": step, **figures, "seconds": seconds, "samples": samples}
        self.records[:] = [*(earlier for earlier in self.records if earlier is not before), record]
        self.records.sort(key=lambda one: one["step"])
        self._append(state, record)
        return seconds

    def _append(self, state: Any, record: dict[str, Any]) -> None:
        if state.is_world_process_zero:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_line(record))

    def at(self, step: int) -> dict[str, Any] | None:
        """The record of `step`, if there is one."""
        return next((record for record in self.records if record["step"] == step), None)

    def best(self) -> dict[str, Any] | None:
        """The first record of the lowest loss during training; None where training was not evaluated."""
        measured = [record for record in self.records if record["step"] and record["loss"] is not None]
        finite_ones = [record for record in measured if math.isfinite(record["loss"])]
        return min(finite_ones, key=lambda record: record["loss"], default=None)

    def _rewrite(self) -> None:
        """The file as `records` is now, without what an earlier run left in the folder."""
        if self.records or self._file.exists():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_name(f".{EVALUATIONS}")
            temporary.write_text("".join(map(_line, self.records)), encoding="utf-8")
            temporary.replace(self._file)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(finite(masked(record)), ensure_ascii=False) + "\n"
