"""Configurations without Hydra, for notebooks and scripts: plain nested dictionaries."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

from chatbot_sft import text_files
from chatbot_sft.config import effects
from chatbot_sft.config.containers import as_dict
from chatbot_sft.config.precedence import ended_by
from chatbot_sft.config.schema import PATH_KEYS, Config
from chatbot_sft.data_names import is_hub_id, is_url
from chatbot_sft.errors import UserError, from_here, not_yaml, reason


class ConfigLoader:
    """Configurations without Hydra, for notebooks and scripts: plain nested dictionaries."""

    PATH_KEYS = PATH_KEYS

    @staticmethod
    def load_config(
        path: str | os.PathLike[str], project_root: str | os.PathLike[str] | None = None
    ) -> dict[str, Any]:
        """Read one YAML file of sections, check it, fill in the defaults, make relative paths absolute.

        Paths are relative to `project_root`: the nearest folder above the file that holds a `pyproject.toml`
        or `.git`, else the current folder.

        Raises:
            UserError: no such file, not YAML, or a setting that `Config.from_mapping` refuses.
        """
        file = Path(path)
        if not file.is_file():
            raise UserError(f"{file}: no such configuration file{from_here(file)}")
        try:
            text_files.check_yaml(text_files.read(file), file)
            loaded = OmegaConf.load(file)
            sections = as_dict(loaded, resolve=True) if isinstance(loaded, DictConfig) else None
        except UserError:
            raise
        except OSError as error:
            raise UserError(f"{file}: {error.strerror}") from None
        except YAMLError as error:
            raise UserError(f"{file}: not YAML: {not_yaml(error)}") from None
        except Exception as error:  # PyYAML and OmegaConf raise unrelated types for text that is not YAML
            raise UserError(f"{file}: {reason(error)}; is it plain YAML?") from None
        if sections is None:
            raise UserError(f"{file}: expected sections such as `model:` and `training:`, found a list")
        config = ConfigLoader._checked(sections).to_dict()
        root = Path(project_root) if project_root is not None else _project_root(file)
        for section, key in ConfigLoader.PATH_KEYS:
            config[section][key] = str((root / config[section][key]).resolve())
        dataset = config["dataset"]
        for holder, key in [
            (dataset, "data_path"),
            (dataset, "eval_data_path"),
            *((source, "data_path") for source in dataset["sources"] or []),
        ]:
            holder[key] = _resolved_data(root, holder[key])
        name = config["model"]["name"]
        if name.startswith(("./", "../")) or (root / name).is_dir():
            config["model"]["name"] = str((root / name).resolve())
        return config

    @staticmethod
    def validate_config(config: Mapping[str, Any]) -> bool:
        """True, or a UserError that says what is wrong."""
        ConfigLoader._checked(config)
        return True

    @staticmethod
    def _checked(config: Mapping[str, Any]) -> Config:
        checked = Config.from_mapping(config)
        effects.refuse(checked)
        return checked

    @staticmethod
    def merge(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
        """`config` with the nested values of `overrides` over it, checked, as a new configuration.

        A length in epochs ends one in steps.
        """
        ended = {"training": dict.fromkeys(ended_by(overrides.get("training") or {}))}
        merged = OmegaConf.merge(*(OmegaConf.create(dict(part)) for part in (config, ended, overrides)))
        return ConfigLoader._checked(as_dict(merged, resolve=False)).to_dict()

    @staticmethod
    def save(config: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
        """Write `config` as a YAML file that `load_config` reads back."""
        Config.from_mapping(config)
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(dict(config)), Path(path))


def _resolved_data(root: Path, path: str | None) -> str | None:
    """`path` made absolute; a dataset id of the hub, a URL and nothing at all stay as they are."""
    if (
        path is None
        or not path.strip()
        or is_url(path)
        or (is_hub_id(path) and not (root / path).parent.is_dir())
    ):
        return path
    return str((root / path).resolve())


def _project_root(file: Path) -> Path:
    for folder in file.resolve().parents:
        if (folder / "pyproject.toml").exists() or (folder / ".git").exists():
            return folder
    return Path.cwd()
