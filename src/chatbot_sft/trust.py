"""Whose code a configuration may name: this program's, the user's own, and what they allow by name.

Importing a module runs it, so what a `_target_` names is judged before: by where its file lies, and nothing is
imported for it.
"""

from __future__ import annotations

import importlib.util
import site
import sys
import sysconfig
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from chatbot_sft.errors import UserError

OURS = "chatbot_sft"
# What only the command line may say, never a run's own files: they may be a stranger's.
SAID_ANEW = ("model.trust_remote_code", "model.allow_pickle")


def refuse_foreign(target: str, where: str, allowed: Collection[str], own: Collection[str] = (OURS,)) -> None:
    """Refuse a dotted name ("package.module.Class") that would import a stranger's package.

    It may be in a package of `own`, in a file or package that lies in a folder of the user's own, or in a
    package or module that `allowed` names. One that is not there at all is not refused here. `where` begins
    the message.

    Raises:
        UserError: it is somewhere else.
    """
    package = target.partition(".")[0]
    if package in own or any(f"{target}.".startswith(f"{name}.") for name in allowed):
        return
    if not package.isidentifier() or package == OURS or _installed(package):
        raise UserError(
            f"{where}: {package} is neither of this program nor a file of yours (in the current folder or in"
            f" --config-dir), and its code would run; allow_targets=[{package}] on the command line allows it"
        )


def said_anew(now: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, bool]:
    """Of the keys of `model` that let code of others run what the command says `now`: the run may be a stranger's.

    Raises:
        UserError: the run needed one that the command does not say.
    """
    said = {}
    for path in SAID_ANEW:
        key = path.removeprefix("model.")
        said[key] = now["model"][key]
        if before["model"].get(key) and not said[key]:
            raise UserError(
                f"run={now['run']}: its model was loaded with {path}=true, which may run code that came with it; add"
                f" {path}=true, if you trust where the run and its model come from"
            )
    return said


def _installed(package: str) -> bool:
    """Whether the top-level `package` comes from anywhere but the user's own folders."""
    if package == "__main__":  # a notebook or a script, which is the user's
        return False
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # no file: this very process has made it up, as a notebook may
        return False
    except ImportError:
        return package in sys.modules
    if spec is None:
        return False
    if spec.submodule_search_locations is not None:
        places = [Path(place).parent for place in spec.submodule_search_locations]
    elif spec.has_location and spec.origin:
        places = [Path(spec.origin).parent]
    else:
        return True  # built in
    mine = _users_folders()
    return any(place.resolve() not in mine for place in places)


def searched() -> str:
    """The folders of the user's own in which Python has looked for a module, in that order."""
    return ", ".join(str(folder) for folder in _users_folders() if folder.is_dir())


def _users_folders() -> dict[Path, None]:
    """Where Python looks for modules, but for its own library and what was installed there: the current folder,
    those of --config-dir, and what the user has in PYTHONPATH.
    """
    library = {
        *map(sysconfig.get_path, ("stdlib", "platstdlib", "purelib", "platlib")),
        *site.getsitepackages(),
        site.getusersitepackages(),
    }
    return {
        Path(place).resolve(): None
        for place in (str(Path.cwd()), *sys.path)
        if place not in library
        and not {"site-packages", "dist-packages", "lib-dynload"} & {*Path(place).parts}
    }
