"""What a person names (a run, an export, a GGUF file, a checkpoint) becomes a model that answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from chatbot_sft.errors import UserError
from chatbot_sft.inference.gguf_model import GGUFModel
from chatbot_sft.inference.hf_model import ADAPTER_CONFIG, HFModel
from chatbot_sft.model import embedded
from chatbot_sft.places import read_mark
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import REPORT, Run, jobs, trains_nothing
from chatbot_sft.run.report import Report

Kind = Literal["merged", "adapter", "gguf"]
KINDS: tuple[Kind, ...] = ("merged", "adapter", "gguf")  # which is taken where there are several


@dataclass(frozen=True)
class ModelOnDisk:
    """A folder, or a .gguf file. `base` names the model that its run was trained on, where a run was named."""

    kind: Kind
    path: Path
    base: str | None = None
    system_prompt: str | None = None  # that most of the training data had

    @property
    def has_base(self) -> bool:
        """Whether it is known what it was trained on."""
        return self.kind == "adapter" or self.base is not None

    def open(self) -> HFModel | GGUFModel:
        """Load it (seconds).

        Raises:
            UserError: it cannot be loaded.
        """
        return GGUFModel.load(self.path) if self.kind == "gguf" else HFModel.load(self.path)

    def open_base(self) -> HFModel:
        """Load the model it was trained on.

        Raises:
            UserError: that is not known, or cannot be loaded.
        """
        if self.kind == "adapter":
            return HFModel.load(self.path, adapter=False)
        if self.base is None:
            raise UserError(
                f"{self.path}: what it was trained on is not written in it; name its run directory, or an"
                " adapter"
            )
        return HFModel.load(embedded.resolve(self.base))


def open_model(path: Path | str) -> HFModel | GGUFModel:
    """The model that `path` names, loaded; see `find`.

    Raises:
        UserError: there is none, or it cannot be loaded.
    """
    return find(path).open()


def find(path: Path | str) -> ModelOnDisk:
    """The model that `path` names; nothing is loaded.

    It is a .gguf file, a folder with a model, an adapter or GGUF files, or with folders of these, or a run
    directory: there what the run saved, else its newest checkpoint. Of several, a merged model comes before
    an adapter, and that before a GGUF file; of GGUF files the largest is the most exact. "smollm2" is the
    embedded model.

    Raises:
        UserError: nothing is there, or no model.
    """
    named = Path(embedded.resolve(str(path))).expanduser()
    if not named.exists():
        raise UserError(
            f"{path}: no such folder or file; name a run directory, an exported model or a .gguf file"
        )
    run = Run(named)
    report = run.peek()
    base = report.model.name if report and report.model else None
    for folder in _places(run, report):
        for kind in KINDS:
            for inside in _with_folders(folder):
                model = _model(kind, inside)
                if model:
                    return ModelOnDisk(kind, model, base, _system_prompt(model, report))
    if nothing := trains_nothing(report):
        raise UserError(f"{path}: {nothing}")
    if report:
        raise UserError(
            f"{path}: this run is {report.status} and has neither saved a model nor kept a checkpoint; start it again"
        )
    raise UserError(
        f"{path}: neither a model (config.json with *.safetensors, {ADAPTER_CONFIG}, *.gguf) nor a run"
        f" ({REPORT}) is in this folder{jobs(named)}"
    )


def _system_prompt(model: Path, report: Report | None) -> str | None:
    """From the report of the run that was named, the export's mark, or the report of a checkpoint's run."""
    folder = model if model.is_dir() else model.parent
    mark = None if report else read_mark(folder)
    if mark:
        return mark.get("system_prompt")
    report = report or Run(folder.parent.parent).peek()
    return report.dataset.system_prompt if report and report.dataset else None


def _places(run: Run, report: Report | None) -> Iterator[Path]:
    """Where the model may be, the likeliest first."""
    if report and report.save and report.save.path:
        saved = Path(report.save.path)
        yield from (run.model, saved) if saved.name == run.model.name else (saved,)  # the run may be a copy
    yield run.model  # of a run that was moved, or killed before its report
    yield run.folder
    newest = checkpoints.last_verified(run.checkpoints) or checkpoints.last_verified(run.folder)
    if newest:
        yield newest.folder


def _with_folders(folder: Path) -> list[Path]:
    """`folder` and the folders in it. Checkpoints go by their step, not by their name."""
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []
    hidden = [path for path in inside if path.name.startswith(".") or checkpoints.NAME.fullmatch(path.name)]
    return [folder, *(path for path in inside if path not in hidden)]


def _model(kind: Kind, folder: Path) -> Path | None:
    """The model of that kind in `folder`; any file is taken for a GGUF file, which llama.cpp then judges."""
    if kind == "gguf":
        files = [folder] if folder.is_file() else list(folder.glob("*.gguf"))
        return max(files, key=lambda file: file.stat().st_size, default=None)
    adapter = (folder / ADAPTER_CONFIG).is_file()
    if kind == "adapter":
        return folder if adapter else None
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    return folder if weights and (folder / "config.json").is_file() and not adapter else None
