"""How much memory a training will take, by part: counted where it can be counted, measured on the longest batch where not. Trains nothing."""

from __future__ import annotations

from typing import Any

from chatbot_sft.model import memory
from chatbot_sft.train.measure import Trial

STATE_BYTES = {"8bit": 2.04, "adafactor": 0.05, "sgd": 0.0, "lion": 4.0}  # per trained value; two float32 moments for the others


def memory_estimate(trainer: Any, trial: Trial) -> dict[str, float]:
    """GB (10^9 bytes) of weights, adapter, gradients, optimizer, activations (with logits and what the allocator keeps), and total.

    Runs the longest batch once, forward and backward, in the trainer's layout.
    """
    import torch

    if torch.cuda.is_available():  # elsewhere the peak is that of the process, which no one can take back
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with torch.random.fork_rng():
            trial.run(trainer.layout, trial.longest)
    peak = memory.measure().peak_gb
    parameters = list(trainer.model.parameters())
    weights = sum(parameter.nbytes for parameter in parameters if not parameter.requires_grad)
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    adapter = sum(parameter.nbytes for parameter in trained)
    state = next((size for name, size in STATE_BYTES.items() if name in trainer.args.optim), 8.0)
    parts = {"weights": weights, "adapter": adapter, "gradients": adapter, "optimizer": state * sum(parameter.numel() for parameter in trained)}
    gb = {name: round(size / 1e9, 3) for name, size in parts.items()}
    gb["activations"] = round(max(0.0, peak - gb["weights"] - gb["adapter"] - gb["gradients"]), 3)
    return {**gb, "total": round(sum(gb.values()), 3)}
