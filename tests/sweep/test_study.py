"""The study and its worker, without a model: what goes on, what is refused, what is told."""

import json
import os
import re
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import MODEL, TRAINING, a_report, only_error, write_json
from omegaconf import OmegaConf

from chatbot_sft import UserError, pipeline, preemption, start
from chatbot_sft.config import Config
from chatbot_sft.config.hydra_glue import refuse_own_search
from chatbot_sft.model.base import description, located
from chatbot_sft.model.earlier import adopt
from chatbot_sft.preemption import Preempted
from chatbot_sft.report.leaderboard.job import numbers
from chatbot_sft.run.directory import Run
from chatbot_sft.run.fingerprint import data_mark
from chatbot_sft.run.report import Report, Status, Training
from chatbot_sft.run.turn import Pruned, Turn
from chatbot_sft.sweep import begin, pruning, study
from chatbot_sft.sweep.directory import Point, Study, Sweep
from chatbot_sft.sweep.points import space
from chatbot_sft.sweep.queue import Queue
from chatbot_sft.sweep.sampling import DAMAGED, Trials
from chatbot_sft.sweep.turns import InTurns
from chatbot_sft.sweep.worker import Worker

GRID = ["training.learning_rate=1e-4,1e-3", "lora.r=8,16"]


def begun(fixed=("seed=1",), words=GRID, **parts):
    return Study(
        "", "2026-11-29T20:00:00+00:00", "training.eval_loss", "minimise", list(fixed), list(words), **parts
    )


def joined(place, words=GRID, fixed=("seed=1",), **parts):
    found = study.joined(
        place, begun(fixed, words, **parts), list(space(words).points()), lambda number, _: str(number)
    )
    place.write_study(found)
    return found


# Going on


def test_points_may_be_added_and_those_that_were_there_keep_their_numbers(tmp_path):
    place = Sweep(tmp_path)
    first = joined(place)
    grown = joined(place, ["training.learning_rate=1e-5,1e-4,1e-3", "lora.r=8,16"])
    assert grown.points[:4] == first.points
    assert [(point.number, point.folder, point.overrides[0]) for point in grown.points[4:]] == [
        (4, "4", "training.learning_rate=1e-05"),
        (5, "5", "training.learning_rate=1e-05"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fixed": ("seed=2",)}, "begun with other settings: seed=1 → seed=2. Give what it had"),
        ({"fixed": ()}, "seed=1 is missing now"),
        ({"fixed": ("seed=1", "lora.lora_alpha=8")}, "lora.lora_alpha=8 was not there"),
        ({"words": ["training.learning_rate=1e-4,1e-3", "lora.r=8,4"]}, "has jobs that are none of this one: job 1 (training.learning_rate=0.0001 lora.r=16)"),
        ({"sampler": "tpe"}, "sweep.sampler null → tpe"),
    ],
)  # fmt: skip
def test_another_sweep_in_the_directory_is_refused_with_the_difference(tmp_path, change, message):
    joined(Sweep(tmp_path))
    before = (tmp_path / "sweep.json").read_bytes()
    with pytest.raises(UserError) as error:
        joined(Sweep(tmp_path), **change)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}: ")
    assert (tmp_path / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"fixed": ("seed=1", "lora.r=8"), "words": ["training.learning_rate=1e-4,1e-3"]}, "lora.r was swept over 8,16; now 8"),
        ({"fixed": ("seed=1", "++lora.r=8"), "words": ["training.learning_rate=1e-4,1e-3"]}, "lora.r was swept over 8,16; now 8"),
        ({"fixed": (), "words": ["seed=1,2", *GRID]}, "seed was 1; now swept over 1,2"),
        ({"fixed": ("seed=1", "lora.r=8", "training.learning_rate=1e-4"), "words": []}, "lora.r was swept over 8,16; now 8; training.learning_rate was swept over 1e-4,1e-3; now 1e-4"),
    ],
)  # fmt: skip
def test_a_list_that_became_one_of_its_values_is_told_as_that_and_the_reverse(tmp_path, change, said):
    joined(Sweep(tmp_path))
    with pytest.raises(UserError) as error:
        joined(Sweep(tmp_path), **change)
    assert str(error.value) == (
        f"{tmp_path}: the sweep there was begun with other settings: {said}. Give what it had, or name another"
        " directory (hydra.sweep.dir=DIR)"
    )


def test_keys_that_went_hand_in_hand_or_stood_in_a_file_are_told_as_swept_ones(tmp_path):
    place = Sweep(tmp_path)
    hand_in_hand = space(GRID, zipped=["training.learning_rate", "lora.r"])
    found = begun(words=hand_in_hand.typed, points=[Point(0, ["lora.r=8"], "0")])
    place.write_study(found)
    with pytest.raises(UserError, match=r"settings: lora\.r was swept over 8,16; now 8\. "):
        joined(place, ["training.learning_rate=1e-4,1e-3"], ("seed=1", "lora.r=8"))
    place.write_study(begun(words=[], points=[Point(0, ["lora.r=8"], "0"), Point(1, ["lora.r=16"], "1")]))
    with pytest.raises(UserError, match=r"settings: lora\.r was swept over 8,16; now 8\. "):
        joined(place, [], ("seed=1", "lora.r=8"))


def test_how_a_sweep_is_run_is_no_difference():
    words = ["seed=1", "sweep.retry_failed=false", "dataset.data_path=https://me:pass-word@host/a.json"]
    assert study.of_job(words) == ["seed=1", "dataset.data_path=https://***@host/a.json"]


@pytest.mark.parametrize("text", ['{"schema": 1, "points"', "[]", '{"schema": 1}'])
def test_a_sweep_json_that_cannot_be_read_is_one_line(tmp_path, text):
    (tmp_path / "sweep.json").write_text(text)
    with pytest.raises(UserError, match=r"sweep\.json: cannot be read .*; name another directory"):
        joined(Sweep(tmp_path))


# Jobs that are done


