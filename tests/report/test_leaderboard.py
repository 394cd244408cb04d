"""The comparison of a sweep's jobs: what is read, which rows it makes, and the page in a real browser."""

import csv
import html
import importlib.util
import io
import json
import os
import re
import time
from pathlib import Path

import pytest
from conftest import a_report, write_json
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from written_sweep import job, plausible, written

from chatbot_sft.errors import UserError
from chatbot_sft.extras import install
from chatbot_sft.report.leaderboard import as_json, columns, csv_file, files, importance, settings, terminal
from chatbot_sft.report.leaderboard import board as boards
from chatbot_sft.report.leaderboard.answers import compared, questions
from chatbot_sft.report.leaderboard.charts import charts
from chatbot_sft.report.leaderboard.job import Job
from chatbot_sft.report.leaderboard.page import page
from chatbot_sft.report.leaderboard.rows import rows, undecided
from chatbot_sft.report.plain import plain
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run
from chatbot_sft.run.fingerprint import FileMark
from chatbot_sft.run.lock import Lock
from chatbot_sft.run.provenance import Code, Provenance

HOSTILE = """<script>document.title='owned'</script>"><img src=x onerror="document.title='owned'"></td></table><!-- $title %{x} \0 \u202e"""
needs_optuna = pytest.mark.skipif(importlib.util.find_spec("optuna") is None, reason="needs optuna")


def point(*overrides, **parts):
    return {"overrides": list(overrides), **parts}


def seeds(rate, *losses):
    return [
        point(f"training.learning_rate={rate}", f"seed={seed}", loss=loss) for seed, loss in enumerate(losses)
    ]


# What is read


def test_a_row_for_each_job_the_best_first_and_only_the_keys_that_differ(tmp_path):
    jobs = [
        point("lora.r=8", "++training.learning_rate=1e-4", "dataset.max_rows=100", loss=1.6),
        point("lora.r=16", "training.learning_rate=1e-4", "dataset.max_rows=100", loss=1.5),
        point(
            "lora.r=32",
            "training.learning_rate=1e-4",
            "dataset.max_rows=100",
            status="failed",
            error="out of memory",
        ),
    ]
    board = boards.of([written(tmp_path / "sweep", jobs)])
    assert board.keys == ["lora.r"]
    assert [row.best.number for row in board.rows] == [1, 0, 2]
    assert [row.mean for row in board.rows] == [1.5, 1.6, None]
    assert board.counts == "3 jobs: 2 completed, 1 failed"
    assert board.rows[0].best.curve == ((0, 3.0), (10, 2.0), (20, 1.5))


@pytest.mark.parametrize(
    ("given", "status", "error"),
    [
        ({"status": "waiting"}, "waiting", ""),
        ({"status": "running", "losses": [3.0, 1.9]}, "running", ""),
        ({"status": "running", "losses": [3.0]}, "running", ""),
        ({"status": "pruned", "error": "pruned at step 60"}, "pruned", "pruned at step 60"),
        ({"status": "interrupted", "error": "SIGTERM"}, "interrupted", "SIGTERM"),
    ],
)
def test_what_a_job_is_now(given, status, error, tmp_path):
    board = boards.of(
        [written(tmp_path / "sweep", [point("lora.r=8", loss=1.5), point("lora.r=16", **given)])]
    )
    there = board.jobs[1]
    assert (there.status, there.error) == (status, error)
    if status == "running":  # the half line at the end of its evaluations is passed over
        assert there.curve == tuple(zip((0, 10), given["losses"], strict=False))
        trained = len(given["losses"]) > 1  # the base's own loss is no result
        assert (there.value, there.held_out, there.steps) == ((1.9, 1.9, 10) if trained else (None,) * 3)
    stopped = [
        note for note in board.notes if note.startswith("no job runs now; this goes on with the sweep: ")
    ]
    assert bool(stopped) == (status in ("interrupted", "waiting"))


RECORD = {"step": 12, "started": "2026-11-29T12:00:00", "seconds": 0.0, "finished": False, "resumes": []}
RECORD |= {"losses": {}, "layout": {}, "identity": {}}


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize(("evaluated", "steps"), [([3.0], 12), ([3.0, 1.9], 12), ([3.0, 2.0, 1.9], 20)])
def test_of_a_job_that_was_stopped_the_steps_are_its_last_checkpoints_or_evaluations(
    killed, evaluated, steps, tmp_path
):
    given = {"status": "running"} if killed else {"status": "interrupted", "training": {}}
    sweep = written(tmp_path / "sweep", [point("lora.r=8", losses=evaluated, **given), point("lora.r=16")])
    if killed:
        write_json(sweep / "0" / ".lock.json", {"pid": 2**22 + 1, "host": os.uname().nodename})
    else:
        report = json.loads((sweep / "0" / "report.json").read_text())
        write_json(sweep / "0" / "report.json", report | {"training": {}})
    checkpoint = sweep / "0" / "checkpoints" / "checkpoint-12"
    checkpoint.mkdir(parents=True)
    checkpoints.seal(checkpoint, RECORD)
    there = boards.of([sweep]).jobs[0]
    assert (there.status, there.steps) == ("interrupted", steps)


