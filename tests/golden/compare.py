"""`python tests/golden/compare.py [OVERRIDE …]` says what this code computes otherwise than golden.json; overrides are added to every case.

Between equal machines with equal libraries every figure has to be the same to the bit. Elsewhere sums are rounded in another order: figures may
differ by TOLERANCE, and hashes are not compared.
"""

from __future__ import annotations

import importlib.metadata
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
FILE = HERE / "golden.json"
ENGINES = ("transformers", "unsloth")
TOLERANCE = 1e-5  # relative; see CONTRIBUTING.md
LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "unsloth", "unsloth_zoo")


def golden() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def machine() -> dict[str, str]:
    """What decides the order in which sums are rounded: the processor's kind (MKL goes by its vendor too) and the libraries."""
    cpu = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE))
    return {"cpu": " ".join(cpu.values()), **{name: importlib.metadata.version(name) for name in LIBRARIES}}


def measured(engine: str, folder: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of every case, trained in `folder` by a process of its own.

    Raises:
        RuntimeError: a case failed; what it printed last.
    """
    command = [sys.executable, str(HERE / "measure.py"), engine, str(folder), *overrides]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if process.returncode != 0:
        raise RuntimeError(f"{engine}: {process.stderr[-3000:]}")
    return json.loads((folder / "measured.json").read_text(encoding="utf-8"))


def differences(before: dict[str, Any], now: dict[str, Any], exact: bool) -> list[str]:
    """A line for each case whose figures are others."""
    return [f"{name}: {what}" for name in sorted(before | now) if (what := ", ".join(_differences(before.get(name), now.get(name), exact)))]


def _differences(before: Any, now: Any, exact: bool) -> Iterator[str]:
    if before is None or now is None:
        yield "is not in golden.json" if before is None else "is not measured any more"
        return
    for curve in ("losses", "gradient_norms"):
        if len(before[curve]) != len(now[curve]):
            yield f"{len(now[curve])} {curve} in place of {len(before[curve])}"
        for step, (old, new) in enumerate(zip(before[curve], now[curve], strict=False), 1):
            if apart(old, new, abs(old), exact):
                yield f"{curve}[{step}] {old!r} → {new!r}"
                break
    old, new = before["weights"], now["weights"]
    if old["values"] != new["values"]:
        yield f"{new['values']} trained values in place of {old['values']}"
    figures = itertools.chain([("norm", old["norm"], new["norm"])], zip(itertools.repeat("projection"), old["projections"], new["projections"]))
    for what, one, other in figures:
        if apart(one, other, old["norm"], exact):
            yield f"{what} of the weights {one!r} → {other!r}"
            return
    if exact and old["sha256"] != new["sha256"]:
        yield "other weights"


def apart(old: float, new: float, scale: float, exact: bool) -> bool:
    return old != new if exact else not abs(old - new) <= TOLERANCE * scale


if __name__ == "__main__":
    recorded, found = golden(), []
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            now = measured(engine, Path(folder), sys.argv[1:])
        found += [f"{engine} {line}" for line in differences(recorded[engine], now, recorded["machine"] == machine())]
    print("\n".join(found) or "as recorded")
    sys.exit(bool(found))