def a_job(folder, name="hub/model", **lora):
    """The settings of a job in `folder`, as Hydra composes them."""
    parts = {"output_dir": str(folder / "checkpoints")}, {"save_path": str(folder / "model")}
    return Config.from_mapping(
        {"paths": {"output_dir": str(folder)}, "training": parts[0], "save": parts[1], "lora": lora}
        | {"model": {"name": name, "load_in_4bit": False}}
    )


def done(folder, settings):
    """Leave there what a run of `settings` leaves that has ended."""
    settings = adopt(located(settings))
    base = description(settings, folder)
    run = Run(folder)
    folder.mkdir(parents=True)
    run.write_config(settings.to_dict())
    run.write_report(Report.from_json(a_report(model={**MODEL, "name": base["name"], "base": base})))
    return run


@pytest.fixture
def at_home(tmp_path, monkeypatch):
    """A folder to begin in, with a model, and a run that trained an adapter for it."""
    home = tmp_path / "home"
    base = home / "base"
    write_json(made(base) / "config.json", {"model_type": "llama"})
    adapter = made(home / "run" / "model")
    rows = {"dtype": "F32", "shape": [8, 1], "data_offsets": [0, 32]}
    header = json.dumps({"q_proj.lora_A.weight": rows}).encode()
    (adapter / "adapter_model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + bytes(32)
    )
    lora = {
        "base_model_name_or_path": str(base),
        "r": 8,
        "target_modules": ["q_proj"],
        "init_lora_weights": True,
    }
    write_json(adapter / "adapter_config.json", lora)
    write_json(home / "run" / "report.json", a_report(model={**MODEL, "name": str(base)}))
    monkeypatch.chdir(home)
    return home


def made(folder):
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["hub/model", "base", "run"])
def test_a_job_is_done_whatever_way_its_model_is_named(at_home, name):
    settings = a_job(at_home / "s" / "0", name)
    run = done(at_home / "s" / "0", settings)
    assert study.state(run, settings, ()) == study.State.DONE
    with pytest.raises(UserError) as refused:
        study.state(run, a_job(at_home / "s" / "0", name, lora_dropout=0.1), ())
    said = str(refused.value)
    assert "s/0: this job is already completed, with other settings: " in said
    assert "lora.lora_dropout 0.0 → 0.1" in said
    assert said.endswith(
        "; name another directory for the sweep (hydra.sweep.dir=DIR), or move this one away"
    )


@pytest.mark.parametrize(("name", "moves"), [("hub/model", "s"), ("base", "s"), ("base", ".")])
def test_a_job_is_done_wherever_the_sweep_is_now(at_home, monkeypatch, name, moves):
    """Alone, or with its model."""
    done(at_home / "s" / "0", a_job(at_home / "s" / "0", name))
    (at_home / moves).rename(at_home.parent / "moved")
    monkeypatch.chdir(at_home if moves == "s" else at_home.parent / "moved")
    run = Run(next((at_home.parent / "moved").glob("**/0")))
    assert study.state(run, a_job(run.folder, name), ()) == study.State.DONE
    for other in (a_job(run.folder, name, r=4), a_job(run.folder, "hub/other")):
        with pytest.raises(UserError, match="already completed"):
            study.state(run, other, ())


# The metric


def test_a_metric_is_any_number_of_the_report():
    report = Report.from_json(a_report())
    assert study.value(report, "training.eval_loss") == 1.5
    assert study.value(report, "training.steps") == 4
    for name in ("training.nothing", "status", "training", "training.best_step", "save.method"):
        assert study.value(report, name) is None, name
    assert study.no_value(numbers(report.to_json()), "training.eval_loss") is None
    assert study.no_value(numbers(report.to_json()), "training.token_per_second") == (
        "sweep.metric=training.token_per_second: no job reports it; did you mean training.tokens_per_second?"
    )
    nothing = replace(report, training=Training(**{**TRAINING, "eval_loss": None}))
    assert "nothing is held out" in study.no_value(numbers(nothing.to_json()), "training.eval_loss")


# The worker


class Jobs:
    """Stands in for the pipeline: `does` maps a job's number to what its run does."""

    def __init__(self, folder, monkeypatch, count=4, trials=None, **settings):
        self.place = Sweep(folder)
        points = [Point(number, [f"seed={number}"], str(number)) for number in range(count)]
        self.study = begun(points=points)
        self.place.write_study(self.study)
        self.settings = Config.from_mapping(
            {"sweep": settings, "training": {"eval_steps": 1, "max_steps": 8}}
        ).sweep
        self.trials, self.does, self.ran, self.loss = trials, {}, [], float
        monkeypatch.setattr(pipeline, "run", self.run)
        monkeypatch.setattr(pipeline, "turns", self.turns)

    def at(self, point):
        folder = self.place.run(point).folder
        settings = Config.from_mapping(
            {"seed": point.number, "paths": {"output_dir": str(folder)}, "training": {"max_steps": 8}}
        )
        nothing = lambda *_: None  # noqa: E731
        return SimpleNamespace(
            settings=settings, command="", named={}, environment=nullcontext, begin=nothing, end=nothing, write_files=nothing
        )  # fmt: skip

    def leave(self, number, status, loss=2.0, **parts):
        """What a run leaves in its directory."""
        point = Point(number, [], str(number))
        settings, run = self.at(point).settings, self.place.run(point)
        run.folder.mkdir(exist_ok=True)
        report = Report.from_json(
            a_report(status=status, training={**TRAINING, "eval_loss": loss}, seed=number, **parts)
        )
        run.write_config(settings.to_dict())
        run.write_report(report)
        return report

    def run(self, settings, command, began, named, warm):
        self.ran.append(settings.seed)
        does = self.does.get(settings.seed)
        if does:
            does()
        return self.leave(settings.seed, "completed", loss=self.loss(settings.seed))

    def turns(self, settings, command, began, named, warm, every):
        """Eight evaluations; a job's loss is the worse the higher its number is."""
        self.ran.append(settings.seed)
        try:
            for step in range(1, 9):
                yield Turn(step, 2 + 0.1 * settings.seed - 0.01 * step, passed=0.1 * settings.seed)
                if does := self.does.get(settings.seed):
                    does()
                self.ran.append(settings.seed)
        except Pruned as reason:
            return self.leave(settings.seed, "pruned", error=str(reason))
        except Preempted:
            self.leave(settings.seed, "interrupted")
            raise
        return self.leave(settings.seed, "completed", loss=float(settings.seed))

    def work(self, **settings):
        if self.trials:
            self.trials.open(self.place)
        settings = replace(self.settings, **settings)
        queue = Queue(self.place, self.place.study(), settings, lambda number, _: str(number), self.trials)
        worker = (InTurns if settings.pruner else Worker)(queue, self.at)
        self.ran.clear()
        try:
            worker.run()
        finally:
            self.statuses = [entry.status for entry in sorted(worker.entries, key=lambda entry: entry.number)]