def test_how_a_stopped_job_goes_on_by_itself_is_not_told_beside_how_its_sweep_does(tmp_path):
    error = (
        "SIGTERM: checkpoint at step 12; the same command goes on from there: python -m chatbot_sft lora.r=8"
    )
    sweep = written(
        tmp_path / "sweep", [point("lora.r=8", status="interrupted", error=error), point("lora.r=16")]
    )
    assert boards.of([sweep]).jobs[0].error == "SIGTERM: checkpoint at step 12"
    assert boards.of([sweep / "0", sweep / "1"]).jobs[0].error == error


@pytest.mark.parametrize("stopped", [False, True])
def test_a_sweep_that_a_process_goes_on_with_is_not_stopped_between_two_jobs(tmp_path, stopped):
    sweep = written(tmp_path / "sweep", [point("lora.r=8", loss=1.5), point("lora.r=16", status="waiting")])
    pid = 2**22 + 1 if stopped else os.getpid()
    write_json(sweep / ".lock.json", {"pid": pid, "host": os.uname().nodename})
    assert any("this goes on with the sweep" in note for note in boards.of([sweep]).notes) == stopped


def test_a_job_whose_process_is_gone_does_not_run(tmp_path):
    sweep = written(tmp_path / "sweep", [point("lora.r=8", status="running"), point("lora.r=16")])
    holder = {"pid": 2**22 + 1, "host": os.uname().nodename}
    write_json(sweep / "0" / ".lock.json", holder)
    assert boards.of([sweep]).jobs[0].status == "interrupted"
    write_json(
        sweep / "0" / ".lock.json", {**holder, "host": "another"}
    )  # of another machine nothing is known
    assert boards.of([sweep]).jobs[0].status == "running"


def test_a_job_that_was_started_again_runs_and_its_old_report_does_not_count(tmp_path):
    sweep = written(
        tmp_path / "sweep", [point("lora.r=8", status="failed", error="out of memory"), point("lora.r=16")]
    )
    holder = write_json(sweep / "0" / ".lock.json", {"pid": os.getpid(), "host": os.uname().nodename})
    later = time.time() + 5
    os.utime(holder, (later, later))
    assert boards.of([sweep]).jobs[0].status == "running"
    os.utime(sweep / "0" / "report.json", (later + 1, later + 1))
    assert boards.of([sweep]).jobs[0].status == "failed"


@pytest.mark.parametrize("taken", [False, True])
def test_a_job_that_failed_before_it_had_a_report(taken, tmp_path):
    """Its process has taken its directory, and goes on with other jobs."""
    sweep = written(tmp_path / "sweep", [point("lora.r=8", status="waiting"), point("lora.r=16")])
    study = json.loads((sweep / "sweep.json").read_text())
    write_json(sweep / "sweep.json", {**study, "errors": {"0": "lora.r=8: no\nsuch thing"}})
    if taken:
        (sweep / "0").mkdir()
        write_json(sweep / "0" / ".lock.json", {"pid": os.getpid(), "host": os.uname().nodename})
    failed = boards.of([sweep]).jobs[0]
    assert (failed.status, failed.error) == ("failed", "lora.r=8: no such thing")


@pytest.mark.parametrize(
    "cut", ["", "{", '{"status": "completed", "task": "tr', "[]", '{"status": "completed"}', "\xff"]
)
def test_a_report_that_is_cut_short_is_a_row_that_says_so(cut, tmp_path):
    sweep = written(tmp_path / "sweep", [point("lora.r=8"), point("lora.r=16")])
    (sweep / "0" / "report.json").write_text(cut, encoding="latin-1")
    board = boards.of([sweep])
    assert board.jobs[0].status == "unreadable"
    assert "report.json" in board.jobs[0].error
    files.write(board, sweep)
    assert "unreadable" in "\n".join(terminal.lines(board))


@pytest.mark.parametrize(
    "cut", ["", '{"command": "x", "poi', "[]", '{"schema": 1, "points": [{}], "errors": {}}']
)
def test_without_a_sweep_json_that_can_be_read_the_jobs_are_the_folders(cut, tmp_path):
    sweep = written(tmp_path / "sweep", [point("lora.r=8", loss=1.6), point("lora.r=16", loss=1.5)])
    for number, rank in enumerate((8, 16)):
        (sweep / str(number) / ".hydra").mkdir()
        (sweep / str(number) / ".hydra" / "overrides.yaml").write_text(
            f"- ++lora.r={rank}\n- dataset.max_rows=9\n"
        )
    (sweep / "sweep.json").write_text(cut)
    board = boards.of([sweep])
    assert [job.name for job in board.jobs] == ["job 0", "job 1"]
    assert board.keys == ["lora.r"]
    assert board.notes == ["sweep.json cannot be read: the jobs are those whose folders are here"]
    (sweep / "sweep.json").unlink()
    assert boards.of([sweep]).notes == []


