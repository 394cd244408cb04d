"""`_target_`, the only plug-in mechanism: a dotted name becomes the class or function it names."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Collection
from typing import Any

from chatbot_sft.config import Config
from chatbot_sft.config.checks import check_target
from chatbot_sft.errors import UserError, did_you_mean
from chatbot_sft.trust import refuse_foreign, searched


def locate(section: str, target: str, allowed: Collection[str] = (), base: str | None = None) -> Any:
    """The object called `target` ("package.module.Class"), which the stage may use in place of its own, the
    one that the schema has for `section`, or of the kind of `base`. It is of this program, a file of the
    user's own, or of a package that is `allowed`: see `trust`.

    A class has to be a subclass of the stage's. Where that is a function, `target` has to take what it takes,
    by the same names: they tell a function that was written for the stage from any other that could be
    called.

    Raises:
        UserError: a package that is not allowed; no such module, nothing of that name in it, or nothing like
            the stage's. An error inside the user's module passes through.
    """
    where = f"{section}._target_={target}"
    ours = base or Config()[section]["_target_"]
    like, given = _named(ours, where), _named(target, where, allowed)
    if isinstance(like, type):
        if not (isinstance(given, type) and issubclass(given, like)):
            raise UserError(f"{where}: has to be a subclass of {ours}")
    elif not _takes_the_same(given, like):
        raise UserError(
            f"{where}: has to be a function such as {ours}, with the parameters {', '.join(_needed(like))}"
        )
    return given


def _named(target: str, where: str, allowed: Collection[str] = ()) -> Any:
    """What the dotted name `target` names."""
    module_name, _, name = target.rpartition(".")
    check_target(where, target)
    refuse_foreign(target, where, allowed)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{where}: there is no module {error.name} in {searched()}; put its file there, or name its"
            " folder with --config-dir or in PYTHONPATH"
        ) from None
    except SyntaxError as error:
        file, line = error.filename or module_name, f", line {error.lineno}" if error.lineno else ""
        hint = "; save the file as UTF-8" if re.search("codec|null bytes", error.msg) else ""
        raise UserError(
            f"{where}: {file}{line}: not Python: {error.msg}{hint or '; mend it there'}"
        ) from None
    except ValueError as error:
        if "null bytes" not in str(error):
            raise
        # Python 3.11 before its fourth release: a SyntaxError since.
        raise UserError(f"{where}: {module_name}: not Python: {error}; save the file as UTF-8") from None
    try:
        return getattr(module, name)
    except AttributeError:
        file = getattr(module, "__file__", None) or "built in"
        hint = did_you_mean(name, [known for known in dir(module) if not known.startswith("_")])
        beside = f" (it is {file}; a file of yours that is called so needs another name)"
        raise UserError(f"{where}: {module_name} has no {name}{hint or beside}") from None


def _needed(function: Callable[..., Any]) -> list[str]:
    """The parameters of `function` that have to be given."""
    parameters = inspect.signature(function).parameters.values()
    return [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]


def _takes_the_same(given: Any, like: Callable[..., Any]) -> bool:
    """Whether `given` is no class and needs exactly what `like` needs, in that order."""
    if isinstance(given, type) or not callable(given):
        return False
    try:
        return _needed(given) == _needed(like)
    except (TypeError, ValueError):  # written in C, without a signature
        return False
