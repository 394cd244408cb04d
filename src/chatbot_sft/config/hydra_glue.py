"""Between Hydra and the schema: what was composed is settled and checked before a folder is made.

`CheckConfiguration` (conf/hydra/default.yaml) is the callback of a run, and of a sweep, whose jobs it
composes once before any of them starts. `--cfg` composes here, and ends.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import HydraException, SearchPathException
from hydra.experimental.callback import Callback
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from omegaconf.errors import OmegaConfBaseException

from chatbot_sft import distributed
from chatbot_sft.command_line import all_opened, left_out, shown
from chatbot_sft.config import OVERLAYS, SECTIONS, Config, effects, precedence
from chatbot_sft.config.containers import as_dict, as_strings
from chatbot_sft.config.hydra_errors import said
from chatbot_sft.config.reading import added, no_keys
from chatbot_sft.config.schema import OF_SWEEP
from chatbot_sft.errors import SHOW_TRACEBACK, UserError
from chatbot_sft.resources import PACKAGE, conf_dir, examples_dir

OURS = "study"  # of hydra/sweeper

OmegaConf.register_new_resolver("default", precedence.default, replace=True)
OmegaConf.register_new_resolver("examples_dir", lambda: str(examples_dir()), replace=True)
OmegaConf.register_new_resolver("started", lambda form: distributed.started().strftime(form), replace=True)


class Refused(SystemExit):
    """Holds the `error` of a callback: Hydra makes a warning of every exception there but SystemExit."""

    def __init__(self, error: Exception) -> None:
        super().__init__(1)
        self.error = error


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Within it an error ends the command."""
    try:
        yield
    except Exception as error:
        raise Refused(error) from error


class CheckConfiguration(Callback):
    """Settles and checks what Hydra composed."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with refusing():
            settle(config, written(config.hydra.overrides.task), config.hydra)
            refuse_of_sweep(named_of(config.hydra), "is of a sweep, and this is one run; add -m")
            refuse_other_directory(config, "run", "is of a sweep, and this is one run; add -m, or name")
            check(config)

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from chatbot_sft import start  # nothing that `--help` has to wait for
        from chatbot_sft.hydra_job import Job
        from chatbot_sft.sweep import outputs, points
        from chatbot_sft.sweep.directory import Sweep

        with refusing():
            refuse_other_directory(config, "sweep", "is of one run, and this is a sweep; name")
            prefer_named(config, named_of(config.hydra), config.hydra)
            if params := config.hydra.sweeper.get("params"):
                _tell_lost(params, named_of(config.hydra))
                config.hydra.sweeper.params = {added(key): value for key, value in params.items()}
            sweeper = config.hydra.runtime.choices["hydra/sweeper"]
            if sweeper == OURS:
                return  # it does this itself, and the jobs are composed once
            refuse_of_sweep(
                named_of(config.hydra), f"is of hydra/sweeper={OURS}, and this is {sweeper}; leave it out"
            )
            # Hydra's own runs every combination. Another one chooses among more than can be walked.
            found = points.space(
                written(config.hydra.overrides.task), params if sweeper == "basic" else None, loader=loader()
            )
            numbered = sweeper == "basic"
            asked = list(found.points() if numbered else found.samples())
            folder = Path(config.hydra.sweep.dir)
            files = (
                None if Sweep(folder).begun else start.Files(goes_on=False)
            )  # those of ended jobs may be gone

            def of_point(point: Sequence[str]) -> DictConfig:
                job, settings = composed_job(config, found.job(point))
                if files:
                    files.refuse(settings)
                return job

            jobs = enumerate(composed_jobs(asked, of_point, numbered))
            outputs.refuse_shared(Job.at(job, folder, None, number) for number, job in jobs)


def refuse_of_sweep(names: Collection[str], why: str) -> None:
    """Raises UserError where the user has named a key of `sweep`, and it does nothing."""
    for name in names:
        if name.startswith(OF_SWEEP):
            raise UserError(f"{name}: {why}")


def refuse_other_directory(config: DictConfig, mine: str, why: str) -> None:
    """Raises UserError where the user has named the directory of a run for a sweep, or of a sweep for a run; a script
    may name both. One that is there is the other's, and not advised.
    """
    given = dict(word.split("=", 1) for word in written(config.hydra.overrides.hydra) if "=" in word)
    other = {"run": "sweep", "sweep": "run"}[mine]
    named = given.get(f"hydra.{other}.dir")
    if named and f"hydra.{mine}.dir" not in given:
        free = "DIR" if Path(named).is_dir() else named
        raise UserError(f"hydra.{other}.dir={named}: {why} hydra.{mine}.dir={free}")


def loader() -> ConfigLoader:
    """Hydra's, which knows the options of groups."""
    return GlobalHydra.instance().config_loader()