def test_several_runs_are_told_apart_by_their_configurations(tmp_path):
    for name, rank in (("a", 8), ("b", 16), ("c", 16)):
        job(tmp_path / name, loss=1 + rank / 100)
        config = f"lora:\n  r: {rank}\n  modules: [x]\npaths:\n  output_dir: /{name}\nsave:\n  save_path: /{name}/model\n"
        (tmp_path / name / "config.yaml").write_text(config)
    board = boards.of([tmp_path / name for name in "abc"])
    assert board.keys == ["lora.r"]
    assert [row.name for row in board.rows] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "nowhere", "no such folder"),
        (lambda folder: folder, "no sweep"),
        (lambda folder: job(folder / "run"), "a run, not a sweep"),
    ],
)
def test_what_is_no_sweep_is_one_line(make, message, tmp_path):
    with pytest.raises(UserError, match=message):
        boards.of([make(tmp_path)])


def test_a_metric_that_no_job_reports_is_said_and_the_rest_is_shown(tmp_path):
    sweep = written(tmp_path / "sweep", [point("lora.r=8"), point("lora.r=16")])
    board = boards.of([sweep], "training.train_los")
    assert (
        board.fault == "training.train_los: no job reports such a number; did you mean training.train_loss?"
    )
    assert [row.best.number for row in board.rows] == [0, 1]
    assert boards.of([sweep], "training.train_loss").fault == ""
    assert boards.of([sweep], "memory.peak_gb", maximise=True).rows[0].mean == 7.2


def test_before_a_job_has_finished_no_metric_is_no_fault(tmp_path):
    sweep = written(
        tmp_path / "sweep", [point("lora.r=8", status="waiting"), point("lora.r=16", status="running")]
    )
    assert boards.of([sweep], "training.train_loss").fault == ""


def test_the_metric_and_its_direction_are_the_sweeps(tmp_path):
    jobs = [
        point("lora.r=8", loss=1.5, training={"tokens_per_second": 10}),
        point("lora.r=16", loss=1.6, training={"tokens_per_second": 20}),
    ]
    sweep = written(tmp_path / "sweep", jobs, "training.tokens_per_second", "maximise")
    board = boards.of([sweep])
    assert [row.best.number for row in board.rows] == [1, 0]
    assert columns.LOSS in columns.figures(board)
    assert boards.of([sweep], maximise=False).rows[0].best.number == 0
    # Of another metric than the sweep's: that metric's own.
    other = written(tmp_path / "other", jobs)
    assert boards.of([other]).rows[0].best.number == 0
    assert boards.of([other], "training.tokens_per_second").rows[0].best.number == 1


def test_losses_of_other_objectives_are_said_to_have_no_common_scale(tmp_path):
    sweep = written(tmp_path / "sweep", [point("objective.beta=0.1"), point("objective.beta=0.5")])
    (note,) = boards.of([sweep]).notes
    assert note.startswith("the jobs differ in objective.beta: such losses have no common scale")
    assert boards.of([sweep], "training.tokens_per_second").notes == []


def test_rewards_have_columns_where_an_objective_has_some(tmp_path):
    def judged(margin, accuracy):
        return {"figures": {"rewards/margins": margin, "rewards/accuracies": accuracy}}

    jobs = [
        point("objective.beta=0.1", loss=1.5, training=judged(0.25, 0.75)),
        point("objective.beta=0.3", loss=1.6, training=judged(0.5, 1.0)),
        point("objective.beta=0.5", loss=1.7),
    ]
    folder = written(tmp_path / "sweep", jobs)
    board = boards.of([folder])
    head, best, second, third, *_ = terminal.lines(board)
    assert re.search(r"held-out loss  curve +reward margin  reward accuracy  steps", head)
    assert " 0.2500         75% " in best
    assert " 0.5000         100%" in second
    assert third.split()[:3] == ["job", "2", "0.5"]
    assert "reward accuracy" in page(board)
    assert csv_file.text(board, folder).splitlines()[:2] == [
        "rank,job,objective.beta,training.eval_loss,mean,spread,held_out_loss,steps,tokens_per_second,peak_gb,seconds,status,error,folder,reward_margin,reward_accuracy",
        "1,0,0.1,1.5,1.5,,1.5,4,100.0,7.2,1.0,completed,,0,0.25,0.75",
    ]
    by_margin = [figure.title for figure in columns.figures(boards.of([folder], "rewards/margins"))]
    assert by_margin[:2] == ["held-out loss", "reward accuracy"]
    others = boards.of([written(tmp_path / "other", [point("lora.r=8"), point("lora.r=16")])])
    assert "reward" not in "".join(terminal.lines(others))


