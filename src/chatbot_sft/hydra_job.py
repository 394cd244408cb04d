"""One job as Hydra composed it: its files, its environment, and the command that does it again.

A run's job is Hydra's own (`hydra.core.utils.run_job`). A sweep's jobs are begun here, because several of
them may be under way in one process: `Job` does what `run_job` does, in parts.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, env_override
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from chatbot_sft import command_line
from chatbot_sft.config import Config, hydra_glue
from chatbot_sft.config.schema import OF_SWEEP
from chatbot_sft.report.masking import mask_yaml

# Hydra's overrides that say where and how a command runs, not what: the repeated command has its own.
OF_THE_START = (
    "hydra.mode=",
    "hydra.sweep.",
    "hydra.output_subdir=",
    "hydra/launcher",
    "hydra/sweeper",
    "hydra.launcher.",
    "hydra.sweeper.",
)
SEARCH = "hparams_search"  # overlays that make a sweep of a command
ONE_RUN = f"hydra.mode={RunMode.RUN.name}"


def users_folders(job: HydraConf) -> list[str]:
    """Those of --config-dir."""
    return [source.path for source in job.runtime.config_sources if source.provider == "command-line"]


def command(job: HydraConf) -> str:
    """The command line that does this run again, in the directory that was named for it."""
    folders = (word for path in users_folders(job) for word in ("--config-dir", path))
    hydras = [override for override in job.overrides.hydra if not override.startswith(OF_THE_START)]
    if job.mode == RunMode.MULTIRUN:
        hydras = [
            *(override for override in hydras if not override.startswith("hydra.run.dir=")),
            *([ONE_RUN] if job.runtime.choices.get(SEARCH) else []),
            f"hydra.run.dir={job.runtime.output_dir}",
        ]
    words = [word for word in map(typed, job.overrides.task) if not word.startswith(OF_SWEEP)]
    return shlex.join([*command_line.PROGRAM.split(), *folders, *words, *hydras])


def sweep_command(sweep: HydraConf, folder: Path) -> str:
    """The command line that goes on with the sweep in `folder`."""
    folders = [word for path in users_folders(sweep) for word in ("--config-dir", path)]
    hydras = [
        word for word in sweep.overrides.hydra if not word.startswith(("hydra.mode=", "hydra.sweep.dir="))
    ]
    words = [*map(typed, hydra_glue.written(sweep.overrides.task)), *hydras, f"hydra.sweep.dir={folder}"]
    return shlex.join([*command_line.PROGRAM.split(), "-m", *folders, *words])


def typed(override: str) -> str:
    """`override` without the two plus signs that `command_line.opened` puts before it."""
    bare = override.removeprefix("++")
    return bare if bare != override and command_line.opened(bare) == override else override


def tell_chdir(job: HydraConf) -> None:
    """What hydra.job.chdir=true does here: nothing."""
    print(
        f"hydra.job.chdir=true: paths stay those of {job.runtime.cwd};"
        " what a run writes is in its directory anyway",
        file=sys.stderr,
    )


def mask_files(job: HydraConf) -> None:
    """Take the secrets out of what Hydra wrote before this job: .hydra, and in a sweep multirun.yaml."""
    files = list(Path(job.runtime.output_dir, job.output_subdir).glob("*.yaml")) if job.output_subdir else []
    if job.mode == RunMode.MULTIRUN:
        files += Path(job.sweep.dir).glob("multirun.yaml")
    for file in files:
        mask_yaml(file)


@dataclass
class Job:
    """A job of a sweep; `config` is all that was composed for it, Hydra's part in it."""

    config: DictConfig
    settings: Config
    context: HydraContext | None = None  # whose callbacks of the user's own hear of it

    @classmethod
    def at(
        cls,
        config: DictConfig,
        folder: Path,
        subdir: str | None,
        number: int,
        context: HydraContext | None = None,
    ) -> Job:
        """That of a composed `config`, in `folder`/`subdir`; None for what hydra.sweep.subdir says. `config` stays as
        it was: a sampler may draw its point again.
        """
        config = copy.deepcopy(config)
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.job.id = str(number)
            config.hydra.job.num = number
            config.hydra.sweep.dir = str(folder)
            if subdir is not None:
                config.hydra.sweep.subdir = subdir
            HydraConfig.instance().set_config(config)  # ${hydra:…} is read from there
        with read_write(config.hydra), open_dict(config.hydra):
            config.hydra.runtime.output_dir = str((folder / str(config.hydra.sweep.subdir)).absolute())
        HydraConfig.instance().set_config(config)
        return cls(config, Config.from_mapping(cls.of_task(config)), context)

    @staticmethod
    def of_task(config: DictConfig) -> DictConfig:
        """`config` without Hydra's own part."""
        return OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])

    @property
    def hydra(self) -> HydraConf:
        part: HydraConf = self.config.hydra
        return part

    @property
    def number(self) -> int:
        return int(self.hydra.job.num)

    @property
    def sweep(self) -> Path:
        """The sweep's directory."""
        return Path(self.hydra.sweep.dir)

    @property
    def command(self) -> str:
        return command(self.hydra)

    @functools.cached_property
    def named(self) -> dict[str, Any]:
        """Key → value of what the user wrote for it."""
        return hydra_glue.named_of(self.hydra)

    def write_files(self) -> None:
        """.hydra in its folder, as Hydra writes it, but without secrets."""
        if not self.hydra.output_subdir:
            return
        folder = Path(self.hydra.runtime.output_dir, self.hydra.output_subdir)
        folder.mkdir(parents=True, exist_ok=True)
        HydraConfig.instance().set_config(self.config)
        whole = {
            "config": self.of_task(self.config),
            "hydra": HydraConfig.instance().cfg,
            "overrides": self.hydra.overrides.task,
        }
        for name, part in whole.items():
            (folder / f"{name}.yaml").write_text(OmegaConf.to_yaml(part), encoding="utf-8")
        mask_files(self.hydra)

    @contextlib.contextmanager
    def environment(self) -> Iterator[None]:
        """Within it the environment is as hydra.job.env_set says."""
        with env_override(self.hydra.job.env_set):
            yield

    def begin(self) -> None:
        """Logging as it is set for the job, and the user's own callbacks; ${hydra:…} is this job's."""
        HydraConfig.instance().set_config(self.config)
        configure_log(self.config.hydra.job_logging, self.config.hydra.verbose)
        if self.context:
            self.context.callbacks.on_job_start(config=self.config, task_function=_nothing)

    def end(self, value: float | BaseException | None) -> None:
        """Tell the user's own callbacks what it came to."""
        if self.context:
            overrides: Sequence[str] = hydra_glue.written(self.hydra.overrides.task)
            failed = isinstance(value, BaseException)
            status = JobStatus.FAILED if failed else JobStatus.COMPLETED
            result = JobReturn(overrides, self.of_task(self.config), self.config, status=status)
            result.return_value = value
            self.context.callbacks.on_job_end(config=self.config, job_return=result)


def _nothing(config: DictConfig) -> None:
    """A callback is given a task; a sweep of ours runs its jobs itself."""
