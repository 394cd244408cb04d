"""The trainer's steps: whole optimizer steps of conversations, run in the layout that is fastest here. Imported after the engine."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model.engine import Engine
from chatbot_sft.train.gradients import FlatParameters, Gradients, flattens
from chatbot_sft.train.graphs import CapturedLayers, CaptureFailed, layers_and_loss
from chatbot_sft.train.layout import Layout, step_down
from chatbot_sft.train.measure import Trial
from chatbot_sft.train.rows import IGNORED, Row, StepRows, padded
from chatbot_sft.train.sampler import Pack, StepSampler, row_lengths

if TYPE_CHECKING:
    from datasets import Dataset

log = logging.getLogger(__name__)

FLOAT32_NOISE, FLOAT16_NOISE = 1e-4, 5e-3  # relative difference of one step's loss between layouts that compute the same


class PackedDataset:
    """Gives the DataLoader whole packs: an index is a list of row numbers of `dataset`. Without a column of labels every token is trained."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, pack: Pack) -> list[Row]:
        columns = self.dataset[pack]
        ids = columns["input_ids"]
        return [Row(number, *row) for number, row in zip(pack, zip(ids, columns.get("labels", ids), strict=True), strict=True)]


class StepLoader(DataLoader):
    """One StepRows an optimizer step."""

    def __init__(self, dataset: Dataset, sampler: StepSampler, workers: int = 0) -> None:
        super().__init__(PackedDataset(dataset), batch_sampler=sampler, collate_fn=StepRows, num_workers=workers)

    def set_epoch(self, epoch: int) -> None:
        self.batch_sampler.set_epoch(epoch)


