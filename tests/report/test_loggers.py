"""training.report_to: every logger run for real, offline, and what it wrote read back."""

import ast
import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import conversations, only_error, write_json

from chatbot_sft import UserError
from chatbot_sft.config import Config
from chatbot_sft.report import loggers
from chatbot_sft.report.masking import masked
from chatbot_sft.run.report import Report, Status

BESIDE = Path(sys.prefix, "loggers")  # where `make setup` puts those that are not in the environment
sys.path.append(str(BESIDE))

ENVIRONMENT_SECRETS = {
    "HF_TOKEN": "hf_" + "aB3dE5" * 6,
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "MLFLOW_TRACKING_PASSWORD": "open-sesame-open",
}
CONFIG_SECRETS = ("correct-horse-battery", "hf_" + "Zy9Xw8" * 6)
TRAINER = """
from chatbot_sft import SFTTrainerWrapper

class Mine(SFTTrainerWrapper):
    def train(self):
        stats = super().train()
        if self.settings.seed == 2:
            raise RuntimeError("no more power")
        return stats
"""


@pytest.fixture(scope="module")
def sweep(tiny, tmp_path_factory):
    """Two runs in one process with all loggers that are installed: the first fails in training, the second
    does not.
    """
    cwd = tmp_path_factory.mktemp("loggers")
    home = tmp_path_factory.mktemp("home")
    (cwd / "my_trainer.py").write_text(TRAINER)
    data = write_json(tmp_path_factory.mktemp("data") / "chats.json", conversations(12))
    names = [name for name in loggers.MODULES if importlib.util.find_spec(name)]
    environment = {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("WANDB", "MLFLOW", "TRACKIO", "TENSORBOARD"))
        },
        **ENVIRONMENT_SECRETS,
        "PYTHONPATH": os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(BESIDE)])),
        "WANDB_MODE": "offline",
        "HOME": str(home),
        "MPLCONFIGDIR": os.environ.get("MPLCONFIGDIR", str(Path.home() / ".cache" / "matplotlib")),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    arguments = [
        "-m",
        *tiny,
        f"dataset.data_path={data}",
        f"dataset.system_prompt=say {CONFIG_SECRETS[1]}",
        "training._target_=my_trainer.Mine",
        f"training.api_key={CONFIG_SECRETS[0]}",
        "training.odd={a+b: c}",
        "training.sample_max_new_tokens=0",
        f"training.report_to=[{','.join(names)}]",
        "save=none",
        "hydra.sweep.dir=outputs/multirun/today",
        "seed=2,1",
    ]
    process = subprocess.run(
        [sys.executable, "-m", "chatbot_sft", *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    runs = cwd / "outputs" / "multirun" / "today"
    assert (runs / "1" / "report.json").exists(), process.stderr
    return cwd, home, runs / "0", runs / "1", process


def report_of(run):
    return json.loads((run / "report.json").read_text())


def curve(report):
    return [
        (point["step"], pytest.approx(point["loss"], rel=1e-6)) for point in report["training"]["history"]
    ]


def held_out(report):
    return pytest.approx([report["training"]["eval_loss_before"], report["training"]["eval_loss"]], rel=1e-6)


def test_nothing_is_written_outside_the_run_directories(sweep):
    cwd, home, failed, completed, _ = sweep
    assert report_of(failed)["status"] == "failed"
    assert report_of(failed)["error"] == "no more power"
    assert report_of(completed)["status"] == "completed"
    assert sorted(path.name for path in cwd.iterdir()) == ["my_trainer.py", "outputs"]
    assert not [path for path in home.rglob("*") if path.is_file()]
    for run in (failed, completed):
        assert sorted(path.name for path in (run / "logs").iterdir()) == [
            name for name in sorted(loggers.MODULES) if importlib.util.find_spec(name)
        ]
        said = (run / "run.log").read_text()
        assert f"logs: tensorboard --logdir {run / 'logs' / 'tensorboard'}" in said
        assert "did not take the report" not in said


def test_no_secret_is_written(sweep):
    cwd, *_, process = sweep
    for file in (path for path in cwd.rglob("*") if path.is_file()):
        content = file.read_bytes()
        for secret in ENVIRONMENT_SECRETS.values():
            assert secret.encode() not in content, file
        if "logs" in file.relative_to(cwd).parts:
            for secret in CONFIG_SECRETS:
                assert secret.encode() not in content, file
    assert not any(secret in process.stderr + process.stdout for secret in ENVIRONMENT_SECRETS.values())


def test_tensorboard(sweep):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for run in sweep[2:4]:
        report = report_of(run)
        events = EventAccumulator(
            str(run / "logs" / "tensorboard"), size_guidance={"scalars": 0, "tensors": 0}
        ).Reload()
        assert [(event.step, event.value) for event in events.Scalars("train/loss")] == curve(report)
        config = events.Tensors("config/text_summary")[0].tensor_proto.string_val[0].decode()
        assert "r: 16" in config
        assert "api_key: '***'" in config
        assert events.Scalars("report/completed")[0].value == (report["status"] == "completed")
        assert (
            "no more power" in events.Tensors("report.md/text_summary")[0].tensor_proto.string_val[0].decode()
            or report["status"] == "completed"
        )
    assert [event.value for event in events.Scalars("eval/loss")] == held_out(report)
    assert events.Scalars("report/training.tokens_per_second")[0].value == pytest.approx(
        report["training"]["tokens_per_second"]
    )
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_mlflow(sweep, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow

    for run, status in zip(sweep[2:4], ("FAILED", "FINISHED"), strict=True):
        report = report_of(run)
        client = mlflow.MlflowClient(f"sqlite:///{run / 'logs' / 'mlflow' / 'mlflow.db'}")
        (found,) = client.search_runs([client.get_experiment_by_name("chatbot_sft").experiment_id])
        assert found.info.status == status
        assert found.info.run_name == f"today_{run.name}"
        assert [
            (metric.step, metric.value) for metric in client.get_metric_history(found.info.run_id, "loss")
        ] == curve(report)
        assert found.data.params["lora.r"] == "16"
        assert found.data.params["training.api_key"] == "***"
        assert found.data.params["training.odd.a_b"] == "c"
        assert json.loads(found.data.params["lora.target_modules"])[0] == "q_proj"
        assert sorted(file.path for file in client.list_artifacts(found.info.run_id)) == [
            "config.yaml",
            "report.json",
            "report.md",
        ]
        (kept,) = (run / "logs" / "mlflow").rglob("report.json")
        assert json.loads(kept.read_text())["training"]["history"] == report["training"]["history"]
    assert [metric.value for metric in client.get_metric_history(found.info.run_id, "eval_loss")] == held_out(
        report
    )
    assert found.data.metrics["report/memory.peak_gb"] == report["memory"]["peak_gb"]


def test_wandb(sweep):
    pytest.importorskip("wandb")
    for run, exit_code in zip(sweep[2:4], (1, 0), strict=True):
        report = report_of(run)
        (file,) = (run / "logs" / "wandb").rglob("offline-run-*/*.wandb")
        records = wandb_records(file)
        (exit_record,) = [record.exit for record in records if record.WhichOneof("record_type") == "exit"]
        assert exit_record.exit_code == exit_code
        (opened,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
        assert (opened.project, opened.display_name) == ("chatbot_sft", f"today_{run.name}")
        config = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in opened.config.update
        }
        assert config["lora"]["r"] == 16
        assert config["training"]["api_key"] == "***"
        rows = [
            {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for record in records
            if record.WhichOneof("record_type") == "history"
        ]
        assert [
            (row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row
        ] == curve(report)
        summary = {}
        for record in records:
            summary |= {
                item.key or ".".join(item.nested_key): json.loads(item.value_json)
                for item in record.summary.update
            }
        assert summary["report/status"] == report["status"]
        assert f"wandb sync {file.parent}" in (run / "run.log").read_text(encoding="utf-8")
        assert (
            json.loads((file.parent / "files" / "report.json").read_text())["training"] == report["training"]
        )
        assert not list((file.parent / "files").glob("wandb-metadata.json"))
        assert not [record for record in records if record.WhichOneof("record_type") == "artifact"]
    assert [row["eval/loss"] for row in rows if "eval/loss" in row] == held_out(report)
    assert summary["report/training.eval_loss"] == report["training"]["eval_loss"]


def wandb_records(file):
    """The records of an offline run: a 7-byte header, then LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, whole, records = file.read_bytes(), 7, b"", []
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, position)
        whole = (b"" if kind in (1, 2) else whole) + data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            records.append(Record.FromString(whole))
    return records


def test_trackio(sweep):
    pytest.importorskip("trackio")
    for run in sweep[2:4]:
        report = report_of(run)
        with sqlite3.connect(run / "logs" / "trackio" / "chatbot_sft.db") as base:
            rows = [json.loads(row) for (row,) in base.execute("select metrics from metrics order by id")]
            ((name, config),) = base.execute("select run_name, config from configs").fetchall()
        assert name == f"today_{run.name}"
        assert json.loads(config)["lora.r"] == 16
        assert json.loads(config)["training.api_key"] == "***"
        assert [
            (row["train/global_step"], row["train/loss"]) for row in rows if "train/loss" in row
        ] == curve(report)
        assert rows[-1]["report/status"] == report["status"]
        assert "# Fine-tuning run: " in rows[-1]["report/report"]["_value"]
    assert [row["eval/loss"] for row in rows if "eval/loss" in row] == held_out(report)
    assert rows[-1]["report/training.eval_loss"] == report["training"]["eval_loss"]


@pytest.mark.slow
def test_wandb_is_offline_until_the_user_logs_in(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    assert loggers.wandb_stays_offline()
    monkeypatch.setenv("WANDB_MODE", "online")
    assert not loggers.wandb_stays_offline()
    monkeypatch.delenv("WANDB_MODE")
    Path(tmp_path, "netrc").write_text(
        f"machine api.wandb.ai\n  login user\n  password {ENVIRONMENT_SECRETS['WANDB_API_KEY']}\n"
    )
    assert not loggers.wandb_stays_offline()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("none", []),
        (None, []),
        ([], []),
        (["none"], []),
        ("wandb", ["wandb"]),
        (["mlflow", "tensorboard", "mlflow"], ["mlflow", "tensorboard"]),
        ("swanlab", ["swanlab"]),
    ],
)
def test_report_to_is_a_name_or_a_list(value, expected):
    assert Config.from_mapping({"training": {"report_to": value}}).training.loggers == expected


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            "tensorbord",
            "training.report_to=tensorbord: not one of 14 that there are; did you mean tensorboard?",
        ),
        (["mlflow", "wanbd"], "training.report_to=wanbd: not one of 13 that there are; did you mean wandb?"),
        (["none", "wandb"], "training.report_to=none: not one of tensorboard, "),
        (
            "all",
            "training.report_to=all: name the loggers, for instance training.report_to=[tensorboard,mlflow]",
        ),
        (True, "training.report_to=true: not one of "),
    ],
)
def test_a_name_that_is_no_logger_is_refused(value, message):
    with pytest.raises(UserError) as caught:
        Config.from_mapping({"training": {"report_to": value}})
    assert str(caught.value).startswith(message)
    if isinstance(value, str) and value != "all":
        assert "did you mean tensorboard?" in str(caught.value)


def test_a_logger_that_fails_does_not_take_the_others_or_the_run_with_it(tmp_path, monkeypatch, caplog):
    endings = []

    def good(trainer, folder, config):
        endings.append((yield "callback"))

    def bad_start(trainer, folder, config):
        raise ConnectionError(f"no answer\nfrom https://me:{ENVIRONMENT_SECRETS['HF_TOKEN']}@host")
        yield

    def bad_end(trainer, folder, config):
        yield "callback"
        raise OSError("disk full")

    callbacks = []
    trainer = SimpleNamespace(add_callback=callbacks.append)
    settings = Config.from_mapping(
        {"paths": {"output_dir": str(tmp_path)}, "training": {"report_to": ["tensorboard", "mlflow"]}}
    )
    monkeypatch.setattr(loggers, "OPEN", {"tensorboard": good, "mlflow": bad_start})
    with pytest.raises(UserError) as caught:
        loggers.Loggers().start(trainer, settings)
    assert (
        str(caught.value)
        == "training.report_to=mlflow: it cannot be opened (ConnectionError: no answer from https://***@host); leave it out, or mend that"
    )
    assert [ending.status for ending in endings] == ["failed"]

    monkeypatch.setattr(loggers, "OPEN", {"tensorboard": good, "mlflow": bad_end})
    started = loggers.Loggers()
    started.start(trainer, settings)
    started.finish(Report("python -m chatbot_sft", "train", 1, Status.INTERRUPTED))
    started.finish({})
    assert callbacks == ["callback"] * 3
    assert [ending.status for ending in endings] == ["failed", "interrupted"]
    assert "logs: mlflow did not take the report: OSError: disk full" in caplog.text


def test_a_logger_that_is_not_installed_names_its_extra(launch, tiny, monkeypatch):
    process = launch(*tiny, "training.report_to=[tensorboard,clearml]")
    assert only_error(process) == "training.report_to=clearml: clearml is not installed; pip install clearml"
    assert "model:" not in process.stderr
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError,
        match=r"^training\.report_to=wandb: wandb is not installed; pip install 'wandb<1,>=0.30'$",
    ):
        loggers.check(["wandb"])


def test_the_other_loggers_are_those_of_transformers():
    path = Path(
        importlib.util.find_spec("transformers").submodule_search_locations[0],
        "integrations",
        "integration_utils.py",
    )
    (known,) = [
        {key.value for key in node.value.keys}
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign) and node.targets[0].id == "INTEGRATION_TO_CALLBACK"
    ]
    assert {*loggers.MODULES, *loggers.OTHERS} == known - {
        "kubeflow"
    }  # which a Kubeflow job turns on by itself


def test_the_name_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        loggers.run_name(tmp_path / "outputs" / "multirun" / "2026-11-22" / "20-01-55" / "3")
        == "2026-11-22_20-01-55_3"
    )
    assert loggers.run_name(Path("runs/first")) == "runs_first"
    assert loggers.run_name(Path("outputs")) == "outputs"
    assert loggers.run_name(Path("/somewhere/else")) == "else"


def test_secrets_are_masked_and_nothing_else_is(monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "a-long-value")
    monkeypatch.setenv("SHORT_KEY", "data")
    value = {
        "model": {"token": None, "apiKey": "x1", "credentials": {"user": "me"}, "name": "hub/data"},
        "training": {"sample_max_new_tokens": 96, "eos_token": "<|im_end|>", "note": "it is a-long-value"},
        "commands": [
            "python -m chatbot_sft +a.wandb_key=abc training.max_steps=3 '+b={password:x,r:2}'"
            " url=https://me:pw@host/x?token=abc&n=1"
        ],
        "text": f"{CONFIG_SECRETS[1]} hf_transfer The key: be kind, token by token",
        "git": "0123456789abcdef0123456789abcdef01234567",
    }
    assert masked(value) == {
        "model": {"token": None, "apiKey": "***", "credentials": "***", "name": "hub/data"},
        "training": {"sample_max_new_tokens": 96, "eos_token": "<|im_end|>", "note": "it is ***"},
        "commands": [
            "python -m chatbot_sft +a.wandb_key=*** training.max_steps=3 '+b={password:***,r:2}'"
            " url=https://***@host/x?token=***&n=1"
        ],
        "text": "*** hf_transfer The key: be kind, token by token",
        "git": "0123456789abcdef0123456789abcdef01234567",
    }
