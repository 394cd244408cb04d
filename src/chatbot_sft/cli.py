"""The one entrypoint: `python -m chatbot_sft`. Hydra composes `conf/`, the schema checks it, `pipeline.run` does the work."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal import hydra as hydra_internal
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins import file_config_source
from hydra._internal.sources_registry import SourcesRegistry
from hydra.conf import HydraConf
from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException, SearchPathException
from hydra.plugins.config_source import ConfigResult
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chatbot_sft import aliases, command_line, completion, distributed, effects, precedence, run_directory, text_files
from chatbot_sft import config as schema
from chatbot_sft.errors import UserError, did_you_mean, listed, not_yaml, question
from chatbot_sft.jobs import Job, finished, table
from chatbot_sft.logs import MaskedStream
from chatbot_sft.report.masking import mask_yaml
from chatbot_sft.report.plain import shown, shown_line
from chatbot_sft.resources import conf_dir, examples_dir

# Of Hydra's flags those that take the next word. (--info may: all, config, defaults, …; written --info=config it is one word.)
FLAGS_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--experimental-rerun")
SUBDIR = "hydra.sweep.subdir='${hydra.job.num}'"
# Hydra's overrides that say where and how a command runs, not what: the repeated command has its own.
OF_THE_START = ("hydra.mode=", "hydra.sweep.", "hydra.output_subdir=", "hydra/launcher", "hydra/sweeper", "hydra.launcher.", "hydra.sweeper.")
JOBS: list[Job] = []  # of the sweep that this process runs
MAIN: list[int] = []  # the process that runs `main`
SHOW_TRACEBACK = "CHATBOT_SFT_TRACEBACK"
ERROR = "error: " if distributed.is_first() else f"error in process {distributed.rank()}: "

OmegaConf.register_new_resolver("default", precedence.default, replace=True)
OmegaConf.register_new_resolver("examples_dir", lambda: str(examples_dir()), replace=True)
OmegaConf.register_new_resolver("started", lambda form: distributed.started().strftime(form), replace=True)


class CheckedConfigLoader(ConfigLoaderImpl):
    """Hydra's config loader, with the typed schema behind every composition: a run, each job of a sweep before the first starts, --cfg."""

    def load_configuration(self, config_name: str | None, overrides: list[str], run_mode: RunMode, **options: Any) -> DictConfig:
        overrides = [_open(override) for override in overrides]
        if run_mode == RunMode.MULTIRUN and options.get("validate_sweep_overrides", True):
            for job in _each_swept_value(overrides, self):
                self.load_configuration(config_name, job, RunMode.RUN)
        if run_mode == RunMode.RUN and options.get("validate_sweep_overrides", True):
            for override in OverridesParser.create().parse_overrides(overrides):
                if override.is_sweep_override():
                    raise UserError(command_line.several_values(override))
        try:
            composed = super().load_configuration(config_name, overrides, run_mode, **options)
        except MissingConfigException as error:
            raise _no_such_option(error) from error
        if completion.asked(sys.argv):
            return composed
        for section in schema.SECTIONS:
            if composed.get(section) is None:
                raise UserError(_left_out(section, config_name))
        precedence.settle(composed, overrides)
        settings = OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"])
        # Hydra knows the run directory only once the job runs.
        effects.refuse(schema.Config.from_mapping(OmegaConf.merge(settings, {"paths": {"output_dir": "outputs"}})))
        return composed


# Hydra has no hook between composing and running; its entrypoint looks this name up when it starts.
hydra_internal.ConfigLoaderImpl = CheckedConfigLoader


class FileConfigSource(file_config_source.FileConfigSource):
    """Hydra's source of YAML files, for those of any editor. (By the name of this class Hydra takes its own for registered.)"""

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path)).resolve()
        text = text_files.read(file)
        result = super().load_config(config_path)
        result.header = self._get_header_dict(text)  # Hydra looks for `# @package` behind a byte order mark in vain
        return result


SourcesRegistry.instance().types[FileConfigSource.scheme()] = FileConfigSource


