"""One optimizer step on this machine: the gradient of its conversations, in the layout that is fastest here.
Imported after the engine.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import LabelSmoother

from chatbot_sft.errors import UserError
from chatbot_sft.model.loss import quantised
from chatbot_sft.train.gradients import FlatParameters, Gradients, flattens
from chatbot_sft.train.graphs import CapturedLayers, CaptureFailed, layers_and_loss
from chatbot_sft.train.layout import Layout, step_down
from chatbot_sft.train.randomness import random_state, use_random_state
from chatbot_sft.train.rows import IGNORED, Row, StepRows, padded

if TYPE_CHECKING:
    from chatbot_sft.config import Config
    from chatbot_sft.model.engine import Engine
    from chatbot_sft.train.job import Job

log = logging.getLogger(__name__)


class Step:
    """What a process has once, whatever it trains: the model, its loss, the layout and what was captured for
    it.

    `layout` can change between any two steps. `args` are a transformers.TrainingArguments.
    """

    def __init__(self, model: Any, engine: Engine, settings: Config, args: Any, pad_token_id: int) -> None:
        self.model, self.engine, self.settings, self.args, self.pad = (
            model,
            engine,
            settings,
            args,
            pad_token_id,
        )
        if not quantised(model):
            model.to(args.device)
        model.config.use_cache = False
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs
            )
        engine.prepare(model)
        self.precision = engine.compute_dtype(model, "bf16" if args.bf16 else "fp16" if args.fp16 else None)
        self.job: Job | None = None  # whose weights the model has
        self.layout = Layout(settings.training.per_device_train_batch_size)
        self.captured: CapturedLayers | None = None
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.flat = FlatParameters(self.trained) if "8bit" in args.optim and flattens(self.trained) else None
        self.gradients = self.flat or Gradients(self.trained)
        self.smoother = LabelSmoother(args.label_smoothing_factor) if args.label_smoothing_factor else None
        self.scaler = torch.amp.GradScaler(args.device.type) if self.precision == "fp16" else None
        if self.scaler is not None:
            engine.use_scaler(model, self.scaler)
        if args.world_size > 1:
            self.gradients.share()

    def turn_to(self, job: Job) -> None:
        """Put the weights and random numbers of `job` in place of the last job's. They are copied: captured
        layers know where weights lie.
        """
        if job is self.job:
            return
        if self.job is not None:
            self.job.aside = self.weights(), random_state()
        self.job = job
        if job.aside is not None:
            weights, numbers = job.aside
            for parameter, kept in zip(self.trained, weights, strict=True):
                parameter.data.copy_(kept)
            use_random_state(numbers)

    def weights(self) -> list[torch.Tensor]:
        """A copy of what is trained."""
        return [parameter.detach().clone() for parameter in self.trained]

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """What the model computes in."""
        if self.precision is None:
            return contextlib.nullcontext()
        return torch.autocast(
            self.args.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16
        )

    def use_layout(self, layout: Layout) -> None:
        """Switch to training mode, with or without recomputed activations; what was captured for another
        layout is let go.
        """
        if not layout.captured:
            self.captured = None
        self.layout = layout
        self.engine.for_training(self.model, layout.checkpointing)

    def capturable(self) -> bool:
        """Whether `layout.captured` may be tried: on one GPU, an adapter alone, nothing random in the layers,
        no loss scaling.
        """
        lora, extra = self.settings.lora, self.settings.sft_arguments
        plain = (
            not lora.modules_to_save
            and not self.settings.model.new_tokens
            and not lora.lora_dropout
            and not extra.get("neftune_noise_alpha")
        )
        alone = self.args.world_size == 1 and self.scaler is None
        return alone and plain and not self.settings.full_finetuning and self.engine.capturable(self.model)

    def backward(self, step: StepRows, trained_tokens: int, number: int) -> torch.Tensor:
        """Leave in each parameter's `grad` what this process's rows add to the gradient of step `number`;
        returns what they add to its loss.

        The loss is the mean over `trained_tokens`, those of all processes. Out of memory, all of it is
        computed again in the next smaller layout.

        Raises:
            UserError: there is no smaller one.
        """
        while True:
            try:
                return self.run(step, trained_tokens)
            except CaptureFailed as error:
                why, smaller = f"cannot be captured ({error})", replace(self.layout, captured=False)
            except torch.OutOfMemoryError as error:
                why, smaller = "out of memory", step_down(self.layout)
                if smaller is None or self.args.world_size > 1:
                    raise UserError(
                        f"out of memory at step {number} ({self.layout.describe(len(step.packs))}); set a"
                        " smaller training.per_device_train_batch_size or model.max_seq_length, or"
                        " model.load_in_4bit=true"
                    ) from error
            # Out of the handler: until then the exception holds on to the activations of the step that
            # failed.
            self.model.zero_grad()
            self.use_layout(smaller)
            gc.collect()
            torch.cuda.empty_cache()
            log.warning("layout: %s; step %d again as %s", why, number, smaller.describe(len(step.packs)))

    def run(self, step: StepRows, trained_tokens: int) -> torch.Tensor:
        """Forward and backward passes of all micro-batches; the sum of their losses."""
        if not self.model.training:  # after an evaluation
            self.use_layout(self.layout)
        if self.layout.captured and self.captured is None:
            self.captured = CapturedLayers(*layers_and_loss(self.engine, self.model, self.autocast))
        if self.layout.captured or self.flat is not None:
            self.gradients.attach()
        count = torch.tensor(max(1, trained_tokens)).to(self.args.device, non_blocking=True)
        # The last step of an epoch may hold fewer conversations than there are processes; all of them have to
        # take part in it.
        groups = list(self.layout.groups(step)) or [[Row(-1, [self.pad, self.pad], [IGNORED, IGNORED])]]
        losses = []
        for rows in groups:
            if self.layout.captured and len(rows) == self.layout.packs:
                batch = self._to_device(
                    padded(rows, self.pad, CapturedLayers.length(max(map(len, rows))), mask=False)
                )
                losses.append(self.captured.run(batch["input_ids"], batch["labels"], count))
            else:
                losses.append(self.micro_batch(self._to_device(self.layout.batch(rows, self.pad)), count))
        return torch.stack(losses).sum()

    def micro_batch(self, batch: dict[str, Any], trained_tokens: torch.Tensor) -> torch.Tensor:
        """One forward and backward pass; its loss, already divided by `trained_tokens`."""
        inputs = self.engine.inputs(batch)
        with self.autocast():
            loss = (
                self._smoothed(inputs, trained_tokens)
                if self.smoother
                else self.engine.loss(self.model, inputs, trained_tokens)
            )
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()
        return loss.detach()

    def _smoothed(self, inputs: dict[str, Any], trained_tokens: torch.Tensor) -> torch.Tensor:
        """The loss with training.label_smoothing_factor, which needs all logits."""
        labels = inputs.pop("labels")
        outputs = self.model(**inputs, use_cache=False)
        return self.smoother(
            {"logits": outputs.logits.float()}, labels, shift_labels=True, num_items_in_batch=trained_tokens
        )

    def _to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values.to(self.args.device, non_blocking=True) for name, values in batch.items()}

    def over_all_processes(self, loss: torch.Tensor, stop: bool) -> tuple[torch.Tensor, bool]:
        """Sum the gradients of all processes, and with them the loss; whether any of them was asked to stop."""
        if self.args.world_size == 1:
            return loss, stop
        loss, stops = self.gradients.sum(loss, float(stop))
        return loss, bool(stops)

    def clip(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Bound the gradient's norm by training.max_grad_norm; the norm before that."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        return torch.nn.utils.clip_grad_norm_(self.trained, self.args.max_grad_norm or float("inf"))

    def take(self, optimizer: torch.optim.Optimizer) -> bool:
        """Change the weights, and forget the gradient; whether they were changed: float16 leaves out steps
        that overflow.
        """
        taken = True
        if self.scaler is None:
            optimizer.step()
        else:
            scale = self.scaler.get_scale()
            self.scaler.step(optimizer)
            self.scaler.update()
            taken = self.scaler.get_scale() >= scale
        self.model.zero_grad()
        return taken

    def trial_run(self, layout: Layout, step: StepRows) -> torch.Tensor:
        """The loss of `step`; its gradients are computed and thrown away, by each process for itself."""
        self.use_layout(layout)
        loss = self.run(step, step.trained_tokens)
        self.model.zero_grad()
        return loss
