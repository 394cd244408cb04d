"""What a run leaves for people: figures, pictures, and whole files."""

import json
import mmap
import os
import re
import signal
import sys
import time
import urllib.parse
from types import SimpleNamespace

import psutil
import pytest
from conftest import TRAINING, a_report

from chatbot_sft import cli, pipeline
from chatbot_sft.errors import UserError
from chatbot_sft.jobs import Job
from chatbot_sft.model import memory
from chatbot_sft.preemption import Preempted
from chatbot_sft.report import ending
from chatbot_sft.report.figure import write_loss_figure
from chatbot_sft.report.markdown import data_links, markdown
from chatbot_sft.report.terminal import saved
from chatbot_sft.report.words import duration
from chatbot_sft.run.directory import Run
from chatbot_sft.run.git import commit
from chatbot_sft.run.report import DatasetStatistics, Export, Memory, Report, SaveResult, Status, write_json
from chatbot_sft.run.wait import Wait
from chatbot_sft.save.saver import ModelSaver
from chatbot_sft.train.batches import epoch_steps
from chatbot_sft.train.progress import Progress


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    target = tmp_path / "report.json"
    write_json({"status": "running"}, target)
    with pytest.raises(TypeError):
        write_json({"status": object()}, target)
    assert json.loads(target.read_text()) == {"status": "running"}


def test_the_commit_is_read_without_running_git(tmp_path):
    assert commit(tmp_path / "nowhere") is None or len(commit(tmp_path / "nowhere")) == 40
    git = tmp_path / ".git"
    (git / "refs" / "heads").mkdir(parents=True)
    (git / "HEAD").write_text("ref: refs/heads/main\n")
    assert commit(tmp_path) is None
    (git / "packed-refs").write_text("# pack-refs\n" + "b" * 40 + " refs/heads/main\n")
    assert commit(tmp_path) == "b" * 40
    (git / "refs" / "heads" / "main").write_text("a" * 40 + "\n")
    assert commit(tmp_path / "src" / "deep") == "a" * 40
    (git / "HEAD").write_text("c" * 40 + "\n")
    assert commit(tmp_path) == "c" * 40


def test_a_failed_run_has_a_readable_report():
    report = Report("python -m chatbot_sft", "train", 1, Status.FAILED, "data.json: not JSON")
    text = markdown(report, picture=False)
    assert text.startswith("# Fine-tuning run: failed\n")
    assert "**data.json: not JSON**" in text
    assert "loss.png" not in text


DATA = {
    "path": "d", "rows": 9, "rows_used": 8, "rows_held_out": 1, "tokens": 90, "trainable_tokens": 30, "max_length": 20, "truncated_rows": 0,
    "bad_rows": 0, "duplicates": 0,
}  # fmt: skip


@pytest.mark.parametrize("home", ["the run (1)", "export", None])
def test_every_link_of_a_report_works(home, tmp_path):
    report = Report("", "export" if home == "the run (1)" else "train", 1, dataset=DatasetStatistics(**DATA))
    folder = tmp_path / "export"
    folder.mkdir()
    if home:
        (tmp_path / home).mkdir(exist_ok=True)
        for name in ("data_preview.html", "data_report.json"):
            (tmp_path / home / name).touch()
    data = tmp_path / home if report.task == "export" else folder
    text = markdown(report, picture=False, links=data_links(Run(data), Run(folder)))
    links = re.findall(r"\]\((\S*?)\)", text)
    assert len(links) == (2 if home else 0)
    assert all((folder / urllib.parse.unquote(link)).is_file() for link in links)
    assert "0 bad, 0 exact duplicates" in text


def test_exports_that_were_saved_are_listed_where_a_later_one_was_refused(tmp_path):
    class Saver(ModelSaver):
        def check(self):
            pass

        def _kept(self, trained, method, target):
            return None

        def _export(self, trained, method, target):
            export = Export(
                method, str(target), {"model.safetensors": 5_000_000}, {method: 1.0}, verified=True
            )
            if method == "gguf":
                raise UserError(self._failure(trained, export, "q8_0", ["it does not stop"]))
            return export

    report = Report("", "train", 1)
    saver = Saver({"save": {"method": ["lora", "gguf"], "save_path": str(tmp_path / "model")}})
    with pytest.raises(UserError, match=r"the adapter is in .*model/lora"):
        pipeline.save(saver, report)
    assert report.save.files == {"lora/model.safetensors": 5_000_000}
    assert (report.save.path, report.save.verified) == (str(tmp_path / "model"), False)
    assert saved(report.save) == [f"saved   lora, 5 MB, verified: {tmp_path}/model/lora"]
    text = markdown(report, picture=False)
    assert f"## Saved (lora)\n\n`{tmp_path}/model`\n\n- lora/model.safetensors (5.0 MB)\n" in text
    assert "## Not kept (gguf)" in text