def composed_job(sweep: DictConfig, overrides: Sequence[str]) -> tuple[DictConfig, Config]:
    """The configuration of one job of the composed `sweep`, settled, Hydra's own part in it; the same checked,
    without that part.
    """
    from chatbot_sft import start  # nothing that `--help` has to wait for

    config = compose(
        sweep.hydra.job.config_name,
        [*written(sweep.hydra.overrides.hydra), *overrides],
        return_hydra_config=True,
    )
    settle(config, overrides, config.hydra)
    settings = check(config)
    refuse_own_search(config, sweep)
    start.refuse_task(settings, [word for word in overrides if not word.startswith(OF_SWEEP)])
    return config, settings


def refuse_own_search(job: DictConfig, sweep: DictConfig) -> None:
    """Raises UserError where an option of this job says how the sweep is run: nobody would read it."""
    of_all = _search(sweep)
    for key, value in _search(job).items():
        if of_all.get(key) != value:
            raise UserError(
                f"{key}: of the whole sweep, and an option of one job brings it;"
                " run each search as a sweep of its own"
            )


def _search(config: DictConfig) -> dict[str, Any]:
    """Key → value of what says which jobs there are, and how they are run."""
    params, said = config.hydra.sweeper.get("params"), as_dict(config.sweep, resolve=False)
    swept = as_dict(params, resolve=False) if params else {}
    return {
        **{f"hydra.sweeper.params.{key.lstrip('+')}": value for key, value in swept.items()},
        **{f"{OF_SWEEP}{key}": value for key, value in said.items()},
    }


def composed_jobs(
    points: Sequence[Sequence[str]], composed: Callable[[Sequence[str]], DictConfig], numbered: bool
) -> list[DictConfig]:
    """All of them, by `composed`; `numbered` where they are the jobs, and do not only stand for them.

    Raises:
        UserError: which of them is refused, and why; where all are, why alone.
    """
    found: list[DictConfig] = []
    for number, point in enumerate(points):
        if refusal := _refusal(point, composed, found):
            if number == 0 < len(points) - 1 and refusal == _refusal(points[-1], composed, []):
                raise UserError(refusal)
            own = " ".join(word.lstrip("+") for word in point)
            raise UserError(f"{f'job {number} ({own})' if numbered else own}: {refusal}" if own else refusal)
    return found


