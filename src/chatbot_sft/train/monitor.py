"""TrainingMonitor: the figures of a finished training, printed."""

from __future__ import annotations

from typing import Any

from chatbot_sft.model import memory


class TrainingMonitor:
    """Prints training statistics; the numbers themselves stand in report.json."""

    @staticmethod
    def print_training_stats(trainer_stats: Any, start_memory: float | None = None) -> None:
        """Time, speed, loss and memory. `trainer_stats` is what `SFTTrainerWrapper.train` returned,
        `start_memory` the GB in use before it.
        """
        seconds = trainer_stats.metrics["train_runtime"]
        stats = memory.measure(start_memory).as_dict()
        peak, total = stats["peak_memory_gb"], stats["total_memory_gb"]
        print(f"training time     {seconds:.0f} s ({seconds / 60:.2f} minutes)")
        print(f"optimizer steps   {trainer_stats.global_step}")
        print(f"training loss     {trainer_stats.training_loss:.4f}")
        print(f"memory at peak    {peak:.2f} GB of {total:.1f} GB ({stats['device']})")
        if start_memory is not None:
            print(f"added by training {stats['training_memory_gb']:.2f} GB")
