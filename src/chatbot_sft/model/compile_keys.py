"""What PyTorch's compiler finds its earlier work by, the same in every process."""

from __future__ import annotations

import copyreg
import pkgutil


def alike() -> None:
    """Have keys that do not depend on what else was imported.

    They are hashes of pickles, and a `torch.memory_format` has no module to be pickled by: `pickle` takes the first
    module, in the order of imports, that has `torch` in it. A sweep with a pruner imports Optuna first, and would
    compile everything again (PyTorch 2.11 to 2.13).
    """
    import torch

    copyreg.pickle(torch.memory_format, _by_name)  # type: ignore[arg-type]  # the stub wants a constructor's arguments


def _by_name(memory_format: object) -> tuple[object, tuple[str]]:
    return pkgutil.resolve_name, (str(memory_format),)
