"""The run that the environment is judged against: composed of the same words as a run, by the same code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chatbot_sft.config import Config


@dataclass(frozen=True)
class Asked:
    """`folder` is the run directory, which is not made; `own_folders` those of --config-dir."""

    settings: Config
    folder: Path
    own_folders: list[str]


def asked(words: Sequence[str]) -> Asked:
    """What the words of a command line compose; with -m the sweep's first job.

    Raises:
        UserError, HydraException, OmegaConfBaseException: what the launcher would raise.
    """
    from chatbot_sft import command_line, text_files
    from chatbot_sft.config import hydra_glue
    from chatbot_sft.sweep import points

    given = command_line.check(command_line.of_a_server(words))
    if given.config_dir:
        text_files.check_options(Path(given.config_dir))
    overrides = None
    if given.multirun:
        space = points.space(command_line.all_opened(given.overrides, given))
        overrides = space.job(next(space.samples()))
    config = hydra_glue.given(given, overrides)
    settings, folder = hydra_glue.placed(config)
    return Asked(settings, folder, [given.config_dir] if given.config_dir else [])
