"""What `python -m chatbot_sft WORD…` does up to where a run would begin, in this process, with files that are read once.

The same functions in the same order as `cli.start`: each error that a person can mend ends in one line, anything else is a
fault of ours.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

from omegaconf import DictConfig, OmegaConf

from chatbot_sft import command_line, text_files
from chatbot_sft.config import hydra_glue
from chatbot_sft.config.help import help_text
from chatbot_sft.config.hydra_errors import said
from chatbot_sft.report.plain import OBEYED, shown_line
from chatbot_sft.sweep import points, study

MOST_JOBS = 3  # of a sweep are composed


class Refused(Exception):
    """What a person reads in place of a run."""


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """OmegaConf reads each YAML file, and each dataclass of the schema, once, and copies it from then on."""
    load, structured, made = OmegaConf.load, OmegaConf.structured, {}

    def loaded(file):
        name = str(getattr(file, "name", file))
        if "/conf/" not in name:
            return load(file)
        if name not in made:
            made[name] = load(file)
        return copy.deepcopy(made[name])

    def from_class(kind, *rest, **named):
        if rest or named or not isinstance(kind, type):
            return structured(kind, *rest, **named)
        if kind not in made:
            made[kind] = structured(kind)
        return copy.deepcopy(made[kind])

    OmegaConf.load, OmegaConf.structured = loaded, from_class
    try:
        yield
    finally:
        OmegaConf.load, OmegaConf.structured = load, structured


def started(words: Sequence[str]) -> DictConfig | None:
    """The configuration that `words` come to, checked; None where they ask for something else than a run.

    Raises:
        Refused: they are refused, in the line that it holds.
    """
    printed = io.StringIO()
    before = sys.argv
    sys.argv = ["chatbot_sft", *words]  # `said` looks there
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            return _started(list(words))
    except Exception as error:
        raise Refused(one_line(error)) from error
    except SystemExit as error:  # argparse's, for --version and the like
        assert not error.code, printed.getvalue()
        return None
    finally:
        sys.argv = before


def _started(words: list[str]) -> DictConfig | None:
    words = command_line.of_a_server(words)
    given = command_line.check(words)
    if given.config_dir:
        text_files.check_options(Path(given.config_dir))
    if given.help:
        help_text(command_line.topics(given), given.config_dir)
        command_line.refuse_no_topic(given)
        return None
    overrides = command_line.all_opened(given.overrides, given)
    command_line.for_hydra(words, given)
    if given.multirun:
        return _swept(overrides, given)
    return hydra_glue.composed(
        overrides, given.config_name or "config", given.config_dir, given.config_path or ""
    )


def _swept(overrides: list[str], given: SimpleNamespace) -> DictConfig | None:
    """As the sweeper of hydra/sweeper=study does, for the first of its jobs."""
    parsed = [(word, hydra_glue.OverridesParser.create().parse_override(word)) for word in overrides]
    own = [word for word, one in parsed if one.is_hydra_override()]
    ours = [word for word, one in parsed if not one.is_hydra_override()]
    fixed = [word for word, one in parsed if not one.is_hydra_override() and not one.is_sweep_override()]
    sweep = hydra_glue.composed([*own, *fixed], given.config_name or "config", given.config_dir)
    settings = points.settings(sweep)
    study.refuse_no_number(settings.metrics)
    space = points.space(ours, None, settings.zip, settings.points)
    for point in itertools.islice(space.samples() if settings.sampler else space.points(), MOST_JOBS):
        sweep = hydra_glue.composed(
            [*own, *space.job(point)], given.config_name or "config", given.config_dir
        )
    return sweep


def one_line(error: Exception) -> str:
    """The line for `error`, which holds to the form that every error has."""
    line = shown_line(said(error))
    assert "\n" not in line and not OBEYED.search(line), repr(line)
    assert "HYDRA_FULL_ERROR" not in line, line  # what ends so is no error that a person can mend
    assert line.strip(), repr(error)
    return line