class Steps:
    """For a `transformers.Trainer` whose `args.per_device_train_batch_size` is the whole step's, with one gradient accumulation step.

    Its data loader gives one StepRows a step; `layout` says how that is run, and can change between any two steps.
    """

    engine: Engine
    settings: Config
    layout: Layout
    step: StepRows  # what is being trained
    captured: CapturedLayers | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.flat = FlatParameters(trained) if "8bit" in self.args.optim and flattens(trained) else None
        self.gradients = self.flat or Gradients(trained)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None and self.flat is not None:
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = optimizer_class([self.flat.vector], weight_decay=self.args.weight_decay, **options)
            self.optimizer.register_step_pre_hook(lambda *_: self.flat.collect())
        return super().create_optimizer(*args, **kwargs)

    def step_sampler(self) -> StepSampler:
        """The conversations of each step of this process."""
        return StepSampler(
            row_lengths(self.train_dataset),
            self.args.per_device_train_batch_size * self.args.world_size,
            self.args.seed,
            self.settings.dataset.shuffle,
            self.settings.model.max_seq_length if self.settings.training.packing else None,
            self.args.process_index,
            self.args.world_size,
        )

    def get_train_dataloader(self) -> StepLoader:
        return StepLoader(self.train_dataset, self.step_sampler(), self.args.dataloader_num_workers)

    def use_layout(self, layout: Layout) -> None:
        """Switch to training mode, with or without recomputed activations; what was captured for another layout is let go."""
        if not layout.captured:
            self.captured = None
        self.layout = layout
        self.engine.for_training(self.model, layout.checkpointing)

    def capturable(self) -> bool:
        """Whether `layout.captured` may be tried: on one GPU, an adapter alone, nothing random in the layers, no loss scaling."""
        lora, extra = self.settings.lora, self.settings.sft_arguments
        plain = not lora.modules_to_save and not self.settings.model.new_tokens and not lora.lora_dropout and not extra.get("neftune_noise_alpha")
        alone = self.args.world_size == 1 and self.accelerator.scaler is None
        return alone and plain and not self.settings.full_finetuning and self.engine.capturable(self.model)

    def trial(self) -> Trial:
        """The typical and the longest step of this run, and a way to run them without a trace."""
        sampler = self.step_sampler()

        def size(packs: list[list[int]]) -> int:
            return sum(sampler.lengths[row] for pack in packs for row in pack)

        steps = sorted(sampler.steps(), key=size)
        longest = sorted(sampler.packs, key=lambda pack: -size([pack]))
        rows = PackedDataset(self.train_dataset)
        count = self.args.per_device_train_batch_size
        typical, longest = (StepRows([rows[pack] for pack in packs[:count]]) for packs in (steps[len(steps) // 2], longest))
        shapes = {CapturedLayers.length(max(sampler.lengths[row] for pack in step for row in pack)) for step in steps}

        exact = self.accelerator.mixed_precision == "no" and self.model.dtype == torch.float32
        tolerance = FLOAT32_NOISE if exact else FLOAT16_NOISE
        return Trial(self.trial_run, typical, longest, self.state.max_steps, self.settings.training.memory_margin, tolerance, len(shapes))

    def trial_run(self, layout: Layout, step: StepRows) -> torch.Tensor:
        """The loss of `step`; its gradients are computed and thrown away."""
        self.use_layout(layout)
        # In no_sync: each process measures for itself.
        with self.accelerator.no_sync(self.model_wrapped), self.accelerator.autocast():
            loss = self._run(self.model_wrapped, step, torch.tensor(max(1, step.trained_tokens), device=self.args.device))
        self.model.zero_grad()
        return loss

    def capture(self) -> None:
        """Capture every shape that the run will meet, the largest first: the smaller ones then fit into its memory, and none comes as a surprise."""
        self.captured = None
        gc.collect()
        torch.cuda.empty_cache()
        sampler, rows = self.step_sampler(), PackedDataset(self.train_dataset)
        by_shape: dict[int, list[Pack]] = {}
        for step in sampler.steps():
            for group in (step[start : start + self.layout.packs] for start in range(0, len(step), self.layout.packs)):
                if len(group) == self.layout.packs:
                    length = CapturedLayers.length(max(sampler.lengths[row] for pack in group for row in pack))
                    by_shape.setdefault(length, list(group))
        for length in sorted(by_shape, reverse=True):
            self.trial_run(self.layout, StepRows([rows[pack] for pack in by_shape[length]]))

    def get_batch_samples(self, epoch_iterator: Iterator[StepRows], num_batches: int, device: torch.device) -> tuple[list[StepRows], Any]:
        """The next step, and its trained tokens over all processes; the tokens seen are counted on the way, without waiting for the device."""
        steps = list(itertools.islice(epoch_iterator, num_batches))
        counts = torch.tensor([sum(step.trained_tokens for step in steps), sum(step.tokens for step in steps)])
        if self.args.world_size > 1:
            counts = counts.to(device)
            torch.distributed.all_reduce(counts)
        self.state.num_input_tokens_seen += int(counts[1])
        return steps, counts[0].clamp(min=1).to(device, non_blocking=True)

    def training_step(self, model: Any, inputs: StepRows, num_items_in_batch: Any = None) -> torch.Tensor:
        """One optimizer step's gradient. Out of memory, it is computed again from its beginning in the next smaller layout.

        Raises:
            UserError: there is no smaller one.
        """
        self.step = inputs
        while True:
            try:
                loss = self._run(model, inputs, num_items_in_batch)
                # Under Unsloth, accelerate hands the model back without DistributedDataParallel around it: each process would train by its own rows.
                if self.args.world_size > 1 and not isinstance(model, DistributedDataParallel):
                    self.gradients.average()
                return loss
            except CaptureFailed as error:
                why, smaller = f"cannot be captured ({error})", replace(self.layout, captured=False)
            except torch.OutOfMemoryError as error:
                why, smaller = "out of memory", step_down(self.layout)
                if smaller is None or self.args.world_size > 1:
                    raise UserError(
                        f"out of memory at step {self.state.global_step + 1} ({self.layout.describe(len(inputs.packs))}); "
                        "set a smaller training.per_device_train_batch_size or model.max_seq_length, or model.load_in_4bit=true"
                    ) from error
            # Out of the handler: until then the exception holds on to the activations of the step that failed.
            model.zero_grad()
            self.use_layout(smaller)
            gc.collect()
            torch.cuda.empty_cache()
            log.warning("layout: %s; step %d again as %s", why, self.state.global_step + 1, smaller.describe(len(inputs.packs)))

    def _run(self, model: Any, step: StepRows, num_items_in_batch: torch.Tensor) -> torch.Tensor:
        """Forward and backward passes of all micro-batches; the sum of their losses, each already divided by `num_items_in_batch`."""
        if self.layout.captured and not self.model.training:  # after an evaluation
            self.use_layout(self.layout)
        if self.layout.captured and self.captured is None:
            self.captured = CapturedLayers(*layers_and_loss(self.engine, self.model, self.accelerator.autocast))
        if self.layout.captured or (self.flat is not None and self.args.world_size == 1):
            self.gradients.attach()
        # The last step of an epoch may hold fewer conversations than there are processes; all of them have to take part in it.
        pad = self.processing_class.pad_token_id
        groups = list(self.layout.groups(step)) or [[Row(-1, [pad, pad], [IGNORED, IGNORED])]]
        losses = []
        for number, rows in enumerate(groups, 1):
            if self.layout.captured and len(rows) == self.layout.packs:
                batch = padded(rows, pad, CapturedLayers.length(max(map(len, rows))), mask=False)
                ids, labels = (batch[name].to(self.args.device, non_blocking=True) for name in ("input_ids", "labels"))
                losses.append(self.captured.run(ids, labels, num_items_in_batch))
                continue
            batch = self.layout.batch(rows, pad)
            with nullcontext() if number == len(groups) else self.accelerator.no_sync(model):
                losses.append(super().training_step(model, self.engine.inputs(batch), num_items_in_batch))
        return torch.stack(losses).sum()

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None) -> Any:
        if self.model_accepts_loss_kwargs:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch)
        # Such a model averages over its own micro-batch: weighted by its trained tokens, the parts add up to the mean of the step.
        share = (inputs["labels"][:, 1:] != IGNORED).sum() / num_items_in_batch * self.args.world_size
        return super().compute_loss(model, inputs) * share

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # counted by walking over all modules each time, and used for nothing here


class PlanLayout(TrainerCallback):
    """Chooses the layout as training begins: only then is the model as it will be trained (Unsloth drops what it compiled before)."""

    def __init__(self, plan: Callable[[], Any]) -> None:
        self.plan = plan

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.plan()
