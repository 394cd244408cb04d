"""Runs that are killed, preempted, changed, started again, or that diverge."""

import json
import re
import shutil
import signal
from datetime import datetime
from pathlib import Path
from statistics import median

import pytest
import strike
from conftest import REPO, conversations, write_json

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model.base import weights_fingerprint
from chatbot_sft.run import checkpoints
from chatbot_sft.train import resume

STEPS = 14  # 23 rows in steps of 4: more than two epochs, with a checkpoint at the end of the first


class Forked:
    """Runs of the pipeline, one at a time; see forked.py."""

    def __init__(self, warm):
        self.warm = warm

    def start(self, config, days=0, env=None):
        self.process = self.warm.start(
            [REPO / "tests" / "forked.py", json.dumps(config), days], Path.cwd(), env
        )
        return self.process.pid

    def exit_code(self):
        return self.process.finish().returncode

    def run(self, config, days=0, env=None):
        self.start(config, days, env)
        return self.exit_code()


@pytest.fixture(scope="module")
def forked(warm):
    return Forked(warm)


@pytest.fixture(scope="module")
def settings(tiny_llama, tmp_path_factory):
    """`settings(folder, **training)`: a run of 14 steps with everything that a resume could lose: dropout,
    epochs, losses between two logs.
    """
    rows = [
        {"messages": [*row["messages"][:1], {"role": "assistant", "content": "trả lời " * (1 + n % 5)}]}
        for n, row in enumerate(conversations(25))
    ]
    data = write_json(tmp_path_factory.mktemp("data") / "short.json", rows)

    def made(folder, **training):
        return {
            "paths": {"output_dir": str(folder)},
            "model": {"name": str(tiny_llama), "load_in_4bit": False, "engine": "transformers"},
            "lora": {"lora_dropout": 0.1},
            "dataset": {"data_path": str(data)},
            "training": {
                "output_dir": str(folder / "checkpoints"),
                "max_steps": STEPS,
                "per_device_train_batch_size": 2,
                "gradient_accumulation_steps": 2,
                "learning_rate": 1e-2,
                "logging_steps": 3,
                "save_steps": 2,
                "save_total_limit": 1,
                "sample_max_new_tokens": 0,
                **training,
            },
            "save": {"method": "lora", "save_path": str(folder / "model")},
        }

    return made


