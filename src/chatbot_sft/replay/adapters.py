"""The weights that a run and its replay ended with: an adapter, or of full fine-tuning the whole model."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.replay.compared import Compared
from chatbot_sft.replay.noise import Noise
from chatbot_sft.run import checkpoints
from chatbot_sft.run.directory import Run
from chatbot_sft.run.fingerprint import SHORT
from chatbot_sft.run.report import Report

if TYPE_CHECKING:
    import torch

WHAT = "trained weights"
TINY = 1e-12


def compared(before: Run, after: Run, report: Report | None, now: Report, noise: Noise) -> list[Compared]:
    """By the hash that a report has of them, and tensor by tensor from what both have kept, which has to say the
    same: files may have changed since. Nothing where neither says anything of them.
    """
    hashes = [one.training.weights_sha256 if one and one.training else None for one in (report, now)]
    alike = hashes[0] is not None and hashes[0] == hashes[1]
    kept = _kept(before, after, report)
    if kept is not None:
        found = _files(*kept, noise.weights)
        if not alike and not (found.identical and hashes[0]):
            return [found]
        if found.identical != alike and kept[0][0].is_relative_to(before.checkpoints):
            what = f"{WHAT} (the run's files are not those that its report has the hash of)"
            return [Compared(what, 1, "SHA-256", str(hashes[0])[:SHORT], str(hashes[1])[:SHORT], math.inf)]
    if alike:
        return [Compared(f"{WHAT} (SHA-256 {str(hashes[0])[:SHORT]})", 1)]
    if hashes[0] is None or noise.weights:
        return []
    was, is_now = (str(one)[:SHORT] for one in hashes)
    return [Compared(f"{WHAT} (no checkpoint says by how much)", 1, "SHA-256", was, is_now, math.inf)]


def _kept(before: Run, after: Run, report: Report | None) -> tuple[list[Path], list[Path]] | None:
    """The files with the weights of the same step: of the step whose weights the run ended with, of the last
    checkpoint where its process was killed; an adapter that it saved, where its checkpoints are gone.
    """
    last = checkpoints.last_in(before.checkpoints)
    step = report.training.weights_of_step if report and report.training else last.step if last else None
    name = f"checkpoint-{step}"
    again = _weights(after.checkpoints / name)
    places = [before.checkpoints / name, *(before.adapters() if report and report.training else ())]
    was = next((files for place in places if (files := _weights(place))), [])
    return (was, again) if was and again else None


def _weights(folder: Path) -> list[Path]:
    adapter = folder / "adapter_model.safetensors"
    return [adapter] if adapter.is_file() else sorted(folder.glob("*.safetensors"))


def _files(before: list[Path], after: list[Path], noise: float) -> Compared:
    """`largest` is the distance of all weights to the others, by their norm; told is the matrix that is farthest by
    its own, and its values that differ most.
    """
    was, is_now = dict(_tensors(before)), dict(_tensors(after))
    squares, of_norm, farthest = 0.0, 0.0, -1.0
    first, said = None, ("", "")
    for name, tensor in was.items():
        other = is_now.get(name)
        if other is None or other.shape != tensor.shape:
            return Compared(WHAT, len(was), name, str(tuple(tensor.shape)), _shape(other), math.inf, noise)
        distance, norm, values = _apart(tensor, other)
        squares, of_norm = squares + distance**2, of_norm + norm**2
        if values and distance / norm > farthest:
            first, farthest, said = name, distance / norm, values
    if extra := is_now.keys() - was.keys():
        return Compared(WHAT, len(was), min(extra), "(none)", _shape(is_now[min(extra)]), math.inf, noise)
    largest = math.sqrt(squares / max(of_norm, TINY))
    return Compared(WHAT, len(was), first, *said, largest, noise, "in all")


def _tensors(files: list[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as opened:
            for name in sorted(opened.keys()):
                yield name, opened.get_tensor(name)


def _apart(before: torch.Tensor, after: torch.Tensor) -> tuple[float, float, tuple[str, str] | None]:
    """(their distance, the norm of the first, the two values that are farthest apart; None where they are the same to
    the bit).
    """
    import torch

    was, now = before.double().flatten(), after.double().flatten()
    norm = max(float(was.norm()), TINY)
    if torch.equal(before, after):
        return 0.0, norm, None
    place = int((was - now).abs().nan_to_num(math.inf).argmax())
    distance = float((was - now).norm())
    said = f"{was[place]:.9g}", f"{now[place]:.9g}"
    return (math.inf if math.isnan(distance) else distance), norm, said


def _shape(tensor: Any) -> str:
    return "(none)" if tensor is None else str(tuple(tensor.shape))
