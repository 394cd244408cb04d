"""Checkpoints that are written while the training goes on."""

import logging
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import composed

from chatbot_sft.errors import UserError
from chatbot_sft.run import checkpoints
from chatbot_sft.train.writing import Writing

PATIENCE = 60  # seconds that a writing waits for what must happen beside it


class Planted(Exception):
    pass


def test_one_writing_at_a_time_is_done_beside_the_caller():
    go, done = threading.Event(), []
    writing = Writing()

    def first():
        assert go.wait(PATIENCE)
        done.append("first")

    writing.begin(first)
    assert not done
    threading.Timer(0.05, go.set).start()
    writing.begin(lambda: done.append("second"))  # the first has ended by then
    assert done[0] == "first"
    writing.end()
    assert done == ["first", "second"]
    writing.end()  # nothing is under way


def test_what_a_writing_raises_is_raised_once_where_it_is_waited_for(caplog):
    def fails():
        raise Planted("no room")

    writing, done = Writing(), []
    writing.begin(fails)
    with pytest.raises(Planted):
        writing.begin(lambda: done.append(1))
    writing.end()
    assert not done
    writing.begin(fails)
    with caplog.at_level(logging.WARNING, "chatbot_sft"):
        writing.end_quietly()
    assert caplog.messages == ["no room"]
    writing.end()


@pytest.mark.slow
def test_copies_stay_what_was_and_share_what_is_shared():
    import torch

    from chatbot_sft.train.host_copies import HostCopies

    vector = torch.arange(10.0)
    table = torch.ones(3, dtype=torch.uint8)
    matrices = {"a": vector[2:8].view(2, 3), "b": vector[8:], "turned": vector[:4].view(2, 2).t()}
    state = {"state": {0: {"step": 3, "table": table, "names": ["x", table]}}, "param_groups": [{"lr": 0.1}]}
    copies = HostCopies()
    weights, states = copies.of(matrices), copies.of(state)
    expected = {name: matrix.clone() for name, matrix in matrices.items()}
    vector += 1
    table += 1
    assert all(torch.equal(weights[name], expected[name]) for name in matrices)
    assert len({weight.untyped_storage().data_ptr() for weight in weights.values()}) == 1
    assert weights["turned"].stride() == matrices["turned"].stride()
    inside = states["state"][0]
    assert inside["table"].tolist() == [1, 1, 1]
    assert inside["names"][1].data_ptr() == inside["table"].data_ptr()
    assert (inside["step"], inside["names"][0], states["param_groups"]) == (3, "x", [{"lr": 0.1}])


# In a training


@pytest.fixture
def trained(tiny, tmp_path, monkeypatch):
    """`trained(name, *overrides)`: the checkpoints of a run of six steps on the plain engine, each saved. `steps` are
    the numbers of those taken.
    """
    from chatbot_sft import pipeline
    from chatbot_sft.train import loop

    steps, take = [], loop.train_step

    def train_step(job, step):
        take(job, step)
        steps.append(job.state.global_step)

    monkeypatch.setattr(loop, "train_step", train_step)
    quick = ["training.max_steps=6", "training.save_steps=2", "training.save_total_limit=null", "save=none"]
    quick += ["model.engine=transformers", "training.learning_rate=1e-2", "training.sample_max_new_tokens=0"]

    def run(name, *overrides):
        steps.clear()
        pipeline.run(composed(tmp_path / name, *tiny, *quick, *overrides))
        return tmp_path / name / "checkpoints"

    run.steps = steps
    return run


def held_up(monkeypatch, wait):
    """`checkpoints.publish` calls `wait(step)` first."""
    publish = checkpoints.publish

    def late(staged, target, record):
        wait(record["step"])
        publish(staged, target, record)

    monkeypatch.setattr(checkpoints, "publish", late)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [4, 0])
def test_steps_are_taken_while_a_checkpoint_is_written_of_what_was_before_them(trained, monkeypatch, rank):
    """Of a whole model there may be no room for a copy: it is written at once."""
    alone = trained("alone", f"lora.r={rank}")
    overtaken = {}

    def wait(step):
        ended = threading.Event()
        for _ in range(PATIENCE if rank and step < 6 else 0):
            if trained.steps and trained.steps[-1] > step:
                break
            ended.wait(0.1)
        overtaken[step] = trained.steps[-1:]

    held_up(monkeypatch, wait)
    beside = trained("beside", f"lora.r={rank}")
    if rank:
        assert overtaken[2] == [3]
        assert overtaken[4] == [5]
    else:
        assert overtaken == {2: [1], 4: [3], 6: [5]}
    for step in (2, 4, 6):
        for name in ("adapter_model.safetensors" if rank else "model.safetensors", "optimizer.pt"):
            file = Path(f"checkpoint-{step}", name)
            assert (beside / file).read_bytes() == (alone / file).read_bytes()


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_written_ends_the_run_with_the_one_before(trained, monkeypatch, tmp_path):
    def full(step):
        if step == 4:
            raise OSError(28, "No space left on device")

    held_up(monkeypatch, full)
    with pytest.raises(
        UserError, match=r"checkpoint of step 4 cannot be written .* the one of step 2 is kept"
    ):
        trained("full")
    place = tmp_path / "full" / "checkpoints"
    assert sorted(path.name for path in place.iterdir() if path.is_dir()) == ["checkpoint-2"]


@pytest.mark.slow
def test_who_watches_checkpoints_finds_them(trained, tiny, monkeypatch, tmp_path):
    from transformers import TrainerCallback

    from chatbot_sft.train.session import Session

    found = []

    class Looks(TrainerCallback):
        def on_save(self, args, state, control, **_):
            found.append(checkpoints.last_in(Path(args.output_dir)).step == state.global_step)

    create = Session.create_trainer

    def watched(session):
        made = create(session)
        session.job.add_callback(Looks())
        return made

    monkeypatch.setattr(Session, "create_trainer", watched)
    held_up(monkeypatch, lambda step: threading.Event().wait(0.2))
    trained("watched")
    assert found == [True] * 3


@pytest.mark.slow
def test_the_last_good_checkpoint_may_be_the_one_being_written(tmp_path):
    import torch

    from chatbot_sft.train.guard import Diverged, Guard

    record = {
        "step": 7, "started": "2026-01-01", "seconds": 1.5, "finished": False, "losses": {}, "layout": {},
        "resumes": [], "identity": {},
    }  # fmt: skip
    staged, target = tmp_path / ".saving" / "checkpoint-7", tmp_path / "checkpoint-7"

    def publish():
        threading.Event().wait(0.2)
        staged.mkdir(parents=True)
        (staged / "adapter_model.safetensors").write_bytes(b"weights")
        checkpoints.publish(staged, target, record)

    writing = Writing()
    args = SimpleNamespace(output_dir=str(tmp_path), fp16=False, learning_rate=1.0)
    batches = SimpleNamespace(numbers=lambda step: [0])
    rows, state = SimpleNamespace(column_names=[]), SimpleNamespace(max_steps=9, log_history=[])
    guard = Guard(args, rows, batches, True, state, writing)
    writing.begin(publish)
    with pytest.raises(Diverged, match="the last good checkpoint is checkpoint-7"):
        guard.check(8, torch.tensor(float("nan")), torch.tensor(1.0))
