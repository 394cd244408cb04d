"""From a sweep's command line to its jobs: each is the one that its point says. Nothing is composed by Hydra."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
from conftest import TRAINING, a_report
from omegaconf import OmegaConf

from chatbot_sft import UserError, start
from chatbot_sft.config import Config, SweepConfig
from chatbot_sft.hydra_job import Job
from chatbot_sft.run.report import Report
from chatbot_sft.sweep import begin, study
from chatbot_sft.sweep.begin import Jobs
from chatbot_sft.sweep.directory import Point, Study, Sweep
from chatbot_sft.sweep.points import space

FILES = ['dataset.data_path="token=A/c.json"', 'dataset.data_path="token=B/c.json"']
SECRETS = ["model.revision=hf_" + letter * 34 for letter in "ab"]


def at(config, folder, subdir, number, context=None):
    in_sweep = OmegaConf.create({"sweep": {"subdir": subdir or str(number)}})
    return SimpleNamespace(config=config, sweep=folder, number=number, hydra=in_sweep)


@pytest.fixture
def jobs(tmp_path, monkeypatch):
    """`jobs(words)` of a sweep whose jobs are composed of their overrides alone."""

    def composed(sweep, overrides):
        job = OmegaConf.from_dotlist([word.replace('"', "") for word in overrides])
        return job, Config.from_mapping(OmegaConf.to_container(job))

    monkeypatch.setattr(begin.hydra_glue, "composed_job", composed)
    monkeypatch.setattr(Job, "at", at)
    monkeypatch.setattr(start, "refuse_files", lambda _: None)

    def of(*words, sampler=None, retry=True, dry_run=True):
        sweep = {"sampler": sampler, "retry_failed": retry, "dry_run": dry_run}
        return Jobs(OmegaConf.create({"sweep": sweep}), space(words), None, tmp_path)

    return of


def of_sweep_json(number, words):
    return Point(number, study.of_job(words), str(number))


def test_a_job_is_composed_of_the_words_that_were_written_not_of_those_that_sweep_json_has(jobs):
    made = jobs(f"{SECRETS[0]},main", "seed=1,2")
    points = list(made.space.points())
    for point in points:
        made.compose_another(point)
    found = [made.at(of_sweep_json(number, point)) for number, point in enumerate(points)]
    assert [(job.config.model.revision, job.config.seed) for job in found] == [
        ("hf_" + "a" * 34, 1), ("hf_" + "a" * 34, 2), ("main", 1), ("main", 2)
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"^model\.revision=\*\*\*: "):
        made.at(of_sweep_json(4, [SECRETS[1], "seed=3"]))


def test_a_job_is_put_into_its_place_once(jobs, tmp_path):
    made = jobs("seed=1,2")
    first = made.as_number(0, ["seed=1"])
    assert made.place(0, ["seed=1"]) == "0"
    assert made.at(of_sweep_json(0, ["seed=1"])) is first
    elsewhere = made.at(Point(0, ["seed=1"], "zero"))  # as an earlier start has called it
    assert (elsewhere.number, str(elsewhere.hydra.sweep.subdir)) == (0, "zero")
    assert made.as_number(3, ["seed=1"]).number == 3
    made.folder = tmp_path / "claimed"
    assert made.as_number(3, ["seed=1"]).sweep == tmp_path / "claimed"


@pytest.mark.parametrize("words", [FILES, SECRETS])
def test_jobs_that_differ_in_what_is_masked_alone_are_refused(jobs, words):
    key = words[0].partition("=")[0]
    made = jobs(f"{words[0]},{words[1].partition('=')[2]}", "seed=1,2")
    made.compose_another([words[0], "seed=1"])
    made.compose_another([words[0], "seed=2"])
    with pytest.raises(UserError) as error:
        made.compose_another([words[1], "seed=1"])
    assert str(error.value).startswith(f"{key}: two jobs differ only in what is masked as a secret; ")
    assert f"{key}='${{oc.env:NAME}}'" in str(error.value)


def test_a_sampler_is_given_no_secrets_to_choose_from(jobs):
    made = jobs(f"{SECRETS[0]},main", "seed=1,2", sampler="random")
    with pytest.raises(
        UserError, match=r"^model\.revision: what is masked as a secret would stand in a sampler"
    ):
        made.compose_another([SECRETS[0], "seed=1"])
    made.compose_another(["model.revision=main", "seed=1"])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (["lora.r=8"], ["lora.r=08"]),
        (["lora.r=8", "seed=1"], ["seed=1", "lora.r=8"]),
        (["dataset.roles={a: user}"], ["dataset.roles.a=user"]),
    ],
)
def test_a_job_that_comes_to_the_same_as_another_is_refused(jobs, first, second):
    made = jobs("seed=1,2")
    made.compose_another(first)
    made.compose_another(["seed=3"])
    with pytest.raises(UserError) as error:
        made.compose_another(second)
    assert str(error.value) == f"comes to the same as {' '.join(first)}; leave one of them out"


@pytest.fixture
def looked_for(jobs, monkeypatch):
    """The data files that were looked for."""
    found = []
    monkeypatch.setattr(start, "refuse_files", lambda settings: found.append(settings.dataset.data_path))
    return found


def test_a_file_is_looked_for_once_for_all_jobs_that_name_it(jobs, looked_for):
    made = jobs("dataset.data_path=a.json,b.json", "seed=1,2,3")
    for point in made.space.points():
        made.compose_another(point)
    assert looked_for == ["a.json", "b.json"]


def test_a_checkpoint_to_begin_with_may_be_gone_once_a_sweep_has_begun(jobs, tmp_path):
    """Its jobs have checkpoints of their own by then, or say it themselves."""
    words = ["training.resume=gone", "seed=1"]
    with pytest.raises(UserError, match=r"^training\.resume=gone: no whole checkpoint there; "):
        jobs(*words).compose_another(words)
    Sweep(tmp_path).write_study(Study("", "", "training.eval_loss", "minimise", [], []))
    jobs(*words).compose_another(words)


@pytest.mark.parametrize("dry_run", [True, False])
def test_a_model_of_the_hub_is_looked_for_where_jobs_run(jobs, monkeypatch, dry_run):
    """A dry run may be on another machine."""
    monkeypatch.setattr(start, "USER_SAYS_OFFLINE", True)
    made = jobs("model.name=org/none", "seed=1,2", dry_run=dry_run)
    with (
        nullcontext() if dry_run else pytest.raises(UserError, match=r"^model\.name=org/none: cannot be had")
    ):
        made.compose_another(["model.name=org/none", "seed=1"])


@pytest.mark.parametrize(
    ("task", "there", "refused"),
    [
        ("train", ["config.json"], True),
        ("train", ["config.json", "model.safetensors"], False),
        ("plan", ["config.json"], True),
        ("check", ["config.json"], False),  # it loads no weights
    ],
)
def test_a_model_whose_tokenizer_alone_is_cached_is_not_there(monkeypatch, tmp_path, task, there, refused):
    for name in there:
        (tmp_path / name).touch()
    monkeypatch.setattr(start, "USER_SAYS_OFFLINE", True)
    monkeypatch.setattr(start, "tokenizer_folder", lambda *_: tmp_path)
    settings = Config.from_mapping({"task": task, "model": {"name": "org/some"}})
    with pytest.raises(UserError, match="not in the local cache") if refused else nullcontext():
        start.refuse_not_cached(settings)


@pytest.mark.parametrize("task", ["export", "evaluate", "verify", "replay"])
def test_no_model_is_looked_for_where_a_task_takes_that_of_its_run(monkeypatch, task):
    monkeypatch.setattr(start, "USER_SAYS_OFFLINE", True)
    asked = {"verify": {"url": "http://localhost:1/v1"}}.get(task, {"golden": "a.jsonl"})
    of_run = {"run": "a", "evaluation": asked}
    start.refuse_not_cached(Config.from_mapping({"task": task, "model": {"name": "org/none"}, **of_run}))


@pytest.mark.parametrize(("retry", "left"), [(True, ["c", "d", "e"]), (False, ["c"])])
def test_the_files_of_a_job_that_stays_as_it_is_may_be_gone(jobs, looked_for, tmp_path, retry, left):
    made = jobs("dataset.data_path=a,b,c,d,e", retry=retry)
    points = [of_sweep_json(number, point) for number, point in enumerate(made.space.points())]
    place = Sweep(tmp_path)
    for point, status in zip(points, ("completed", "pruned", "interrupted", "failed"), strict=False):
        place.run(point).folder.mkdir()
        place.run(point).write_report(Report.from_json(a_report(status=status)))
    errors = {4: "failed before it had a report"}
    place.write_study(Study("", "", "training.eval_loss", "minimise", [], [], points, errors))
    for point in points:
        made.compose_another(point.overrides)
    assert looked_for == left


def test_a_dry_run_says_what_is_there_of_each_job(jobs, monkeypatch, tmp_path):
    made = jobs("seed=1,2,3,4")
    points = [of_sweep_json(number, point) for number, point in enumerate(made.space.points())]
    there = dict(enumerate(map(study.State, ("open", "pruned", "failed", "open"))))
    monkeypatch.setattr(
        begin.study, "joined", lambda *_: Study("", "", "training.eval_loss", "minimise", [], [], points)
    )
    monkeypatch.setattr(begin, "begun", lambda *_: None)
    monkeypatch.setattr(begin, "states_of", lambda *_: there)
    *lines, last = begin.listing(made, SweepConfig(), [])
    assert lines == ["job 0  seed=1", "job 1  pruned  seed=2", "job 2  failed  seed=3", "job 3  seed=4"]
    assert last.startswith("4 jobs; no estimate of time before one of them has run")


def test_an_estimate_says_of_which_time_it_is():
    times = {"started": "2026-11-29T12:00:00+00:00", "finished": "2026-11-29T12:00:30+00:00"}
    report = Report.from_json(a_report(**times, training={**TRAINING, "seconds": 12.0}))
    assert begin.estimate([report] * 2, 4) == (
        "4 to run, about 2.0 minutes by the 30 s that each of 2 finished ones took from its last start to its end"
    )