def test_held_out_losses_of_other_conversations_are_said_to_be_that(tmp_path):
    jobs = [
        point(f"seed={number}", dataset={"path": "a.json", "held_out_fingerprint": rows})
        for number, rows in enumerate(("one", "one", "another"))
    ]
    (note,) = boards.of([written(tmp_path / "sweep", jobs)]).notes
    assert note.startswith("not all jobs hold out the same conversations: ") and "dataset.split_seed" in note
    assert boards.of([tmp_path / "sweep"], "training.tokens_per_second").notes == []
    assert boards.of([written(tmp_path / "same", jobs[:2])]).notes == []


# Rows


def test_seeds_are_one_row_with_mean_and_spread_and_say_what_they_cannot_tell(tmp_path):
    jobs = [
        *seeds("1e-4", 1.50, 1.54, 1.52),
        *seeds("3e-4", 1.51, 1.55, 1.52),
        *seeds("1e-3", 1.80, 1.82, 1.81),
    ]
    board = boards.of([written(tmp_path / "sweep", jobs)])
    assert [len(row.jobs) for row in board.rows] == [3, 3, 3]
    assert board.rows[0].mean == pytest.approx(1.52)
    assert board.rows[0].spread == pytest.approx(0.02)
    assert columns.value(board.rows[0]) == "1.5200 ± 0.0200"
    (note,) = board.notes
    assert note.startswith("job 0 +2 is first, but job 3 +2 cannot be told from it")
    assert note in terminal.lines(board)
    assert html.escape(note) in page(board)


def locked(sweep, number, rows, named="tr.json", golden="asked"):
    """The lock of a job whose data file says these `rows`; None: of an earlier version, which names no file."""
    marks = {
        "data": [FileMark(f"/{named}", 1, rows or "")],
        "evaluation.golden": [FileMark("/golden.jsonl", 1, golden)],
    }
    known = Provenance("", "", {}, None, "", marks, Code("")) if rows else None
    lock = Lock(
        {}, "", "2026-11-29T12:00:00", {}, "cpu", config={"dataset": {"data_path": named}}, provenance=known
    )
    Run(sweep / str(number)).write_lock(lock)


def test_seeds_of_other_data_are_no_row_and_the_note_says_why(tmp_path):
    jobs = [
        {**job, "dataset": {"path": "tr.json", "held_out_fingerprint": said}}
        for job, said in zip(seeds("1e-4", 1.50, 1.54, 1.90), ("one", "one", "another"), strict=True)
    ]
    sweep = written(tmp_path / "sweep", jobs)
    for number, said in enumerate(("old", "old", "new")):
        locked(sweep, number, said)
    board = boards.of([sweep])
    assert [[job.number for job in row.jobs] for row in board.rows] == [[0, 1], [2]]
    (note,) = board.notes  # and none that names dataset.split_seed
    assert note.startswith("job 0, job 1 had other data than job 2: their files were changed in between")
    locked(sweep, 2, None)
    assert len(boards.of([sweep]).rows) == 1
    locked(sweep, 2, "new", named="other.json")  # which is a setting of its own, not a change
    assert not any("changed in between" in note for note in boards.of([sweep]).notes)
    locked(sweep, 2, "old", golden="asks")
    assert [len(boards.of([sweep], metric).rows) for metric in (None, "evaluation.passed")] == [1, 2]


def test_the_csv_file_has_a_column_for_the_data_where_jobs_differ_in_it(tmp_path):
    sweep = written(tmp_path / "sweep", seeds("1e-4", 1.50, 1.54, 1.90))
    for content, data in (("old", None), ("new", ["old", "old", "new"])):
        locked(sweep, 0, "old"), locked(sweep, 1, "old"), locked(sweep, 2, content)
        lines = list(csv.DictReader(io.StringIO(csv_file.text(boards.of([sweep]), sweep))))
        assert ([line["data"] for line in lines] if "data" in lines[0] else None) == data


def test_a_seed_that_two_sweeps_have_does_not_count_twice():
    def job(folder, number, seed):
        settings = {"lora.r": "8", "seed": str(seed)}
        return Job(number, folder, Path(folder), settings, "completed", value=1.0 + seed)

    one, other = [job(f"one/{n}", n, n) for n in range(2)], [job(f"two/{n}", n + 2, n) for n in range(3)]
    assert [len(row.jobs) for row in rows([*one, *other])] == [2, 3]
    assert [len(row.jobs) for row in rows([*one, other[2]])] == [3]


some_jobs = st.lists(
    st.tuples(
        st.sampled_from(["8", "16"]),
        st.integers(0, 3),
        st.none() | st.floats(-1e3, 1e3),
        st.sampled_from(["completed", "failed", "pruned", "waiting"]),
    ),
    max_size=12,
)