@pytest.fixture
def fails():
    def raising():
        raise RuntimeError("out of memory")

    return raising


def test_a_failing_job_stops_nobody_and_runs_again(tmp_path, monkeypatch, capsys, fails):
    jobs = Jobs(tmp_path, monkeypatch)
    jobs.does[1] = fails
    with pytest.raises(UserError, match=r"^1 of 4 jobs failed$"):
        jobs.work()
    assert jobs.ran == [0, 1, 2, 3]
    assert jobs.statuses == ["completed", "failed", "completed", "completed"]
    assert "error: job 1: RuntimeError: out of memory" in capsys.readouterr().err
    assert "out of memory" in jobs.place.study().errors[1]
    with pytest.raises(UserError, match=r"^1 of 4 jobs failed$"):
        jobs.work(retry_failed=False)
    assert jobs.ran == []
    del jobs.does[1]
    jobs.work()
    assert jobs.ran == [1]
    assert jobs.statuses == ["done before", "completed", "done before", "done before"]
    assert not jobs.place.study().errors


def test_data_edited_while_a_sweep_runs_are_told_before_the_next_job_and_once(tmp_path, monkeypatch, capsys):
    data = write_json(tmp_path / "rows.json", [])
    jobs = Jobs(tmp_path, monkeypatch)
    monkeypatch.setattr("chatbot_sft.replay.evidence.data", lambda _: [data_mark(data)])
    jobs.does[1] = lambda: write_json(data, [{}])
    told = []
    jobs.does[2] = lambda: told.append(capsys.readouterr().err)
    jobs.work()
    assert (
        "warning: rows.json has changed since job 1 began: job 2 is trained on what is there now" in told[0]
    )
    assert "warning" not in capsys.readouterr().err


def test_an_earlier_report_is_none_of_a_start_that_was_refused_before_it_had_one(
    tmp_path, monkeypatch, fails
):
    jobs = Jobs(tmp_path, monkeypatch)
    jobs.place.write_study(replace(jobs.study, begun="2026-11-29T20:00:00+00:00"))
    jobs.leave(1, "failed", started="2026-11-29T19:00:00+00:00", error="another error")
    jobs.does[1] = fails
    with pytest.raises(UserError, match=r"^1 of 4 jobs failed$"):
        jobs.work()
    assert "out of memory" in jobs.place.study().errors[1]


@pytest.mark.parametrize("full", [False, True])
def test_a_page_that_could_not_be_written_is_not_named(tmp_path, monkeypatch, capsys, full):
    def page(_):
        if full:
            raise OSError(28, "No space left on device")
        return ""

    monkeypatch.setattr("chatbot_sft.report.leaderboard.files.page", page)
    jobs = Jobs(tmp_path, monkeypatch)
    jobs.work()
    assert (f"page  {tmp_path}" in capsys.readouterr().out) == (not full)


@pytest.mark.parametrize(
    ("settings", "ran"), [({"fail_fast": True}, [0]), ({"max_failures": 1}, [0, 1]), ({"timeout": 1e-9}, [])]
)
def test_no_job_begins_after_that(tmp_path, monkeypatch, capsys, fails, settings, ran):
    jobs = Jobs(tmp_path, monkeypatch, **settings)
    jobs.does = dict.fromkeys(range(4), fails)
    with pytest.raises(UserError) if ran else nullcontext():
        jobs.work()
    assert jobs.ran == ran
    assert f"of 4 jobs {4 - len(ran)} not begun; the same command goes on: " in capsys.readouterr().out


def test_the_job_under_way_is_asked_to_stop_when_the_time_is_over(tmp_path, monkeypatch):
    class Timer(threading.Timer):
        def start(self):  # it is over when job 1 says so
            jobs.does[1] = self.over

        def over(self):
            with preemption.handled(), preemption.deferred():
                self.function(*self.args)
                assert preemption.requested()

    monkeypatch.setattr(threading, "Timer", Timer)
    jobs = Jobs(tmp_path, monkeypatch, timeout=3600)
    jobs.work()
    assert jobs.statuses == ["completed", "interrupted"]


@pytest.mark.parametrize(
    ("number", "job", "left"),
    [
        (signal.SIGTERM, 1, "1 interrupted, 2 not begun"),
        (signal.SIGUSR1, 1, "1 interrupted, 2 not begun"),
        (signal.SIGUSR2, 3, "1 interrupted"),
    ],
)
def test_a_signal_ends_the_sweep_in_good_order(tmp_path, monkeypatch, capsys, number, job, left):
    jobs = Jobs(tmp_path, monkeypatch)
    jobs.does[job] = lambda: os.kill(os.getpid(), number)
    with pytest.raises(Preempted):
        jobs.work()
    assert jobs.statuses == ["completed"] * job + ["interrupted"]
    said = capsys.readouterr().out
    assert f"job {job}  interrupted" in said
    assert f"of 4 jobs {left}; the same command goes on: " in said