@pytest.fixture(scope="module")
def whole(forked, settings, tmp_path_factory):
    """The directory of an uninterrupted run. While it ran there was a whole checkpoint at every moment after
    the first.
    """
    folder = tmp_path_factory.mktemp("runs") / "whole"
    place = folder / "checkpoints"
    child = forked.start(settings(folder), env=strike.stopping_in(place))
    steps = []
    for _ in strike.stops(child):
        found = checkpoints.last_in(place)
        assert found or not steps
        steps += [found.step] if found else []
    assert forked.exit_code() == 0, log_of(folder)
    assert steps == sorted(steps)
    assert set(steps) == set(range(2, STEPS + 1, 2))
    assert [path.name for path in place.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    return folder


def log_of(folder):
    return folder.with_suffix(".out").read_text()


def report(folder):
    return json.loads((folder / "report.json").read_text(encoding="utf-8"))


def losses_of(folder):
    return {point["step"]: point["loss"] for point in report(folder)["training"]["history"]}


def assert_the_same_run(folder, whole):
    ours, theirs = report(folder), report(whole)
    assert ours["status"] == "completed", ours["error"]
    for key in (
        "history",
        "eval_loss_before",
        "eval_loss",
        "train_loss",
        "steps",
        "tokens",
        "loss_first",
        "loss_last",
    ):
        assert ours["training"][key] == theirs["training"][key], key
    name = "model/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (whole / name).read_bytes()


def unfinished(whole, folder):
    """A copy of a finished run as if it had been killed after its last checkpoint."""
    shutil.copytree(whole, folder)
    shutil.rmtree(folder / "model")
    (folder / "report.json").unlink()
    return folder


def test_a_run_killed_again_and_again_ends_as_if_it_never_was(forked, settings, tiny_llama, whole, tmp_path):
    """Killed while loading, while writing a checkpoint, before one is there and as soon as it is, and after the last."""
    folder = tmp_path / "killed"
    place, config = folder / "checkpoints", settings(folder)
    writing = place / checkpoints.SAVING / "checkpoint-4" / "trainer_state.json"
    for path, moment in [
        (tiny_llama / "config.json", strike.OPENED),
        (writing, strike.OPENED),
        (place / "checkpoint-8", strike.RENAMED_TO),
        (place / "checkpoint-8", strike.RENAMED_FROM),
        (place / f"checkpoint-{STEPS - 2}", strike.RENAMED_FROM),
    ]:
        assert forked.run(config, env=strike.at(path, moment)) == -signal.SIGKILL, log_of(folder)
    assert forked.run(config) == 0, log_of(folder)
    assert_the_same_run(folder, whole)
    training = report(folder)["training"]
    assert training["resumed_from"] == STEPS
    assert training["tokens_per_second"] is None  # no step was made in this start, and none before it told
    assert [entry["step"] for entry in training["resumes"]] == [2, 6, 10, STEPS]
    assert not (place / checkpoints.SAVING).exists()
    assert "resumed | from step 6 at" in (folder / "report.md").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_a_checkpoint_and_the_same_command_goes_on(number, forked, settings, whole, tmp_path):
    folder = tmp_path / "preempted"
    config = settings(folder)
    asked = strike.at(folder / "checkpoints" / "checkpoint-4", number=number)
    assert forked.run(config, env=asked) == 143, log_of(folder)
    left = report(folder)
    assert (
        checkpoints.last_in(folder / "checkpoints").step == 5
    )  # asked while step 4 is saved, it ends the next
    assert left["status"] == "interrupted"
    assert (
        left["error"] == f"{number.name}: checkpoint at step 5; the same command goes on from there: COMMAND"
        f" hydra.run.dir={folder}"
    )
    assert left["error"] in log_of(folder)
    assert "Traceback" not in log_of(folder)
    assert forked.run(config) == 0, log_of(folder)
    assert_the_same_run(folder, whole)
    assert "interrupted" not in report(folder)["status"]
    assert (folder / "run.log").read_text().count("engine: transformers") == 2
    assert (folder / "run.log").read_text().count("step 0: held out") == 1  # not again


def test_a_signal_before_training_stops_at_once(forked, settings, tiny_llama, tmp_path):
    folder = tmp_path / "early"
    asked = strike.at(tiny_llama / "config.json", strike.OPENED, signal.SIGTERM)
    assert forked.run(settings(folder), env=asked) == 143
    assert report(folder)["status"] == "interrupted"
    assert report(folder)["error"].startswith("SIGTERM: no checkpoint yet; ")


def test_sigterm_ends_a_whole_sweep(warm, tiny, tmp_path):
    sweep = [
        "-m",
        "chatbot_sft",
        "-m",
        *tiny,
        "training.max_steps=100000,200000",
        "save=none",
        "hydra.sweep.dir=sweep",
    ]
    started = warm.start(sweep, tmp_path)
    started.wait_for("job 0  running  step ")
    started.send_signal(signal.SIGTERM)
    process = started.finish()
    stderr = process.stderr
    assert process.returncode == 143
    assert "Traceback" not in stderr
    last = stderr.rstrip().splitlines()[-1]
    assert last.startswith("SIGTERM: checkpoint at step ")
    # How it goes on is said once, of the sweep; of the job alone its report says it.
    (again,) = [line for line in (stderr + process.stdout).splitlines() if "the same command" in line]
    assert again.startswith("of 2 jobs 1 interrupted, 1 not begun; the same command goes on: ")
    assert again.endswith(" hydra.sweep.dir=sweep")
    error = report(tmp_path / "sweep" / "0")["error"]
    assert error.startswith(f"{last}; the same command goes on from there: ")
    assert error.endswith(f"hydra.run.dir={tmp_path}/sweep/0")
    assert "training.max_steps=100000 " in error
    assert [path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()] == ["0"]


def times(folder):
    """When each file was written last, but for those that say whose the folder is."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if not path.name.startswith(".lock")}


def test_a_completed_run_is_not_trained_again(forked, settings, whole):
    before = times(whole)
    assert forked.run(settings(whole)) == 2
    with pytest.raises(
        UserError,
        match=r"whole: this run is already completed; name another run directory \(hydra.run.dir=DIR\)",
    ):
        resume.refuse_completed(Config.from_mapping(settings(whole)))
    assert times(whole) == before


def test_a_changed_run_is_refused_with_all_that_changed(forked, settings, whole, tmp_path):
    folder = unfinished(whole, tmp_path / "changed")
    config = settings(folder, learning_rate=0.5, neftune_noise_alpha=5, per_device_train_batch_size=4)
    config["seed"] = 1
    config["lora"]["r"] = 8
    assert forked.run(config) == 2, log_of(folder)
    error = report(folder)["error"]
    assert error.startswith(
        f"training.resume: {folder}/checkpoints/checkpoint-{STEPS} was trained with other settings: seed 3407"
        " → 1; "
    )
    for change in (
        "dataset (training rows): ", "effective batch size 4 → 8", "lora.r 16 → 8", "training.learning_rate 0.01 → 0.5",
        "training.neftune_noise_alpha (not set) → 5",
    ):  # fmt: skip
        assert f"; {change}" in error
    assert error.count("→") == 5
    assert (
        ", as before, but not the same ones, or in other words" in error
    )  # another seed holds out other rows
    assert error.endswith(
        "or start afresh in this one with training.resume=never; of a sweep by moving the job's directory away"
    )
    assert checkpoints.last_in(folder / "checkpoints").step == STEPS


def test_what_does_not_decide_the_result_may_change_and_a_day_may_pass(
    forked, settings, tiny_llama, tmp_path
):
    """The template writes today's date. Killed yesterday; today other steps of the same rows, and another
    cadence.
    """
    model = shutil.copytree(tiny_llama, tmp_path / "dated")
    template = model / "chat_template.jinja"
    template.write_text("Today is {{ strftime_now('%d %b %Y') }}.\n" + template.read_text())
    folder = tmp_path / "run"
    config = settings(folder, max_steps=3, save_steps=1)
    config["model"]["name"] = str(model)
    assert forked.run(config, days=-1) == 0, log_of(folder)
    first = report(folder)
    unfinished(folder, tmp_path / "copy")
    for changed in (
        {
            "per_device_train_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "save_steps": 2,
            "logging_steps": 1,
            "report_to": "none",
        },
        {"learning_rate": 0.5, "resume": "never"},
    ):
        config = settings(tmp_path / "copy", max_steps=3, **changed)
        config["model"]["name"] = str(model)
        config["save"]["method"] = "none"
        assert forked.run(config) == 0, log_of(tmp_path / "copy")
        second = report(tmp_path / "copy")
        if "resume" not in changed:
            assert second["training"]["resumed_from"] == 3
            assert second["dataset"]["fingerprint"] == first["dataset"]["fingerprint"]
            assert second["training"]["eval_loss_before"] == first["training"]["eval_loss_before"]
            (tmp_path / "copy" / "report.json").unlink()
    assert second["training"]["resumed_from"] is None
    assert second["dataset"]["fingerprint"] != first["dataset"]["fingerprint"]
    assert [path.name for path in (tmp_path / "copy" / "checkpoints.1").iterdir()] == ["checkpoint-3"]


def test_a_finished_run_goes_on_with_more_steps(forked, settings, tmp_path):
    """Under a constant learning rate it ends as the longer run does; under another the schedule is the longer
    run's from there.
    """
    shared = {"logging_steps": 1, "warmup_steps": 0, "save_steps": 2, "save_total_limit": 4}
    whole, folder, falling = tmp_path / "whole", tmp_path / "longer", tmp_path / "falling"
    assert forked.run(settings(whole, max_steps=8, lr_scheduler_type="constant", **shared)) == 0, log_of(
        whole
    )
    for steps in (4, 8):
        config = settings(folder, max_steps=steps, lr_scheduler_type="constant", **shared)
        assert forked.run(config) == 0, log_of(folder)
    assert_the_same_run(folder, whole)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        found = {path.read_bytes() for path in (whole / "checkpoints").glob(f"checkpoint-*/{name}")}
        assert found == {(whole / "model" / name).read_bytes()}
        assert len([*(whole / "checkpoints").glob(f"checkpoint-*/{name}")]) == 4
    longer = report(folder)["training"]
    assert longer["resumed_from"] == 4
    parts = longer["seconds_to_first_step_by_part"]
    assert [*parts] == [
        "start", "data", "imports", "weights", "setup", "evaluation", "layout", "first_step",
    ]  # fmt: skip
    assert longer["seconds_to_first_step"] == pytest.approx(sum(parts.values()), abs=1e-6)
    assert (
        "resume: the run had ended at step 4; it goes on to 8 steps. The learning rate's schedule is a new"
        " one: constant over" in log_of(folder)
    )
    assert forked.run(config) == 2  # it is complete again
    for steps in (4, 8):
        assert forked.run(settings(falling, max_steps=steps, **shared)) == 0, log_of(falling)
    state = json.loads((falling / "checkpoints" / "checkpoint-8" / "trainer_state.json").read_text())
    rates = {
        entry["step"]: entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry
    }
    assert [rates[step] for step in (1, 2, 3, 4)] == pytest.approx(
        [1e-2 * (4 - taken) / 4 for taken in range(4)]
    )
    assert [rates[step] for step in (5, 6, 7, 8)] == pytest.approx(
        [1e-2 * (8 - taken) / 8 for taken in range(4, 8)]
    )


def test_a_flipped_byte_is_found_and_the_run_ends_as_if_it_never_was(forked, settings, whole, tmp_path):
    folder = tmp_path / "flipped"
    config = settings(folder, save_total_limit=2)
    asked = strike.at(folder / "checkpoints" / "checkpoint-8")
    assert forked.run(config, env=asked) == -signal.SIGKILL
    last = checkpoints.last_in(folder / "checkpoints").folder
    content = bytearray((last / "adapter_model.safetensors").read_bytes())
    content[-1000] ^= 1
    (last / "adapter_model.safetensors").write_bytes(content)
    assert forked.run(config) == 0, log_of(folder)
    assert (
        f"{last.name} is passed over: adapter_model.safetensors is damaged (its checksum is another)"
        in log_of(folder)
    )
    assert_the_same_run(folder, whole)


def test_a_full_disk_keeps_the_last_checkpoint(forked, settings, tmp_path, small_disk):
    small = small_disk("600k")
    folder = tmp_path / "run"
    assert forked.run(settings(folder, output_dir=str(small / "checkpoints"))) == 2, log_of(folder)
    error = report(folder)["error"]
    assert error.startswith(
        f"training.output_dir={small}/checkpoints: the checkpoint of step 4 cannot be written ("
    )
    assert error.endswith("; the one of step 2 is kept")
    assert checkpoints.last_in(small / "checkpoints").step == 2
    assert not (small / "checkpoints" / checkpoints.SAVING).exists()


def test_the_best_checkpoint_is_kept_and_loaded(forked, settings, tmp_path):
    folder = tmp_path / "best"
    evaluated = {"eval_steps": 2, "load_best_model_at_end": True, "stop_on_divergence": False}
    config = settings(
        folder, max_steps=8, learning_rate=50.0, save_total_limit=2, **evaluated
    )  # destroys the model: the last is not the best
    assert forked.run(config) == 0, log_of(folder)
    last = checkpoints.last_in(folder / "checkpoints")
    best = json.loads((last.folder / "trainer_state.json").read_text())["best_model_checkpoint"]
    assert Path(best).parent == folder / "checkpoints"
    assert best != str(last.folder)
    name = "adapter_model.safetensors"
    assert (
        (folder / "model" / name).read_bytes()
        == Path(best, name).read_bytes()
        != (last.folder / name).read_bytes()
    )


def test_a_run_on_unsloth_resumes_too(warm_unsloth, settings, tmp_path):
    forked = Forked(warm_unsloth)
    whole, folder = tmp_path / "whole", tmp_path / "killed"

    def config(place):
        made = settings(place, max_steps=6)
        made["model"]["engine"] = "unsloth"
        return made

    assert forked.run(config(whole)) == 0, log_of(whole)
    asked = strike.at(folder / "checkpoints" / "checkpoint-6")
    assert forked.run(config(folder), env=asked) == -signal.SIGKILL
    assert forked.run(config(folder)) == 0, log_of(folder)
    assert_the_same_run(folder, whole)
    assert report(folder)["training"]["resumed_from"] == 4


# Divergence.


@pytest.fixture(scope="module")
def broken_model(tiny_llama, tmp_path_factory):
    """The tiny model with its output untied and the input embedding of one word's tokens not a number: a loss
    is NaN where a row has that word.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("models") / "broken"
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, tie_word_embeddings=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    with torch.no_grad():
        model.lm_head.weight.normal_(std=0.02)
        for token in tokenizer(" water")["input_ids"]:
            model.model.embed_tokens.weight[token] = float("nan")
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tiny_llama / name, folder)
    return folder