@given(some_jobs, st.booleans(), st.booleans())
def test_every_job_is_in_one_row_and_none_that_completed_beats_the_first(made, maximise, seeded):
    jobs = [
        Job(
            at,
            f"job {at}",
            Path(),
            {"lora.r": rank, **({"seed": str(seed)} if seeded else {})},
            status,
            value=value,
        )
        for at, (rank, seed, value, status) in enumerate(made)
    ]
    table = rows(jobs, maximise)
    assert sorted(job.number for row in table for job in row.jobs) == list(range(len(jobs)))
    assert len(table) == (len({job.settings["lora.r"] for job in jobs}) if seeded else len(jobs))
    means = [row.mean for row in table if row.completed and row.mean is not None]
    assert means == sorted(means, reverse=maximise)
    for row in table:
        values = [job.value for job in row.jobs if job.value is not None]
        assert row.mean is None or min(values) - 1e-9 <= row.mean <= max(values) + 1e-9
        assert not undecided(row, row) or row.spread > 0


@given(st.text(alphabet="ab \n.,é😀", max_size=40), st.text(alphabet="ab \n.,é😀", max_size=40))
def test_marks_leave_both_answers_whole(first, second):
    pieces = compared(first, second)
    assert "".join(text for kind, text in pieces if kind != "missing") == second
    assert "".join(text for kind, text in pieces if kind != "added") == first


def test_equal_answers_stand_together_behind_the_best_jobs(tmp_path):
    def said(answer):
        return [{"prompt": "Why?", "before": "no", "after": answer}]

    jobs = [
        point("lora.r=8", loss=1.6, samples=said("It is light.")),
        point("lora.r=16", loss=1.5, samples=said("It is dark.")),
        point("lora.r=32", loss=1.7, samples=said("It is light.")),
    ]
    board = boards.of([written(tmp_path / "sweep", jobs)])
    (asked,) = questions([job for row in board.rows for job in row.jobs])
    assert [[job.number for job in answer.jobs] for answer in asked.answers] == [[1], [0, 2]]
    assert asked.answers[1].pieces == (
        ("same", "It is "),
        ("missing", "dark"),
        ("added", "light"),
        ("same", "."),
    )


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["++lora.r=8", "model=llama3b"], {"lora.r": "8", "model": "llama3b"}),
        (["training.optim='a b'", "~save"], {"training.optim": "a b", "save": ""}),
        (["save.hub_token=abcdefgh1234"], {"save.hub_token": "***"}),
        (
            ["a='null'", "b=null", "c='8'", 'd="1e-4"'],
            {"a": "'null'", "b": "null", "c": "'8'", "d": '"1e-4"'},
        ),
        (
            ["a='True'", "b='[x]'", "c='{x: y}'", "d='inf'"],
            {"a": "'True'", "b": "'[x]'", "c": "'{x: y}'", "d": "'inf'"},
        ),
        (
            ["a='nullable'", "b='8 bit'", "c=''", "d='${oc.env:A}'"],
            {"a": "nullable", "b": "8 bit", "c": "", "d": "${oc.env:A}"},
        ),
    ],
)
def test_overrides_are_keys_and_values(overrides, expected):
    assert settings.of_overrides(overrides) == expected


def test_what_is_text_in_quotes_alone_is_a_row_of_its_own(tmp_path):
    prompts = [f"dataset.system_prompt={prompt}" for prompt in ("null", "'null'")]
    jobs = [point(prompt, f"seed={seed}", loss=1.5) for prompt in prompts for seed in (1, 2)]
    board = boards.of([written(tmp_path / "sweep", jobs)])
    assert [len(row.jobs) for row in board.rows] == [2, 2]
    assert [columns.setting(row, "dataset.system_prompt") for row in board.rows] == ["null", "'null'"]


@pytest.mark.parametrize(("losses", "expected"), [([3, 2, 1], "█▅▁"), ([1, 1], "▁▁"), ([1], ""), ([], "")])
def test_a_curve_in_a_line_of_text(losses, expected):
    assert columns.bars(list(enumerate(losses))) == expected


@pytest.mark.parametrize("width", [90, 120, 200])
def test_a_narrow_terminal_leaves_figures_out_rather_than_break_words(width, tmp_path):
    board = boards.of([plausible(tmp_path / "sweep", seeds=(0, 1))])
    out = io.StringIO()
    terminal.show(board, Console(file=out, width=width, force_terminal=True, color_system=None))
    shown = out.getvalue()
    for row in board.rows:
        assert (
            re.search(
                rf"^{re.escape(row.name)} +{columns.setting(row, 'training.learning_rate')} .*{re.escape(columns.value(row))}.*{row.best.status}",
                shown,
                re.MULTILINE,
            )
            or "," in row.status
        )
    assert ("not enough room for" in shown) == (width < 200)


# Files