def test_a_job_that_another_process_has_is_left_to_it(tmp_path, monkeypatch, capsys):
    from filelock import FileLock

    jobs = Jobs(tmp_path, monkeypatch)
    (tmp_path / "2").mkdir()
    lock = FileLock(tmp_path / "2" / ".lock")
    with lock, pytest.raises(UserError, match=r"^1 of 4 jobs held by another process$"):
        jobs.work()
    assert jobs.ran == [0, 1, 3]
    assert jobs.statuses == ["completed", "completed", "held by another process", "completed"]
    assert "job 2: " in (said := capsys.readouterr().err) and "is running in it" in said
    assert not jobs.place.study().errors
    jobs.work()
    assert jobs.ran == [2]


def test_a_job_that_another_process_has_is_no_failure_beside_one_that_is(
    tmp_path, monkeypatch, fails, capsys
):
    from filelock import FileLock

    jobs = Jobs(tmp_path, monkeypatch, count=2, fail_fast=True)
    jobs.does[1] = fails
    (tmp_path / "0").mkdir()
    told = r"^1 of 2 jobs failed; 1 of 2 jobs held by another process$"
    with FileLock(tmp_path / "0" / ".lock"), pytest.raises(UserError, match=told):
        jobs.work()
    assert "job 0  held by another process  seed=0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("metric", "hint", "sampler"),
    [
        ("training.eval_los", "; did you mean training.eval_loss?", None),
        ("training.eval_los", "; did you mean training.eval_loss?", "random"),
        ("training.eval_loss", None, None),
    ],
)
def test_a_metric_that_no_job_reports_is_said_once(tmp_path, monkeypatch, capsys, metric, hint, sampler):
    """With an error for one that was asked for: of the default nobody may know that nothing is held out. Where a
    sampler chooses by it, when the first job has ended too.
    """
    jobs = Jobs(tmp_path, monkeypatch, metric=metric)
    jobs.settings = replace(jobs.settings, sampler=sampler)
    early = []
    jobs.does[1] = lambda: early.append(capsys.readouterr().err)
    if hint:
        with pytest.raises(UserError, match=f"^sweep.metric={metric}: no job reports it{re.escape(hint)}$"):
            jobs.work()
    else:
        jobs.loss = lambda seed: None
        jobs.work()
    assert (f"the sampler learns nothing of job 0: sweep.metric={metric}" in early[0]) == (
        sampler is not None
    )
    told = [line for line in capsys.readouterr().err.splitlines() if "sweep.metric" in line]
    assert len(told) == (hint is None)
    assert jobs.statuses == ["completed"] * 4


def test_a_report_of_something_else_fails_its_job_alone(tmp_path, monkeypatch):
    jobs = Jobs(tmp_path, monkeypatch)
    made(tmp_path / "2")
    write_json(tmp_path / "2" / "report.json", {})
    point = Point(2, [], "2")
    jobs.does[2] = lambda: start.refuse(jobs.at(point).settings)  # as a run begins
    assert study.state(jobs.place.run(point), jobs.at(point).settings, ()) == study.State.OPEN
    with pytest.raises(UserError, match=r"^1 of 4 jobs failed$"):
        jobs.work()
    assert jobs.statuses == ["completed", "completed", "failed", "completed"]
    assert "report.json: not the report of a run" in jobs.place.study().errors[2]
    assert (tmp_path / "2" / "report.json").read_text() == "{}"


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (9, "sweep.revive=9: no such job; pruned are 1, 3"),
        (0, "sweep.revive=0: job 0 is completed; pruned are 1, 3"),
        (1, None),
        (2, None),
    ],
)
def test_a_job_with_nothing_left_to_train_is_not_revived(number, message):
    states = dict(enumerate(map(study.State, ("done", "pruned", "open", "pruned"))))
    with pytest.raises(UserError, match=f"^{message}$") if message else nullcontext():
        study.refuse_revived(number, states)
    if number == 9:
        with pytest.raises(UserError, match="none was pruned, leave it out"):
            study.refuse_revived(number, {0: study.State.DONE})


@pytest.mark.parametrize("left", ["{", '{"status": "comp', None])
def test_jobs_half_deleted_or_cut_are_run_again(tmp_path, monkeypatch, left):
    jobs = Jobs(tmp_path, monkeypatch)
    jobs.work()
    file = tmp_path / "2" / "report.json"
    if left is None:
        file.unlink()
    else:
        file.write_text(left)
    jobs.work()
    assert jobs.ran == [2]


# A pruner


def pruned(tmp_path, monkeypatch, **settings):
    settings = {"pruner": "halving", **settings}
    jobs = Jobs(tmp_path, monkeypatch)
    jobs.settings = replace(jobs.settings, **settings)
    jobs.trials = Trials.of(jobs.settings, space(["seed=0,1,2,3"]), 1)
    return jobs


def test_all_curves_grow_together_and_the_worst_end_first(tmp_path, monkeypatch):
    jobs = pruned(tmp_path, monkeypatch)
    jobs.work()
    assert jobs.ran[:4] == [0, 1, 2, 3]
    assert jobs.statuses == ["completed", "pruned", "pruned", "pruned"]
    assert [jobs.ran.count(number) for number in range(4)] == [9, 2, 1, 1]
    assert (
        "others are better (sweep.revive=3 goes on with it)"
        in jobs.place.run(Point(3, [], "3")).report().error
    )
    jobs.work()
    assert jobs.ran == []
    jobs.work(revive=3)
    assert set(jobs.ran) == {3}
    assert jobs.statuses == ["done before", "pruned", "pruned", "completed"]


def test_one_winner_and_pruned_jobs_end_in_a_table(tmp_path, monkeypatch, capsys):
    pruned(tmp_path, monkeypatch).work()
    said = capsys.readouterr().out
    assert f"page  {tmp_path}" in said
    assert "held-out loss" in said