def _open(override: str) -> str:
    """`training.weight_decay=0` as `++training.weight_decay=0` where the YAML files do not name the key.

    Hydra would refuse it with a text about struct mode. Now the schema decides: it knows SFTConfig's keys, and names the nearest one to a typo.
    `experiment=NAME` means `+experiment=NAME`: no experiment is in the defaults list. `+model=NAME` and `+lora.r=8` mean what they say without the
    plus: the key is there.
    """
    parsed = OverridesParser.create().parse_overrides([override])[0]
    ours = parsed.key_or_group.partition(".")[0] != "hydra" and "/" not in parsed.key_or_group and schema.known_override(parsed.key_or_group)
    if parsed.is_delete() and ours:
        raise UserError(_deleted(parsed.key_or_group))
    if parsed.key_or_group in schema.SECTIONS and not parsed.is_sweep_override() and parsed.value() is None:
        raise UserError(_left_out(parsed.key_or_group, "config"))
    if parsed.is_add() and not parsed.is_force_add() and ours:
        return _open(override[1:])
    if parsed.is_add() or parsed.is_force_add() or parsed.is_delete():
        return override
    if not parsed.is_sweep_override():
        override = command_line.as_text(override, parsed)
    if parsed.key_or_group == "experiment":
        return f"+{override}"
    return override if schema.known_override(parsed.key_or_group) else f"++{override}"


def _each_swept_value(overrides: list[str], loader: ConfigLoader) -> Iterator[list[str]]:
    """The overrides of one job for every value of every sweep, the other sweeps at their first: all are checked before a folder is made.

    `loader` knows the options that a `group=glob(*)` stands for.
    """
    parsed = OverridesParser.create(loader).parse_overrides(overrides)
    choices = []
    for item, override in zip(parsed, overrides, strict=True):
        if item.is_discrete_sweep():
            choices.append([f"{item.get_key_element()}={value}" for value in item.sweep_string_iterator()])
            if not choices[-1]:
                raise UserError(f"{override}: stands for no value; there is nothing to run")
        elif not item.is_sweep_override():
            choices.append([override])
    first = [values[0] for values in choices]
    for index, values in enumerate(choices):
        for value in values if len(values) > 1 else ():
            yield [*first[:index], value, *first[index + 1 :]]


# Options of Hydra that are packages of their own.
PLUGINS = {
    "optuna": "hydra-optuna-sweeper", "ax": "hydra-ax-sweeper", "nevergrad": "hydra-nevergrad-sweeper", "joblib": "hydra-joblib-launcher",
    "submitit_slurm": "hydra-submitit-launcher", "submitit_local": "hydra-submitit-launcher", "slurm": "hydra-submitit-launcher",
    "submitit": "hydra-submitit-launcher", "ray": "hydra-ray-launcher", "ray_aws": "hydra-ray-launcher", "rq": "hydra-rq-launcher",
    "colorlog": "hydra-colorlog",
}  # fmt: skip
NOTHING = {"lora": "lora=none trains every weight", "save": "save=none trains without saving"}


def _no_such_option(error: MissingConfigException) -> UserError:
    """A group option that is no file; the path of a model or a file given for an option is said to be a value."""
    missing = error.missing_cfg_file or ""
    group, _, option = missing.partition("/") if not missing.startswith("hydra/") else missing.rpartition("/")
    options = error.options or []
    if not group or not options:
        there = f"there is no {missing}.yaml in conf/ or in --config-dir"
        return UserError(f"--config-name {missing}: {there}; options of your own are overlays: --config-dir DIR +experiment=NAME")
    if group.startswith("hydra/") and option in PLUGINS:
        return UserError(f"{group}={option}: not installed; `pip install {PLUGINS[option]}`")
    there = f"there are {listed(options)}"
    if not option:
        return UserError(f"{group}=: names no option ({there})")
    values = {"model": "model=local model.name", "dataset": "dataset.data_path", "save": "save.save_path"}
    if group in values and ("/" in option or "." in option):
        return UserError(f"{group}={option}: no such option ({there}); did you mean {values[group]}={option}?")
    alias = {("lora", "qlora"): "default model.load_in_4bit=true", ("lora", "full"): "none", ("lora", "lora"): "default"}.get((group, option))
    alias = alias or aliases.value_of({"save": "save.method"}.get(group, group), option)
    hint = question([f"{group}={alias}"]) if alias else did_you_mean(option, options)
    return UserError(f"{group}={option}: no such option{hint} ({there})")


