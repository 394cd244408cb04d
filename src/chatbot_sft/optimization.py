"""What an optimizer and a learning-rate schedule need: packages, and arguments. Told without torch."""

from __future__ import annotations

import ast
import functools
import importlib.util
from typing import TYPE_CHECKING

from chatbot_sft.errors import UserError, did_you_mean
from chatbot_sft.installed import folder_of

if TYPE_CHECKING:
    from chatbot_sft.config import Config

# Without a GPU another AdamW takes the place of these; other algorithms stay what they are.
REPLACED = ("adamw_8bit", "adamw_bnb_8bit", "paged_adamw_8bit", "paged_adamw_32bit")
# How the names of optimizers begin → the module they come from, and the package that has it.
PACKAGES = {
    "galore_": ("galore_torch", "galore-torch"),
    "apollo_": ("apollo_torch", "apollo-torch"),
    "lomo": ("lomo_optim", "lomo-optim"),
    "adalomo": ("lomo_optim", "lomo-optim"),
    "grokadamw": ("grokadamw", "grokadamw"),
    "schedule_free_": ("schedulefree", "schedulefree"),
    "stable_adamw": ("optimi", "torch-optimi"),
    "adamw_anyprecision": ("torchdistx", "torchdistx"),
    "adamw_torch_4bit": ("torchao", "torchao"),
    "adamw_torch_8bit": ("torchao", "torchao"),
    "adamw_torch_xla": ("torch_xla", "torch_xla"),
    "adamw_torch_npu": ("torch_npu", "torch_npu"),
    **dict.fromkeys(
        ("paged_", "lion_", "ademamix", "rmsprop_bnb", "adamw_8bit", "adamw_bnb"),
        ("bitsandbytes", "bitsandbytes"),
    ),
}
# Those that the native loop builds: by their whole names, and by how the names of bitsandbytes' begin.
NATIVE = (
    "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop", "adamw_8bit", "adamw_bnb_8bit",
)  # fmt: skip
NATIVE_BITSANDBYTES = ("paged_", "lion_", "ademamix", "rmsprop_bnb")
LOW_RANK = ("galore_", "apollo_")  # they project the matrices that training.optim_target_modules names
READ_OPTIM_ARGS = (
    "galore_", "apollo_", "grokadamw", "schedule_free_", "stable_adamw", "adamw_anyprecision",
    "adamw_torch_4bit", "adamw_torch_8bit",
    "ademamix", "paged_ademamix", "sgd", "adagrad", "rmsprop",
)  # fmt: skip
WITHOUT_BETAS = ("sgd", "adagrad", "adafactor", "rmsprop", "lomo", "adalomo", "galore_adafactor")
# What an optimizer keeps for each trained value, in bytes; two float32 moments where nothing else is said.
STATE_BYTES = {"8bit": 2.04, "adafactor": 0.05, "sgd": 0.0, "lion": 4.0}
# Schedules → the arguments of which exactly one has to be given, with an example.
NEEDED = {
    "cosine_with_min_lr": (("min_lr", "min_lr_rate"), "{min_lr_rate: 0.1}"),
    "cosine_warmup_with_min_lr": (("min_lr", "min_lr_rate"), "{min_lr_rate: 0.1}"),
    "warmup_stable_decay": (("num_decay_steps",), "{num_decay_steps: 10}"),
}
AFTER_EVALUATIONS = ("reduce_lr_on_plateau", "greedy")
GIVEN = ("optimizer", "num_warmup_steps", "num_training_steps", "last_epoch")  # by the trainer


def built_by_native(optim: str) -> bool:
    """Whether the native loop has it; the others that transformers knows are TRL's loop's."""
    return optim in NATIVE or optim.startswith(NATIVE_BITSANDBYTES)


def state_bytes(optim: str) -> float:
    """Bytes that it keeps for each trained value."""
    return next((size for name, size in STATE_BYTES.items() if name in optim), 8.0)