def test_golden_answers_are_judged_by_where_they_are_the_metric(tmp_path, monkeypatch):
    """The more pass the better: the other way round than the held-out losses of these jobs."""
    jobs = pruned(tmp_path, monkeypatch, metric="evaluation.passed")
    with pytest.raises(UserError, match="no job reports it"):  # the stand-in's reports have none
        jobs.work()
    assert jobs.statuses == ["pruned", "pruned", "pruned", "completed"]
    assert (
        jobs.place.run(Point(0, [], "0"))
        .report()
        .error.startswith("sweep.pruner=halving: evaluation.passed 0.000 at step 1; others are better")
    )


def test_a_metric_knows_which_way_it_is_better():
    for metric, ways in (
        ("training.eval_loss", ["minimise"]),
        ("evaluation.passed", ["maximise"]),
        (["training.eval_loss", "evaluation.passed"], ["minimise", "maximise"]),
    ):
        sweep = Config.from_mapping(
            {
                "sweep": {"metric": metric, "sampler": "nsgaii", "trials": 2},
                "training": {"golden_steps": 1},
                "evaluation": {"golden": "cases.jsonl"},
            }
        ).sweep
        assert sweep.directions == ways
        assert replace(sweep, direction="minimise").directions == ["minimise"] * len(ways)


def test_a_signal_reaches_every_job_that_waits(tmp_path, monkeypatch):
    jobs = pruned(tmp_path, monkeypatch, pruner="median")
    jobs.does[1] = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(Preempted):
        jobs.work()
    reports = [jobs.place.run(point).report() for point in jobs.study.points]
    assert [report.status for report in reports] == [Status.INTERRUPTED] * 4
    assert not any((tmp_path / f"{number}" / "leaderboard.html").exists() for number in range(4))
    jobs.does.clear()
    jobs.work()
    assert "completed" in jobs.statuses


def test_what_a_job_was_whose_directory_is_gone_judges_nobody(tmp_path, monkeypatch, capsys):
    jobs = pruned(tmp_path, monkeypatch)
    jobs.work()
    before = jobs.trials.curves()
    states = dict(enumerate(map(study.State, ("open", "pruned", "stopped", "failed"))))
    for told in ("job 0 runs again from the first step; what study.log had of it is forgotten\n", ""):
        jobs.trials.open(jobs.place)
        capsys.readouterr()
        begin.forget(jobs.trials, states)
        assert capsys.readouterr().err == told
    jobs.trials.open(jobs.place)
    assert jobs.trials.curves() == {**before, 0: {}}
    shutil.rmtree(tmp_path / "0")
    assert sorted(path.name for path in tmp_path.glob("study.log*")) == ["study.log"]
    jobs.work()
    assert jobs.trials.curves() == before
    assert jobs.statuses == ["completed", "pruned", "pruned", "pruned"]


def test_a_failing_job_ends_no_other_turn(tmp_path, monkeypatch, fails):
    jobs = pruned(tmp_path, monkeypatch, pruner="patient")
    jobs.does[0] = fails
    with pytest.raises(UserError, match=r"^1 of 4 jobs failed$"):
        jobs.work()
    assert jobs.statuses == ["failed", "completed", "completed", "completed"]


def curves(steps, jobs=6):
    return {job: {step: 2 + 0.1 * job - 0.001 * step for step in steps} for job in range(jobs)}


@pytest.mark.parametrize(
    ("name", "steps", "ended"),
    [
        ("median", (10,), []),
        ("median", (10, 20), [3, 4, 5]),
        ("halving", (10,), [3, 4, 5]),
        ("halving", (10, 20, 40), []),  # half of the run: the last ones go to its end
        ("median", (10, 20, 40), [3, 4, 5]),
        ("patient", (10, 20), []),
    ],
)
def test_each_is_judged_as_if_it_had_come_last(name, steps, ended):
    for order in (range(6), reversed(range(6))):
        assert sorted(pruning.worst(name, curves(steps), list(order), 80)) == ended


def test_hyperband_spares_jobs_of_its_other_brackets_for_longer():
    assert set(pruning.worst("hyperband", curves((10,)), range(6), 80)) < {1, 2, 3, 4, 5}


def test_a_job_alone_is_not_judged():
    assert pruning.worst("halving", curves((10, 20), jobs=1), [0], 80) == []
    assert pruning.worst("halving", {0: {10: 2.0}, 1: {}}, [0, 1], 80) == []


# A sampler

CHOICES = ["training.learning_rate=tag(log, interval(1e-5,1e-3))", "lora.r=interval(8,64)", "seed=1,2,3"]


def sampled(folder, trials=6, sampler="tpe"):
    folder.mkdir(exist_ok=True)
    settings = Config.from_mapping({"sweep": {"sampler": sampler, "trials": trials}}).sweep
    found = Trials.of(settings, space(CHOICES), 1)
    if not Sweep(folder).study_file.exists():
        Sweep(folder).write_study(begun(words=CHOICES, sampler=sampler))
    found.open(Sweep(folder))
    return found


def told(trials, count=99):
    """Ask for points and tell a loss for each; the points."""
    while len(trials.study.trials) < count and trials.ask():
        number = len(trials.study.trials) - 1
        report = Report.from_json(a_report(training={**TRAINING, "eval_loss": 1 + number / 10}))
        trials.tell(number, report)
    return list(trials.points())


@pytest.mark.parametrize("sampler", ["random", "tpe", "nsgaii"])
def test_a_sampled_sweep_is_repeatable_and_a_killed_one_goes_on_as_it_would_have(tmp_path, sampler):
    whole = told(sampled(tmp_path / "whole", sampler=sampler))
    assert len(whole) == 6
    assert len({tuple(point) for point in whole}) == 6
    for count in (2, 3, 6):
        told(sampled(tmp_path / "killed", sampler=sampler), count)
    assert list(sampled(tmp_path / "killed", sampler=sampler).points()) == whole
    for point in whole:
        Config.from_mapping(OmegaConf.from_dotlist(point))