def test_the_csv_file_has_a_line_for_each_job(tmp_path):
    sweep = plausible(tmp_path / "sweep", seeds=(0, 1))
    files.write(boards.of([sweep]), sweep)
    lines = list(csv.DictReader(io.StringIO((sweep / "leaderboard.csv").read_text())))
    assert len(lines) == 12
    assert list(lines[0]) == [
        *("rank", "job", "training.learning_rate", "lora.r", "seed", "training.eval_loss", "mean", "spread"),
        *("held_out_loss", "steps", "tokens_per_second", "peak_gb", "seconds", "status", "error", "folder"),
    ]
    assert lines[0]["rank"] == lines[1]["rank"] == "1"


def test_a_folder_of_the_csv_file_is_found_from_there(tmp_path):
    """Of two sweeps, and of one whose jobs are deeper."""
    for name in ("one", "two"):
        written(tmp_path / name, [point("lora.r=8", loss=1.5), point("lora.r=16", loss=1.6)])
    sweep = json.loads((tmp_path / "two" / "sweep.json").read_text())
    sweep["points"][1]["folder"] = "data=a/b"
    (tmp_path / "two" / "data=a").mkdir()
    (tmp_path / "two" / "1").rename(tmp_path / "two" / "data=a" / "b")
    write_json(tmp_path / "two" / "sweep.json", sweep)
    (tmp_path / "out").mkdir()
    files.write(boards.of([tmp_path / "one", tmp_path / "two"]), tmp_path / "out")
    files.write(boards.of([tmp_path / "two"]), tmp_path / "two")
    folders = {
        place: {
            row["folder"]
            for row in csv.DictReader(io.StringIO((tmp_path / place / "leaderboard.csv").read_text()))
        }
        for place in ("out", "two")
    }
    assert folders == {
        "out": {"../one/0", "../one/1", "../two/0", "../two/data=a/b"},
        "two": {"0", "data=a/b"},
    }


def test_jobs_of_several_sweeps_have_their_sweep_and_their_number_in_it(tmp_path):
    """In the CSV file and in JSON; a run that is no job of one has its place in the comparison."""
    for name in ("one", "two"):
        written(tmp_path / name, [point("lora.r=8", loss=1.5), point("lora.r=16", loss=1.6)])
    job(tmp_path / "alone", loss=1.7)
    (tmp_path / "out").mkdir()

    def told(*paths):
        board = boards.of([tmp_path / path for path in paths])
        lines = list(csv.DictReader(io.StringIO(csv_file.text(board, tmp_path / "out"))))
        found = [(line.get("sweep"), line["job"], line["folder"].removeprefix("../")) for line in lines]
        values = [job for row in as_json.values(board, False)["rows"] for job in row["jobs"]]
        assert [(one["sweep"], str(one["number"])) for one in values] == [
            (str(tmp_path / sweep.removeprefix("../")) if sweep else None, number)
            for sweep, number, _ in found
        ]
        return sorted(found)

    assert told("one", "two", "alone") == [
        ("", "4", "alone"),
        *(("../one", str(number), f"one/{number}") for number in range(2)),
        *(("../two", str(number), f"two/{number}") for number in range(2)),
    ]
    assert told("one/1", "two/1") == [("../one", "1", "one/1"), ("../two", "1", "two/1")]
    assert told("two/0", "two/1") == [(None, "0", "two/0"), (None, "1", "two/1")]
    assert told("two") == [(None, "0", "two/0"), (None, "1", "two/1")]