@pytest.mark.parametrize(
    ("task", "exports", "expected"),
    [
        ("train", [], "SIGTERM: no checkpoint yet; the same command begins anew: C hydra.run.dir=out"),
        (
            "export",
            [],
            "SIGTERM: no export was finished; the same command makes what is missing: C hydra.run.dir=out",
        ),
        (
            "export",
            [Export("lora", "out/model/lora"), Export("gguf", "out/model/gguf", verified=False)],
            (
                "SIGTERM: saved: lora in out/model/lora; the same command makes what is missing: C"
                " hydra.run.dir=out"
            ),
        ),
        ("check", [], "SIGTERM: nothing was trained; the same command begins anew: C hydra.run.dir=out"),
        ("plan", [], "SIGTERM: nothing was trained; the same command begins anew: C hydra.run.dir=out"),
    ],
)
def test_a_signal_says_what_it_left_behind(task, exports, expected):
    settings = SimpleNamespace(
        task=task,
        paths=SimpleNamespace(output_dir="out"),
        training=SimpleNamespace(output_dir="out/checkpoints"),
    )
    assert (
        ending.stopped(Preempted("SIGTERM"), settings, SaveResult("lora", exports=exports), "C") == expected
    )
    of_a_job = ending.stopped_in_sweep(Preempted("SIGTERM"), settings, SaveResult("lora", exports=exports))
    assert of_a_job == expected.partition("; the same command")[0]


def test_a_signal_while_exporting_lists_what_is_there(tmp_path, monkeypatch):
    class Saver:
        result = SaveResult("lora, gguf")

        def save(self):
            self.result.add(
                Export("lora", str(tmp_path / "model" / "lora"), {"a": 1}), str(tmp_path / "model"), True
            )
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    monkeypatch.setattr(pipeline, "earlier_saver", lambda config, report: Saver())
    save = {"method": ["lora", "gguf"], "save_path": str(tmp_path / "model")}
    config = {
        "task": "export",
        "run": str(tmp_path / "run"),
        "paths": {"output_dir": str(tmp_path / "export")},
        "save": save,
    }
    with pytest.raises(Preempted):
        pipeline.run(config, "C")
    report = json.loads((tmp_path / "export" / "report.json").read_text(encoding="utf-8"))
    expected = (
        f"SIGTERM: saved: lora in {tmp_path}/model/lora; the same command makes what is missing: C"
        f" hydra.run.dir={tmp_path}/export"
    )
    assert (report["status"], report["error"]) == ("interrupted", expected)
    assert report["save"]["files"] == {"lora/a": 1}
    assert f"saved   lora, 0 MB: {tmp_path}/model/lora" in (tmp_path / "export" / "run.log").read_text(
        encoding="utf-8"
    )
    assert "checkpoint" not in (tmp_path / "export" / "report.md").read_text(encoding="utf-8")


# ---- figures of a run, not of its process


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot begin anew")
def test_a_runs_peak_is_not_that_of_the_run_before(monkeypatch):
    monkeypatch.setattr(memory, "_process", memory._Process())
    memory.begin()
    before = memory.measure()
    large = mmap.mmap(-1, 400 << 20)  # malloc may keep what it is given back
    large.write(os.urandom(1 << 20) * 400)
    peak = memory.measure().peak_gb
    large.close()
    assert peak > before.current_gb + 0.4
    memory.begin()
    found = memory.measure()
    assert found.peak_gb < peak - 0.3
    assert found.peak_since == "run"


def test_a_peak_that_cannot_begin_anew_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "_process", memory._Process())
    monkeypatch.setattr(memory, "RESET", tmp_path / "no" / "clear_refs")
    memory.begin()
    assert memory.measure().peak_since == "run"  # all that the process ever did is its first run
    memory.begin()
    assert memory.measure().peak_since == "process"
    report = Report("", "train", 1, memory=Memory("CPU", 1.0, 2.0, 1.0, {}, "process"))
    assert "2.00 GB at peak, since the process was started, 1.00 GB of it added by training" in markdown(
        report, picture=False
    )