def test_a_point_drawn_twice_has_a_folder_each_time(tmp_path):
    """Also where its values alone say which."""
    trials = sampled(tmp_path, trials=3)
    told(trials)
    queue = Queue(Sweep(tmp_path), Sweep(tmp_path).study(), trials.settings, lambda *_: "drawn", trials)
    assert [point.folder for point in queue.points()] == ["drawn", "drawn.1", "drawn.2"]


def test_a_point_that_runs_again_stays_and_what_it_came_to_is_forgotten(tmp_path):
    trials = sampled(tmp_path)
    whole = told(trials)
    assert trials.begin_anew([1]) == [1]
    again = sampled(tmp_path)
    assert list(again.points()) == whole
    assert [trial.value for trial in again.study.trials] == [1, None, *(1 + n / 10 for n in range(2, 6))]
    again.tell(1, Report.from_json(a_report(training={**TRAINING, "eval_loss": 9})))
    assert sampled(tmp_path).study.trials[1].value == 9


def test_a_journal_cut_in_a_line_goes_on_and_a_damaged_one_is_made_again(tmp_path, caplog):
    whole = told(sampled(tmp_path))
    place = Sweep(tmp_path)
    points = [Point(number, point, str(number)) for number, point in enumerate(whole)]
    place.write_study(begun(words=CHOICES, sampler="tpe", points=points))
    journal = place.journal_file
    with journal.open("ab") as file:
        file.write(b'{"op_code": 4, "wor')
    assert list(sampled(tmp_path).points()) == whole
    journal.write_bytes(b"not a journal\n" + journal.read_bytes()[200:])
    assert list(sampled(tmp_path).points()) == whole
    assert (tmp_path / DAMAGED).exists()
    assert "study.log was damaged" in caplog.text
    journal.unlink()
    assert list(sampled(tmp_path).points()) == whole