def finite_checkpoints(place):
    import torch
    from safetensors.torch import load_file

    from chatbot_sft.run.checkpoints import all_in

    found = all_in(place)
    for checkpoint in found:
        for name, weight in load_file(checkpoint.folder / "adapter_model.safetensors").items():
            assert torch.isfinite(weight).all(), name
    return [checkpoint.step for checkpoint in found]


def test_a_loss_that_is_no_number_stops_the_run_and_names_its_rows(forked, settings, broken_model, tmp_path):
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b " * (1 + n % 3)}]}
        for n in range(25)
    ]
    rows[16]["messages"][0]["content"] = "a water"
    data = write_json(tmp_path / "water.json", rows)
    folder = tmp_path / "nan"
    config = settings(folder, max_steps=7, save_steps=1)
    config["model"]["name"] = str(broken_model)
    config["dataset"] = {"data_path": str(data), "eval_fraction": 0}
    assert forked.run(config) == 2, log_of(folder)
    error = report(folder)["error"]
    found = re.fullmatch(
        r"step (\d): the loss is nan; the last good checkpoint is checkpoint-(\d)\. It trained"
        rf" {re.escape(str(data))} rows ([\d, ]+)\. "
        r"Lower training\.learning_rate=0\.01 or look at these rows; training\.stop_on_divergence=false goes"
        r" on regardless",
        error,
    )
    assert found, error
    step, kept = int(found[1]), int(found[2])
    named = [int(row) for row in found[3].split(", ")]
    assert kept == step - 1
    assert len(named) == 4
    assert 17 in named  # counted from 1
    assert finite_checkpoints(folder / "checkpoints") == [kept]
    assert [point["step"] for point in report(folder)["training"]["history"]] == [1, 3, 6][
        : 1 + (kept >= 3) + (kept >= 6)
    ]


