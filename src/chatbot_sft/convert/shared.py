"""What the files of both peers have in common: reasons, and functions of more than one key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from chatbot_sft.convert.rules import OFF, SWITCHED_OFF, Given, Line, as_number

ATTENTION = "the engine takes the fastest attention there is"
KERNELS = "the engine has kernels of its own"
CACHED = "rows are tokenised once, on all cores, and kept in the cache"
CHECKPOINTING = "training.batch_layout=auto checkpoints where memory asks for it; the gradient is the same"
LAYOUT = "training.batch_layout=auto pads and packs as is fastest here; the gradient is the same"
PROCESSES = "several GPUs of one machine: torchrun --nproc-per-node 2 -m chatbot_sft …"
SHARDED = (
    "several GPUs train as DDP: torchrun --nproc-per-node 2 -m chatbot_sft …; training.shard=true cuts the frozen"
    " base of an adapter in 16 bits over them"
)
QUANTISED = "a base in 8 bits is not trained here: model.load_in_4bit=true, or false for 16 bits"
TEXT_ALONE = "text alone is trained here"
REWARD = "no reward model is trained here; objective=dpo learns from the same pairs without one"
GENERATING = "there is no training from a model's own answers here (PPO, GRPO): objective=dpo, orpo or kto"
EXPERTS = "mixtures of experts are trained as they are"
LOSS = "the loss is the mean over trained tokens; another is a class of yours: docs/objectives.md"
OPTIMIZER = "none of transformers' optimizers: training.optim=adamw_torch_fused, say"
GROUPS = "one learning rate for all weights: training.learning_rate"
SECRET = "a secret stays out of files: the environment has it"
TOKENIZER = "the tokenizer is that of model.name, with its own special tokens"
LOADING = "how the weights are loaded, the engine decides"
NEW_TOKENS = "special tokens, whose embeddings are trained"
PACKED = "a batch then counts sequences, there too"
CODE = "code that comes with the model is run"
CHECKPOINT = "a checkpoint of another tool is not gone on from; its adapter is: model.adapter=FOLDER"
RUN_DIRECTORY = "the run directory: reports, checkpoints/ and model/ stand in it"
ENDING = "an answer ends with what the chat template writes after it, and that is trained"
TEMPLATE = (
    "the chat template of model.name writes the rows; where it has none, or another is meant, name a Jinja file:"
    " model.chat_template"
)
SAVED_TWICE = "of checkpoints whole ones alone are kept, so that a run goes on from them"


def learning_from(given: Given, objective: str, **settings: Any) -> list[Line]:
    """The option of a preference method, with what else of `objective` it needs."""
    own = {f"objective.{name}": value for name, value in settings.items()}
    return given.carried({"/objective": objective, **own})


def method(given: Given, full: Sequence[Any], lora: Sequence[str]) -> list[Line]:
    """What is trained, by the words that a peer has for all weights and for LoRA."""
    if given.value in full:
        return given.carried({"/lora": "none", "/save": "merged_16bit", "model.load_in_4bit": False})
    if given.value in lora:
        return given.carried(
            {"/save": "lora"}, "the adapter alone is saved, as there; save=merged_16bit merges it"
        )
    return given.not_carried("there is LoRA, also over a base in 4 bits, and full fine-tuning (lora=none)")


def sharded(given: Given, third: Sequence[str], frozen: bool) -> list[Line]:
    """deepspeed, fsdp: the base in parts, where that is what it does (deepspeed, by a file whose name has one of
    `third` in it) and can be had here: of a base in 16 bits that is `frozen`.
    """
    if given.value in OFF:
        return given.not_needed(SWITCHED_OFF)
    if given.key == "deepspeed" and not any(word in str(given.value) for word in third):
        return given.not_needed(PROCESSES)
    if not frozen:
        return given.not_carried(SHARDED)
    return given.changed(
        {"training.shard": True}, f"each process keeps a part of the frozen base: {PROCESSES}"
    )


def run_directory(given: Given) -> list[Line]:
    """`output_dir`: what a run writes."""
    if not isinstance(given.value, str):
        return given.not_carried("a folder was expected; hydra.run.dir=DIR names the run directory")
    return given.changed({"hydra.run.dir": given.value}, RUN_DIRECTORY)


def new_tokens(given: Given, tokens: Any) -> list[Line]:
    """Tokens as a list, or as LLaMA-Factory has them, with commas."""
    parts = tokens.split(",") if isinstance(tokens, str) else tokens
    if not isinstance(parts, list) or not parts:
        return given.not_carried("a list of tokens was expected; model.new_tokens=[…]")
    names = [part.strip() if isinstance(part, str) else part for part in parts]
    return given.changed({"model.new_tokens": names}, NEW_TOKENS)


def revision(given: Given) -> list[Line]:
    if given.value == "main":
        return given.not_needed("main is the default")
    return given.carried({"model.revision": given.value})


def remote_code(given: Given) -> list[Line]:
    return given.carried({"model.trust_remote_code": given.value}, CODE if given.value is True else "")


def precision(dtype: str, how: str = "") -> Any:
    """A function for `bf16: true` and the like."""

    def becomes(given: Given) -> list[Line]:
        if given.value in OFF or given.value == "auto":
            return given.not_needed("model.dtype=null takes what the hardware does best")
        return given.carried({"model.dtype": dtype}, how)

    return becomes


def steps_or_share(
    given: Given, ours: str, per_epoch: float | None, epochs: Any, otherwise: str
) -> list[Line]:
    """A number of optimizer steps, or `per_epoch` times an epoch as a share of a run of so many `epochs`."""
    if per_epoch is None:
        steps = as_number(given.value)
        if steps is None:
            return given.not_carried(f"a number was expected; {ours}=…")
        return given.carried({ours: int(steps) if steps.is_integer() else steps})
    length = as_number(epochs)
    if given.get("max_steps") not in (*OFF, -1):
        return given.not_carried(f"a part of an epoch, where the length is one in steps; {ours}=N, in steps")
    if not length or length < 0 or per_epoch <= 0:
        return given.not_carried(f"the number of epochs was expected to be above 0; {ours}=…")
    share = 1 / (per_epoch * length)
    if share >= 1:
        return given.not_needed(otherwise)
    return given.changed(
        {ours: round(share, 6)}, f"{per_epoch:g} in each of {length:g} epochs, as a share of the run"
    )


def held_out(given: Given, lines: list[Line], nothing: bool) -> list[Line]:
    """`lines`, of evaluations during training, where something is held out for them."""
    return given.not_needed("nothing is held out") if nothing else lines