def _deleted(key: str) -> str:
    """The text for `~lora` or `~training.max_steps`."""
    if key in schema.SECTIONS:
        return f"~{key}: a section cannot be left out, its defaults would come back" + (f"; {NOTHING[key]}" if key in NOTHING else "")
    return f"~{key}: a key cannot be left out, its default would come back; give it a value" + (
        f", or {key}=null" if "None" in schema.kind_of(key) else ""
    )


def _left_out(section: str, config_name: str | None) -> str:
    """The text for a section that nothing was composed for, so that other defaults than those of conf/ would hold."""
    if config_name != "config":
        return f"{section}: not in {config_name}.yaml; a configuration of your own begins with `defaults: [config, _self_]` and holds what differs"
    nothing = f"; {NOTHING[section]}" if section in NOTHING else ""
    return f"{section}: null, or nothing under `{section}:` in a file; name one of its options, or leave it out{nothing}"


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")
def entrypoint(config: DictConfig) -> float | None:
    """One job. Returns the held-out loss after training for sweepers, None where nothing is held out."""
    job = HydraConfig.get()
    mask_hydra_files(job)
    users = [source.path for source in job.runtime.config_sources if source.provider == "command-line"]
    sys.path[:0] = users
    if job.job.chdir:
        os.chdir(job.runtime.cwd)
        print(f"hydra.job.chdir=true: paths stay those of {job.runtime.cwd}; what a run writes is in its directory anyway", file=sys.stderr)
    plain = OmegaConf.to_container(config, resolve=True)
    if job.mode == RunMode.MULTIRUN:
        return _swept(plain, job, users)
    try:
        return _run(plain, job, users)
    except Exception as error:
        if os.environ.get(SHOW_TRACEBACK):
            raise
        sys.exit(f"{ERROR}{one_line(error, in_run=True)}")


def _run(plain: dict[str, Any], job: HydraConf, users: list[str]) -> float | None:
    from chatbot_sft import pipeline
    from chatbot_sft.export import check_overrides

    if plain["task"] == "export":
        check_overrides(job.overrides.task)
    report = pipeline.run(plain, _command(job, users), _began())
    if not distributed.is_first():
        return None
    if report["plan"]:
        print(shown(pipeline.plan_summary(report)))
    elif report["training"]:
        print(shown(pipeline.summary(report, plain["paths"]["output_dir"])))
    return report["training"].get("eval_loss")


def _began() -> float:
    """When the user began to wait, in seconds since the epoch: for a later job of a sweep now.

    For the first run of a process that is the process's start: importing is part of what is waited for.
    """
    import psutil

    earlier = any(job.status in ("completed", "failed") for job in JOBS)
    return time.time() if earlier else psutil.Process().create_time()


def _swept(plain: dict[str, Any], hydra_job: HydraConf, users: list[str]) -> float | None:
    """One job of a sweep. What an earlier start of the sweep finished counts as done; an error is told when it happens."""
    job = Job(hydra_job.job.num, list(hydra_job.overrides.task), Path(plain["paths"]["output_dir"]))
    earlier = [other.number for other in JOBS if other.folder == job.folder]
    JOBS.append(job)
    try:
        if earlier:
            raise UserError(
                f"hydra.sweep.subdir={hydra_job.sweep.subdir}: the directory of job {earlier[0]}; give each job its own, as {SUBDIR} does"
            )
        if report := finished(plain):
            job.status, job.eval_loss = "done before", report["training"].get("eval_loss")
            print(f"job {job.number}: done before, {job.folder}", file=sys.stderr)
            return job.eval_loss
        job.eval_loss = _run(plain, hydra_job, users)
    except Exception as error:
        job.status, job.error = "failed", one_line(error, in_run=True)
        print(f"{ERROR}job {job.number}: {job.error} ({job.folder})", file=sys.stderr)
        if os.environ.get(SHOW_TRACEBACK) or os.getpid() not in MAIN:
            # Where a launcher runs jobs in other processes, the exception is the only word of it that comes back.
            raise
        # Hydra would add a line of its own, "Error executing job …", to ours. `main` ends with an error for JOBS.
        return None
    job.status = "completed"
    return job.eval_loss


def _command(job: HydraConf, users: list[str]) -> str:
    """The command line that does this run again, in the directory that was named for it."""
    folders = (word for path in users for word in ("--config-dir", path))
    hydras = [override for override in job.overrides.hydra if not override.startswith(OF_THE_START)]
    if job.mode == RunMode.MULTIRUN:
        hydras = [*(override for override in hydras if not override.startswith("hydra.run.dir=")), f"hydra.run.dir={job.runtime.output_dir}"]
    return shlex.join(["python", "-m", "chatbot_sft", *folders, *map(_typed, job.overrides.task), *hydras])