def test_what_is_not_installed_is_one_line(monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for settings, message in (
        (
            {"sampler": "tpe", "trials": 1},
            "sweep.sampler=tpe: needs optuna; pip install 'optuna<6,>=4.9'",
        ),
        ({"pruner": "median"}, "sweep.pruner=median: needs optuna; pip install 'optuna<6,>=4.9'"),
    ):
        config = Config.from_mapping({"sweep": settings, "training": {"eval_steps": 1}})
        with pytest.raises(UserError) as error:
            Trials.of(config.sweep, space(CHOICES), 1)
        assert str(error.value) == message
    assert Trials.of(Config().sweep, space(GRID), 1) is None


def test_cmaes_needs_a_package_of_its_own_and_numbers(monkeypatch, caplog):
    import importlib.util

    missing = {"cmaes"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else name)
    settings = Config.from_mapping({"sweep": {"sampler": "cmaes", "trials": 1}}).sweep
    with pytest.raises(UserError, match=r"^sweep\.sampler=cmaes: needs cmaes; pip install cmaes$"):
        Trials.of(settings, space(CHOICES), 1)
    missing.clear()
    assert Trials.of(settings, space(CHOICES), 1)
    assert caplog.messages == [
        "sweep: cmaes chooses numbers of intervals and ranges; drawn at random: seed=1,2,3"
    ]


# What is worth compiling for the jobs of a sweep


@pytest.mark.parametrize(
    ("words", "settings", "runs"),
    [
        (["lora.r=8", "seed=1"], {}, 1),
        (["lora.r=8,16", "training.learning_rate=1e-4,3e-4,1e-3,3e-3"], {}, 4),
        (["+lora.r=8,16", "model.max_seq_length=512,1024"], {}, 1),
        (["seed=1,2,3,4,5,6"], {"pruner": "halving"}, 2),
        (["seed=1,2,3,4,5,6"], {"workers": 3}, 6),  # this process starts them, and trains nothing
        (["seed=1,2,3,4,5,6"], {"workers": 3, "worker": True}, 2),
        ([], {"sampler": "tpe", "trials": 20}, 20),
    ],
)
def test_a_form_of_adapter_serves_so_many_runs(tmp_path, words, settings, runs):
    found = joined(Sweep(tmp_path), words) if words else begun(words=words)
    queue = Queue(Sweep(tmp_path), found, replace(Config().sweep, **settings), lambda number, _: str(number))
    assert queue.runs_of_a_form == pytest.approx(runs)


# Several workers: here threads, with all that they share in the sweep's directory


def at_once(jobs, words, **settings):
    """Two workers to their ends."""
    settings = replace(jobs.settings, worker=True, workers=2, **settings)

    def work(ready):
        trials = Trials.of(settings, space(words), 1)
        ready.wait()
        trials.open(jobs.place, alone=False)
        queue = Queue(jobs.place, jobs.place.study(), settings, lambda number, _: str(number), trials)
        (InTurns if settings.pruner else Worker)(queue, jobs.at).run()

    ready = threading.Barrier(2)
    with ThreadPoolExecutor(2) as pool:
        for worker in [pool.submit(work, ready) for _ in range(2)]:
            worker.result(600)
    return [jobs.place.run(point).report() for point in jobs.place.study().points]


def test_two_workers_prune_one_study(tmp_path, monkeypatch):
    jobs = Jobs(tmp_path, monkeypatch, count=6)
    reports = at_once(jobs, ["seed=0,1,2,3,4,5"], pruner="halving")
    statuses = [report.status for report in reports]
    assert statuses[0] == Status.COMPLETED  # the best
    assert statuses[5] == Status.PRUNED
    assert set(statuses) == {Status.COMPLETED, Status.PRUNED}


@pytest.mark.parametrize(
    ("sampler", "metric"),
    [("tpe", "training.eval_loss"), ("nsgaii", ["training.eval_loss", "training.tokens_per_second"])],
)
def test_two_workers_ask_one_sampler(tmp_path, monkeypatch, sampler, metric):
    """Each point is chosen once and run once, and there are as many as were asked for."""
    jobs = Jobs(tmp_path, monkeypatch, count=0)
    settings = {"sampler": sampler, "metric": metric, "trials": 7}
    reports = at_once(jobs, CHOICES, **settings)
    assert sorted(jobs.ran) == list(range(7))
    assert [report.status for report in reports] == [Status.COMPLETED] * 7
    trials = Trials.of(replace(jobs.settings, **settings), space(CHOICES), 1)
    trials.open(jobs.place, alone=False)
    told = [trial.values for trial in trials.study.trials]
    assert [values[0] for values in told] == list(range(7))
    assert {len(values) for values in told} == {len(metric) if isinstance(metric, list) else 1}


# Command lines that train nothing


def test_a_dry_run_lists_the_jobs_and_makes_no_folder(launch, tmp_path):
    process = launch("-m", "hparams_search=rate_rank", "sweep.dry_run=true", "hydra.sweep.dir=sweep")
    assert process.returncode == 0, process.stderr
    lines = process.stdout.splitlines()
    assert lines[0] == "job 0  training.learning_rate=0.0001  lora.r=8"
    assert lines[3] == "job 3  training.learning_rate=0.0003  lora.r=32"
    assert lines[-1].startswith("8 jobs; no estimate of time before one of them has run")
    assert not list(tmp_path.iterdir())


def test_a_list_that_the_command_line_replaces_is_told(launch):
    process = launch("-m", "hparams_search=seeds", "seed=7", "sweep.dry_run=true")
    assert process.stdout.startswith("job 0\n1 job; ")
    assert process.stderr == "seed of the command line counts over what the search tries: seed=1,2,3\n"


@pytest.mark.parametrize("name", ["rate_rank", "seeds", "tpe"])
def test_every_search_is_a_sweep_with_or_without_m(launch, tmp_path, name):
    process = launch(f"hparams_search={name}", "sweep.dry_run=true")
    assert process.returncode == 0, process.stderr
    assert "nothing was trained" in process.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-m", "lora.r=8,16,0,32", "model.load_in_4bit=true"], "model.load_in_4bit=true with lora.r=0: 4-bit weights"),
        (["-m", "lora.r=8,16", "lora.lora_alpha=1,2,3", "sweep.zip=[lora.r,lora.lora_alpha]"], "sweep.zip: lists of different lengths (lora.r has 2, lora.lora_alpha has 3)"),
        (["-m", "training.learning_rate=interval(1e-5,1e-3)"], "an interval has no combinations to run; add sweep.sampler=tpe sweep.trials=20, or name values: training.learning_rate=1e-05,0.0001,0.001"),
        (["-m", "lora.r=interval(8,70000)", "sweep.sampler=tpe", "sweep.trials=2"], "lora.r=70000: must be at most 65,536"),
        (["-m", "seed=1", "sweep.sampler=tpe", "sweep.trials=2"], "sweep.sampler=tpe: nothing to choose from"),
        (["-m", "seed=1,2", "sweep.sampler=tpes", "sweep.trials=2"], "sweep.sampler=tpes: not one of random, tpe, cmaes, nsgaii; did you mean tpe?"),
        (["-m", "seed=1,2", "sweep.points=absent.yaml"], "sweep.points=absent.yaml: No such file or directory"),
        (["-m", "seed=1,2", "sweep.pruner=median"], "sweep.pruner=median needs evaluations during training"),
        (["-m", "seed=1,2", "hydra/sweeper=basic", "sweep.fail_fast=true"], "sweep.fail_fast: is of hydra/sweeper=study, and this is basic"),
        (["-m", "task=replay", "run=run", "training.max_steps=1,2", "sweep.dry_run=true"], "training.max_steps: task=replay takes everything from the run"),
        (["-m", "task=export", "run=a,b", "lora.r=8", "hydra/sweeper=basic"], "lora.r: task=export takes everything but save.* from the run"),
        (["-m", "hparams_search=rate_rank,seeds"], "job 0 (hparams_search=rate_rank): hydra.sweeper.params.training.learning_rate: of the whole sweep, and an option of one job brings it; run each search"),
        (["-m", "lora.r=8,16", "save.save_path=x", "save.overwrite=true", "sweep.dry_run=true"], "save.save_path=x: job 0 and job 1 would both write there; write it with ${hydra.job.num} in it"),
        (["-m", "lora.r=8,16", "seed=1,2", "training.output_dir=x/${seed}", "sweep.sampler=random", "sweep.trials=2"], "training.output_dir=x/1: job 0 and job 1 would both write there"),
        (["-m", "lora.r=8,16", "hydra.sweep.subdir=same"], "hydra.sweep.subdir=same: job 0 and job 1 would both write there"),
        (["-m", "lora.r=8,16", "hydra.sweep.subdir=same", "hydra/sweeper=basic"], "hydra.sweep.subdir=same: job 0 and job 1 would both write there"),
        (["-m", "lora.r=8,16", "save.save_path=x", "hydra/sweeper=basic"], "save.save_path=x: job 0 and job 1 would both write there"),
        (["-m", "lora.r=8,16", "hydra.sweep.subdir=../${lora.r}"], "/8 is not in the sweep's directory; hydra.sweep.subdir='${hydra.job.num}'"),
        (["-m", "lora.r=8,16", f"hydra.sweep.subdir={'x' * 255}${{lora.r}}"], "hydra.sweep.subdir of job 0: a name of over 255 bytes; hydra.sweep.subdir="),
        (["-m", "seed=1,2", "hydra.run.dir=a b"], "hydra.run.dir=a b: is of one run, and this is a sweep; name hydra.sweep.dir=a b"),
        (["-m", "dataset.data_path=a.jsonl", "seed=1,2", "sweep.dry_run=true"], "a.jsonl: no such data file; is it spelled so?"),
        (["-m", "seed=1,2", "dataset.eval_data_path=null,a.jsonl"], "job 1 (seed=1 dataset.eval_data_path=a.jsonl): a.jsonl: no such data file"),
        (["-m", "training.resume=gone", "seed=1,2", "sweep.dry_run=true"], "training.resume=gone: no whole checkpoint there; name a checkpoint-N folder, or a run directory that has one"),
        (["-m", "training.resume=auto,gone/checkpoint-2", "hydra/sweeper=basic"], "job 1 (training.resume=gone/checkpoint-2): training.resume=gone/checkpoint-2: that checkpoint cannot be gone on from: run.json: No such file or directory; name"),
        (["-m", "model=local", "model.name=org/none", "seed=1,2"], "model.name=org/none: cannot be had from the Hugging Face hub (HF_HUB_OFFLINE is set, and the model is not in the local cache)"),
        (["-m", "model=local", "model.name=org/none", "seed=1,2", "hydra/sweeper=basic"], "model.name=org/none: cannot be had from the Hugging Face hub"),
        (["-m", "dataset.data_path=a.jsonl", "seed=1,2", "hydra/sweeper=basic"], "a.jsonl: no such data file; is it spelled so?"),
        (["-m", "model.adapter=null,a", "hydra/sweeper=basic"], "job 1 (model.adapter=a): model.adapter=a: no such folder"),
        (["-m", "model.chat_template=a.jinja", "seed=1,2", "hydra/sweeper=basic"], "a.jinja"),
        (["-m", "lora.lora_alhpa=8,16"], "lora.lora_alhpa: no such key; did you mean lora.lora_alpha?"),
        (["-m", "model.name=./a", "lora.r=8,16"], "model.name=./a: no such folder"),
        (["-m", "model.adapter=null,a", "sweep.dry_run=true"], "job 1 (model.adapter=a): model.adapter=a: no such folder"),
        (["-m", "dataset.data_path=a.jsonl", "lora.r=8,16", "sweep.sampler=random", "sweep.trials=2"], "a.jsonl: no such data file"),
        (["seed=1", "hydra.sweep.dir=x"], "hydra.sweep.dir=x: is of a sweep, and this is one run; add -m, or name hydra.run.dir=x"),
        (["seed=1", "sweep.fail_fast=true"], "sweep.fail_fast: is of a sweep, and this is one run; add -m"),
    ],
)  # fmt: skip
def test_what_is_no_sweep_is_refused_before_a_folder_is_made(launch, tmp_path, words, message):
    assert message in only_error(launch(*words))
    assert not list(tmp_path.iterdir())


