"""Optimizers and schedules by their known names, from torch, bitsandbytes and transformers; others are TRL's
loop's (`choice`).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Adafactor, get_scheduler
from transformers.trainer_pt_utils import get_parameter_names

from chatbot_sft.optimization import AFTER_EVALUATIONS
from chatbot_sft.train.gradients import FlatParameters

NOT_DECAYED = [
    r"bias",
    r"layernorm",
    r"rmsnorm",
    r"(?:^|\.)norm(?:$|\.)",
    r"_norm(?:$|\.)",
]  # names, as in transformers' Trainer


def build_optimizer(args: Any, model: Any, flat: FlatParameters | None) -> torch.optim.Optimizer:
    """`args.optim` over the trained parameters of `model`, or over the one vector that stands for them.

    Biases and norms are not decayed, as in transformers' Trainer.
    """
    build = _builder(args)
    if flat is not None:  # matrices alone
        return build([{"params": [flat.vector], "weight_decay": args.weight_decay}])
    decayed = set(get_parameter_names(model, [torch.nn.LayerNorm], NOT_DECAYED))
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {
            "params": [parameter for name, parameter in trained if name in decayed],
            "weight_decay": args.weight_decay,
        },
        {"params": [parameter for name, parameter in trained if name not in decayed], "weight_decay": 0.0},
    ]
    if "8bit" in args.optim:
        _embeddings_in_32_bits(model)
    return build(groups)


def build_schedule(args: Any, optimizer: torch.optim.Optimizer, steps: int) -> Any:
    """`args.lr_scheduler_type` over `steps` optimizer steps."""
    return get_scheduler(
        args.lr_scheduler_type,
        optimizer=optimizer,
        num_warmup_steps=args.get_warmup_steps(steps),
        num_training_steps=steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )


def by_element(name: str) -> bool:
    """Whether the optimizer moves each value by its own gradient alone, so that it may be given all matrices
    as one vector.
    """
    return "adafactor" not in str(getattr(name, "value", name))


def after_evaluations(args: Any) -> bool:
    """Whether the schedule goes on with the held-out loss, not with the steps."""
    return args.lr_scheduler_type in AFTER_EVALUATIONS


def _builder(args: Any) -> Callable[[list[dict[str, Any]]], torch.optim.Optimizer]:
    """What makes `args.optim` of parameter groups."""
    name, given = str(getattr(args.optim, "value", args.optim)), _arguments(args.optim_args)
    rate = {"lr": args.learning_rate}
    adam = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    options: dict[str, Any] = {}
    if name in ("adamw_torch", "adamw_torch_fused"):
        fused = True if name.endswith("fused") else None
        return functools.partial(torch.optim.AdamW, **rate, **adam, fused=fused)
    if name == "adafactor":
        return functools.partial(Adafactor, **rate, scale_parameter=False, relative_step=False)
    if name == "sgd":
        options = _numbers(given, "momentum", "dampening", "weight_decay") | _truth(given, "nesterov")
        return functools.partial(torch.optim.SGD, **rate, **options)
    if name == "adagrad":
        options = _numbers(given, "lr_decay", "weight_decay", "eps")
        return functools.partial(torch.optim.Adagrad, **rate, **options)
    if name == "rmsprop":
        options = _numbers(given, "momentum", "alpha", "eps", "weight_decay") | _truth(given, "centered")
        return functools.partial(torch.optim.RMSprop, **rate, **options)
    return _bitsandbytes(name, args, rate, adam, given)


def _bitsandbytes(
    name: str, args: Any, rate: dict[str, Any], adam: dict[str, Any], given: Mapping[str, str]
) -> Callable[..., torch.optim.Optimizer]:
    from bitsandbytes import optim

    paged = "paged" in name  # what the device and the host both have is waited for
    of = (lambda kind: kind) if paged else _ahead
    options = {**rate, "optim_bits": 8 if "8bit" in name else 32, "is_paged": paged}
    if "ademamix" in name:
        betas = tuple(
            float(given.get(key, usual))
            for key, usual in (("beta1", args.adam_beta1), ("beta2", args.adam_beta2), ("beta3", 0.9999))
        )
        mix = {
            "betas": betas,
            "alpha": float(given.get("alpha", 5.0)),
            "eps": float(given.get("eps", args.adam_epsilon)),
        }
        mix |= {key: int(given[key]) for key in ("t_alpha", "t_beta3") if key in given}
        return lambda groups: of(optim.AdEMAMix)(groups, **options, **mix)
    if "adam" in name:
        return lambda groups: of(optim.AdamW)(groups, **options, **adam)
    if "lion" in name:
        return lambda groups: of(optim.Lion)(groups, **options, betas=adam["betas"])
    del options["is_paged"]
    return lambda groups: of(optim.RMSprop)(
        groups, **options, **{key: float(value) for key, value in given.items()}
    )


@functools.cache
def _ahead(kind: type) -> type:
    """`kind`, one of bitsandbytes' optimizers, whose step waits for the device after each parameter: nothing
    of the next step can be begun meanwhile. The same without waiting.
    """
    return type(kind.__name__, (_Ahead, kind), {})


class _Ahead:
    """`step` as bitsandbytes' Optimizer8bit has it (0.48 to 0.50), of its public parts, for tensors that
    stay on their device.
    """

    @torch.no_grad()
    def step(self: Any, closure: None = None) -> None:
        if not self.initialized:
            self.check_overrides()
            self.to_gpu()
            self.initialized = True
        for group_number, group in enumerate(self.param_groups):
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is None:
                    continue
                if not self.state[parameter]:
                    self.init_state(group, parameter, group_number, number)
                self.update_step(group, parameter, group_number, number)


def _embeddings_in_32_bits(model: Any) -> None:
    """bitsandbytes' own advice for trained embeddings, as transformers' Trainer follows it."""
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding) and module.weight.requires_grad:  # it never forgets one
            manager.register_module_override(module, "weight", {"optim_bits": 32})


def _arguments(text: str | None) -> dict[str, str]:
    """ "a=1, b=2" as {"a": "1", "b": "2"}."""
    return dict(part.split("=") for part in text.replace(" ", "").split(",")) if text else {}


def _numbers(given: Mapping[str, str], *names: str) -> dict[str, Any]:
    return {name: float(given[name]) for name in names if name in given}


def _truth(given: Mapping[str, str], name: str) -> dict[str, Any]:
    return {name: given[name].lower() in ("true", "1", "yes")} if name in given else {}
