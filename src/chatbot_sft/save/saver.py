"""ModelSaver: what was trained, as a folder that other libraries load."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chatbot_sft.cache import build_folder
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.logs import quiet
from chatbot_sft.save.merged import write_merged

log = logging.getLogger(__name__)


@dataclass
class SaveResult:
    """Where an export is; `files` maps names to sizes in bytes. `verified` is None: not compared with the trained model."""

    method: str
    path: str | None = None
    files: dict[str, int] = field(default_factory=dict)
    verified: bool | None = None


class ModelSaver:
    """Writes `model` and `tokenizer` as `config.save` says. A folder appears whole or not at all."""

    def __init__(self, config: Mapping[str, Any] | Config, model: Any = None, tokenizer: Any = None) -> None:
        self.settings = Config.from_mapping(config)
        self.model = model
        self.tokenizer = tokenizer

    def check(self) -> None:
        """Before training: is there a place to save to?

        Raises:
            UserError: the folder exists and holds something, or a file stands in its way.
        """
        save = self.settings.save
        folder = Path(save.save_path)
        if save.method == "none":
            return
        if folder.exists() and not folder.is_dir():
            raise UserError(f"save.save_path={save.save_path}: a file of that name is in the way")
        if folder.is_dir() and any(folder.iterdir()):
            raise UserError(f"save.save_path={save.save_path}: not empty; name another folder or remove it")

    def save(self, save_config: Mapping[str, Any] | None = None) -> SaveResult:
        """Save, with `save_config` (keys of the `save` section) over the configuration's own.

        Raises:
            UserError: an unknown method or key, a folder that is not empty, or a write that failed; then nothing is left behind.
        """
        if save_config:
            settings = self.settings.to_dict()
            settings["save"].update(save_config)
            return ModelSaver(Config.from_mapping(settings), self.model, self.tokenizer).save()
        method, folder = self.settings.save.method, Path(self.settings.save.save_path)
        if method == "none":
            return SaveResult(method)
        self.check()
        if folder.is_dir():
            folder.rmdir()
        try:
            with quiet():
                build_folder(folder, self._write)
        except Exception as error:
            if not is_write_error(error):
                raise
            raise UserError(
                f"save.save_path={folder}: cannot be written ({' '.join(str(error).split())}); nothing is left there, "
                f"the last checkpoint is in {self.settings.training.output_dir}"
            ) from error
        files = {str(file.relative_to(folder)): file.stat().st_size for file in sorted(folder.rglob("*")) if file.is_file()}
        log.info("saved: %s in %s (%.0f MB)", method, folder, sum(files.values()) / 1e6)
        return SaveResult(method, str(folder), files)

    def _write(self, folder: Path) -> None:
        if self.settings.save.method == "lora":
            # Rows of new tokens and modules to save are in the adapter anyway; a whole table that was merely enlarged need not be.
            self.model.save_pretrained(folder, save_embedding_layers=False)
        else:
            write_merged(self.model, self.settings, folder)
        self.tokenizer.save_pretrained(folder)


def is_write_error(error: Exception) -> bool:
    """An OSError, or what safetensors, tokenizers and torch.save raise for the same thing."""
    text = str(error).lower()
    return isinstance(error, OSError) or "os error " in text or "pytorchstreamwriter" in text or "inline_container" in text
