"""`python tests/golden/compare.py [OVERRIDE …]` says what this code computes otherwise than golden.json;
overrides are added to every case.

With overrides the same training is done in another way, and its sums in another order: figures may differ as
between machines. Between equal machines with equal libraries every figure has to be the same to the bit.
Elsewhere sums are rounded in another order: losses may differ by LOSS, gradient norms and weights by OTHERS,
and hashes are not compared. With torch's kernels for AVX2, with those for no AVX at all, with MKL's for any
processor and with two threads, losses differed by at most 2e-6, the others by at most 8e-5.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILE = HERE / "golden.json"
ENGINES = ("transformers", "unsloth")
LOSS, OTHERS = 1e-5, 3e-4  # relative
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "unsloth", "unsloth_zoo")


def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def machine() -> dict[str, str]:
    """What decides the order in which sums are rounded: the processor, by whose vendor MKL goes too, and the
    libraries.
    """
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    cpu = dict(re.findall(r"^(vendor_id|cpu family|model|flags)\s*: (.*)$", lines, re.MULTILINE))
    widest = next((flag for flag in ("avx512f", "avx2") if flag in cpu.pop("flags", "").split()), "")
    return {
        "cpu": " ".join([*cpu.values(), widest]),
        **{name: importlib.metadata.version(name) for name in LIBRARIES},
    }


def python(arguments: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *arguments], cwd=folder, capture_output=True, text=True)


def measured(
    engine: str,
    folder: Path,
    overrides: Sequence[str] = (),
    run: Callable[[Sequence[str], Path], subprocess.CompletedProcess[str]] = python,
) -> dict[str, Any]:
    """The figures of every case, trained in `folder` by a process of its own, which `run` starts.

    Raises:
        RuntimeError: a case failed; what it printed last.
    """
    process = run([str(HERE / "measure.py"), engine, str(folder), *overrides], folder)
    if process.returncode != 0:
        raise RuntimeError(f"{engine}: {process.stderr[-3000:]}")
    return json.loads((folder / "measured.json").read_text(encoding="utf-8"))


def differences(before: dict[str, Any], now: dict[str, Any], exact: bool) -> list[str]:
    """A line for each case whose figures are others."""
    found = {
        name: ", ".join(_differences(before.get(name), now.get(name), exact)) for name in sorted(before | now)
    }
    return [f"{name}: {what}" for name, what in found.items() if what]


def _differences(before: Any, now: Any, exact: bool) -> Iterator[str]:
    if before is None or now is None:
        yield "is not in golden.json" if before is None else "is not measured any more"
        return
    for curve, tolerance in (("losses", LOSS), ("gradient_norms", OTHERS)):
        if len(before[curve]) != len(now[curve]):
            yield f"{len(now[curve])} {curve} in place of {len(before[curve])}"
        for step, (old, new) in enumerate(zip(before[curve], now[curve], strict=False), 1):
            if old != new if exact else not abs(old - new) <= tolerance * abs(old):
                yield f"{curve}[{step}] {old!r} → {new!r}"
                break
    old, new = before["weights"], now["weights"]
    if old["values"] != new["values"]:
        yield f"{new['values']} trained values in place of {old['values']}"
    for one, other in zip(
        [old["norm"], *old["projections"]], [new["norm"], *new["projections"]], strict=True
    ):
        if one != other if exact else not abs(one - other) <= OTHERS * old["norm"]:
            yield f"weights {one!r} → {other!r}"
            return
    if exact and old["sha256"] != new["sha256"]:
        yield "other weights"


if __name__ == "__main__":
    recorded, found, overrides = golden(), [], sys.argv[1:]
    exact = recorded["machine"] == machine() and not overrides
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            now = measured(engine, Path(folder), overrides)
        found += [f"{engine} {line}" for line in differences(recorded[engine], now, exact)]
    print("\n".join(found) or "as recorded")
    sys.exit(bool(found))
