"""How much memory a training will take, by part: counted where it can be counted, measured on the longest
batch where not. Trains nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from chatbot_sft.model import memory
from chatbot_sft.model.sharding import bytes_here
from chatbot_sft.optimization import state_bytes
from chatbot_sft.train.batches import PackedDataset
from chatbot_sft.train.evaluation import batches_of
from chatbot_sft.train.randomness import undisturbed
from chatbot_sft.train.scores import score_batch
from chatbot_sft.train.tuning import Trial

if TYPE_CHECKING:
    from datasets import Dataset

    from chatbot_sft.train.step import Step


def memory_estimate(step: Step, trial: Trial, eval_dataset: Dataset | None) -> dict[str, float]:
    """GB (10^9 bytes) of weights, adapter, gradients, optimizer, activations (with logits and what the
    allocator keeps), and total; on a CPU also of the libraries: what the process has besides.

    Runs the longest batch once, forward and backward, in the step's layout. `evaluation` is what the longest
    held-out batch takes in place of the activations; the larger of the two counts. On a CPU, where that may take a
    minute, only task=plan runs them: a training's activations are then the highest of the run so far.
    """
    import torch

    frozen = (parameter for parameter in step.model.parameters() if not parameter.requires_grad)
    weights = sum(map(bytes_here, (*frozen, *step.model.buffers())))  # a rounded weight is a buffer
    adapter = sum(parameter.nbytes for parameter in step.trained)
    parts = {
        "weights": weights,
        "adapter": adapter,
        "gradients": adapter,
        "optimizer": state_bytes(step.args.optim) * sum(parameter.numel() for parameter in step.trained),
    }
    gb = {name: size / 1e9 for name, size in parts.items()}
    there = gb["weights"] + gb["adapter"] + gb["gradients"]
    if not torch.cuda.is_available():
        gb["libraries"] = max(0.0, memory.measure().current_gb - there)
        there += gb["libraries"]
    runs = torch.cuda.is_available() or step.settings.task == "plan"
    highest = _peak(lambda: trial.run(step.layout, trial.longest)) if runs else memory.measure().peak_gb
    gb["activations"] = max(0.0, highest - there)
    gb["evaluation"] = 0.0
    if runs and eval_dataset is not None:
        gb["evaluation"] = max(0.0, _peak(lambda: _evaluate_longest(step, eval_dataset)) - there)
    total = there + gb["optimizer"] + max(gb["activations"], gb["evaluation"])
    return {**{name: round(size, 3) for name, size in gb.items()}, "total": round(total, 3)}


def _evaluate_longest(step: Step, dataset: Dataset) -> None:
    rows = PackedDataset(dataset)[batches_of(dataset, step)[0]]
    with step.inference():
        step.model.eval()
        score_batch(step, rows)
    step.use_layout(step.layout)


def _peak(run: Callable[[], Any]) -> float:
    """GB at the highest while `run` runs."""
    import torch

    with undisturbed():
        if not torch.cuda.is_available():
            return memory.resident_peak(run)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        run()
    return memory.measure().peak_gb
