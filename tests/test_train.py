"""Whole runs through the real command line, and what they leave behind."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLE, only_error, report_of, write_json

CONTRACT = {
    "": {
        "status",
        "error",
        "command",
        "seed",
        "started",
        "finished",
        "model",
        "dataset",
        "training",
        "memory",
        "samples",
        "save",
        "versions",
        "git",
    },
    "model": {"name", "engine", "parameters", "trainable_parameters", "dtype"},
    "dataset": {
        "path",
        "rows",
        "rows_used",
        "tokens",
        "trainable_tokens",
        "max_length",
        "truncated_rows",
        "fingerprint",
    },
    "training": {
        "steps",
        "effective_batch_size",
        "batch_layout",
        "tokens",
        "seconds",
        "tokens_per_second",
        "loss_first",
        "loss_last",
        "train_loss",
        "eval_loss",
    },
    "memory": {"start_gb", "peak_gb", "training_gb"},
    "save": {"method", "path", "files", "verified", "exports"},
}


def losses(report):
    return [point["loss"] for point in report["training"]["history"]]


def test_a_run_leaves_the_directory_that_the_contract_promises_and_says_it_in_three_lines(
    launch, tiny, tmp_path
):
    process = launch(*tiny, f"dataset.data_path={EXAMPLE}", "save.verify=true", cold=True)
    assert process.returncode == 0, process.stderr
    (run,) = tmp_path.glob("outputs/*/*")
    made = [
        ".hydra",
        ".lock",
        ".lock.json",
        "checkpoints",
        "config.yaml",
        "data_preview.html",
        "data_report.json",
        "evidence.json",
        "loss.png",
        "model",
    ]
    made += ["report.json", "report.md", "run.lock.json", "run.log", "steps.jsonl", "trained_answers.json"]
    assert sorted(path.name for path in run.iterdir()) == made
    report = report_of(tmp_path)
    for part, keys in CONTRACT.items():
        assert keys <= set(report[part] if part else report), part
    assert report["status"] == "completed"
    assert report["error"] is None
    assert report["dataset"]["rows"] == 244
    assert report["dataset"]["rows_used"] + report["dataset"]["rows_held_out"] == 244
    assert report["training"]["steps"] == len(losses(report)) == 2
    assert report["training"]["eval_loss"] < report["training"]["eval_loss_before"]
    assert len(report["samples"]) == 3
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "| held-out loss |" in (run / "report.md").read_text()
    assert not list(tmp_path.glob("unsloth*"))
    last = process.stdout.splitlines()
    assert [line.split()[0] for line in last] == ["run", "loss", "answer", "saved"]
    assert re.search(r"held out \d\.\d\d|held out \d+\.\d\d → ", last[1])
    assert "before: “" in last[2]
    allowed = r"(run|hub|engine|model|data|training|optimizer|layout|step|save|verified|saved)[: ]"
    assert all(re.match(allowed, line) for line in process.stderr.splitlines()), process.stderr


def test_one_seed_gives_identical_losses_and_the_held_out_loss_does_not_depend_on_its_batches(
    launch, tiny, tmp_path
):
    for name, size in (("a", 1), ("b", 4), ("c", 4)):
        arguments = [
            "model.dtype=float32",
            "save=none",
            "training.sample_max_new_tokens=0",
            f"hydra.run.dir={name}",
        ]
        process = launch(
            *tiny,
            *arguments,
            f"seed={7 if name == 'c' else 3407}",
            f"training.per_device_eval_batch_size={size}",
        )
        assert process.returncode == 0, process.stderr
    a, b, c = (report_of(tmp_path / name) for name in ("a", "b", "c"))
    assert losses(a) == losses(b) != losses(c)
    for which in ("eval_loss_before", "eval_loss"):
        assert a["training"][which] == pytest.approx(b["training"][which], abs=1e-5)


def test_what_is_saved_loads_and_answers_as_the_trained_model(warm, tmp_path):
    """In one process: train, save in both ways, load again with the library a user would take, compare token
    ids.
    """
    script = tmp_path / "run.py"
    script.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom chatbot_sft import ModelLoader, DatasetLoader,"
        " SFTTrainerWrapper\nfrom chatbot_sft.model.generate import greedy_answer\nconfig ="
        " json.loads(Path('config.json').read_text())\nloader = ModelLoader(config)\nmodel, tokenizer ="
        " loader.load_and_configure()\ndataset = DatasetLoader(config, tokenizer)\ntrainer ="
        " SFTTrainerWrapper(config, model, tokenizer,"
        " dataset.prepare_dataset())\ntrainer.setup_and_train()\nfor method in ('lora', 'merged_16bit'):\n   "
        " trainer.save_model({'method': method, 'save_path':"
        " method})\nloader.engine.for_inference(model)\nprompts = [[{'role': 'user', 'content': text}] for"
        " text in ('Bia Lager bao nhiêu độ?', 'Where can I buy it?', 'Tour mấy"
        " giờ?')]\nprint(json.dumps([greedy_answer(model, tokenizer, prompt, 12) for prompt in"
        " prompts]))\nfrom peft import AutoPeftModelForCausalLM\nfrom transformers import"
        " AutoModelForCausalLM, AutoTokenizer\nagain = AutoTokenizer.from_pretrained('lora')\nmodels ="
        " (AutoPeftModelForCausalLM, 'lora'), (AutoModelForCausalLM, 'merged_16bit'), (AutoModelForCausalLM,"
        " loader.source)\nfor kind, folder in models:\n    loaded = kind.from_pretrained(folder)\n   "
        " print(json.dumps([greedy_answer(loaded, again, prompt, 12) for prompt in prompts]))\n"
    )
    config = {
        "model": {"name": "smollm2", "engine": "transformers", "load_in_4bit": False, "dtype": "float32"},
        "dataset": {"data_path": str(EXAMPLE), "max_rows": 12},
        "save": {"verify": False},
        "training": {
            "output_dir": "checkpoints",
            "max_steps": 2,
            "learning_rate": 3e-3,
            "warmup_steps": 0,
            "gradient_accumulation_steps": 1,
            "batch_layout": "as_configured",
        },
    }
    write_json(tmp_path / "config.json", config)
    process = warm.run([script], tmp_path)
    assert process.returncode == 0, process.stderr
    trained, adapter, merged, base = (json.loads(line) for line in process.stdout.splitlines()[-4:])
    assert adapter == trained
    assert merged == trained
    assert base != trained


def test_full_finetuning_changes_every_weight_and_saves(launch, tiny, tmp_path, tiny_llama):
    process = launch(*tiny, "lora=none", "training.learning_rate=1e-2", "training.warmup_steps=0")
    assert process.returncode == 0, process.stderr
    report = report_of(tmp_path)
    assert report["model"]["trainable_parameters"] == report["model"]["parameters"]
    from safetensors import safe_open

    (saved,) = tmp_path.rglob("outputs/*/*/model/model.safetensors")
    with safe_open(saved, "pt") as ours, safe_open(tiny_llama / "model.safetensors", "pt") as base:
        assert set(ours.keys()) == set(base.keys())
        for name in base.keys():  # noqa: SIM118
            assert str(ours.get_tensor(name).dtype) == "torch.bfloat16"
            assert not ours.get_tensor(name).equal(base.get_tensor(name)), name


def test_response_only_is_a_choice_and_save_none_saves_nothing_beyond_checkpoints(launch, tiny, tmp_path):
    for value in ("true", "false"):
        assert (
            launch(
                *tiny, f"training.response_only={value}", "save=none", f"hydra.run.dir=only_{value}"
            ).returncode
            == 0
        )
    response, everything = (report_of(tmp_path / f"only_{value}") for value in ("true", "false"))
    assert losses(response) != losses(everything)
    assert response["save"] == {
        "method": "none",
        "path": None,
        "files": {},
        "verified": None,
        "exports": [],
        "pushed": None,
    }
    assert not list(tmp_path.glob("only_*/model"))


@pytest.mark.slow
def test_both_engines_agree_on_the_embedded_model(launch, warm, tmp_path):
    """fp32, one seed, three steps: the same labels, and losses within 1e-3. `auto` takes Unsloth, and says so."""
    rows = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    data = write_json(tmp_path / "short.json", sorted(rows, key=lambda row: len(json.dumps(row)))[:14])
    for engine in ("auto", "transformers"):
        arguments = [
            f"model.engine={engine}",
            "model.dtype=float32",
            f"dataset.data_path={data}",
            "save=none",
            "training.max_steps=3",
            "training.batch_layout=as_configured",
            "training.per_device_train_batch_size=1",
            "training.gradient_accumulation_steps=2",
            "training.sample_max_new_tokens=0",
            f"hydra.run.dir={engine}",
        ]
        # Of `auto` the order of the imports is part of it.
        process = (
            launch(*arguments, cold=True)
            if engine == "auto"
            else warm.run(["-m", "chatbot_sft", *arguments], tmp_path)
        )
        assert process.returncode == 0, process.stderr
        assert (
            f"engine: {'unsloth (auto: unsloth ' if engine == 'auto' else 'transformers (as configured)'}"
            in process.stderr
        )
    unsloth, plain = report_of(tmp_path / "auto"), report_of(tmp_path / "transformers")
    assert unsloth["model"]["engine"] == "unsloth"
    assert unsloth["dataset"]["fingerprint"] == plain["dataset"]["fingerprint"]
    assert len(losses(plain)) == 3
    assert max(abs(a - b) for a, b in zip(losses(unsloth), losses(plain), strict=True)) < 1e-3
    assert abs(unsloth["training"]["eval_loss"] - plain["training"]["eval_loss"]) < 1e-3


# Bad input: one line that names the file, key or row; nothing half-written.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "my.json: no such data file; is it spelled so? a relative path begins in "),
        ("{", "my.json: not JSON"),
        ('{"a": 1}', "my.json: row 1 has no 'messages'"),
        ("[]", "my.json: no conversations in it"),
        ('[{"text": ""}]', "my.json: row 1: text is empty"),
    ],
)
def test_bad_data_is_refused_before_any_model_library_is_imported(launch, tmp_path, content, message):
    if content is not None:
        (tmp_path / "my.json").write_text(content)
    process = launch("dataset.data_path=my.json")
    assert only_error(process).startswith(message)
    assert "engine" not in process.stderr
    if "row 1:" not in message:  # nothing was read, and the terminal has all there is to say
        assert not (tmp_path / "outputs").exists()
        return
    report = report_of(tmp_path)
    assert report["status"] == "failed"
    assert report["error"].startswith(message)
    assert not list(tmp_path.glob("outputs/*/*/model"))
    assert list(tmp_path.glob("outputs/*/*/data_report.json"))
    assert "Traceback" in next(tmp_path.glob("outputs/*/*/run.log")).read_text()


def test_a_folder_without_a_model_is_named(launch, tmp_path):
    (tmp_path / "empty").mkdir()
    assert (
        only_error(launch("model=local", "model.name=./empty"))
        == f"model.name={tmp_path}/empty: no config.json in it, so it is not a Hugging Face model folder; name the one with the weights"
    )
    error = only_error(launch("model=local", "model.name=./absent"))
    assert error.startswith("model.name=./absent: no such folder; is it spelled so?")


def test_a_hub_id_without_a_network(launch, tiny):
    arguments = [a for a in tiny if not a.startswith("model")]
    error = only_error(
        launch("model=llama3b", "model.engine=transformers", "model.load_in_4bit=false", *arguments)
    )
    assert error.startswith(
        "model.name=unsloth/Llama-3.2-3B-Instruct: cannot be had from the Hugging Face hub (HF_HUB_OFFLINE"
        " is set"
    )
    assert error.endswith("a downloaded folder works without: model=local model.name=/path/to/folder")


def test_a_hub_that_does_not_answer_is_asked_once(launch, tiny):
    """A port of this machine that nobody listens on; huggingface_hub alone would retry for a minute."""
    arguments = [a for a in tiny if not a.startswith("model")]
    environment = {"HF_HUB_OFFLINE": "", "HF_ENDPOINT": "http://127.0.0.1:9"}
    process = launch(
        "model=llama3b",
        "model.engine=transformers",
        "model.load_in_4bit=false",
        *arguments,
        env=environment,
        cold=True,
    )
    assert "(no answer from the network, and the model is not in the local cache)" in only_error(process)
    assert "Retrying" not in process.stderr
    assert "hub: no answer from http://127.0.0.1:9" in process.stderr


def test_four_bit_without_bitsandbytes(launch, tiny, tmp_path):
    """A sitecustomize hides the package, as on a machine that never had it."""
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\nu.find_spec = lambda name, *a: None if name =="
        " 'bitsandbytes' else find(name, *a)\n"
    )
    arguments = [a for a in tiny if not a.startswith("model.load_in_4bit")]
    hidden = {"PYTHONPATH": f"{tmp_path / 'hide'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    process = launch(*arguments, "model.load_in_4bit=true", env=hidden, cold=True)
    assert only_error(process).startswith(
        "model.load_in_4bit=true needs bitsandbytes: `pip install bitsandbytes`"
    )


def test_an_output_directory_that_cannot_be_written(launch, tmp_path):
    (tmp_path / "file").write_text("")
    error = only_error(launch("hydra.run.dir=file/run"))
    assert "file/run" in error
    assert (tmp_path / "file").read_text() == ""


def test_a_save_path_that_is_taken_is_refused_before_training(launch, tiny, tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "thesis.txt").write_text("mine")
    process = launch(*tiny, "save.save_path=kept")
    assert only_error(process).startswith(
        "save.save_path=kept: not empty, and no export of this program (export.json)"
    )
    assert "engine" not in process.stderr
    assert (tmp_path / "kept" / "thesis.txt").read_text() == "mine"


def test_a_full_disk_while_saving_leaves_nothing_half_written(launch, tiny, tmp_path, small_disk):
    """The export goes to a file system that is smaller."""
    small = small_disk("128k")
    process = launch(*tiny, f"save.save_path={small}/model", "hydra.run.dir=run")
    error = only_error(process)
    assert error.startswith(f"save.save_path={small}/model: cannot be written (")
    assert "os error 28" in error or "No space left" in error
    assert list(small.iterdir()) == []
    report = report_of(tmp_path)
    assert (report["status"], report["training"]["steps"]) == ("failed", 2)
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-2" / "adapter_model.safetensors").is_file()

    # With room on it, the same command saves, and trains nothing again.
    subprocess.run(["mount", "-o", "remount,size=64m", str(small)], check=True)
    process = launch(*tiny, f"save.save_path={small}/model", "hydra.run.dir=run")
    assert process.returncode == 0, process.stderr
    assert "resume: from step 2" in process.stderr
    assert not re.search(r"^step [12]/2 ", process.stderr, re.MULTILINE)
    assert (small / "model" / "model.safetensors").is_file()


def test_ctrl_c_leaves_a_report_that_says_so(warm, tiny, tmp_path):
    started = warm.start(["-m", "chatbot_sft", *tiny, "training.max_steps=100000", "save=none"], tmp_path)
    started.wait_for("step 1/")
    started.send_signal(signal.SIGINT)
    process = started.finish()
    stderr = process.stderr
    assert process.returncode == 130
    assert stderr.rstrip().endswith("interrupted; the run's report says how far it came")
    assert "Traceback" not in stderr
    report = report_of(tmp_path)
    assert report["status"] == "interrupted"
    assert losses(report)


@pytest.mark.slow
def test_a_wheel_works_from_anywhere(tmp_path):
    """conf/ and the example data travel inside the wheel."""
    repo = Path(__file__).resolve().parent.parent
    if shutil.which("git") and (repo / ".git").exists():
        files = subprocess.run(
            ["git", "ls-files"], cwd=repo, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        copy = tmp_path / "copy"
        for name in files:
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(repo / name, copy / name)
        repo = copy
    subprocess.run(
        [
            sys.executable,
            "-m",
            "uv",
            "build",
            "--system-certs",
            "--wheel",
            "--quiet",
            "--out-dir",
            str(tmp_path / "dist"),
            str(repo),
        ],
        check=True,
    )
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    shown = subprocess.run(
        [sys.executable, "-m", "chatbot_sft", "--cfg", "job", "--resolve", "hydra.run.dir=x", "paths.output_dir=out"],
        cwd=tmp_path, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    examples = tmp_path / "site" / "chatbot_sft" / "examples"
    assert f"data_path: {examples / 'white_crane.jsonl'}\n" in shown.stdout
    for name in ("white_crane.jsonl", "white_crane_golden.jsonl", EXAMPLE.name):
        assert (examples / name).read_bytes() == (EXAMPLE.parent / name).read_bytes()
