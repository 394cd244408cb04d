"""`_target_`, the only plug-in mechanism: a dotted name becomes the class or function it names."""

from __future__ import annotations

import importlib
from typing import Any

from chatbot_sft.errors import UserError, did_you_mean


def locate(section: str, target: str, base: type | None = None) -> Any:
    """The object called `target` ("package.module.Class"), a subclass of `base` where one is given.

    Raises:
        UserError: no such module, nothing of that name in it, or not a subclass of `base`. An error inside the user's module passes through.
    """
    module_name, _, name = target.rpartition(".")
    if not module_name:
        raise UserError(f"{section}._target_={target}: expected module.Class, for instance my_loader.CustomDatasetLoader")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UserError(
            f"{section}._target_={target}: there is no module {error.name}; the file must stand in the current folder or in --config-dir"
        ) from None
    try:
        found = getattr(module, name)
    except AttributeError:
        raise UserError(f"{section}._target_={target}: {module_name} has no {name}{did_you_mean(name, dir(module))}") from None
    if base is not None and not (isinstance(found, type) and issubclass(found, base)):
        raise UserError(f"{section}._target_={target}: has to be a subclass of {base.__module__.rpartition('.')[0]}.{base.__name__}")
    return found
