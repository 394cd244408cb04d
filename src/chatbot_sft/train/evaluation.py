"""What the model makes of the held-out conversations while it trains: loss, token accuracy, sample answers. Imported after the engine."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import EarlyStoppingCallback, TrainerCallback

from chatbot_sft.report.masking import masked
from chatbot_sft.run.report import finite
from chatbot_sft.train.sampler import row_lengths

log = logging.getLogger(__name__)

EVERY = 10.0  # seconds between two words on how far an evaluation is
CHUNK = 1024  # positions whose logits exist at one time
FILE = "evaluations.jsonl"


def token_scores(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """(rows, 3) of float64: the summed loss in nats, the tokens predicted right, and the trained tokens of each row.

    Logits are computed at trained positions alone, `CHUNK` at a time: a hook hands the output layer the hidden states to use, so whatever a model
    does to its logits afterwards (softcapping, scaling) is done by its own forward, in either engine. Further chunks go through a forward of two
    tokens: one token alone takes Unsloth's decoding path, which has no output layer to hook.
    """
    targets = inputs["labels"][:, 1:]
    trained = targets != -100
    rows, targets = trained.nonzero()[:, 0], targets[trained]
    scores = torch.zeros(len(trained), 3, dtype=torch.float64, device=targets.device)
    hidden: torch.Tensor | None = None

    def swap(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal hidden
        if hidden is None:
            hidden = arguments[0][:, :-1][trained.to(arguments[0].device)]
        return (hidden[None, start : start + CHUNK], *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(swap)
    try:
        for start in range(0, len(targets), CHUNK):
            if hidden is None:
                forward = {name: value for name, value in inputs.items() if name != "labels"}
            else:
                forward = {"input_ids": inputs["input_ids"][:1, :2]}
            logits = model(**forward, use_cache=False).logits[0]
            target = targets[start : start + CHUNK].to(logits.device)
            loss = cross_entropy(logits.float(), target, reduction="none")
            right = logits.argmax(-1) == target
            score = torch.stack([loss.double(), right.double(), torch.ones_like(loss, dtype=torch.float64)], dim=1)
            scores.index_add_(0, rows[start : start + CHUNK], score.to(scores.device))
    finally:
        hook.remove()
    return scores


def perplexity(loss: float) -> float:
    """exp(loss); infinite where a float ends, at 709 nats."""
    return math.exp(loss) if loss < 709 else math.inf


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Leave every random number generator as it was: a data loader draws a seed from torch's, and dropout would go on elsewhere."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


class Part:
    """Says how far a part of an evaluation is, every `EVERY` seconds: nothing is worse than silence at step 0."""

    def __init__(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self._said = time.monotonic()

    def advance(self) -> None:
        self.done += 1
        if time.monotonic() - self._said >= EVERY and self.done < self.total:
            self._said = time.monotonic()
            with tqdm.external_write_mode(file=sys.__stderr__):
                log.info("%s: %d of %d", self.name, self.done, self.total)


class HeldOut:
    """For a `transformers.Trainer`: `evaluate` and `predict` that score tokens, leave the training undisturbed, and do not depend on how rows fall
    into batches.

    Metrics: eval_loss (nats per trained token), eval_perplexity, eval_token_accuracy (share of the trained tokens that are the likeliest one).
    """

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        with undisturbed():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> Any:
        with undisturbed():
            return super().predict(*args, **kwargs)

    def _get_eval_sampler(self, eval_dataset: Any) -> list[int]:
        # Longest first: rows of a length share a batch, and what does not fit into memory fails at once.
        lengths = row_lengths(eval_dataset)
        return sorted(range(len(lengths)), key=lambda row: -lengths[row])

    def evaluation_loop(self, dataloader: Any, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> Any:
        which = "held-out" if metric_key_prefix == "eval" else "trained"
        self._part = Part(f"step {self.state.global_step}: {which} conversations, batches", len(dataloader))
        output = super().evaluation_loop(dataloader, *args, metric_key_prefix=metric_key_prefix, **kwargs)
        loss, right, tokens = output.predictions.sum(axis=0)
        output.metrics[f"{metric_key_prefix}_loss"] = float(loss / tokens)
        output.metrics[f"{metric_key_prefix}_perplexity"] = perplexity(loss / tokens)
        output.metrics[f"{metric_key_prefix}_token_accuracy"] = float(right / tokens)
        return output

    def prediction_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """(loss per trained token, `token_scores`, None). The loop gathers and joins the scores; the loss alone would have to be weighted."""
        with torch.no_grad(), self.compute_loss_context_manager():
            scores = token_scores(model, self._prepare_inputs(inputs))
        self._part.advance()
        loss, _, tokens = scores.sum(dim=0)
        return loss / tokens, scores, None


class Evaluations(TrainerCallback):
    """Keeps, logs and writes down every evaluation: `records` of step, loss, perplexity, token_accuracy, seconds and samples of prompt and answer.

    `sample` makes the samples; their time counts into `seconds`. Each record is a line of `folder`/evaluations.jsonl as soon as it is there, so that
    a run which dies loses none, and one that resumes goes on from the records up to its checkpoint.
    """

    def __init__(self, folder: Path, sample: Callable[[], list[dict[str, str]]], early_stopping: EarlyStoppingCallback | None = None) -> None:
        self.records: list[dict[str, Any]] = []
        self.reloaded: int | None = None  # the step whose weights were loaded back after training
        self._file = folder / FILE
        self._sample = sample
        self._early_stopping = early_stopping

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        earlier = _lines(self._file) if state.global_step else []
        known = {record["step"]: record for record in earlier if record["step"] <= state.global_step}
        known.update({record["step"]: record for record in self.records})
        self.records[:] = [known[step] for step in sorted(known)]
        if state.is_world_process_zero:
            self._rewrite()
        if state.global_step and self._early_stopping is not None and (kept := state.stateful_callbacks.get(type(self._early_stopping).__name__)):
            self._early_stopping.early_stopping_patience_counter = kept["attributes"]["early_stopping_patience_counter"]

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **kwargs: Any) -> None:
        loss = metrics["eval_loss"]
        # The trainer compares after this; what it then calls the best must be on disk to be loaded at the end.
        if args.load_best_model_at_end and state.global_step and (state.best_metric is None or loss < state.best_metric):
            control.should_save = True
        self.add(state, loss, metrics["eval_perplexity"], metrics["eval_token_accuracy"], metrics["eval_runtime"])

    def add(
        self, state: Any, loss: float | None = None, perplexity: float | None = None, token_accuracy: float | None = None, seconds: float = 0.0
    ) -> None:
        """One more record, with samples by the first process. A step that has a record keeps its samples: its weights are the same."""
        step = state.global_step if self.reloaded is None else self.reloaded
        before = self.at(step)
        start = time.perf_counter()
        samples = before["samples"] if before else self._sample() if state.is_world_process_zero else []
        seconds = round(seconds + time.perf_counter() - start, 3)
        record = {"step": step, "loss": loss, "perplexity": perplexity, "token_accuracy": token_accuracy, "seconds": seconds, "samples": samples}
        self.records[:] = [*(kept for kept in self.records if kept is not before), record]
        self.records.sort(key=lambda kept: kept["step"])
        if state.is_world_process_zero:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(_line(record))
        if loss is not None:
            with tqdm.external_write_mode(file=sys.__stderr__):
                log.info(
                    "step %d: held out %.3f, perplexity %.1f, %.0f%% of tokens right, %.1f s", step, loss, perplexity, 100 * token_accuracy, seconds
                )

    @property
    def stopped_early(self) -> bool:
        stopping = self._early_stopping
        return stopping is not None and stopping.early_stopping_patience_counter >= stopping.early_stopping_patience

    def at(self, step: int) -> dict[str, Any] | None:
        """The record of `step`, if there is one."""
        return next((record for record in self.records if record["step"] == step), None)

    def best(self) -> dict[str, Any] | None:
        """The first record of the lowest loss during training; None where training was not evaluated."""
        trained = [record for record in self.records if record["step"] and record["loss"] is not None and math.isfinite(record["loss"])]
        return min(trained, key=lambda record: record["loss"], default=None)

    def _rewrite(self) -> None:
        """The file as `records` is now, without what an earlier run left in the folder."""
        if self.records or self._file.exists():
            self._file.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._file.with_name(f".{FILE}")
            temporary.write_text("".join(map(_line, self.records)), encoding="utf-8")
            temporary.replace(self._file)


def _line(record: dict[str, Any]) -> str:
    return json.dumps(finite(masked(record)), ensure_ascii=False) + "\n"


def _lines(file: Path) -> list[dict[str, Any]]:
    """The records of `file`; a last line that was cut off as the process died is left out."""
    if not file.is_file():
        return []
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
