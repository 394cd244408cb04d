"""What the shell and the current folder bring in: files that hide a library, PYTHONPATH, the encoding."""

from __future__ import annotations

import codecs
import locale
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, SOURCE_SUFFIXES
from pathlib import Path

import chatbot_sft
from chatbot_sft.doctor.finding import Finding, fault, note, ok

# What a run imports, by the modules' names.
LIBRARIES = (
    "accelerate", "bitsandbytes", "datasets", "filelock", "fsspec", "gguf", "httpx", "huggingface_hub", "hydra",
    "jinja2", "matplotlib", "numpy", "omegaconf", "optuna", "packaging", "pandas", "peft", "PIL", "plotly", "psutil",
    "pyarrow", "requests", "rich", "safetensors", "tokenizers", "torch", "tqdm", "transformers", "triton", "trl",
    "unsloth", "unsloth_zoo", "xxhash", "yaml",
)  # fmt: skip
OURS = Path(chatbot_sft.__file__).resolve().parent


def check(own_folders: Sequence[str] = ()) -> Iterator[Finding]:
    """`own_folders` are those of --config-dir: a run looks for modules there, and in the current folder, first."""
    yield from _shadows(own_folders)
    yield from _python_path()
    yield from _encoding()


def _shadows(own_folders: Sequence[str]) -> Iterator[Finding]:
    names = {*LIBRARIES, *sys.stdlib_module_names}
    searched = dict.fromkeys(Path(folder).absolute() for folder in (*own_folders, "."))
    hidden = [(folder, path) for folder in searched for path in _modules(folder, names)]
    for folder, path in hidden:
        name = path.name.partition(".")[0]
        other = path.with_name(f"my_{path.name}")
        yield fault(
            "folder",
            f"{path.name} in {folder} hides Python's own {name}"
            if name in sys.stdlib_module_names
            else f"{path.name} in {folder} hides the library {name}",
            f"mv {shlex.quote(str(path))} {shlex.quote(str(other))}",
        )
    if not hidden:
        yield ok("folder", f"{Path.cwd()} hides no library")


def _modules(folder: Path, names: set[str]) -> list[Path]:
    """What Python would import from `folder` under one of `names`. A folder without __init__.py hides nothing."""
    suffixes = (*SOURCE_SUFFIXES, *EXTENSION_SUFFIXES)
    found = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = next((path.name.removesuffix(end) for end in suffixes if path.name.endswith(end)), "")
        package = path.name in names and any((path / f"__init__{end}").is_file() for end in suffixes)
        if (package or (name in names and path.is_file())) and not _is_library(path):
            found.append(path)
    return found


def _is_library(path: Path) -> bool:
    """Whether it is the installed library itself: who stands in site-packages hides nothing."""
    folder = path.resolve().parent
    name = path.name.partition(".")[0]
    return folder == OURS.parent or any(folder.glob(f"{name}-*.dist-info")) or (folder / "os.py").is_file()


def _python_path() -> Iterator[Finding]:
    given = os.environ.get("PYTHONPATH")
    if given is None:
        return
    for part in given.split(os.pathsep):
        folder = Path(part).expanduser()
        if not part:
            yield note("PYTHONPATH", "an empty part of it is the current folder", "unset PYTHONPATH")
        elif part.startswith("~"):
            yield fault("PYTHONPATH", f"{part}: Python does not expand ~", f"export PYTHONPATH={folder}")
        elif not folder.exists():
            yield note("PYTHONPATH", f"{part}: there is no such folder", "unset PYTHONPATH")
        elif (other := re.search(r"python(\d+\.\d+)\b", part)) and other[1] != _version():
            what = f"{part} is of another Python than this {_version()}"
            yield fault("PYTHONPATH", what, "unset PYTHONPATH")
        elif hidden := _modules(folder, set(LIBRARIES)):
            names = ", ".join(path.name.partition(".")[0] for path in hidden)
            what = f"{names} from {part}, in place of what is installed, whatever versions below say"
            yield note("PYTHONPATH", what, "unset PYTHONPATH")


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _encoding() -> Iterator[Finding]:
    encoding = locale.getpreferredencoding(False)
    if codecs.lookup(encoding).name == "utf-8":
        yield ok("encoding", "UTF-8")
        return
    what = f"{encoding} is the locale's: files and output of other letters than ASCII's fail or are garbled"
    yield fault("encoding", what, "export LC_ALL=C.UTF-8")
