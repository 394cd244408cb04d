"""What only the model and the data can say of a number: a rank that no matrix has, a batch above the rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError

if TYPE_CHECKING:
    from chatbot_sft.config import Config
    from chatbot_sft.run.report import DatasetStatistics

USUAL_RANK = 64  # of lora=rslora: no model is too narrow for an option of ours
# These look positions up in a table that ends, or make it once; rotary positions go on beyond what the model
# was trained on.
FIXED_POSITIONS = ("gpt2", "gpt_bigcode", "gpt_neo", "gptj", "codegen", "opt", "biogpt", "xglm")


def check_model(config: Config, folder: Path) -> None:
    """What config.json in `folder` says of `lora.r` and `model.max_seq_length`; others refuse a damaged one.

    Raises:
        UserError: a rank above every layer's width, or more tokens than the model has positions for.
    """
    try:
        about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return
    if not isinstance(about, dict):
        return
    part = about.get("text_config")
    text: dict[str, Any] = part if isinstance(part, dict) else about
    widths = _numbers(text, "hidden_size", "n_embd", "d_model", "intermediate_size", "ffn_dim", "n_inner")
    if widths and config.lora.r > max(USUAL_RANK, *widths):
        raise UserError(
            f"lora.r={config.lora.r}: the layers of this model are {max(widths):,} wide,"
            " so no matrix has that rank; 8 to 128 is usual"
        )
    positions = _numbers(text, "max_position_embeddings", "n_positions")
    fixed = text.get("model_type") in FIXED_POSITIONS
    if fixed and positions and config.model.max_seq_length > max(positions):
        raise UserError(
            f"model.max_seq_length={config.model.max_seq_length}: this model has {max(positions):,}"
            f" positions; set model.max_seq_length={max(positions)}"
        )


def _numbers(about: dict[str, Any], *names: str) -> list[int]:
    return [about[name] for name in names if type(about.get(name)) is int and about[name] > 0]


def check_rows(config: Config, statistics: DatasetStatistics, processes: int) -> None:
    """Raises UserError where there are too few rows for a step, or none for the evaluations that are asked
    for.
    """
    check_batch(config, statistics.rows_used, processes)
    if config.training.eval_steps is not None and not statistics.rows_held_out:
        raise UserError(
            f"training.eval_steps={config.training.eval_steps:g}: no conversation is held out; give"
            " dataset.eval_data_path or more data"
        )


def check_batch(config: Config, rows: int, processes: int) -> None:
    """A step cannot train more conversations than there are.

    The default batch may: a first try with three conversations is none of its business.

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
    raise UserError(
        f"{' × '.join(factors)}: a step of {batch:,} conversations, and there"
        f" {'is' if rows == 1 else 'are'} {rows:,} to train on; lower one of them"
    )
