"""What the jobs of one process share: the frozen base, what it answered before any of them was trained, and what
was captured over it.

Imports, the tokenised rows (`cache`) and what the compiler made are there for every later job in any case.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from chatbot_sft import distributed
from chatbot_sft.config import Config
from chatbot_sft.model import hardware, memory
from chatbot_sft.model.base import weights_fingerprint
from chatbot_sft.model.precision import weights_dtype
from chatbot_sft.train.captures import Captures

if TYPE_CHECKING:
    from chatbot_sft.model.engine import Engine

# Of whose `_target_` it is known what they do to a base, where it is ours.
STAGES = ("model", "lora", "training", "save")


class Held:
    """A base `model` in memory, as it was loaded. `answers` are evaluations of it before training, by all that
    decides them.
    """

    def __init__(self, model: Any, runs: float) -> None:
        from chatbot_sft.model.structure import Structure

        self.model, self.loaded = model, Structure(model)
        self.answers: dict[Hashable, dict[str, Any]] = {}
        self.captures = Captures(runs)
        # Unsloth keeps what it found out about a model in the environment.
        self.marks = _marks()


class Warm:
    """One for each worker process. The base that was used last is kept; another is freed as soon as no run that
    is under way has it. `runs` is what `Captures` asks for.
    """

    def __init__(self, runs: float = 1.0) -> None:
        self.runs = runs
        self._held: WeakValueDictionary[Hashable, Held] = WeakValueDictionary()
        self.latest: Held | None = None

    def held(self, key: Hashable, load: Callable[[], Any]) -> Held:
        """The base of `key`, which `load` loads where it is not there."""
        held = self._held.get(key)
        if held is None:
            self.let_go()
            held = self._held[key] = Held(load(), self.runs)
            memory.settle()
        self.latest = held
        return held

    def let_go(self) -> None:
        """Make room: keep nothing that no run uses."""
        self.latest = None
        memory.unsettle()
        memory.release()


class Loan:
    """What one run has of a `Warm`. At the run's end, or while it waits, the base is as it was loaded."""

    def __init__(self, warm: Warm) -> None:
        self.warm = warm
        self.held: Held | None = None

    def base(self, settings: Config, source: str, engine: Engine, load: Callable[[], Any]) -> Any:
        """The base model of `settings`, frozen and shared where that can be; else `load()`, its own."""
        key = shared_key(settings, source, engine)
        if key is None:
            self.warm.let_go()
            return load()
        if hardware.gpus():  # what the job before has left there
            memory.release()
        self.held = self.warm.held(key, load)
        os.environ.update(self.held.marks)
        return self.held.model

    def answers(self, settings: Config) -> dict[Hashable, dict[str, Any]] | None:
        """`Held.answers`; None where the adapter of `settings` is no exact zero as its training begins."""
        lora = settings.lora
        zero = (
            lora.init_lora_weights in (True, "gaussian") and not lora.use_dora and not settings.model.adapter
        )
        return self.held.answers if self.held and zero else None

    @property
    def captures(self) -> Captures | None:
        """What is captured over the base; None where a run has its own."""
        return self.held.captures if self.held else None

    def kept(self) -> Callable[[], None]:
        """A part of `process`: what stands in the base now; before it was lent, what was loaded."""
        if self.held is None:
            return self._put_back
        from chatbot_sft.model.structure import Structure

        structure, marks = Structure(self.held.model), _marks()

        def again() -> None:
            structure.restore()
            os.environ.update(marks)

        return again

    def _put_back(self) -> None:
        if self.held is not None:
            self.held.loaded.restore()


def shared_key(settings: Config, source: str, engine: Engine) -> Hashable | None:
    """Equal for runs that can train on one base; None where a run changes its base, or may."""
    model, lora = settings.model, settings.lora
    changed = (
        settings.full_finetuning
        or settings.lora_changes_base
        or lora.bias != "none"
        or lora.modules_to_save
        or any(settings[name]["_target_"] != Config()[name]["_target_"] for name in STAGES)
        or model.new_tokens
        or model.load_in_fp8  # rounded after the exact one was evaluated
        or settings.training.shard
        or distributed.processes() > 1
    )
    if changed:
        return None
    # Unsloth lays out a model's positions and its recomputation as it loads it.
    own = (model.max_seq_length, engine.checkpointing(settings)) if engine.NAME == "unsloth" else ()
    fingerprint, dtype = weights_fingerprint(settings), weights_dtype(settings)
    return (engine.NAME, source, fingerprint, dtype, model.load_in_4bit, model.trust_remote_code, *own)


def _marks() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("UNSLOTH_")}