def test_nothing_that_a_run_says_is_more_than_text(tmp_path):
    samples = [{"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}]
    jobs = [
        point(f"model.name={HOSTILE}", samples=samples),
        point("model.name=x", status="failed", error=HOSTILE),
    ]
    board = boards.of([written(tmp_path / "sweep", jobs)])
    text = page(board)
    assert "<img" not in text.replace("</table><!--", "")
    assert text.count("owned") > 5
    assert text.count("<script>") == 2
    for line in terminal.lines(board):
        assert line == plain(line)


def test_no_secret_is_written(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "sesame-open-1234")
    error = "401 for sesame-open-1234"
    jobs = [
        point(
            "save.hub_token=sesame-open-1234",
            samples=[{"prompt": "p sesame-open-1234", "before": "", "after": "a"}],
        ),
        point("save.hub_token=other-12345678", status="failed", error=error),
    ]
    sweep = written(tmp_path / "sweep", jobs)
    board = boards.of([sweep])
    files.write(board, sweep)
    told = "\n".join(terminal.lines(board))
    for text in (told, *((sweep / f"leaderboard.{kind}").read_text() for kind in ("csv", "html"))):
        assert "sesame" not in text
        assert "other-12345678" not in text
    assert "401 for ***" in told


def test_the_page_refers_to_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr("chatbot_sft.report.leaderboard.page.plotly", lambda: "")
    text = page(boards.of([plausible(tmp_path / "sweep")]))
    assert not re.findall(r"https?:|//[a-z]|\b(?:src|href)=|url\(|@import", text)
    assert "default-src 'none'" in text
    assert "There are no jobs yet." in page(boards.of([written(tmp_path / "empty", [])]))


def test_a_page_that_is_written_again_reads_only_what_is_new(tmp_path, monkeypatch):
    """100 jobs: this is done after every evaluation of a sweep."""
    sweep = plausible(
        tmp_path / "sweep", (3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3), (4, 8, 16, 32, 64, 128), (0, 1, 2)
    )
    files.write(boards.of([sweep]), sweep)
    read = []
    monkeypatch.setattr(
        "chatbot_sft.report.leaderboard.job.masked", lambda value: read.append(value) or value
    )
    write_json(sweep / "7" / "report.json", a_report(evaluations=[{"step": 1, "loss": 1.0}]))
    files.write(boards.of([sweep]), sweep)
    assert len([value for value in read if isinstance(value, dict)]) == 1


# Charts


def test_plotly_takes_every_chart(tmp_path):
    from plotly import graph_objects

    drawn = charts(boards.of([plausible(tmp_path / "sweep", seeds=(0, 1))]))
    assert [chart.id for chart in drawn if chart.data and chart.id != "importance"] == [
        "curves",
        "parallel",
        "key0",
        "key1",
    ]
    for chart in drawn:
        graph_objects.Figure(chart.data, chart.layout)


def test_a_pruned_curve_ends_where_the_job_ended_with_a_cross(tmp_path):
    drawn = charts(boards.of([plausible(tmp_path / "sweep")]))[0]
    pruned = drawn.data[drawn.jobs.index(4)]
    assert pruned["x"][-1] == 50
    assert pruned["marker"]["symbol"][-1] == "x"
    assert "<b>job 4</b>" in pruned["hovertemplate"]


@needs_optuna
def test_the_importance_of_a_key_is_optunas(tmp_path, monkeypatch):
    board = boards.of([plausible(tmp_path / "sweep", (1e-5, 1e-4, 3e-4, 1e-3), (4, 8, 16, 32, 64))])
    shares, how = importance.importance(board.jobs, board.keys, board.maximise)
    assert next(iter(shares)) == "training.learning_rate"
    assert sum(shares.values()) == pytest.approx(1)
    assert re.fullmatch(r"Optuna's .*, from 18 completed jobs", how)


def test_without_optuna_a_line_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    board = boards.of([plausible(tmp_path / "sweep")])
    assert importance.importance(board.jobs, board.keys, False) == (
        {},
        f"The importance of each key needs Optuna and scikit-learn: {install('importance')}",
    )


# In a browser

READER = """<body style="margin:0"><iframe width=WIDTH height=1600 style="border:0" src=leaderboard.html></iframe><pre></pre><script>
const said = [], say = (...what) => said.push(what.join(' ')), wait = time => new Promise(done => setTimeout(done, time))
document.querySelector('iframe').onload = async event => {
  const page = event.target.contentDocument, view = event.target.contentWindow, all = what => [...page.querySelectorAll(what)]
  const shown = () => all('tbody').filter(body => !body.hidden).map(body => body.dataset.jobs.split(' ')[0]).join(',')
  const head = name => all('thead th').find(one => one.textContent.includes(name))
  try { await STEPS } catch (error) { say(error) }
  document.querySelector('pre').textContent = said.join('\\n')
}
</script>"""


def read_in_browser(browse, sweep, steps, width=1200):
    """What `steps` say, done on the page of `sweep` in a frame of that width."""
    reader = READER.replace("WIDTH", str(width)).replace("STEPS", f"(async () => {{ {steps} }})()")
    (sweep / "reader.html").write_text(reader)
    document = browse(
        sweep / "reader.html",
        "",
        "--dump-dom",
        "--allow-file-access-from-files",
        "--virtual-time-budget=8000",
    )
    return html.unescape(re.search(r"<pre>(.*?)</pre>", document, re.DOTALL)[1]).splitlines()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = plausible(tmp_path_factory.mktemp("sweeps") / "sweep", seeds=(0, 1))
    files.write(boards.of([folder]), folder)
    return folder


@pytest.mark.slow
def test_a_reader_sorts_filters_and_unfolds(sweep, browse):
    steps = """
      say(shown())
      const rank = head('lora.'), button = rank.querySelector('button')
      button.focus(); say(page.activeElement === button, button.tagName)
      button.click(); say(rank.getAttribute('aria-sort'), shown().split(',').length, view.location.hash)
      say(all('tbody').slice(0, 3).map(body => body.rows[0].cells[2].textContent).join(' '))
      button.click(); say(rank.getAttribute('aria-sort'), all('tbody')[0].rows[0].cells[2].textContent)
      button.click(); say(rank.getAttribute('aria-sort'), shown())
      const box = page.querySelector('[type=search]')
      box.value = 'memory'; box.dispatchEvent(new view.Event('input')); say(shown(), page.querySelector('output').textContent, view.location.hash)
      box.value = 'nowhere'; box.dispatchEvent(new view.Event('input')); say(page.querySelector('.none').hidden)
      box.value = ''; box.dispatchEvent(new view.Event('input'))
      const fold = page.querySelector('tbody .fold'), part = page.querySelector('tbody .part')
      fold.click(); say(fold.getAttribute('aria-expanded'), part.hidden, view.location.hash)
      page.getElementById('unfold').click(); say(all('.part').some(row => row.hidden))
      page.getElementById('unfold').click(); say(all('.part').some(row => row.hidden))
      const reason = page.querySelector('tr:not(.part) summary.status'); reason.click()
      say(reason.parentElement.open, reason.parentElement.textContent.includes('CUDA out of memory'))
    """
    board = boards.of([sweep])
    order = ",".join(str(row.best.number) for row in board.rows)
    failed = next(str(row.best.number) for row in board.rows if any(job.number == 11 for job in row.jobs))
    best = board.rows[0].best.number
    assert read_in_browser(browse, sweep, steps) == [
        order,
        "true BUTTON",
        "ascending 6 #sort=2.1",
        "8 8 8",
        "descending 16",
        f"none {order}",
        f"{failed} 1 of 6 rows #q=memory",
        "false",
        f"true false #open={best}",
        "false",
        "true",
        "true true",
    ]


@pytest.mark.slow
def test_a_reader_points_at_a_curve_and_filters_the_charts(sweep, browse):
    steps = """
      while (!page.documentElement.dataset.drawn) await wait(50)
      say(page.documentElement.dataset.drawn > 3, all('.main-svg').length > 6)
      const chart = page.getElementById('curves'), at = chart.data.length - 1, trace = chart.calcdata[at]
      const axes = chart._fullLayout, area = chart.querySelector('.nsewdrag').getBoundingClientRect(), last = trace.length - 1
      const where = { clientX: area.left + axes.xaxis.c2p(trace[last].x), clientY: area.top + axes.yaxis.c2p(trace[last].y), bubbles: true, view }
      for (const kind of ['mouseover', 'mousemove']) { chart.querySelector('.nsewdrag').dispatchEvent(new view.MouseEvent(kind, where)); await wait(200) }
      say(chart.querySelector('.hoverlayer').textContent)
      say(all('tr.lit').map(row => row.dataset.job).join())
      const box = page.querySelector('[type=search]')
      box.value = 'memory'; box.dispatchEvent(new view.Event('input')); await wait(300)
      say(chart.data.filter(one => one.visible).length, 'of', chart.data.length)
    """
    best = boards.of([sweep]).rows[0].best
    drawn, hover, lit, visible = read_in_browser(browse, sweep, steps)
    assert drawn == "true true"
    assert hover.startswith(f"job {best.number}training.learning_rate=")
    assert hover.endswith(f"step 200: {best.curve[-1][1]:.4f}")
    assert lit == str(best.number)
    assert visible == "1 of 11"  # its row has a pruned and a failed job, and the failed one has no curve


@pytest.mark.slow
@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_sticks_out_of_a_narrow_screen(width, tmp_path, browse):
    jobs = [
        point(f"model.name={'x' * 80}", error="y" * 300, status="failed"),
        point("model.name=b"),
        point("model.name=c", loss=1.4),
    ]
    sweep = written(tmp_path / "sweep", jobs)
    files.write(boards.of([sweep]), sweep)
    steps = "await wait(1500); say(page.documentElement.scrollWidth <= WIDTH); say(all('.chart').every(one => one.scrollWidth <= Math.max(one.clientWidth, 330)))"
    assert read_in_browser(browse, sweep, steps.replace("WIDTH", str(width)), width) == ["true", "true"]


@pytest.mark.slow
def test_the_page_is_light_or_dark_as_the_reader_likes(sweep, browse, tmp_path):
    from matplotlib.image import imread

    for name, scheme, fits in (("dark", 0, lambda mean: mean < 0.25), ("light", 1, lambda mean: mean > 0.8)):
        picture = tmp_path / f"{name}.png"
        arguments = (
            f"--screenshot={picture}",
            "--window-size=800,1600",
            f"--blink-settings=preferredColorScheme={scheme}",
        )
        browse(sweep / "leaderboard.html", "", *arguments)
        assert fits(imread(picture)[..., :3].mean()), name


@pytest.mark.slow
def test_hostile_text_runs_nothing_in_the_browser(tmp_path, browse):
    samples = [{"prompt": HOSTILE, "before": HOSTILE, "after": HOSTILE}]
    jobs = [
        point(f"model.name={HOSTILE}", samples=samples),
        point("model.name=x", status="failed", error=HOSTILE),
    ]
    sweep = written(tmp_path / "sweep", jobs)
    files.write(boards.of([sweep]), sweep)
    assert read_in_browser(
        browse, sweep, "await wait(1500); say(page.title.includes('owned'), all('img').length)"
    ) == ["false 0"]
