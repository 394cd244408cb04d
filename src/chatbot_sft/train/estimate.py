"""How much memory a training will take, by part: counted where it can be counted, measured on the longest batch where not. Trains nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from chatbot_sft.model import memory
from chatbot_sft.train.evaluation import undisturbed
from chatbot_sft.train.measure import Trial

STATE_BYTES = {"8bit": 2.04, "adafactor": 0.05, "sgd": 0.0, "lion": 4.0}  # per trained value; two float32 moments for the others


def memory_estimate(trainer: Any, trial: Trial) -> dict[str, float]:
    """GB (10^9 bytes) of weights, adapter, gradients, optimizer, activations (with logits and what the allocator keeps), and total.

    On a GPU the longest batch runs once, forward and backward, in the trainer's layout. `evaluation` is what the longest
    held-out batch takes in place of the activations; the larger of the two counts.
    """
    parameters = list(trainer.model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = sum(parameter.nbytes for parameter in parameters if not parameter.requires_grad)
    adapter = sum(parameter.nbytes for parameter in trained)
    state = next((size for name, size in STATE_BYTES.items() if name in trainer.args.optim), 8.0)
    parts = {"weights": weights, "adapter": adapter, "gradients": adapter, "optimizer": state * sum(parameter.numel() for parameter in trained)}
    gb = {name: size / 1e9 for name, size in parts.items()}
    there = gb["weights"] + gb["adapter"] + gb["gradients"]
    gb["activations"] = max(0.0, _peak(lambda: trial.run(trainer.layout, trial.longest)) - there)
    gb["evaluation"] = 0.0
    if trainer.eval_dataset is not None:
        gb["evaluation"] = max(0.0, _peak(lambda: _evaluate_longest(trainer)) - there)
    total = there + gb["optimizer"] + max(gb["activations"], gb["evaluation"])
    return {**{name: round(size, 3) for name, size in gb.items()}, "total": round(total, 3)}


def _evaluate_longest(trainer: Any) -> None:
    trainer.model.eval()
    trainer.prediction_step(trainer.model, next(iter(trainer.get_eval_dataloader())), prediction_loss_only=True)
    trainer.use_layout(trainer.layout)


def _peak(run: Callable[[], Any]) -> float:
    """GB at the highest while `run` runs; on a CPU, where nothing is run for it, the highest of the run so far."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with undisturbed():
            run()
    return memory.measure().peak_gb
