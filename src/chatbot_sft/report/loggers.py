"""`training.report_to`: a run's figures in TensorBoard, Weights & Biases, MLflow and Trackio.

transformers' own callbacks stream the metrics. Here each logger is opened inside the run directory (unless
its own environment variables say otherwise), is given the composed configuration first and the report last,
and is closed with the run's status. Nothing goes over the network unless the user is logged in to W&B or
names a server.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import os
import re
import sys
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from chatbot_sft.errors import UserError, reason
from chatbot_sft.extras import install
from chatbot_sft.logs import quiet
from chatbot_sft.report.markdown import markdown
from chatbot_sft.report.masking import masked, masked_arguments
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Report

if TYPE_CHECKING:
    from chatbot_sft.config import Config

log = logging.getLogger(__name__)

PROJECT = "chatbot_sft"
# What is imported for each; the extra has the logger's name.
MODULES = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "mlflow": ("mlflow", "sqlalchemy", "alembic"),
    "trackio": ("trackio",),
}
ALONE = frozenset({"wandb", "mlflow", "trackio"})  # with one open run in a process
# Loggers that transformers knows besides: it opens them itself, with its own arguments, and they get neither
# configuration nor report.
OTHERS = {
    "azure_ml": ("azureml", "azureml.core"),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub", "mlflow"),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
}
PACKAGE_OF = {"azureml": "azureml-sdk", "azureml.core": "azureml-sdk"}  # where it is not the module's name
# Environment variables that a logger does not start without.
NEEDED = {"neptune": ("NEPTUNE_PROJECT", "NEPTUNE_API_TOKEN")}


@dataclass(frozen=True)
class Ending:
    """What a logger gets last."""

    status: str  # completed | failed | interrupted
    figures: dict[str, float]  # report/training.eval_loss, report/memory.peak_gb, …
    files: dict[str, str]  # report.md and report.json


def check(names: list[str]) -> None:
    """Refuse loggers that are not installed, without importing one.

    Raises:
        UserError: names the extra that brings it.
    """
    for name in names:
        modules = MODULES.get(name) or OTHERS[name]
        missing = next((module for module in modules if importlib.util.find_spec(module) is None), None)
        if missing is not None:
            how = install(name) if name in MODULES else f"pip install {PACKAGE_OF.get(missing, missing)}"
            raise UserError(f"training.report_to={name}: {missing} is not installed; {how}")
        unset = [variable for variable in NEEDED.get(name, ()) if not os.environ.get(variable)]
        if unset:
            raise UserError(f"training.report_to={name}: set {' and '.join(unset)} in the environment")
        if name == "mlflow" and os.environ.get("DISABLE_MLFLOW_INTEGRATION", "").upper() == "TRUE":
            raise UserError(
                "training.report_to=mlflow: DISABLE_MLFLOW_INTEGRATION=TRUE is set in the environment;"
                " unset it"
            )


def run_name(folder: Path) -> str:
    """The run directory as one word: outputs/multirun/2026-11-22/20-01-55/3 as 2026-11-22_20-01-55_3."""
    folder = folder.absolute()
    below = folder.relative_to(Path.cwd()).parts if folder.is_relative_to(Path.cwd()) else (folder.name,)
    return "_".join(part for part in below if part not in ("outputs", "multirun")) or folder.name


class Loggers:
    """The open loggers of one run."""

    def __init__(self) -> None:
        self._open: dict[str, Generator[Any, Ending, None]] = {}

    def start(self, trainer: Any, settings: Config) -> None:
        """Open what `settings.training.report_to` names and add its callback to the transformers trainer.

        Raises:
            UserError: a logger cannot be opened; those that were are closed as failed.
        """
        config = masked(settings.to_dict())
        for name in settings.training.loggers:
            if name not in MODULES:
                continue
            session = OPEN[name](trainer, Run(Path(settings.paths.output_dir).absolute()).logs / name, config)
            try:
                with quiet():
                    trainer.add_callback(next(session))
            except Exception as error:
                self._close(Ending("failed", {}, {}))
                why = masked(" ".join(str(error).split()))
                raise UserError(
                    f"training.report_to={name}: it cannot be opened ({type(error).__name__}: {why});"
                    " leave it out, or mend that"
                ) from error
            self._open[name] = session

    def finish(self, report: Report) -> None:
        """Hand over the finished report and close. A logger that fails here costs a warning, not the run."""
        if self._open:
            clean = masked(report.to_json())
            text = markdown(Report.from_json(clean), picture=False)
            files = {"report.md": text, "report.json": json.dumps(clean, indent=2, ensure_ascii=False)}
            self._close(Ending(str(report.status), _figures(clean), files))

    def _close(self, ending: Ending) -> None:
        while self._open:
            name, session = self._open.popitem()
            try:
                with quiet(), contextlib.suppress(StopIteration):
                    session.send(ending)
            except Exception as error:
                why = f"{type(error).__name__}: {masked(reason(error))}"
                log.warning("logs: %s did not take the report: %s", name, why)


# One generator a logger: it opens, yields the trainer's callback, receives the ending, and closes.


def _tensorboard(trainer: Any, folder: Path, config: dict[str, Any]) -> Generator[Any, Ending, None]:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    folder = Path(os.environ.get("TENSORBOARD_LOGGING_DIR", folder)).expanduser()
    writer = SummaryWriter(folder)
    writer.add_text("config", f"```yaml\n{_yaml(config)}```")
    log.info("logs: tensorboard --logdir %s", folder)
    ending = yield _until_the_end(TensorBoardCallback)(writer)
    # The HPARAMS tab: one row for the run. "." is the folder itself; without it a second run would appear.
    writer.add_hparams(
        _texts(config),
        {**ending.figures, "report/completed": float(ending.status == "completed")},
        run_name=".",
    )
    for name, text in ending.files.items():
        writer.add_text(name, text if name.endswith(".md") else f"```json\n{text}\n```")
    writer.close()


def _wandb(trainer: Any, folder: Path, config: dict[str, Any]) -> Generator[Any, Ending, None]:
    defaults = {"WANDB_CACHE_DIR": str(folder / "cache"), "WANDB_ERROR_REPORTING": "false"}
    with _environment(defaults, WANDB_LOG_MODEL="false", WANDB_WATCH="false"):
        import wandb
        from transformers.integrations import WandbCallback

        directory = Path(os.environ.get("WANDB_DIR", folder))
        directory.mkdir(parents=True, exist_ok=True)
        run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", trainer.args.project),
            name=os.environ.get("WANDB_NAME", trainer.args.run_name),
            dir=directory,
            mode="offline" if wandb_stays_offline() else None,
            config=config,
            # The metadata would hold the command line as it was typed, secrets included.
            settings=wandb.Settings(console="off", disable_git=True, save_code=False, x_disable_meta=True),
        )
        synced = Path(run.settings.sync_dir).absolute()
        offline = f"wandb is offline; `wandb sync {synced}` sends the run"
        log.info("logs: %s", offline if run.offline else f"wandb {run.url}")
        callback = WandbCallback()
        callback.setup(masked_arguments(trainer.args), trainer.state, trainer.model)
        ending = yield callback
        run.summary.update({**ending.figures, "report/status": ending.status})
        for name, text in ending.files.items():
            file = Path(run.dir, name)
            file.write_text(text, encoding="utf-8")
            run.save(file, base_path=run.dir, policy="end")
        run.finish(exit_code=0 if ending.status == "completed" else 1)


def wandb_stays_offline() -> bool:
    """Whether the user neither chose a mode nor is logged in (WANDB_API_KEY, netrc, W&B's own settings).

    Asks nobody, and not over the network.
    """
    import wandb

    return "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False)


def _mlflow(trainer: Any, folder: Path, config: dict[str, Any]) -> Generator[Any, Ending, None]:
    local = "MLFLOW_TRACKING_URI" not in os.environ
    store = f"sqlite:///{folder / 'mlflow.db'}"
    with _environment({"MLFLOW_TRACKING_URI": store, "MLFLOW_DISABLE_TELEMETRY": "true"}):
        import mlflow
        from transformers.integrations import MLflowCallback

        experiment = None
        if not {"MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID", "MLFLOW_RUN_ID"} & set(os.environ):
            if local:
                folder.mkdir(parents=True, exist_ok=True)
            project = trainer.args.project
            artifacts = (folder / "artifacts").as_uri() if local else None
            earlier = mlflow.get_experiment_by_name(project)
            experiment = (
                earlier.experiment_id
                if earlier
                else mlflow.create_experiment(project, artifact_location=artifacts)
            )
        # Ours, not the callback's: that one ends its run with the training.
        mlflow.start_run(experiment_id=experiment, run_name=trainer.args.run_name)
        mlflow.log_text(_yaml(config), "config.yaml")
        # A column of the user's may hold any letter.
        params = [(re.sub(r"[^\w\-. :/]", "_", key), value) for key, value in _texts(config).items()]
        for first in range(0, len(params), 100):  # as many as MLflow takes at once
            mlflow.log_params(dict(params[first : first + 100]))
        log.info("logs: mlflow ui --backend-store-uri %s", store if local else mlflow.get_tracking_uri())
        callback = MLflowCallback()
        callback.setup(masked_arguments(trainer.args), trainer.state, trainer.model)
        ending = yield callback
        mlflow.flush_async_logging()
        mlflow.log_metrics(ending.figures)
        for name, text in ending.files.items():
            mlflow.log_text(text, name)
        mlflow.end_run({"completed": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}[ending.status])


def _trackio(trainer: Any, folder: Path, config: dict[str, Any]) -> Generator[Any, Ending, None]:
    with _environment({"TRACKIO_DIR": str(folder)}):
        import trackio
        from transformers.integrations import TrackioCallback

        callback = _until_the_end(TrackioCallback)()
        callback.setup(masked_arguments(trainer.args), trainer.state, trainer.model)
        trackio.config.update(_texts(config))
        log.info(
            "logs: TRACKIO_DIR=%s trackio show --project %s", os.environ["TRACKIO_DIR"], trainer.args.project
        )
        ending = yield callback
        trackio.log(
            {
                **ending.figures,
                "report/status": ending.status,
                "report/report": trackio.Markdown(ending.files.get("report.md", "")),
            }
        )
        trackio.finish()
    # It reads TRACKIO_DIR at import: the next run of a sweep has another one.
    for module in [name for name in sys.modules if name.partition(".")[0] == "trackio"]:
        del sys.modules[module]


OPEN = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}


def _until_the_end(callback: type) -> type:
    """`callback` without its `on_train_end`, which would close the logger before the last evaluation.

    What it writes of the arguments as the training begins has no secrets.
    """

    class Callback(callback):
        def on_train_begin(self, args: Any, *others: Any, **kwargs: Any) -> None:
            super().on_train_begin(masked_arguments(args), *others, **kwargs)

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Callback


@contextlib.contextmanager
def _environment(defaults: Mapping[str, str], **forced: str) -> Iterator[None]:
    """Set `defaults` where the user has not and `forced` in any case; on leaving everything is as it was."""
    before = {name: os.environ.get(name) for name in (*defaults, *forced)}
    os.environ.update(
        {**defaults, **{name: value for name, value in before.items() if value is not None}, **forced}
    )
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"lora": {"r": 16}} as {"lora.r": 16}."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _texts(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flat, with lists as JSON and null as text: what every logger takes as a hyperparameter."""
    return {
        key: value if isinstance(value, (bool, int, float, str)) else json.dumps(value, ensure_ascii=False)
        for key, value in _flat(config).items()
    }


def _figures(report: Mapping[str, Any]) -> dict[str, float]:
    parts = {name: report[name] for name in ("model", "dataset", "training", "memory")}
    # What is not ours to name is no name of metrics: MLflow refuses messages[].score.
    parts["dataset"] = {
        name: value for name, value in parts["dataset"].items() if name not in ("not_read", "personal_data")
    }
    return {
        f"report/{key}": value
        for key, value in _flat(parts).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def _yaml(config: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(config), allow_unicode=True, sort_keys=False)