def check_packages(optim: str, gpu: bool) -> None:
    """Refuse an optimizer whose package is not installed.

    Raises:
        UserError: names what to install.
    """
    begins = next((start for start in PACKAGES if optim.startswith(start)), None)
    if begins is None or (optim in REPLACED and not gpu):
        return
    module, package = PACKAGES[begins]
    if importlib.util.find_spec(module) is None:
        raise UserError(
            f"training.optim={optim}: {module} is not installed; pip install {package},"
            " or take training.optim=adamw_torch_fused"
        )


def check_arguments(config: Config) -> None:
    """Refuse an optimizer or a schedule that lacks an argument, or is given one that it does not read.

    Raises:
        UserError: names the key and what to set.
    """
    training, extra = config.training, config.sft_arguments
    optim, schedule = training.optim, training.lr_scheduler_type
    if optim.startswith(LOW_RANK) and not extra.get("optim_target_modules"):
        raise UserError(
            f"training.optim={optim}: needs training.optim_target_modules,"
            " for instance all-linear or [q_proj,v_proj]"
        )
    if extra.get("optim_target_modules") and not optim.startswith(LOW_RANK):
        raise UserError(
            f"training.optim_target_modules: training.optim={optim} does not read it;"
            " the adapter's modules are lora.target_modules"
        )
    if extra.get("optim_args") and not optim.startswith(READ_OPTIM_ARGS):
        raise UserError(
            f"training.optim_args: training.optim={optim} does not read it; set training.adam_beta1,"
            " adam_beta2 and adam_epsilon"
        )
    betas = [key for key in ("adam_beta1", "adam_beta2", "adam_epsilon") if key in extra]
    if betas and optim.startswith(WITHOUT_BETAS):
        raise UserError(f"training.{betas[0]}: training.optim={optim} does not read it; leave it out")
    if schedule in AFTER_EVALUATIONS and training.eval_steps is None:
        raise UserError(
            f"training.lr_scheduler_type={schedule}: it steps after evaluations; set training.eval_steps,"
            " for instance 0.1"
        )
    given = extra.get("lr_scheduler_kwargs") or {}
    if isinstance(given, str):
        raise UserError(
            f"training.lr_scheduler_kwargs={given!r}: expected keys and values,"
            " for instance {min_lr_rate: 0.1}"
        )
    needed, example = NEEDED.get(schedule, ((), ""))
    if needed and len([key for key in needed if key in given]) != 1:
        raise UserError(
            f"training.lr_scheduler_type={schedule}: needs {' or '.join(needed)} in"
            f" training.lr_scheduler_kwargs, for instance 'training.lr_scheduler_kwargs={example}'"
        )
    if given and (takes := schedule_arguments(schedule)) is not None:
        for key in given:
            if key not in takes:
                names = f"it takes {', '.join(takes)}{did_you_mean(key, takes)}" if takes else "it takes none"
                raise UserError(
                    f"training.lr_scheduler_kwargs.{key}:"
                    f" training.lr_scheduler_type={schedule} does not read it; {names}"
                )


@functools.cache
def schedule_arguments(schedule: str) -> tuple[str, ...] | None:
    """The names that `lr_scheduler_kwargs` may have, read from transformers' source; None where it takes any."""
    if schedule.startswith("constant"):
        return ()  # transformers drops what it is given
    body = ast.parse((folder_of("transformers") / "optimization.py").read_text(encoding="utf-8")).body
    member = {"reduce_lr_on_plateau": "REDUCE_ON_PLATEAU"}.get(schedule, schedule.upper())
    name = _schedule_functions(body)[member]
    arguments = next(node.args for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
    if arguments.kwarg:
        return None
    return tuple(argument.arg for argument in arguments.args if argument.arg not in GIVEN)


def _schedule_functions(body: list[ast.stmt]) -> dict[str, str]:
    """Member of SchedulerType → name of its function, from the table in transformers' optimization.py."""
    table = next(
        node.value
        for node in body
        if isinstance(node, ast.Assign)
        and ast.unparse(node.targets[0]) == "TYPE_TO_SCHEDULER_FUNCTION"
        and isinstance(node.value, ast.Dict)
    )
    return {
        key.attr: value.id
        for key, value in zip(table.keys, table.values, strict=True)
        if isinstance(key, ast.Attribute) and isinstance(value, ast.Name)
    }
