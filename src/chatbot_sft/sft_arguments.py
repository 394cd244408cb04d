"""The keys of TRL's SFTConfig that `training` passes through, known without importing TRL, transformers or torch.

The installed sources are parsed instead: importing them takes seconds, and a typo has to be named at once.
"""

from __future__ import annotations

import ast
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from chatbot_sft.errors import UserError

# Set from elsewhere, or by the launcher itself: each with what to use instead.
MANAGED = {
    "output_dir": "training.output_dir",
    "max_length": "model.max_seq_length",
    "seed": "seed",
    "data_seed": "seed",
    "bf16": "model.dtype",
    "fp16": "model.dtype",
    "gradient_checkpointing": "lora.use_gradient_checkpointing",
    "dataset_text_field": "dataset.text_field",
    "chat_template_path": None,
    "assistant_only_loss": "training.response_only",
    "completion_only_loss": "training.response_only",
    "dataset_kwargs": None,
    "hub_token": None,
    "push_to_hub": None,
    "resume_from_checkpoint": "training.resume",
    "logging_strategy": "training.logging_steps",
    "eval_strategy": "training.eval_steps",
    "eval_on_start": None,
    "eval_do_concat_batches": None,
    "metric_for_best_model": None,
    "greater_is_better": None,
    "remove_unused_columns": None,
    "use_cpu": None,
    "disable_tqdm": None,
    "model_init_kwargs": None,
    "padding_free": "training.batch_layout",
    "logging_nan_inf_filter": None,
    "include_num_input_tokens_seen": None,
    "eval_packing": None,
}
SOURCES = (
    ("transformers", "training_args.py", "TrainingArguments"),
    ("trl", "trainer/base_config.py", "_BaseConfig"),
    ("trl", "trainer/sft_config.py", "SFTConfig"),
)


@functools.cache
def known() -> dict[str, str]:
    """Name → type annotation (source text) of every SFTConfig field that may be passed through."""
    annotations: dict[str, str] = {}
    for package, file, class_name in SOURCES:
        spec = importlib.util.find_spec(package)
        if spec is None:
            continue
        path = Path(spec.submodule_search_locations[0], file)
        if not path.is_file():
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                annotations.update(
                    {
                        line.target.id: ast.unparse(line.annotation)
                        for line in node.body
                        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name)
                    }
                )
    return annotations


@functools.cache
def enum_values(file: str, class_name: str) -> tuple[str, ...]:
    """The values of a string enumeration in one of transformers' source files."""
    path = Path(importlib.util.find_spec("transformers").submodule_search_locations[0], file)
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef) and node.name == class_name:
            return tuple(line.value.value for line in node.body if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant))
    raise LookupError(f"{path} has no {class_name}")


def check(arguments: Mapping[str, Any]) -> None:
    """Refuse what the launcher sets itself and values of a plainly wrong type.

    Raises:
        UserError: names the key and what to use instead.
    """
    for key, value in arguments.items():
        if key in MANAGED:
            instead = MANAGED[key]
            raise UserError(f"training.{key}: " + (f"set {instead} instead" if instead else "the launcher sets this itself; leave it out"))
        annotation = known()[key]
        if not _fits(value, annotation):
            raise UserError(f"training.{key}={value!r}: expected {annotation}")


def _fits(value: Any, annotation: str) -> bool:
    names = {node.id for node in ast.walk(ast.parse(annotation)) if isinstance(node, ast.Name)}
    if value is None or not names <= {"int", "float", "bool", "str", "None", "Optional", "Union"}:
        return value is not None or "None" in annotation or "Optional" in annotation
    allowed: tuple[type, ...] = tuple(
        {"int": int, "float": float, "bool": bool, "str": str}[name] for name in names & {"int", "float", "bool", "str"}
    )
    if isinstance(value, bool):
        return bool in allowed
    if isinstance(value, int):
        return int in allowed or float in allowed
    return isinstance(value, allowed)
