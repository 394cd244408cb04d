"""The trained model as exports are made from it: its weights, and what it says itself, each found once
however many exports there are.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.data.template import ChatTemplate
from chatbot_sft.inference.hf_model import HFModel
from chatbot_sft.model import embedded
from chatbot_sft.model.engine import engine_of
from chatbot_sft.report.masking import by_name
from chatbot_sft.run.report import Report
from chatbot_sft.save.verify.compare import MOVED, Reference, logits_of, refer
from chatbot_sft.save.verify.evidence import Evidence
from chatbot_sft.save.verify.kept import TrainedAnswers, keep
from chatbot_sft.save.weights import Weights, trained_weights

log = logging.getLogger(__name__)


class Trained:
    """`model` and `tokenizer` after training by `settings`, with the `evidence` that exports are held against
    and the run's `report` so far.
    """

    def __init__(
        self, settings: Config, model: Any, tokenizer: Any, evidence: Evidence, report: Report | None
    ) -> None:
        self.settings = settings
        self.model = model
        self.tokenizer = tokenizer
        self.evidence = evidence
        self.report = report
        self.seconds: dict[str, float] = {}  # what writing took, by format
        self.answers: TrainedAnswers | None = None  # what `reference` found, for servers

    @contextlib.contextmanager
    def timed(self, kind: str) -> Iterator[None]:
        """Note in `seconds` how long the block took."""
        started = time.perf_counter()
        yield
        self.seconds[kind] = round(time.perf_counter() - started, 3)

    @functools.cached_property
    def weights(self) -> Weights:
        """The weights that merged and GGUF exports are written from."""
        return trained_weights(self.model, self.settings)

    @functools.cached_property
    def reference(self) -> Reference:
        """What the model says, and what its base says without the adapter."""
        # No chat_template_kwargs: an export's user gives none.
        model = HFModel(self.model, self.tokenizer, self.settings.model.name, stop_ids=self.stops)
        base_logits = base_said = None
        with self._as_an_export():
            if not self.settings.full_finetuning:
                with self.model.disable_adapter():
                    base_logits = logits_of(model, self.evidence.rows)
            rounded = self.settings.model.load_in_4bit or self.settings.model.load_in_fp8
            reference = refer(
                model, self.evidence, base_logits, rounded, lambda number: self.tokenizer.decode([number])
            )
            if base_logits is not None:
                with self.model.disable_adapter():
                    base_said = logits_of(model, reference.evidence.rows[len(self.evidence.rows) :])
        self.answers = keep(model, reference, base_said, self.evidence)
        if reference.moved is not None and reference.moved < MOVED:
            log.warning(
                "save: training has hardly changed the model (its answers are %.1e nats from the base's)",
                reference.moved,
            )
        return reference

    @property
    def system_prompt(self) -> str | None:
        """What most of the training data began with."""
        return self.evidence.system_prompt or by_name(self.settings.dataset.system_prompt)

    @contextlib.contextmanager
    def _as_an_export(self) -> Iterator[None]:
        """Within it, `model` answers as an export does: not for training, in its weights' own precision.

        accelerate trains through a `forward` with autocast that it puts on the object, above the class's own.
        """
        engine = engine_of(self.settings)[0]
        training, autocast = self.model.training, vars(self.model).pop("forward", None)
        engine.for_inference(self.model)
        try:
            yield
        finally:
            if autocast is not None:
                self.model.forward = autocast
            if training:
                engine.for_training(self.model, bool(engine.checkpointing(self.settings)))

    @functools.cached_property
    def stops(self) -> list[int]:
        """What generation has to stop at: the ends of the base, of the tokenizer and of trained answers."""
        ends = self.generation_config.eos_token_id
        own = ends if isinstance(ends, list) else [ends]
        return sorted({*own, self.tokenizer.eos_token_id, *self.evidence.ends} - {None})

    @functools.cached_property
    def generation_config(self) -> Any:
        """The base's own; generation settings that training changed for itself do not reach an export."""
        from transformers import GenerationConfig

        source = str(Path(embedded.resolve(self.settings.model.name)).expanduser())
        try:
            return GenerationConfig.from_pretrained(source, revision=self.settings.model.revision)
        except OSError:  # it has none
            return GenerationConfig.from_model_config(self.model.config)

    def write_generation_config(self, folder: Path) -> None:
        """generation_config.json, with every end token in it."""
        config = self.generation_config
        config.eos_token_id = self.stops if len(self.stops) > 1 else self.stops[0]
        config.pad_token_id = self.tokenizer.pad_token_id
        config.save_pretrained(folder)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of what was trained."""
        import torch

        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                digest.update(name.encode())
                digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    @functools.cached_property
    def template(self) -> ChatTemplate:
        """The chat template with its special tokens, as the data gate has it."""
        tokens = {
            name: str(text)
            for name, text in self.tokenizer.special_tokens_map.items()
            if isinstance(text, str)
        }
        control = tuple(self.tokenizer.all_special_tokens)
        return ChatTemplate(
            self.tokenizer.get_chat_template(), tokens, self.settings.dataset.chat_template_kwargs, control
        )
