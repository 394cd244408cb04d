"""The smallest and the largest value of every number, and what only the model and the data can say of one.

An upper bound stands where everything above it is certainly a slip: no model has a matrix of rank 100,000, no run 10^12 steps. A learning rate
that ruins the model is not refused here: the guard of the training judges it by the losses.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError

if TYPE_CHECKING:
    from chatbot_sft.config import Config


@dataclass(frozen=True)
class Bound:
    smallest: float | None
    largest: float
    above: bool = False  # the smallest value itself is out
    below: bool = False  # the largest value itself is out

    def refusal(self, value: float) -> str | None:
        """Why `value` is out of these bounds, or None."""
        if math.isnan(value):
            return "is not a number"
        if self.below and self.smallest is not None and not self.smallest <= value < self.largest:
            return f"must be at least {self.smallest:g} and below {self.largest:g}"
        if self.smallest is not None and (value < self.smallest or (self.above and value == self.smallest)):
            return f"must be {'above' if self.above else 'at least'} {self.smallest:g}"
        if value > self.largest:
            return f"must be at most {self.largest:,.0f}"
        return None


USUAL_RANK = 64  # of lora=rslora: no model is too narrow for an option of ours
STEPS, SHARE = 10**9, Bound(0, 1, below=True)
BOUNDS = {
    "seed": Bound(0, 2**32 - 1),  # NumPy takes no other
    "model.max_seq_length": Bound(8, 2**24),
    "lora.r": Bound(0, 65_536),
    "lora.lora_alpha": Bound(1, 10**6),
    "lora.lora_dropout": SHARE,
    "lora.loftq_iter": Bound(1, 1_000),
    "dataset.eval_fraction": SHARE,
    "dataset.max_rows": Bound(1, STEPS),
    "dataset.max_row_mb": Bound(0, 10**6, above=True),
    "training.per_device_train_batch_size": Bound(1, 10**6),
    "training.gradient_accumulation_steps": Bound(1, 10**6),
    "training.per_device_eval_batch_size": Bound(1, 10**6),
    "training.memory_margin": SHARE,
    "training.max_steps": Bound(1, STEPS),
    "training.num_train_epochs": Bound(0, 10**6, above=True),
    "training.learning_rate": Bound(0, 10**6, above=True),
    "training.warmup_steps": Bound(0, STEPS),  # or a share, as logging_steps and save_steps
    "training.warmup_ratio": SHARE,
    "training.weight_decay": Bound(0, 1_000),
    "training.logging_steps": Bound(0, STEPS, above=True),
    "training.save_steps": Bound(None, STEPS),  # a share or a number of steps: config.py
    "training.eval_steps": Bound(None, STEPS),
    "training.save_total_limit": Bound(1, STEPS),
    "training.sample_max_new_tokens": Bound(0, 2**24),
    "training.early_stopping_patience": Bound(1, STEPS),
    "training.early_stopping_threshold": Bound(0, 100),  # nats: more than any vocabulary has
}
SOURCE_BOUNDS = {"weight": Bound(0, STEPS, above=True), "count": Bound(0, STEPS, above=True)}

# These look positions up in a table that ends, or make it once; rotary positions go on beyond what the model was trained on.
FIXED_POSITIONS = ("gpt2", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "opt", "biogpt", "xglm")


def check(config: Config) -> None:
    """Every number of the schema within its bounds, those that go through to SFTConfig finite.

    Raises:
        UserError: names the key, the value and the bound.
    """
    for key, bound in BOUNDS.items():
        section, _, name = key.rpartition(".")
        value = getattr(getattr(config, section) if section else config, name)
        refusal = None if value is None else bound.refusal(value)
        if refusal:
            raise UserError(f"{key}={value}: {refusal}")
    for source in config.dataset.mixture:
        for name, bound in SOURCE_BOUNDS.items():
            value = getattr(source, name)
            refusal = None if value is None else bound.refusal(value)
            if refusal:
                raise UserError(f"dataset.sources: {source.data_path}: {name}={value} {refusal}")
    for name, value in config.sft_arguments.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"training.{name}={value}: must be a finite number")


def check_model(config: Config, folder: Path) -> None:
    """What config.json in `folder` says of `lora.r` and `model.max_seq_length`. A file that is damaged is for others to refuse.

    Raises:
        UserError: a rank above every layer's width, or more tokens than the model has positions for.
    """
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(about, dict):
        return
    text = about.get("text_config") if isinstance(about.get("text_config"), dict) else about
    widths = _numbers(text, "hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "n_inner")
    if widths and config.lora.r > max(USUAL_RANK, *widths):
        raise UserError(f"lora.r={config.lora.r}: the layers of this model are {max(widths):,} wide, so no matrix has that rank; 8 to 128 is usual")
    positions = _numbers(text, "max_position_embeddings", "n_positions")
    if text.get("model_type") in FIXED_POSITIONS and positions and config.model.max_seq_length > max(positions):
        raise UserError(
            f"model.max_seq_length={config.model.max_seq_length}: this model has {max(positions):,} positions; "
            f"set model.max_seq_length={max(positions)}"
        )


def _numbers(about: dict[str, Any], *names: str) -> list[int]:
    return [about[name] for name in names if type(about.get(name)) is int and about[name] > 0]


def check_batch(config: Config, rows: int, processes: int) -> None:
    """A step cannot train more conversations than there are. The default batch may: a first try with three conversations is none of its business.

    Raises:
        UserError: names the batch and the conversations.
    """
    training, usual = config.training, type(config.training)()
    batch = config.effective_batch_size * processes
    if batch <= max(rows, usual.per_device_train_batch_size * usual.gradient_accumulation_steps * processes):
        return
    factors = [
        f"training.per_device_train_batch_size={training.per_device_train_batch_size}",
        f"training.gradient_accumulation_steps={training.gradient_accumulation_steps}",
        *([f"{processes} processes"] if processes > 1 else []),
    ]
    raise UserError(f"{' × '.join(factors)}: a step of {batch:,} conversations, and there are {rows:,} to train on; lower one of them")
