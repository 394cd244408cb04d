"""One optimizer step on this machine: the gradient of its conversations, in the layout that is fastest here.
Imported after the engine.
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from transformers.trainer_pt_utils import LabelSmoother

from chatbot_sft.errors import UserError
from chatbot_sft.model.joined import Joined, join
from chatbot_sft.model.loss import quantised
from chatbot_sft.model.quantization import Decoded, decode
from chatbot_sft.model.sharding import shard
from chatbot_sft.objective.base import Objective
from chatbot_sft.objective.sequences import Totals
from chatbot_sft.train.captures import Captures
from chatbot_sft.train.gradients import FlatParameters, Gradients, flattens
from chatbot_sft.train.graphs import CapturedLayers, CaptureFailed
from chatbot_sft.train.judge import Judge, beside_totals, figure_names, sequences_of
from chatbot_sft.train.layout import Layout, step_down, uncaptured
from chatbot_sft.train.optimizer import by_element
from chatbot_sft.train.packed import PackedPasses, on_device, uncompiled
from chatbot_sft.train.packing import PackedShapes
from chatbot_sft.train.padded import PaddedPasses
from chatbot_sft.train.rows import Row, StepRows, filler, padded, sequence_tensors

if TYPE_CHECKING:
    from chatbot_sft.config import Config
    from chatbot_sft.model.engine import Engine

log = logging.getLogger(__name__)


class Step:
    """What is trained, apart from how long: the model, its loss, the layout and what was captured for it.

    `layout` can change between any two steps. `args` are a transformers.TrainingArguments.
    """

    def __init__(
        self,
        model: Any,
        engine: Engine,
        settings: Config,
        args: Any,
        pad_token_id: int,
        objective: Objective,
        captures: Captures | None = None,
    ) -> None:
        self.model, self.engine, self.settings, self.objective = model, engine, settings, objective
        self.args, self.pad = args, pad_token_id
        self.sharded = settings.training.shard
        if self.sharded:
            shard(model, args.device)
        if not quantised(model):
            model.to(args.device)
        model.config.use_cache = False
        if args.gradient_checkpointing:
            model.gradient_checkpointing_enable(
                gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs
            )
        engine.prepare(model)
        self.precision = engine.compute_dtype(model, "bf16" if args.bf16 else "fp16" if args.fp16 else None)
        self.layout = Layout(settings.training.per_device_train_batch_size)
        self.captured: CapturedLayers | None = None
        self.packed: PackedPasses | None = None  # where a layout packs
        self.shapes: Callable[[Layout], PackedShapes] | None = None  # and into what
        self.decoded: Decoded | None = None  # the base, where a layout has it so
        self.joined: list[Joined] = []  # projections, where a layout has them so
        self.captures = captures or Captures()
        self.failure: UserError | None = None  # why this process, of several, cannot go on
        # What the objective reports of a step beside its loss.
        self.figures = [] if objective.means_tokens else figure_names(objective)
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        one_vector = flattens(self.trained) and (
            "8bit" in args.optim or (args.device.type == "cuda" and by_element(args.optim))
        )
        self.flat = FlatParameters(self.trained, captures) if one_vector else None
        self.gradients = self.flat or Gradients(self.trained)
        self.smoother = LabelSmoother(args.label_smoothing_factor) if args.label_smoothing_factor else None
        self.scaler = torch.amp.GradScaler(args.device.type) if self.precision == "fp16" else None
        if self.scaler is not None:
            engine.use_scaler(model, self.scaler)
        self.padded = PaddedPasses(model, engine, self.autocast, pad_token_id, self.scaler)
        # Whether a step's loss is looked at before its weights change. On a GPU that would keep it waiting: it
        # is looked at later, and the change undone.
        self.waits = self.flat is None or self.scaler is not None or args.device.type != "cuda"
        if args.world_size > 1:
            self.gradients.share()

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
        if layout != self.layout:
            self.captured = None
            if self.packed is not None:
                self.captures.let_go(self.packed.captured)
                self.packed.captured = None
        sizes = (layout.packs, layout.captured)
        if layout.packed and self.shapes is not None and sizes != (self.layout.packs, self.layout.captured):
            self.pack(self.shapes, layout)
        self._use_layers(layout)
        if self.flat is not None:
            self.flat.compute_in(torch.bfloat16 if layout.packed and self.precision == "bf16" else None)
        self.layout = layout
        self.engine.for_training(self.model, layout.checkpointing, random=not layout.captured)

    def _use_layers(self, layout: Layout) -> None:
        """Have the base and its adapter as `layout` computes them: decoded or not, apart or joined."""
        # Weights of another dtype are cast by autocast, each for its own product.
        as_they_are = self.precision is None or self.model.dtype == torch.bfloat16
        together = layout.packed and layout.captured and as_they_are
        if layout.decoded == (self.decoded is not None) and together == bool(self.joined):
            return
        for joined in self.joined:
            joined.separate()
        self.joined = []
        if layout.decoded and self.decoded is None:
            self.decoded = decode(self.model)
        elif not layout.decoded and self.decoded is not None:
            self.decoded.encode()
            self.decoded = None
        if together:
            self.joined = join(self.model)

    def not_packable(self) -> str | None:
        """Why conversations cannot be packed here; None where they can."""
        if self.scaler is not None:
            return "float16 losses are scaled"
        if (
            self.args.device.type == "cuda"
            and self.precision != "bf16"
            and self.model.dtype != torch.bfloat16
        ):
            return "its attention has no float32 on a GPU"
        if self.settings.sft_arguments.get("neftune_noise_alpha"):
            return "training.neftune_noise_alpha goes by the length of a row"
        return self.engine.packable(self.model)

    def passes(self) -> PackedPasses:
        """Those of a packed layout. Raises RuntimeError before `pack`."""
        if self.packed is None:
            raise RuntimeError(f"{self.layout} needs pack() first")
        return self.packed

    def pack(self, shapes: Callable[[Layout], PackedShapes], layout: Layout) -> None:
        """Be ready for `layout`, which packs conversations, as others may that follow; `shapes` are those of each."""
        smoothing, random = self.args.label_smoothing_factor, bool(self.settings.lora.lora_dropout)
        self.shapes = shapes
        self.packed = PackedPasses(
            self.model, self.engine, self.autocast, self.pad, smoothing, shapes(layout), random, self.graphs
        )

    def graphs(self, layout: Layout) -> CapturedLayers:
        """Those of `layout`, maybe of a run before with an adapter of the same form."""
        passes = self.passes()
        if self.flat is None or self.flat.copy is None:  # its weights have no place but their own
            return CapturedLayers(passes.random)
        lora = json.dumps(asdict(self.settings.lora), sort_keys=True)
        key = (self.flat.form, lora, self.precision, layout, passes.shapes)
        read = (self.flat.copy, self.decoded and self.decoded.layers)
        return self.captures.layers(key, lambda: CapturedLayers(passes.random, read))

    def capturable(self) -> bool:
        """Whether `layout.captured` may be tried: an adapter alone over a whole base, nothing random in the
        layers, no loss scaling.
        """
        lora, extra = self.settings.lora, self.settings.sft_arguments
        plain = (
            not lora.modules_to_save
            and not self.settings.model.new_tokens
            and not lora.lora_dropout
            and not extra.get("neftune_noise_alpha")
        )
        plain &= self.scaler is None and not self.sharded and self.objective.means_tokens
        return plain and not self.settings.full_finetuning and self.engine.capturable(self.model)

    def backward(self, step: StepRows, totals: Totals, number: int) -> torch.Tensor:
        """Leave in each parameter's `grad` what this process's rows add to the gradient of step `number`;
        returns what they add to its loss, and to the `figures` of an objective that has some.

        `totals` are those of all processes. Out of memory, all of it is computed again in the next smaller
        layout, by this process alone: the others wait for its gradient.

        Raises:
            UserError: there is no smaller one. Of several processes none may be missing in the sum that
                follows: it is then `failure`, and raised where all of them read the step's figures.
        """
        if self.objective.refers and not all(row.reference for row in step.rows):
            raise RuntimeError(f"step {number}: the reference has not looked at its rows")
        seen = None
        if self.objective.looks:
            seen = self.in_some_layout(lambda: self.look(step, totals), step, number)
            seen = torch.zeros((), device=self.args.device) if seen is None else seen
            if self.args.world_size > 1:
                torch.distributed.all_reduce(seen)
        values = self.in_some_layout(lambda: self.run(step, totals, seen), step, number)
        if values is not None:
            return values
        gc.collect()
        self.gradients.attach()
        return torch.zeros(1 + len(self.figures), device=self.args.device).squeeze()

    def in_some_layout(
        self, run: Callable[[], torch.Tensor], step: StepRows, number: int
    ) -> torch.Tensor | None:
        """What `run` gives of step `number` in this layout, or in the next smaller one that has room for it; None
        where none has, and the other processes wait.
        """
        smaller: Layout | None
        while self.failure is None:
            try:
                return run()
            except CaptureFailed as error:
                why, smaller = f"cannot be captured ({error})", uncaptured(self.layout)
            except torch.OutOfMemoryError as error:
                why = "out of memory"
                smaller = None if self.sharded else step_down(self.layout, len(step.packs))
                if smaller is None:
                    self.failure = UserError(
                        f"step {number}: out of memory ({self.layout.describe(len(step.packs))}); set a"
                        " smaller training.per_device_train_batch_size or model.max_seq_length, or"
                        " model.load_in_4bit=true"
                    )
                    if self.args.world_size == 1 or self.sharded:  # the others wait in the middle of a pass
                        raise self.failure from error
                    continue
            # Out of the handler: until then the exception holds on to the activations of the step that
            # failed.
            self.gradients.forget()
            self.use_layout(smaller)
            gc.collect()
            torch.cuda.empty_cache()
            log.warning("layout: %s; step %d again as %s", why, number, smaller.describe(len(step.packs)))
        return None

    def run(self, step: StepRows, totals: Totals, seen: torch.Tensor | None = None) -> torch.Tensor:
        """Forward and backward passes of all micro-batches; the sum of their losses, or of what the objective's
        `Judge` gives.
        """
        self._begin()
        run = self._of_tokens(totals) if self.objective.means_tokens else self._of_objective(totals, seen)
        values = []
        for rows in self._groups(step):
            values.append(run(rows))
            self.gradients.collect()
        return torch.stack(values).sum(0)

    def _begin(self) -> None:
        if not self.model.training:  # after an evaluation
            self.use_layout(self.layout)
        if self.layout.captured or self.flat is not None:
            self.gradients.attach()

    def _groups(self, step: StepRows) -> Iterator[list[Row]]:
        """The rows of each micro-batch. The last step of an epoch may have nothing more for this process, which has
        to take part in it.
        """
        return (group or [filler(self.pad)] for group in self.layout.groups(step))

    def _of_tokens(self, totals: Totals) -> Callable[[list[Row]], torch.Tensor]:
        """How a micro-batch is run whose loss is the mean over the step's trained tokens."""
        # Filled in there: a copy from the host would wait for all that the device has still to do.
        count = torch.full((), max(1, totals.trained_tokens), device=self.args.device)

        def run(rows: list[Row]) -> torch.Tensor:
            if self.layout.packed:
                return self.passes().run(rows, count, self.layout)
            if self.layout.captured and len(rows) == self.layout.packs:
                return self._captured_pass(rows, count)
            return self.micro_batch(self._to_device(self.layout.batch(rows, self.pad)), count)

        return run

    # Objectives

    def _of_objective(self, totals: Totals, seen: torch.Tensor | None) -> Callable[[list[Row]], torch.Tensor]:
        """How one is run whose loss is the objective's."""
        judge, passes = Judge(self.objective, self.figures, totals, seen), self._judging()
        return lambda rows: passes.judged(rows, judge, self.layout)

    def _judging(self) -> PackedPasses | PaddedPasses:
        return self.passes() if self.layout.packed else self.padded

    def scores(self, step: StepRows, beside: bool = False) -> torch.Tensor:
        """The log-probabilities of all sequences of `step`, or of what stands `beside` its rows, in their order, by
        the model as it is.
        """
        self._begin()
        groups = ([row.beside or row for row in rows] if beside else rows for rows in self._groups(step))
        return torch.cat([self._judging().logps(rows, self.layout) for rows in groups])

    def look(self, step: StepRows, totals: Totals) -> torch.Tensor:
        """What the objective makes of what stands beside the rows of `step`, summed over its micro-batches."""
        self._begin()
        of_beside = beside_totals(totals)
        found = []
        for rows in self._groups(step):
            beside = [row.beside or row for row in rows]
            of_rows = on_device(sequence_tensors(beside), self.args.device)
            logps = self._judging().logps(beside, self.layout)
            found.append(self.objective.look(sequences_of(logps, of_rows, of_beside)))
        return torch.stack(found).sum(0)

    def _captured_pass(self, rows: list[Row], trained_tokens: torch.Tensor) -> torch.Tensor:
        """`micro_batch` of a rectangle of rows, its layers replayed from graphs."""
        batch = self._to_device(
            padded(rows, self.pad, CapturedLayers.length(max(map(len, rows))), mask=False)
        )

        def head(hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            leaf = hidden.detach().requires_grad_()
            with self.autocast():
                loss = self.engine.head_loss(self.model, leaf, batch["labels"], trained_tokens)
            (gradient,) = torch.autograd.grad(loss, leaf)
            return loss.detach(), gradient

        if self.captured is None:
            self.captured = CapturedLayers()
        return self.captured.run(self._padded_layers, {"input_ids": batch["input_ids"]}, head)

    def _padded_layers(self, input_ids: torch.Tensor) -> torch.Tensor:
        with self.autocast():
            return self.engine.hidden_states(self.model, input_ids)

    @contextlib.contextmanager
    def inference(self) -> Iterator[None]:
        """The model as it is evaluated, asked and saved: whole weights, nothing compiled."""
        self.gradients.whole()
        with uncompiled() if self.layout.packed else contextlib.nullcontext():
            yield

    def micro_batch(self, batch: dict[str, Any], trained_tokens: torch.Tensor) -> torch.Tensor:
        """One forward and backward pass; its loss, already divided by `trained_tokens`."""
        inputs = self.engine.inputs(batch)
        with self.autocast():
            if self.smoother:
                loss = self._smoothed(self.smoother, inputs, trained_tokens)
            else:
                loss = self.engine.loss(self.model, inputs, trained_tokens)
        (self.scaler.scale(loss) if self.scaler is not None else loss).backward()
        return loss.detach()

    def _smoothed(
        self, smoother: LabelSmoother, inputs: dict[str, Any], trained_tokens: torch.Tensor
    ) -> torch.Tensor:
        """The loss with training.label_smoothing_factor, which needs all logits."""
        labels = inputs.pop("labels")
        outputs = self.model(**inputs, use_cache=False)
        return smoother(
            {"logits": outputs.logits.float()}, labels, shift_labels=True, num_items_in_batch=trained_tokens
        )

    def _to_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values.to(self.args.device, non_blocking=True) for name, values in batch.items()}

    def over_all_processes(self, values: torch.Tensor, stop: bool) -> tuple[torch.Tensor, ...]:
        """Sum the gradients of all processes, and with them the loss; how many of them were asked to stop,
        infinite where one cannot go on; and what else `backward` gave.
        """
        loss, *figures = values.reshape(-1).unbind()
        if self.args.world_size == 1:
            return loss, torch.full((), float(stop), device=loss.device), *figures
        return tuple(self.gradients.sum(loss, math.inf if self.failure else float(stop), *figures))

    def clip(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """Bound the gradient's norm by training.max_grad_norm; the norm before that."""
        if self.scaler is not None:
            self.scaler.unscale_(optimizer)
        moved = self.trained if self.flat is None else [self.flat.vector]
        return torch.nn.utils.clip_grad_norm_(moved, self.args.max_grad_norm or float("inf"))

    def take(self, optimizer: torch.optim.Optimizer) -> bool:
        """Change the weights, and forget the gradient; whether they were changed: float16 leaves out steps
        that overflow.
        """
        taken = True
        if not self.waits:
            self.gradients.remember()
        if self.scaler is None:
            optimizer.step()
        else:
            scale = self.scaler.get_scale()
            self.scaler.step(optimizer)
            self.scaler.update()
            taken = self.scaler.get_scale() >= scale
        self.gradients.forget()
        return taken

    def trial_run(self, layout: Layout, step: StepRows) -> torch.Tensor:
        """The loss of `step`; its gradients are computed and thrown away, by each process for itself. To an
        objective, what is not known yet is 0.
        """
        self.use_layout(layout)
        totals = step.totals
        seen = self.look(step, totals) if self.objective.looks else None
        values = self.run(step, totals, seen)
        self.gradients.forget()
        return values.flatten()[0]