def test_an_option_of_one_job_says_nothing_of_the_sweep():
    def config(params, **sweep):
        return OmegaConf.create(
            {"hydra": {"sweeper": {"params": params}}, "sweep": {"trials": None, **sweep}}
        )

    whole = config({"++seed": "1,2"}, sampler="tpe")
    refuse_own_search(config({"seed": "1,2"}, sampler="tpe"), whole)
    for own, said in (
        (config({"seed": "1,3"}, sampler="tpe"), r"^hydra\.sweeper\.params\.seed: "),
        (config({"seed": "1,2"}, sampler="tpe", trials=3), r"^sweep\.trials: "),
        (config(None, sampler=None), r"^sweep\.sampler: "),
    ):
        with pytest.raises(UserError, match=said):
            refuse_own_search(own, whole)


@pytest.mark.parametrize(
    "words",
    [
        ["seed=1,2"],
        ["seed=1,2", "hydra/sweeper=basic"],
        # The point is drawn twice, and runs as often, in a folder of its own.
        ["seed=choice(1)", "sweep.sampler=random", "sweep.trials=2"],
    ],
)
def test_a_sweep_of_checks_by_each_sweeper(launch, tmp_path, data_file, words):
    asked = ["task=check", f"dataset.data_path={data_file}", "hydra.sweep.dir=sweep", *words]
    process = launch("-m", *asked)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("  completed  ") == 2
    assert sorted(path.parent.name for path in tmp_path.glob("sweep/*/report.json")) == ["0", "1"]


@pytest.fixture
def data_file(tmp_path):
    from conftest import conversations

    return write_json(tmp_path / "my.json", conversations(8))


def test_a_job_has_the_files_that_hydra_writes_and_a_command_that_is_one_run(launch, tmp_path, data_file):
    words = (
        "task=check",
        f"dataset.data_path={data_file}",
        "hydra.sweep.dir=sweep",
        "+hydra.job.env_set.A_WORD=b",
    )
    process = launch("hparams_search=seeds", *words)
    assert process.returncode == 0, process.stderr
    job = tmp_path / "sweep" / "1"
    assert (tmp_path / "sweep" / "multirun.yaml").is_file()
    assert OmegaConf.load(job / ".hydra" / "config.yaml").seed == 2
    assert OmegaConf.load(job / ".hydra" / "hydra.yaml").hydra.job.num == 1
    assert "seed=2" in OmegaConf.load(job / ".hydra" / "overrides.yaml")
    command = json.loads((job / "report.json").read_text())["command"]
    assert command.endswith(f"hydra.mode=RUN hydra.run.dir={job}")
    assert "seed=2" in command


def test_what_a_sweep_asks_of_its_jobs_is_asked_of_each(launch, tmp_path):
    """Not of the sweep, whose own part is read alone."""
    cases = write_json(
        tmp_path / "cases.jsonl", {"messages": [{"role": "user", "content": "Hi"}], "contains": "a"}
    )
    asks = [
        f"evaluation.golden={cases}",
        "training.golden_steps=1",
        "sweep.metric=evaluation.passed",
        "sweep.pruner=halving",
    ]
    process = launch("-m", *asks, "lora.r=8,16", "sweep.dry_run=true")
    assert process.returncode == 0, process.stderr
    refused = launch("-m", *asks, "training.golden_steps=1,null", "lora.r=8", "sweep.dry_run=true")
    assert only_error(refused).startswith(
        "job 1 (training.golden_steps=null): sweep.metric=evaluation.passed: no job"
    )