def test_a_learning_rate_of_a_million_is_stopped(forked, settings, tmp_path):
    folder = tmp_path / "million"
    assert forked.run(settings(folder, learning_rate=1e6, warmup_steps=2, max_steps=20, save_steps=1)) == 2, (
        log_of(folder)
    )
    assert re.match(r"step \d+: the (loss|gradient norm) is ", report(folder)["error"])
    assert report(folder)["status"] == "failed"
    assert finite_checkpoints(folder / "checkpoints")


def test_a_run_that_leaves_the_rails_keeps_a_checkpoint_from_before(forked, settings, tmp_path):
    """All weights at a learning rate of 3: losses of 6 to 13 during the warm-up, then of 60 and more."""
    folder = tmp_path / "rails"
    config = settings(folder, learning_rate=3, warmup_steps=10, max_steps=40, save_steps=1, logging_steps=1)
    config["lora"] = {"r": 0}
    config["save"]["method"] = "none"
    assert forked.run(config) == 2, log_of(folder)
    found = re.match(
        r"step (\d+): the loss is [\d.]+, its median over the last \d+ steps ([\d.]+), once ([\d.]+) \(limit"
        r" ([\d.]+)\); "
        r"the last good checkpoint is checkpoint-(\d+)\. It trained ",
        report(folder)["error"],
    )
    step, middle, lowest, limit, kept = map(float, found.groups())
    assert kept <= step - 3
    assert lowest < limit < middle
    assert median(losses_of(folder)[int(kept) - back] for back in range(3)) < limit
    assert (
        f"step {step - 1:.0f}: no checkpoint, the last losses are above" in (folder / "run.log").read_text()
    )


