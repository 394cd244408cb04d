"""What the ended jobs of a sweep were trained on, held against what it would train on now. Nothing is prepared."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import a_report

from chatbot_sft import UserError, pipeline
from chatbot_sft.config import Config
from chatbot_sft.replay import evidence
from chatbot_sft.run import checkpoints
from chatbot_sft.run.lock import Lock
from chatbot_sft.run.provenance import Code, Provenance
from chatbot_sft.run.report import Report
from chatbot_sft.sweep import begin, earlier_data, study
from chatbot_sft.sweep.directory import Point, Sweep


class Ended:
    """Jobs that have ended, and what the data gate makes of their data: rows are what a file says, without spaces."""

    def __init__(self, folder, monkeypatch):
        self.place, self.jobs, self.prepared = Sweep(folder / "s"), [], []
        self.file("tr.json", "old"), self.file("ev.json", "held"), self.file("golden.jsonl", "asked")
        (folder / "base").mkdir()
        self.file("base/config.json", "{}"), self.file("base/model.safetensors", "weights")
        monkeypatch.chdir(folder)
        monkeypatch.setattr(pipeline, "prepare", self.prepare)
        monkeypatch.setattr(pipeline.Stages, "of", lambda settings: settings)

    def file(self, name, text):
        (self.place.folder.parent / name).write_text(text)

    def prepare(self, settings):
        self.prepared.append(settings)
        dataset = settings.dataset
        if "/" in dataset.data_path:
            return SimpleNamespace(statistics=self.hub())
        held_out = self.rows(dataset.eval_data_path) if dataset.eval_data_path else ""
        found = SimpleNamespace(fingerprint=self.rows(dataset.data_path), held_out_fingerprint=held_out)
        return SimpleNamespace(statistics=found)

    def rows(self, name):
        return (self.place.folder.parent / name).read_text().replace(" ", "").ljust(64, "0")

    def hub(self):
        return SimpleNamespace(fingerprint="0" * 64, held_out_fingerprint="")

    def job(self, locked=True, reported=True, **parts):
        settings = Config.from_mapping(
            {
                "seed": 1,
                "dataset": {"data_path": "tr.json", "eval_data_path": "ev.json", **parts},
                "evaluation": {"golden": "golden.jsonl"},
                "model": {"name": "base", "load_in_4bit": False},
            }
        )
        number = len(self.jobs)
        point = Point(number, [], str(number))
        run, rows = self.place.run(point), self.prepare(settings).statistics
        self.prepared.clear()
        run.folder.mkdir(parents=True)
        found = {
            "path": "",
            "fingerprint": rows.fingerprint,
            "held_out_fingerprint": rows.held_out_fingerprint,
        }
        if reported:
            run.write_report(Report.from_json(a_report(dataset=found)))
        known = Provenance("", "", {}, None, "", evidence.files(settings), Code(""))
        lock = Lock({"dataset (training rows)": rows.fingerprint[:16]}, "", "2026-11-29T12:00:00", {}, "cpu")
        if locked:
            run.write_lock(replace(lock, provenance=known))
        self.jobs.append((point, SimpleNamespace(settings=settings, named={})))

    def refusal(self, by_answers=False):
        """Of a start, without the place that it begins with."""
        try:
            earlier_data.refuse(self.place, self.jobs, by_answers)
        except UserError as error:
            return str(error).removeprefix(f"{self.place.folder}: ")


@pytest.fixture
def ended(tmp_path, monkeypatch):
    return Ended(tmp_path, monkeypatch)


RECORD = {"step": 2, "started": "2026-11-29T12:00:00", "seconds": 0.0, "finished": False, "resumes": []}
RECORD |= {"losses": {}, "layout": {}, "identity": {}}
DIRECTORY = (
    "name another directory for the sweep (hydra.sweep.dir=DIR), or move the directories of these away,"
    " so that they run again"
)
BACK = f"put it back as it was, {DIRECTORY}"


def test_the_same_bytes_are_the_same_data_wherever_they_are_and_nothing_is_prepared(ended):
    ended.job(), ended.job()
    (ended.place.folder.parent / "tr.json").rename(ended.place.folder.parent / "moved.json")
    for _, job in ended.jobs:
        job.settings.dataset.data_path = "moved.json"
    assert ended.refusal() is None
    assert ended.prepared == []


@pytest.mark.parametrize(
    ("file", "text", "parts"),
    [
        ("tr.json", "new", "the training rows of tr.json are not those that jobs 0, 1 had"),
        ("ev.json", "new", "the held-out rows of ev.json are not those that jobs 0, 1 had"),
        ("tr.json", " o l d ", None),
    ],
)
def test_other_rows_are_refused_and_the_same_ones_otherwise_written_are_not(ended, file, text, parts):
    ended.job(), ended.job()
    ended.file(file, text)
    assert ended.refusal() == (parts and f"{parts}; {BACK}")
    assert len(ended.prepared) == 1  # for both


def test_each_job_is_held_against_its_own_data(ended):
    ended.file("other.json", "other")
    ended.job(), ended.job(data_path="other.json")
    ended.file("other.json", "new")
    assert ended.refusal() == f"the training rows of other.json are not those that job 1 had; {BACK}"


def test_of_jobs_that_were_trained_on_both_nothing_can_be_put_back(ended):
    ended.job()
    ended.file("tr.json", "new")
    ended.job()
    assert ended.refusal() == f"the training rows of tr.json are not those that job 0 had; {DIRECTORY}"


def test_without_a_lock_the_report_knows_the_rows(ended):
    ended.job(locked=False)
    assert ended.refusal() is None
    ended.file("tr.json", "new")
    assert ended.refusal() == f"the training rows of tr.json, ev.json are not those that job 0 had; {BACK}"


def test_of_a_killed_job_the_lock_knows_the_rows_it_trained_on(ended):
    ended.job(), ended.job(reported=False)
    ended.file("tr.json", " o l d ")
    assert ended.refusal() is None
    ended.file("tr.json", "new")
    assert ended.refusal() == f"the training rows of tr.json are not those that jobs 0, 1 had; {BACK}"


@pytest.mark.parametrize(
    ("resume", "retry", "asked"),
    [("auto", True, [0, 1, 2]), ("auto", False, [0, 1]), ("never", True, [0])],
)
def test_jobs_that_go_on_from_a_checkpoint_are_asked_before_any_begins(
    tmp_path, monkeypatch, resume, retry, asked
):
    """One of each kind: pruned, interrupted, failed, and one that has no checkpoint."""
    place, states = Sweep(tmp_path), ["pruned", "open", "failed", "open"]
    points = [Point(number, [], str(number)) for number in range(4)]
    for number in (1, 2):
        folder = tmp_path / str(number) / "checkpoints"
        (folder / "checkpoint-2").mkdir(parents=True)
        checkpoints.seal(folder / "checkpoint-2", RECORD)

    def at(point):
        places = {"output_dir": str(tmp_path / str(point.number) / "checkpoints"), "resume": resume}
        return SimpleNamespace(settings=Config.from_mapping({"training": places}), named={})

    monkeypatch.setattr(study, "state", lambda run, *_: study.State(states[int(run.folder.name)]))
    found = []
    monkeypatch.setattr(earlier_data, "refuse", lambda _, trained, __: found.extend(trained))
    settings = replace(Config().sweep, retry_failed=retry)
    begin.states_of(place, SimpleNamespace(at=at), SimpleNamespace(points=points), settings)
    assert [point.number for point, _ in found] == asked


def test_golden_answers_count_where_jobs_are_judged_by_them(ended):
    ended.job()
    ended.file("golden.jsonl", "other")
    assert ended.refusal() is None
    assert ended.refusal(by_answers=True) == (
        f"the golden answers of golden.jsonl are not those that job 0 had; {BACK}"
    )


def test_rows_of_the_hub_are_compared_where_they_can_be_had(ended):
    ended.job(data_path="org/name", eval_data_path=None)
    assert ended.refusal() is None
    ended.hub = lambda: SimpleNamespace(fingerprint="1" * 64, held_out_fingerprint="")
    assert ended.refusal() == f"the training rows of org/name are not those that job 0 had; {DIRECTORY}"

    def unreachable():
        raise UserError("org/name: cannot be had")

    ended.hub = unreachable
    assert ended.refusal() is None


def test_weights_to_begin_with_count_and_the_version_in_their_config_does_not(ended):
    ended.job()
    ended.file("base/config.json", '{"transformers_version": "6"}')
    assert ended.refusal() is None
    ended.file("base/model.safetensors", "others")
    assert ended.refusal() == f"the weights of model.safetensors are not those that job 0 had; {BACK}"


def test_data_that_are_gone_are_for_the_jobs_to_say(ended):
    ended.job()
    (ended.place.folder.parent / "tr.json").unlink()
    assert ended.refusal() is None


def test_data_edited_while_a_sweep_runs_are_told_as_the_next_job_begins(ended):
    ended.job(), ended.job(), ended.job()
    edits = earlier_data.Edits(by_answers=False)
    jobs = [job.settings for _, job in ended.jobs]
    assert edits.news(0, jobs[0]) == ""
    assert edits.news(1, jobs[1]) == ""
    ended.file("tr.json", "other rows")
    assert edits.news(2, jobs[2]) == (
        "tr.json has changed since job 1 began: job 2 is trained on what is there now, and rows with and without"
        " the change stand in one table; Ctrl-C ends the sweep: put the file back as it was, move the directory of"
        " job 2 away, and give the same command again, or name another directory for the new data"
        " (hydra.sweep.dir=DIR)"
    )
    assert edits.news(3, jobs[2]) == ""


def test_golden_answers_edited_while_a_sweep_runs_are_told_where_jobs_are_judged_by_them(ended):
    ended.job()
    settings = ended.jobs[0][1].settings
    for by_answers in (False, True):
        edits = earlier_data.Edits(by_answers)
        edits.news(0, settings)
        ended.file("golden.jsonl", f"others {by_answers}"), ended.file("ev.json", f"held {by_answers}")
        files = "ev.json, golden.jsonl have" if by_answers else "ev.json has"
        assert edits.news(1, settings).startswith(f"{files} changed since job 0 began: ")


def test_data_that_are_gone_while_a_sweep_runs_are_for_the_job_to_say(ended):
    ended.job()
    settings, edits = ended.jobs[0][1].settings, earlier_data.Edits(by_answers=False)
    edits.news(0, settings)
    (ended.place.folder.parent / "tr.json").unlink()
    assert edits.news(1, settings) == ""