def _refusal(
    point: Sequence[str], composed: Callable[[Sequence[str]], DictConfig], found: list[DictConfig]
) -> str | None:
    """Why the job at `point` cannot be; else it is among those `found`."""
    try:
        found.append(composed(point))
    except (UserError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        return said(error)
    return None


def written(overrides: Sequence[str]) -> list[str]:
    """Hydra's list of overrides as they were typed: `${…}` in them stands for something in each job."""
    return as_strings(overrides)


def named(overrides: Sequence[str]) -> dict[str, Any]:
    """Key → value of what the user wrote on the command line."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return {item.key_or_group: item.value() for item in parsed}


def named_of(job: HydraConf) -> dict[str, Any]:
    """The same of what was composed."""
    return named(written(job.overrides.task))


def settle(config: DictConfig, overrides: Sequence[str], of_hydra: HydraConf) -> None:
    """Make of a composed configuration one of plain values.

    The command line beats the files, and every `${default:…}` is what it comes to.
    """
    _refuse_values(config)
    given = named(overrides)
    prefer_named(config, given, of_hydra)
    if "dataset.data_path" in given:
        if given.get("dataset.sources"):
            raise UserError("dataset.data_path and dataset.sources: two values for one thing; leave one out")
        OmegaConf.update(config, "dataset.sources", None)
    training = {
        key.removeprefix("training."): value for key, value in given.items() if key.startswith("training.")
    }
    for key in precedence.ended_by(training):
        OmegaConf.update(config, f"training.{key}", None, force_add=True)
    precedence.settle(config)


def _refuse_values(config: DictConfig) -> None:
    """Raise UserError where a plain value stands in place of a group's keys."""
    for section in SECTIONS:
        given = config.get(section)
        if given is not None and not isinstance(given, DictConfig):
            raise UserError(_written_in(config, section, r"[^\s#].*") + no_keys(section, given))
        if (
            given
            and section in precedence.BRINGING
            and not isinstance(given.get("brings"), DictConfig | None)
        ):
            raise UserError(no_keys(f"{section}.brings", given.brings))


def prefer_named(config: DictConfig, given: Mapping[str, Any], of_hydra: HydraConf) -> None:
    """Have the options that are named on the command line count over the user's files, and say where they do."""
    runtime = of_hydra.runtime
    folders = [Path(one.path) for one in runtime.config_sources if one.schema == "file"]
    for option, lost in precedence.prefer(config, given, runtime.choices, folders).items():
        said = ", ".join(shown(f"{key}={value!r}") for key, value in lost.items())
        _tell(f"{option} counts over what another file says: {said}")


def _tell_lost(params: Mapping[str, Any], given: Collection[str]) -> None:
    """Say which lists of a search the command line has taken the place of."""
    for key, value in params.items():
        if key.lstrip("+") in given:
            _tell(f"{key} of the command line counts over what the search tries: {shown(f'{key}={value}')}")


@functools.cache
def _tell(line: str) -> None:
    """Say it once in this process, which may compose many jobs."""
    if distributed.is_first():
        print(line, file=sys.stderr)


def check(config: DictConfig) -> Config:
    """What was composed; raises UserError where the schema refuses it."""
    for section in SECTIONS:
        if config.get(section) is None:
            raise UserError(
                _written_in(config, section, "(null|~)?") + left_out(section, config.hydra.job.config_name)
            )
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    # Hydra knows the run directory only once the job runs.
    placed = OmegaConf.merge(settings, {"paths": {"output_dir": "outputs"}})
    checked = Config.from_mapping(as_dict(placed, resolve=True))
    effects.refuse(checked, named_of(config.hydra))
    return checked


def _written_in(config: DictConfig, section: str, value: str) -> str:
    """`mine/experiment/my.yaml, line 2: ` where the user's overlay has what matches `value` behind `section:`; else
    empty.
    """
    runtime = config.hydra.runtime
    folders = [Path(one.path) for one in runtime.config_sources if one.provider == "command-line"]
    for folder, group in itertools.product(folders, OVERLAYS):
        file = folder / group / f"{runtime.choices.get(group)}.yaml"
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        for number, line in enumerate(lines, 1):
            if re.fullmatch(rf"{section}:\s*{value}\s*(#.*)?", line):
                return f"{file}, line {number}: "
    return ""


class OwnOptions(SearchPathPlugin):
    """`--config-dir` in the search path of what is composed here, where Hydra's entrypoint puts it for a run."""

    folder: Path | None = None

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        if self.folder:
            search_path.append("command-line", f"file://{self.folder}")


def composed(
    overrides: Sequence[str],
    config_name: str = "config",
    config_dir: str | None = None,
    config_path: str = "",
) -> DictConfig:
    """The configuration of a run with these overrides, settled and checked, Hydra's own part in it."""
    config = compose_for(overrides, config_name, config_dir, config_path)
    settle(config, written(config.hydra.overrides.task), config.hydra)
    check(config)
    return config


def compose_for(
    overrides: Sequence[str], config_name: str, config_dir: str | None, config_path: str
) -> DictConfig:
    """The same as Hydra composes it."""
    if config_dir and not Path(config_dir).is_dir():
        raise SearchPathException(f"Additional config directory '{Path(config_dir).absolute()}' not found")
    Plugins.instance().register(OwnOptions)
    OwnOptions.folder = Path(config_dir).absolute() if config_dir else None
    folder = PACKAGE / config_path if config_path else conf_dir()  # as @hydra.main has it
    try:
        with initialize_config_dir(str(folder), job_name="chatbot_sft", version_base="1.3"):
            return compose(config_name, list(overrides), return_hydra_config=True)
    finally:
        OwnOptions.folder = None  # Hydra adds it by itself, where it composes for the run


def given(flags: Namespace, overrides: Sequence[str] | None = None) -> DictConfig:
    """`composed` of a command line's flags, and of its `overrides` where no others are given."""
    return composed(
        all_opened(flags.overrides, flags) if overrides is None else overrides,
        flags.config_name or "config",
        flags.config_dir,
        flags.config_path or "",
    )


def placed(config: DictConfig) -> tuple[Config, Path]:
    """The settings of a run as it would have them, and its directory, which is not made; of a composed `config`."""
    folder = Path(config.hydra.run.dir).absolute()
    with read_write(config.hydra.runtime), open_dict(config.hydra.runtime):
        config.hydra.runtime.output_dir = str(folder)
    HydraConfig.instance().set_config(config)  # ${hydra:runtime.output_dir} is read from there
    settings = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
    return Config.from_mapping(as_dict(settings, resolve=True)), folder


def show(config: DictConfig, kind: str, package: str | None, resolve: bool) -> None:
    """Print what `--cfg KIND --package PACKAGE --resolve` asks for, as Hydra prints it."""
    HydraConfig.instance().set_config(config)
    names = [str(name) for name in config]
    parts = {"job": [name for name in names if name != "hydra"], "hydra": ["hydra"], "all": names}
    shown = OmegaConf.masked_copy(config, parts[kind])
    if package not in (None, "_global_"):
        shown = OmegaConf.select(shown, package)
        if shown is None:
            raise UserError(
                f"--package {package}: not in the configuration; --cfg {kind} alone shows what is"
            )
        print(f"# @package {package}" if OmegaConf.is_config(shown) else shown)
    if OmegaConf.is_config(shown):
        if resolve:
            OmegaConf.resolve(shown)
        print(OmegaConf.to_yaml(shown), end="")
