"""What a checkpoint holds, so that a killed run ends with exactly the losses of an uninterrupted one.
`checkpoints` says how it appears on disk.

`adapter_model.safetensors` (or the whole model), the tokenizer, `optimizer.pt`, `scheduler.pt`, `scaler.pt`
with float16, `rng_state.pth` (one a process), `trainer_state.json` (transformers.TrainerState) and run.json.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import load_peft_weights, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import TrainerState

from chatbot_sft import preemption
from chatbot_sft.errors import UserError, is_write_error, reason
from chatbot_sft.model.earlier import WEIGHTS
from chatbot_sft.run import checkpoints
from chatbot_sft.train import resume
from chatbot_sft.train.host_copies import HostCopies
from chatbot_sft.train.randomness import random_state, use_random_state
from chatbot_sft.train.trained_files import TrainedFiles

if TYPE_CHECKING:
    from chatbot_sft.run.checkpoints import Checkpoint
    from chatbot_sft.train.job import Job
    from chatbot_sft.train.step import Step

STATE = "trainer_state.json"
STOPPING = "EarlyStoppingCallback"  # its name in the state


def state(checkpoint: Checkpoint | None, args: Any) -> TrainerState:
    """The state that a run begins with."""
    loaded = TrainerState.load_from_json(str(checkpoint.folder / STATE)) if checkpoint else TrainerState()
    if checkpoint and loaded.best_model_checkpoint is not None:
        beside = checkpoint.folder.with_name(
            f"checkpoint-{loaded.best_global_step}"
        )  # the run may have moved
        loaded.best_model_checkpoint = str(beside) if beside.is_dir() else None
    loaded.is_world_process_zero = args.process_index == 0
    loaded.is_local_process_zero = args.local_process_index == 0
    return loaded


def write(job: Job, step: Step) -> None:
    """Save a checkpoint into a folder that no search takes for one, rename it, then remove older ones.

    Of an adapter what is trained is copied, and `job.writing` writes it beside the training. At once is written what
    may have no room for a copy, and what several processes have to do together.

    Raises:
        UserError: it cannot be written, or the one before could not; what was there before still is.
    """
    job.writing.end()
    args, number, first = job.args, job.state.global_step, job.args.process_index == 0
    folder = Path(args.output_dir)
    target = folder / f"checkpoint-{number}"
    staged = folder / checkpoints.SAVING / target.name
    written = target.is_dir()  # by an earlier start, from the same weights
    wait_for_all(args)
    if written:
        return
    with _readable(folder, number):
        if first:
            staged.mkdir(parents=True)
        wait_for_all(args)
        torch.save(random_state(), staged / random_file(args))
        if first:
            write_trained, beside = _write_shared(job, step, staged, target)
        wait_for_all(args)
        if first:
            finished = job.ended and not (preemption.requested() and number < job.state.max_steps)
            losses = {"pending": job.pending.item(), "total": job.total, "logged_until": job.logged_until}
            losses |= job.pending_figures
            layout, best = step.layout.as_dict(), job.state.best_model_checkpoint
            record = resume.record(job.origin, number, job.seconds(), finished, losses, layout)

    def publish() -> None:
        with _readable(folder, number):
            write_trained(staged)
            checkpoints.publish(staged, target, record)
        shutil.rmtree(staged.parent, ignore_errors=True)
        checkpoints.prune(folder, args.save_total_limit, best)

    if first and beside:
        job.writing.begin(publish)
    elif first:
        publish()
    wait_for_all(args)


@contextlib.contextmanager
def _readable(folder: Path, number: int) -> Iterator[None]:
    """Raises UserError where the checkpoint of step `number` cannot be written; nothing is left of it in `folder`."""
    try:
        yield
    except Exception as error:
        shutil.rmtree(folder / checkpoints.SAVING, ignore_errors=True)
        if not is_write_error(error):
            raise
        last = checkpoints.last_in(folder)
        last_good = f"the one of step {last.step} is kept" if last else "there is none before it"
        raise UserError(
            f"training.output_dir={folder}: the checkpoint of step {number} cannot be written"
            f" ({reason(error)}); {last_good}"
        ) from error


def _write_shared(job: Job, step: Step, staged: Path, target: Path) -> tuple[Callable[[Path], None], bool]:
    """What is the same in all processes, but weights and optimizer. Returns what writes these into a folder,
    and whether that may be done beside the training.
    """
    copies, states = HostCopies(), job.optimizer.state_dict()
    if job.trained_files is None:
        job.trained_files = TrainedFiles.first(step.model, job.tokenizer, step.trained, staged)
        write_files = None
    else:
        write_files = job.trained_files.taken(copies)
    beside = job.args.world_size == 1 and job.trained_files.weights is not None
    optimizer = copies.of(states) if beside else states
    torch.save(job.schedule.state_dict(), staged / "scheduler.pt")
    if step.scaler is not None:
        torch.save(step.scaler.state_dict(), staged / "scaler.pt")
    best = target.with_name(f"checkpoint-{job.state.best_global_step}")
    if best == target or best.is_dir():
        job.state.best_model_checkpoint = str(best)
    if job.stopping:
        job.state.stateful_callbacks = {STOPPING: job.stopping.state()}
    job.state.save_to_json(str(staged / STATE))

    def write_trained(folder: Path) -> None:
        if write_files is not None:
            write_files(folder)
        torch.save(optimizer, folder / "optimizer.pt")

    return write_trained, beside


def load(job: Job, step: Step) -> None:
    """Put back what the checkpoint that `job` begins at holds, but for the random state."""
    checkpoint = job.origin.checkpoint
    if checkpoint is None:
        return
    folder, losses = checkpoint.folder, checkpoint.record["losses"]
    load_trained(step.model, folder)
    try:
        job.optimizer.load_state_dict(_read(folder / "optimizer.pt"))
    except ValueError as error:  # an earlier version gave the optimizer other vectors
        raise UserError(
            f"training.resume: {folder}: its optimizer.pt cannot be gone on with here ({error}); start afresh"
            f" with training.resume=never, or train its adapter on with model.adapter={folder}"
        ) from error
    if job.origin.extended and isinstance(job.schedule, torch.optim.lr_scheduler.LambdaLR):
        # The end of the old schedule, where the learning rate is often 0, is not gone on from: the new one
        # is, at this step.
        with warnings.catch_warnings(action="ignore"):  # that no optimizer step was taken before
            for _ in range(checkpoint.step):
                job.schedule.step()
    else:
        job.schedule.load_state_dict(_read(folder / "scheduler.pt"))
    if step.scaler is not None:
        step.scaler.load_state_dict(_read(folder / "scaler.pt"))
    if job.stopping and (stopping := job.state.stateful_callbacks.get(STOPPING)):
        patience = stopping["attributes"]["early_stopping_patience_counter"]
        job.stopping.early_stopping_patience_counter = patience
    job.pending += losses["pending"]
    job.total, job.logged_until = losses["total"], losses["logged_until"]
    job.pending_figures = {name: losses[name] for name in step.figures if name in losses}


def load_trained(model: Any, folder: Path) -> None:
    """Put the weights in `folder` into `model`.

    Raises:
        UserError: not all that is trained is in it.
    """
    missing = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    if (folder / WEIGHTS).is_file():
        loaded = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        missing &= set(loaded.missing_keys)  # of tied weights a file has two names, and the model one
    else:
        for file in sorted(folder.glob("*.safetensors")):
            weights = load_file(file)
            model.load_state_dict(weights, strict=False)
            missing -= weights.keys()
    if missing:
        raise UserError(
            f"training.resume: {folder} cannot be gone on from: it has no {min(missing)}; start afresh with"
            " training.resume=never"
        )


def load_best(model: Any, state: TrainerState) -> None:
    """Put back the weights of the lowest held-out loss.

    Raises:
        UserError: their checkpoint is not as it was written.
    """
    best = Path(state.best_model_checkpoint)
    try:
        checkpoints.verified(best)
    except checkpoints.Damaged as error:
        raise UserError(
            f"{best}, the best of this run: {error}; training.load_best_model_at_end=false ends with the last"
            " weights"
        ) from None
    load_trained(model, best)


def wait_for_all(args: Any) -> None:
    """Until every process is here."""
    if args.world_size > 1:
        torch.distributed.barrier()


# Random numbers: dropout goes on where it was.


def random_file(args: Any) -> str:
    return "rng_state.pth" if args.world_size == 1 else f"rng_state_{args.process_index}.pth"


def load_random_state(job: Job) -> None:
    """Go on with the random numbers of the checkpoint, if it has any for this one of so many processes."""
    checkpoint = job.origin.checkpoint
    if checkpoint is None:
        return
    file = checkpoint.folder / random_file(job.args)
    if file.is_file():
        use_random_state(_read(file))


def _read(file: Path) -> Any:
    """Raises UserError where it holds more than numbers and names: code, which is not run."""
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise UserError(with_code(file)) from None


def with_code(place: Path) -> str:
    """The text for a file of a checkpoint, or one in the folder `place`, that torch refuses to read."""
    return (
        f"training.resume: {place} has a pickle in it that this program did not write; it may hold code, which is"
        " not run: start afresh with training.resume=never"
    )
