"""The training loop: what happens from a run's first optimizer step to its last, in the order in which it
happens. Imported after the engine.

A `Job` is one training: its rows, optimizer, schedule, evaluations, checkpoints. The model and what was
captured of it are the `Step`'s. Between two steps it may wait for its next turn.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import torch
from transformers.integrations.neftune import neftune_post_forward_hook
from transformers.trainer_utils import TrainOutput, align_special_tokens, speed_metrics

from chatbot_sft import preemption
from chatbot_sft.errors import UserError
from chatbot_sft.run.turn import Turn
from chatbot_sft.train import snapshot
from chatbot_sft.train.evaluation import evaluate, evaluate_objective
from chatbot_sft.train.figures import Figures
from chatbot_sft.train.guard import Guard
from chatbot_sft.train.job import Job, Taken
from chatbot_sft.train.optimizer import after_evaluations, build_optimizer, build_schedule
from chatbot_sft.train.randomness import undisturbed
from chatbot_sft.train.reference import refer
from chatbot_sft.train.step import Step


def train(
    job: Job, step: Step, plan: Callable[[], None], every: int | None
) -> Generator[Turn, None, TrainOutput]:
    """Train `job` from the weights that the model has to its end. `plan` chooses the layout, once it is ready to
    begin. It waits after each `every` steps; None: after each evaluation, of golden answers too; 0: never.

    Raises:
        UserError: a loss diverged, memory ran out, or a checkpoint cannot be written.
    """
    begin(job, step)
    plan()
    refer(job, step)
    open_books(job)
    try:
        while not job.ended:
            train_step(job, step)
            if turn_ends(job, every):
                yield from wait(job, step)
        return end(job, step)
    except BaseException:
        job.writing.end_quietly()
        raise


def turn_ends(job: Job, every: int | None) -> bool:
    """Whether this turn ends with the step that was just taken, maybe not yet written down."""
    number = job.state.global_step + (job.taken is not None)
    evaluated = job.evaluated is not None or job.passed is not None
    over = evaluated if every is None else every > 0 and number % every == 0
    return over and not job.ended


def wait(job: Job, step: Step) -> Generator[Turn, None, None]:
    """Until the next turn. A job that is ended while it waits leaves a checkpoint to go on from."""
    if job.taken is not None:
        close_books(job, step, job.taken)
        if job.ended:
            return
    turn = Turn(job.state.global_step, job.evaluated, job.passed, job.state.max_steps)
    job.evaluated = job.passed = None
    waited_from = time.perf_counter()
    try:
        yield turn
    except BaseException:
        if not (job.guard and job.guard.doubts(turn.step)):
            save(job, step)
        raise
    waited = time.perf_counter() - waited_from
    job.started, job.began = job.started + waited, job.began + waited
    job.progress.pause()


def begin(job: Job, step: Step) -> None:
    """Make everything that the steps of `job` need, as it was at its checkpoint where it has one."""
    args = job.args
    align_special_tokens(step.model, job.tokenizer)
    lay_out(job)
    steps = job.state.max_steps
    job.optimizer = build_optimizer(args, step.model, step.flat)
    job.schedule = build_schedule(args, job.optimizer, steps)
    job.pending = torch.zeros(())
    if job.origin.checkpoint:
        if step.objective.refers:
            job.beginning = [parameter.detach().clone() for parameter in step.trained]
        snapshot.load(job, step)
    if job.settings.training.stop_on_divergence:
        job.guard = Guard(args, job.named, job.batches, job.settings.dataset.shuffle, job.state, job.writing)
    job.ended = job.origin.finished or job.state.global_step >= steps
    job.rows = job.batches.load(job.state.global_step + 1, steps, args.dataloader_num_workers)


def lay_out(job: Job) -> None:
    """Which rows each step trains, how many steps there are, and how many of them are behind us."""
    args = job.args
    job.batches = job.make_batches(job.settings.effective_batch_size)
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * job.batches.per_epoch)
    job.state = snapshot.state(job.origin.checkpoint, args)
    job.state.max_steps, job.state.num_train_epochs = steps, math.ceil(steps / job.batches.per_epoch)
    job.state.compute_steps(
        args, steps
    )  # logging_steps, save_steps and eval_steps as whole numbers, of this command


def open_books(job: Job) -> None:
    """The training proper begins; the random numbers go on where the checkpoint left them."""
    job.started, job.began = time.perf_counter(), time.time()
    job.evaluations.begin(job.state)
    job.progress.begin(job.state)
    job.steps.begin(job.origin.behind)
    job.tell("on_train_begin")
    if job.origin.checkpoint:
        snapshot.load_random_state(job)


def train_step(job: Job, step: Step) -> None:
    """One optimizer step of `job`.

    Its figures are read when the next step's gradient is on its way, so that the device never waits for
    Python; at once where something is due after this step, and wherever else that gains nothing.
    """
    args, number = job.args, job.state.global_step + 1 + (job.taken is not None)
    if job.taken is None:
        announce(job)

    # The gradient of the mean loss over all tokens that are trained in this step, in all processes.
    totals = job.batches.totals(number)
    with noisy_embeddings(step.model, args.neftune_noise_alpha):
        values = step.backward(next(job.rows), totals, number)
    loss, stop, *figures = step.over_all_processes(values, preemption.requested())
    if job.taken is not None:
        close_books(job, step, job.taken)
        if job.ended:
            return
        announce(job)
    norm = step.clip(job.optimizer)

    # The weights.
    rate = job.optimizer.param_groups[0]["lr"]
    taken = job.taken = Taken(number, totals.tokens, Figures([loss, norm, stop, *figures]), rate)
    if step.waits:
        check(job, step, taken)
    job.tell("on_pre_optimizer_step")
    moved = step.take(job.optimizer)
    if args.torch_empty_cache_steps and number % args.torch_empty_cache_steps == 0:
        torch.cuda.empty_cache()
    job.tell("on_optimizer_step")
    if moved and not after_evaluations(args):
        job.schedule.step()
    if step.waits or preemption.requested() or due(job, number):
        close_books(job, step, taken)


def announce(job: Job) -> None:
    """The step begins; callbacks may ask for more than is due after it."""
    job.control.should_log = job.control.should_evaluate = job.control.should_save = False
    job.tell("on_step_begin")


def due(job: Job, number: int) -> bool:
    """Whether something is to be done with the weights after step `number`, or the first step is timed."""
    args, state = job.args, job.state
    epoch_ends = number % job.batches.per_epoch == 0
    return (
        number in (1, state.max_steps)
        or (args.eval_strategy == "steps" and number % state.eval_steps == 0)
        or (args.save_strategy == "steps" and number % state.save_steps == 0)
        or (args.save_strategy == "epoch" and epoch_ends)
    )


def check(job: Job, step: Step, taken: Taken) -> None:
    """Raises UserError where the step's loss or gradient says that training has gone wrong, or one of several
    processes that it cannot go on.
    """
    if job.args.world_size == 1 and not job.guard:
        return
    loss, norm, stop, *_ = taken.figures.read()
    if math.isinf(stop):
        raise step.failure or UserError(f"step {taken.number}: another process could not go on; it says why")
    if job.guard:
        job.guard.check(taken.number, loss, norm)


def close_books(job: Job, step: Step, taken: Taken) -> None:
    """Write down the step that was taken, and do what is due after it."""
    args, state, control, number = job.args, job.state, job.control, taken.number
    job.taken = None
    if not step.waits:
        try:
            check(job, step, taken)
        except UserError:
            step.gradients.undo()
            raise
    loss, norm, stop, *figures = taken.figures.read()
    epoch, place = divmod(number - 1, job.batches.per_epoch)
    state.global_step, state.epoch = number, epoch + (place + 1) / job.batches.per_epoch
    state.num_input_tokens_seen += taken.tokens
    job.pending += loss
    of_objective = {name: figure.item() for name, figure in zip(step.figures, figures, strict=True)}
    for name, figure in of_objective.items():
        job.pending_figures[name] = job.pending_figures.get(name, 0.0) + figure
    job.steps.add(number, loss=loss.item(), grad_norm=norm.item(), learning_rate=taken.rate, **of_objective)
    job.progress.step(state)
    job.tell("on_step_end")
    if control.should_log or number % state.logging_steps == 0 or (number == 1 and args.logging_first_step):
        log_loss(job, norm.item(), taken.rate)

    # Evaluation, which may end the job; then its checkpoint.
    last = number >= state.max_steps
    best = False
    if control.should_evaluate or (
        args.eval_strategy == "steps"
        and args.eval_delay <= number
        and (last or number % state.eval_steps == 0)
    ):
        job.evaluated = held_out(job, step)["eval_loss"]
        best = judge(job, job.evaluated)
    job.ended = last or bool(stop) or control.should_training_stop
    at_epochs = args.save_strategy == "epoch" and (job.ended or place + 1 == job.batches.per_epoch)
    at_steps = args.save_strategy == "steps" and (job.ended or number % state.save_steps == 0)
    keep_best = best and (args.load_best_model_at_end or args.save_strategy == "best")
    if keep_best or (
        (at_steps or at_epochs or stop or control.should_save)
        and not (job.guard and job.guard.doubts(number))
    ):
        save(job, step)


def held_out(job: Job, step: Step) -> dict[str, float]:
    """Evaluate on the held-out conversations, and answer the sample questions; the training goes on as if
    neither had been done.
    """
    state = job.state
    with step.inference():
        if step.objective.means_tokens:
            metrics = evaluate(step, job.eval_dataset, state.global_step)
        else:
            metrics = evaluate_objective(job, step)
    write_log(job, metrics)
    with undisturbed():
        job.evaluations.take(state, metrics, step.figures)
    job.progress.pause()
    job.tell("on_evaluate", metrics=metrics)
    return metrics


def judge(job: Job, loss: float) -> bool:
    """What a held-out loss means for the schedule, for stopping early, and for which weights are the best;
    whether these are.
    """
    state = job.state
    if after_evaluations(job.args):
        job.schedule.step(loss)
    if job.stopping:
        job.stopping.check_metric_value(job.args, state, job.control, loss)
        job.control.should_training_stop |= (
            job.stopping.early_stopping_patience_counter >= job.stopping.early_stopping_patience
        )
    if not loss < (math.inf if state.best_metric is None else state.best_metric):
        return False
    state.best_metric, state.best_global_step = loss, state.global_step
    return True


def save(job: Job, step: Step) -> None:
    """Write a checkpoint, unless its weights are broken."""
    step.gradients.whole()
    if job.guard:
        job.guard.check_weights(job.state.global_step, step.gradients.weights)
    snapshot.write(job, step)
    if job.callbacks:  # they may look for it
        job.writing.end()
    job.progress.pause()
    job.tell("on_save")


def log_loss(job: Job, norm: float, rate: float) -> None:
    """The mean loss of the steps since the last log."""
    pending, number = job.pending.item(), job.state.global_step
    steps = number - job.logged_until
    logs = {"loss": pending / steps, "grad_norm": norm, "learning_rate": rate}
    figures = {name: total / steps for name, total in job.pending_figures.items()}
    job.pending -= job.pending
    job.pending_figures.clear()
    job.total += pending
    job.logged_until = number
    job.progress.log(job.state, logs["loss"], figures)
    write_log(job, {**logs, **figures})


def write_log(job: Job, logs: dict[str, float]) -> None:
    """Into the state, which checkpoints keep, and to the loggers."""
    logs["epoch"] = job.state.epoch
    job.state.log_history.append({**logs, "step": job.state.global_step})
    job.tell("on_log", logs=logs)


def end(job: Job, step: Step) -> TrainOutput:
    """Sum up, and put the best weights back where training.load_best_model_at_end asks for them."""
    state = job.state
    job.writing.end()
    step.gradients.whole()
    job.total += job.pending.item()
    loss = job.total / max(state.global_step, 1)
    metrics = speed_metrics(
        "train", job.began, num_samples=state.max_steps * job.batches.batch_size, num_steps=state.max_steps
    )
    metrics |= {"total_flos": state.total_flos, "train_loss": loss}
    write_log(job, metrics)
    if (
        job.args.load_best_model_at_end
        and state.best_model_checkpoint
        and state.best_global_step != state.global_step
    ):
        snapshot.load_best(step.model, state)
    job.tell("on_train_end")
    job.progress.end()
    job.steps.end()
    return TrainOutput(state.global_step, loss, metrics)


@contextlib.contextmanager
def noisy_embeddings(model: Any, alpha: float | None) -> Iterator[None]:
    """NEFTune (arXiv 2310.05914), training.neftune_noise_alpha: noise on the embeddings while they are
    trained.
    """
    if alpha is None:
        yield
        return
    embeddings = model.get_input_embeddings()
    embeddings.neftune_noise_alpha = alpha
    hook = embeddings.register_forward_hook(neftune_post_forward_hook)
    try:
        yield
    finally:
        hook.remove()
        del embeddings.neftune_noise_alpha