# Finding and keeping, without a run.


def planted(folder, step, **record):
    """A checkpoint that is whole."""
    made = folder / f"checkpoint-{step}"
    staged = folder / "made"
    staged.mkdir(parents=True)
    (staged / "weights").write_bytes(bytes(10))
    origin = resume.Origin(started=datetime(2026, 1, 2, 3, 4, 5))
    checkpoints.publish(staged, made, {**resume.record(origin, step, 1.5, False, {}, {}), **record})
    return made


def from_config(folder, **training):
    return Config.from_mapping(
        {
            "paths": {"output_dir": str(folder)},
            "training": {"output_dir": str(folder / "checkpoints"), **training},
        }
    )


def test_only_whole_checkpoints_count(tmp_path):
    place = tmp_path / "checkpoints"
    assert checkpoints.last_in(place) is None
    for step in (2, 4, 10):
        planted(place, step)
    assert [checkpoint.step for checkpoint in checkpoints.all_in(place)] == [2, 4, 10]
    (place / "checkpoint-10" / "weights").write_bytes(bytes(9))
    (place / "checkpoint-12").mkdir()
    (place / "checkpoint-12" / "weights").write_bytes(bytes(10))
    (place / "checkpoint-4" / "run.json").write_text("{")
    assert checkpoints.last_in(place).step == 2
    origin = resume.find_origin(from_config(tmp_path))
    assert (origin.checkpoint.step, origin.started, origin.seconds) == (2, datetime(2026, 1, 2, 3, 4, 5), 1.5)
    resume.settle(origin, from_config(tmp_path))
    assert [path.name for path in place.iterdir()] == ["checkpoint-2"]
    assert sorted(path.name for path in (tmp_path / "checkpoints.1").iterdir()) == [
        "checkpoint-10",
        "checkpoint-12",
        "checkpoint-4",
    ]


