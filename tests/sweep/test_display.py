"""The one display of a sweep: what it shows, and what the runs say beside it."""

import json
import logging
import os
import re
import sys
import time
from io import StringIO
from types import SimpleNamespace

from conftest import a_report, write_json
from rich.console import Console

from chatbot_sft import logs
from chatbot_sft.report.leaderboard import board as boards
from chatbot_sft.run.report import Status
from chatbot_sft.run.wait import Wait
from chatbot_sft.sweep.display import Display, Line, table
from chatbot_sft.train.progress import Progress


def state(step, steps=30):
    return SimpleNamespace(
        global_step=step, max_steps=steps, num_input_tokens_seen=100 * step, log_history=[], is_world_process_zero=True
    )  # fmt: skip


class Running:
    """A job of the sweep that this process has, at the steps that a test takes it to."""

    def __init__(self, two_jobs, number=1):
        self.run = two_jobs.run(two_jobs.study().points[number])
        held = {"pid": os.getpid(), "host": os.uname().nodename}
        write_json(self.run.folder / ".lock.json", held)
        self.progress = Progress(Wait(time.time()), self.run.progress_file)
        self.progress.begin(state(0))

    def at(self, step, loss=2.3):
        self.progress._filed = 0.0
        self.progress.step(state(step))
        self.progress.log(state(step), loss)

    def evaluated(self, step, loss):
        self.run.checkpoints.mkdir(exist_ok=True)
        with (self.run.checkpoints / "evaluations.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "loss": loss}) + "\n")

    def ends(self, **parts):
        (self.run.folder / ".lock.json").unlink()
        write_json(self.run.report_file, a_report(**parts))


def left_out(text):
    """Lines without the time that is left."""
    return [re.sub(r"  [\d:]+ left$", "", line) for line in text.splitlines()]


def test_in_a_log_there_is_a_line_for_each_tenth_each_evaluation_and_each_end(two_jobs):
    said = StringIO()
    with Display(two_jobs.folder, Console(file=said)) as display:
        assert said.getvalue() == ""  # nothing has happened in this start
        job = Running(two_jobs)
        display.update()
        for step in (1, 2, 3, 4, 5):
            job.at(step)
            display.update()
        job.evaluated(5, 1.75)
        display.update()
        display.update()
        job.ends(status="failed", error="no more power")
    assert left_out(said.getvalue()) == [
        "job 1  running  lora.r=5",
        "job 1  running  step 1/30  loss 2.300  lora.r=5",
        "job 1  running  step 3/30  loss 2.300  lora.r=5",
        "job 1  running  step 5/30  loss 2.300  held out 1.750  lora.r=5",
        "job 1  failed  step 4  loss 2.000  held out 1.500  lora.r=5  no more power",
    ]


def test_golden_cases_that_passed_are_shown_and_compared_as_a_job_trains(two_jobs):
    said = StringIO()
    with Display(two_jobs.folder, Console(file=said)) as display:
        job = Running(two_jobs)
        job.at(1)
        display.update()
        assert "golden" not in said.getvalue()
        job.progress.passed = 0.625
        job.at(2)
        display.update()
        lines = list(map(Line.of, display._jobs()))
        shown = StringIO()
        Console(file=shown, width=100).print(table(lines, 20))
        assert re.search(r"held out +golden +left", shown.getvalue())
        assert " 62% " in shown.getvalue()
        running = boards.of_sweep(two_jobs.folder, "evaluation.passed").jobs[1]
        assert running.value == 0.625
        found = {"golden": "g.jsonl", "model": "m", "cases": 8, "passed": 0.75, "unjudged": 0}
        job.ends(evaluation=found)
    assert left_out(said.getvalue())[-2:] == [
        "job 1  running  step 2/30  loss 2.300  golden 62%  lora.r=5",
        "job 1  completed  step 4  loss 2.000  held out 1.500  golden 75%  lora.r=5",
    ]


def test_the_time_left_is_counted_down(two_jobs, monkeypatch):
    job = Running(two_jobs)
    job.at(1)
    known = json.loads(job.run.progress_file.read_text())
    write_json(job.run.progress_file, {**known, "left": 100})
    later = job.run.progress_file.stat().st_mtime + 40
    monkeypatch.setattr(time, "time", lambda: later)
    (line,) = [line for line in map(Line.of, Display(two_jobs.folder, Console())._jobs()) if line.left]
    assert line.left == "1:00"
    # What a start before this one has left there counts for nothing.
    os.utime(job.run.progress_file, (later, later - 100))
    assert not [line for line in map(Line.of, Display(two_jobs.folder, Console())._jobs()) if line.step]


def test_what_others_tell_is_told_once(two_jobs):
    said = StringIO()
    with Display(two_jobs.folder, Console(file=said), told=[Status.FAILED]):
        Running(two_jobs).ends(status="failed", error="no more power")
        Running(two_jobs, number=0).ends()
    assert left_out(said.getvalue()) == ["job 0  completed  step 4  loss 2.000  held out 1.500  lora.r=4"]


def test_the_leaderboard_is_written_after_every_evaluation(two_jobs):
    display = Display(two_jobs.folder, Console(file=StringIO()))
    job = Running(two_jobs)
    with display.by_itself():
        job.evaluated(5, 1.75)
        limit = time.monotonic() + 300
        while not (two_jobs.table_file.exists() and "1.75" in two_jobs.table_file.read_text()):
            assert time.monotonic() < limit
            time.sleep(0.01)
        job.evaluated(10, 1.25)
        while "1.25" not in two_jobs.table_file.read_text():
            assert time.monotonic() < limit
            time.sleep(0.01)
    written = two_jobs.table_file.stat().st_mtime_ns
    display.update()
    assert two_jobs.table_file.stat().st_mtime_ns == written


def test_on_a_terminal_it_is_drawn_where_it_stands_and_what_is_printed_is_above_it(two_jobs, monkeypatch):
    said = StringIO()
    said.isatty = lambda: True
    monkeypatch.setattr(sys, "stderr", said)
    with Display(two_jobs.folder, Console(file=said, force_terminal=True, width=100, height=20)) as display:
        job = Running(two_jobs)
        job.at(3)
        display.update()
        print("error: job 0: no such file", file=sys.stderr)
        with logs.quiet():  # libraries are kept from the terminal, the table is not
            display.update()
    assert sys.stderr is said
    shown = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", said.getvalue()).replace("\r", "\n")
    assert re.search(r"^ ?job 1 +running +3/30 +2\.300 .* lora\.r=5", shown, re.MULTILINE)
    assert shown.count("error: job 0: no such file") == 1
    assert shown.rstrip().endswith("lora.r=5")


def test_runs_beside_a_display_draw_no_bars_and_tell_warnings_alone_once_each(tmp_path, monkeypatch, capsys):
    terminal = StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr(sys, "__stderr__", terminal)
    ours = logging.getLogger("chatbot_sft.somewhere")
    with logs.one_display():
        for number in range(2):
            with logs.run_log(tmp_path / f"{number}.log"):
                ours.info("engine: transformers")
                ours.warning("data: 3 rows are repeated")
                progress = Progress(Wait(time.time()))
                progress.begin(state(0))
                progress.step(state(1))
                progress.log(state(1), 2.3)
                progress.end()
                with logs.quiet(progress=True):
                    print("downloading", file=sys.stderr)
    assert terminal.getvalue() == ""
    assert capsys.readouterr().err == "data: 3 rows are repeated\n"
    for number in range(2):
        kept = (tmp_path / f"{number}.log").read_text()
        assert "engine: transformers" in kept and "3 rows are repeated" in kept and "downloading" in kept
        assert "step 1/30  loss 2.300" in kept
    with logs.run_log(tmp_path / "after.log"):
        ours.info("engine: transformers")
    assert capsys.readouterr().err == "engine: transformers\n"


def test_of_more_jobs_than_lines_those_that_run_are_shown():
    lines = [Line(f"job {number}", "running" if number > 97 else "waiting") for number in range(100)]
    console = Console(file=StringIO(), width=80)
    console.print(table(lines, 3))
    shown = console.file.getvalue()
    assert re.findall(r"job \d+", shown) == ["job 0", "job 98", "job 99"]
    assert "of 98 waiting, 2 running" in shown