def test_the_parts_of_the_wait_are_all_of_it(monkeypatch):
    clock = iter([101.25, 101.5, 104.0, 104.1004])
    monkeypatch.setattr(time, "time", lambda: next(clock))
    wait = Wait(100.0)
    for part in ("start", "setup", "evaluation", "setup"):
        wait.end(part)
    assert wait.parts == {"start": 1.25, "setup": 0.35, "evaluation": 2.5}
    assert wait.seconds == 4.1


def test_the_report_says_what_was_waited_for():
    wait = {"start": 2.04, "imports": 6.0, "first_step": 4.5}
    report = Report.from_json(
        a_report(
            training={
                **TRAINING,
                "seconds_to_first_step": 12.54,
                "seconds_to_first_step_by_part": wait,
            }
        )
    )
    line = "| first step | after 13 s: start 2.0, imports 6.0, first step 4.5 |"
    assert line in markdown(report, picture=False)
    older = Report.from_json(a_report(training={**TRAINING, "seconds_to_first_step": 12.54}))
    assert "| first step | after 13 s |" in markdown(older, picture=False)


def test_seconds_of_training_are_of_all_starts_and_those_of_an_evaluation_are_called_so():
    record = {"loss": 2.0, "perplexity": 7.4, "token_accuracy": 0.5, "seconds": 3.2, "samples": []}
    evaluations = [{**record, "step": step} for step in range(3)]
    resumes = [{"step": 2, "time": "2026-11-29T12:00:00", "checkpoint": "checkpoint-2"}]
    for of, speed in (([], "in the later half"), (resumes, "in the later half of the last start")):
        training = {**TRAINING, "seconds": 40.0, "resumes": of}
        text = markdown(Report.from_json(a_report(training=training, evaluations=evaluations)), picture=False)
        starts = " over all starts" if of else ""
        assert f"4 steps of 8 (2 x 4) in 40 s{starts}, 100 tokens/s {speed} |" in text
        assert "| step | loss | perplexity | tokens right | evaluated in (s) |" in text


def test_the_first_step_is_counted_from_the_start_of_its_own_run(monkeypatch, tmp_path):
    state = SimpleNamespace(
        num_input_tokens_seen=0, log_history=[], is_world_process_zero=True, global_step=1, max_steps=2
    )
    monkeypatch.setattr(time, "time", lambda: 105.0)
    wait = Wait(100.0)
    progress = Progress(wait)
    wait.end("start")
    progress.begin(state)
    progress.step(state)
    assert progress.first_step_after == 5
    before = dict(wait.parts)
    progress.step(state)
    assert wait.parts == before

    started = psutil.Process().create_time()
    jobs = [Job(number, [], tmp_path) for number in range(2)]
    monkeypatch.setattr(cli, "JOBS", jobs)
    assert cli._began() == started  # the first run of the process: importing is a part of it
    jobs[0].status = "done before"
    assert cli._began() == started
    jobs[0].status = "failed"
    assert cli._began() == 105


@pytest.mark.slow
def test_the_loss_figure_is_drawn_from_what_was_logged(tmp_path):
    history = [{"step": s, "loss": 3 / s} for s in range(1, 31)]
    evaluations = [{"step": s, "loss": 3.2 - s / 15} for s in (0, 10, 20, 30)]
    sizes = []
    for stride in (5, 3, 1):
        assert write_loss_figure(history, evaluations[::stride], tmp_path / "loss.png")
        sizes.append((tmp_path / "loss.png").stat().st_size)
    assert 10_000 < sizes[0] < sizes[1] < sizes[2]
    assert not write_loss_figure([], [], tmp_path / "none.png")


def test_rows_are_ordered_by_length_within_a_step_only():
    lengths = [5, 1, 4, 2, 3, 9, 7, 8, 6, 10]
    packs = [[row] for row in range(10)]
    steps = epoch_steps(packs, lengths, 4, seed=1, shuffle=True)
    assert sorted(pack for step in steps for pack in step) == packs
    assert [len(step) for step in steps] == [4, 4, 2]
    for step in steps:
        sizes = [lengths[row] for (row,) in step]
        assert sizes == sorted(sizes, reverse=True)
    assert steps != epoch_steps(packs, lengths, 4, seed=2, shuffle=True)
    assert epoch_steps(packs[:6], [5, 9, 7, 1, 2, 3], 3, seed=1, shuffle=False) == [
        [[1], [2], [0]],
        [[5], [4], [3]],
    ]


def test_durations_are_as_people_write_them():
    assert [duration(seconds) for seconds in (0, 7, 75, 3700)] == ["0:00", "0:07", "1:15", "1:01:40"]