def test_a_path_says_where_a_run_begins_and_its_own_checkpoints_where_it_goes_on(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    planted(there / "checkpoints", 4)
    planted(there / "checkpoints", 6)
    for path, step in ((there, 6), (there / "checkpoints", 6), (there / "checkpoints" / "checkpoint-4", 4)):
        settings = from_config(here, resume=str(path))
        origin = resume.find_origin(settings)
        assert origin.checkpoint.step == step
    own = planted(here / "checkpoints", 8, resumes=origin.resumes)
    assert resume.find_origin(settings).checkpoint.folder == own  # begun there, so the same command goes on
    assert resume.find_origin(from_config(here)).checkpoint.folder == own
    other = from_config(here, resume=str(there))
    assert (
        resume.find_origin(other).checkpoint.step == 6
    )  # another beginning: its own checkpoint is moved away
    resume.settle(resume.find_origin(other), other)
    assert [path.name for path in (here / "checkpoints.1").iterdir()] == ["checkpoint-8"]
    assert checkpoints.last_in(there / "checkpoints").step == 6
    back = from_config(there, resume=str(there / "checkpoints" / "checkpoint-4"))
    resume.settle(resume.find_origin(back), back)
    assert checkpoints.last_in(there / "checkpoints").step == 4
    with pytest.raises(
        UserError, match="no whole checkpoint there; name a checkpoint-N folder, or a run directory"
    ):
        resume.find_origin(from_config(here, resume=str(tmp_path)))


def test_what_killed_runs_left_is_removed_and_nothing_else(tmp_path):
    place = tmp_path / "checkpoints"
    kept = planted(place, 2)
    for leftover in (
        place / checkpoints.SAVING / "checkpoint-4",
        place / checkpoints.REMOVING / "checkpoint-1",
        tmp_path / ".model.x1",
    ):
        leftover.mkdir(parents=True)
    (place / "final_model").mkdir()
    settings = Config.from_mapping(
        {**from_config(tmp_path).to_dict(), "save": {"save_path": str(tmp_path / "model")}}
    )
    resume.settle(resume.find_origin(settings), settings)
    assert sorted(path.name for path in place.iterdir()) == ["checkpoint-2", "final_model"]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]
    resume.settle(resume.Origin(), settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "checkpoints.1"]
    assert checkpoints.last_in(tmp_path / "checkpoints.1").step == 2
    assert not kept.exists()


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(None, None, [2, 4, 6, 10]), (1, None, [10]), (2, None, [6, 10]), (1, 2, [2, 10]), (2, 4, [4, 10])],
)
def test_pruning_keeps_the_newest_and_the_best(limit, best, left, tmp_path):
    for step in (10, 2, 6, 4):
        planted(tmp_path, step)
    checkpoints.prune(tmp_path, limit, str(tmp_path / f"checkpoint-{best}") if best else None)
    assert [checkpoint.step for checkpoint in checkpoints.all_in(tmp_path)] == left
    assert len(list(tmp_path.iterdir())) == len(left)


def test_the_weights_are_recognised_wherever_they_lie(tiny_llama, tmp_path):
    def found(folder):
        return weights_fingerprint(Config.from_mapping({"model": {"name": str(folder)}}))

    copy = shutil.copytree(tiny_llama, tmp_path / tiny_llama.name)
    assert found(copy) == found(tiny_llama)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert found(copy) != found(tiny_llama)


@pytest.mark.parametrize("value", ["0", "-1", "2.5", "nan", "inf"])
def test_a_cadence_that_is_none_is_refused(value, tmp_path):
    with pytest.raises(
        UserError,
        match=(
            r"training.save_steps=.*: (expected a number of optimizer steps, above 0, or a share|must be a"
            r" number|must be at most)"
        ),
    ):
        from_config(tmp_path, save_steps=float(value))
