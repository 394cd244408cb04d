"""What explains a run that is about to train, for its lock."""

from __future__ import annotations

import functools
import hashlib
import sys
from pathlib import Path

from chatbot_sft.config import Config
from chatbot_sft.config.schema import OUR_PACKAGE, SECTIONS
from chatbot_sft.data.corpus import Corpus
from chatbot_sft.data.files import TRAIN, data_files
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.data_names import is_hub_id
from chatbot_sft.model import embedded, hardware
from chatbot_sft.model.hub import is_local
from chatbot_sft.resources import PACKAGE
from chatbot_sft.run import git
from chatbot_sft.run.fingerprint import FileMark, data_mark, sha256, together, weights_marks
from chatbot_sft.run.provenance import DATA, GOLDEN, Code, Provenance


def provenance(settings: Config, tokenizer: ChatTokenizer, command: str) -> Provenance:
    """Of a run with these settings, started in the current folder.

    Raises:
        UserError: a file is not there any more, or git was asked for and cannot be had.
    """
    folder = Path.cwd()
    return Provenance(
        command=command,
        folder=str(folder),
        seeds={"seed": settings.seed, "rows": settings.rows_seed},
        driver=driver(),
        template=template(tokenizer),
        files=files(settings),
        code=code(settings),
        git=git.of(folder, settings.replay.git),
    )


def driver() -> str | None:
    """Of the GPU; None without one."""
    gpus = hardware.gpus()
    return gpus[0].driver if gpus else None


def template(tokenizer: ChatTokenizer) -> str:
    """SHA-256 of the chat template, and of the one for tools."""
    sources = (tokenizer.template.source, tokenizer.template.tool_source or "")
    return hashlib.sha256("\0".join(sources).encode()).hexdigest()


def files(settings: Config) -> dict[str, list[FileMark]]:
    """The marks of all that is read, by the key that names it. What comes from the hub has none: the rows and the
    commit of the weights are in what decides.

    Raises:
        UserError: a file of the data is not there.
    """
    named = {"model.adapter": settings.model.adapter, "objective.reference": settings.objective.reference}
    folders = {key: Path(place).expanduser() for key, place in named.items() if place}
    base = embedded.resolve(settings.model.name)
    if is_local(base):
        folders["model.name"] = Path(base).expanduser()
    marks = {DATA: data(settings), **{key: weights_marks(folder) for key, folder in folders.items()}}
    if settings.evaluation.golden and Path(settings.evaluation.golden).expanduser().is_file():
        marks[GOLDEN] = [data_mark(Path(settings.evaluation.golden).expanduser())]
    return marks


def data(settings: Config) -> list[FileMark]:
    """Of the files that are trained on and held out, in the order in which they are read, each once."""
    sources = [source for source in Corpus.of(settings).sources if not is_hub_id(source.data_path)]
    found = (file for source in sources for file in data_files(source.data_path, source.split or TRAIN))
    return [data_mark(file) for file in dict.fromkeys(found)]


@functools.cache
def _ours() -> str:
    """Of this program as it was at the first run of this process: what later ones run was imported by then."""
    sources = sorted(PACKAGE.rglob("*.py"))
    return together((str(file.relative_to(PACKAGE)), sha256(file)) for file in sources)


def code(settings: Config) -> Code:
    """Of this program, and of the classes of the user's own, which have been imported."""
    targets = [settings[section].get("_target_", OUR_PACKAGE) for section in SECTIONS]
    own = {}
    for target in targets:
        module = sys.modules.get(target.rpartition(".")[0])
        # A class that was made up in this process, as a notebook may, has no file.
        if not target.startswith(OUR_PACKAGE) and module and (file := vars(module).get("__file__")):
            own[target] = sha256(Path(file))
    return Code(_ours(), own, git.commit(PACKAGE))