def _typed(override: str) -> str:
    """`override` without the two plus signs that `_open` puts before it."""
    bare = override.removeprefix("++")
    return bare if bare != override and _open(bare) == override else override


def mask_hydra_files(job: DictConfig) -> None:
    """Take the secrets out of what Hydra wrote before this job began: its .hydra folder, and in a sweep the multirun.yaml above it."""
    files = list(Path(job.runtime.output_dir, job.output_subdir).glob("*.yaml")) if job.output_subdir else []
    if job.mode == RunMode.MULTIRUN:
        files += Path(job.sweep.dir).glob("multirun.yaml")
    for file in files:
        mask_yaml(file)


def main() -> None:
    """Run Hydra, and say what went wrong in one line; HYDRA_FULL_ERROR=1 shows the traceback instead."""
    MAIN.append(os.getpid())
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        os.environ[SHOW_TRACEBACK] = "1"
    # Makes Hydra hand its errors to us instead of printing them.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    if "--version" in sys.argv[1:]:
        print(command_line.version())
        return
    if script := completion.script(sys.argv[1:]):
        print(script)
        return
    if not distributed.is_first():
        sys.argv.append("hydra.output_subdir=null")  # the first process writes it
    sys.path.insert(0, os.getcwd())  # noqa: PTH109 (a _target_ may name a file beside the user)
    try:
        with contextlib.redirect_stderr(MaskedStream(sys.stderr)):
            command_line.check(sys.argv[1:])
            sys.argv[1:] = flags_first(sys.argv[1:])
            entrypoint()
        failed = [job for job in JOBS if job.status == "failed"]
        _tell_jobs()
    except KeyboardInterrupt:
        _tell_jobs()
        run_directory.withdraw()
        print("interrupted; the run's report says how far it came", file=sys.stderr)
        sys.exit(130)
    except SystemExit as error:
        _tell_jobs()
        if error.code:
            run_directory.withdraw()
        raise
    except Exception as error:
        _tell_jobs()
        run_directory.withdraw()
        if os.environ.get(SHOW_TRACEBACK):
            sys.exit(shown(traceback.format_exc()))
        failed = [job for job in JOBS if job.status == "failed"]
        sys.exit(_failed(failed) if failed else f"{ERROR}{one_line(error)}")
    if failed:
        sys.exit(_failed(failed))


def _failed(jobs: Sequence[Job]) -> str:
    return f"error: {len(jobs)} of {len(JOBS)} jobs failed"


def _tell_jobs() -> None:
    """A line a job, after a sweep; the errors have been told when they happened."""
    for line in table(JOBS):
        print(shown_line(line))


def flags_first(words: Sequence[str]) -> list[str]:
    """Command-line `words` with Hydra's flags before the overrides: its parser takes no override behind a flag that stands behind one."""
    flags, overrides = [], []
    rest = iter(words)
    for word in rest:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        flags.append(word)
        if word in FLAGS_WITH_VALUE:
            flags += itertools.islice(rest, 1)
    return flags + overrides


def one_line(error: BaseException, in_run: bool = False) -> str:
    """What to tell a person, in one line that holds no secret and nothing a terminal would obey."""
    return shown_line(_said(error, in_run))


def _said(error: BaseException, in_run: bool) -> str:
    """Our own texts, Hydra's and YAML's as they are, anything else with its type and where the traceback is."""
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    if isinstance(error, OverrideParseException):
        return command_line.not_understood(error.override, [error.override])
    if isinstance(error, SearchPathException):
        return f"--config-dir: {text.removeprefix('Additional config directory ')}; it names the folder above your groups: mine, of mine/experiment/"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        cause = f": {' '.join(str(error.__cause__).split())}" if isinstance(error.__cause__, OmegaConfBaseException) else ""
        return text + cause
    if isinstance(error, YAMLError):
        return f"not YAML: {not_yaml(error)}"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    kept = "the traceback is in the run's run.log; " if in_run else ""
    return f"{type(error).__name__}: {text} ({kept}HYDRA_FULL_ERROR=1 shows the traceback here)"
