"""Which layout runs a step fastest here: each is tried on real batches, and the answer is remembered in the
cache.
"""

from __future__ import annotations

import gc
import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from chatbot_sft import distributed
from chatbot_sft.cache import part_folder
from chatbot_sft.train.layout import Layout
from chatbot_sft.train.rows import StepRows
from chatbot_sft.train.search import CLEARLY_FASTER, Search, try_layouts

log = logging.getLogger(__name__)

# On a GPU measuring ends after so long, or this share of the planned run where that is more; `search` has what
# goes for a CPU.
BUDGET_SECONDS, BUDGET_SHARE = 20.0, 0.05


@dataclass(frozen=True)
class Measurement:
    """One layout on this machine: seconds for the typical step, GB (10^9 bytes) at the peak of the longest;
    None where it did not run.
    """

    layout: Layout
    seconds: float | None = None
    peak_gb: float | None = None
    capture_seconds: float = 0.0  # what each new shape costs once
    why_not: str | None = None


@dataclass(frozen=True)
class Plan:
    """The chosen layout with what was measured for it."""

    layout: Layout
    reason: str
    measurements: list[Measurement] = field(default_factory=list)


@dataclass(frozen=True)
class Trial:
    """What measuring needs: `use` switches to a layout and lets go what another held, `run` does the forward and
    backward passes of a step, throws the gradients away and returns the loss (a tensor).
    """

    use: Callable[[Layout], object]
    run: Callable[[Layout, StepRows], Any]
    typical: StepRows
    longest: StepRows
    steps: int  # optimizer steps of the planned run
    memory_margin: float
    pair: float  # what attention costs for two tokens, in tokens
    tolerance: float = 5e-3  # relative difference between the losses of two layouts that is rounding
    shapes: int = 1  # different shapes that capturing would meet


def choose(layouts: Sequence[Layout], configured: Layout, trial: Trial, key: str) -> Plan:
    """The layout of `layouts` that ends the run first, measured now or remembered under `key`; of several
    processes all choose by the slowest and the hungriest of them.

    A layout that runs out of memory, or leaves less than `memory_margin` of the card free, is not taken.
    Where none fits, the most frugal is.
    """
    memory = part_folder("layouts") / f"{key}.json"
    measurements, reason = _remembered(memory, layouts), "measured by an earlier run"
    if measurements is None:
        search, gpu = Search(trial.typical, configured, trial.steps, trial.pair), _on_gpu()
        if not gpu and (why_none := search.why_none(layouts)):
            return Plan(configured, f"as configured: {why_none}")
        measurements = _measure(layouts, configured, trial) if gpu else _tried(layouts, search, trial)
        reason = "measured"
        _remember(memory, measurements)
    measurements = [hungriest(found) for found in zip(*distributed.gathered(measurements), strict=True)]

    def run_seconds(found: Measurement) -> float:
        return (found.seconds or 0.0) * trial.steps + found.capture_seconds * trial.shapes

    ran = [found for found in measurements if found.seconds is not None]
    if not ran:
        frugal = min(layouts, key=lambda layout: (not layout.checkpointing, layout.packs))
        return Plan(frugal, "no layout fits the memory margin; the most frugal one is taken", measurements)
    best = min(ran, key=run_seconds)
    ours = next((found for found in ran if found.layout == configured), best)
    if run_seconds(best) > CLEARLY_FASTER * run_seconds(ours):
        best = ours
    return Plan(best.layout, reason, measurements)


def hungriest(measured: Sequence[Measurement]) -> Measurement:
    """Of one layout in several processes, what all of them have to reckon with: that it does not run in one,
    the longest times, the highest peak.
    """
    broken = [found for found in measured if found.why_not is not None]
    if broken:
        return broken[0]
    first = measured[0]
    seconds = [found.seconds for found in measured if found.seconds is not None]
    peaks = [found.peak_gb for found in measured if found.peak_gb is not None]
    capturing = max(found.capture_seconds for found in measured)
    return Measurement(first.layout, max(seconds, default=None), max(peaks, default=None), capturing)


def cache_key(*parts: Any) -> str:
    """Everything a measurement depends on, as one file name."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _remember(file: Path, measurements: Sequence[Measurement]) -> None:
    temporary = file.with_suffix(f".{time.monotonic_ns()}")
    try:
        temporary.write_text(json.dumps([asdict(found) for found in measurements]), encoding="utf-8")
        temporary.replace(file)
    except OSError as error:
        log.warning(
            "layout: what was measured cannot be remembered (%s); the next run measures again",
            error.strerror or error,
        )


def _remembered(file: Path, layouts: Sequence[Layout]) -> list[Measurement] | None:
    """What an earlier run measured; None where there is nothing, or anything but a measurement of each of
    `layouts`.
    """
    try:
        found = [
            Measurement(**{**entry, "layout": Layout(**entry["layout"])})
            for entry in json.loads(file.read_text(encoding="utf-8"))
        ]
        believable = all(
            (entry.seconds is None or 0 < entry.seconds < math.inf)
            and (entry.peak_gb is None or 0 <= entry.peak_gb < math.inf)
            and 0 <= entry.capture_seconds < math.inf
            and isinstance(entry.why_not, str | None)
            for entry in found
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not believable or [entry.layout for entry in found] != list(layouts):
        return None
    return [replace(entry, layout=layout) for entry, layout in zip(found, layouts, strict=True)]


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@dataclass
class _Losses:
    """What the typical step's loss has to be. Padded rows cannot see each other: theirs is the right one."""

    configured: Layout
    tolerance: float
    expected: float | None = None

    def checked(self, measured: Measurement, loss: float | None) -> Measurement:
        """`measured`, unless it computes another loss."""
        if loss is None:
            return measured
        if self.expected is not None and not abs(loss - self.expected) <= self.tolerance * abs(self.expected):
            why = f"computes another loss: {loss:.4f}, not {self.expected:.4f}"
            return Measurement(measured.layout, why_not=why)
        if self.expected is None and (not measured.layout.padding_free or self.configured.padding_free):
            self.expected = loss
        return measured


def _tried(layouts: Sequence[Layout], search: Search, trial: Trial) -> list[Measurement]:
    """On a CPU."""
    from chatbot_sft.train.randomness import undisturbed

    losses = _Losses(search.configured, trial.tolerance)
    found: dict[Layout, Measurement] = {}

    def run(layout: Layout) -> float | None:
        found[layout] = losses.checked(*_try(layout, trial, float("inf"), gpu=False))
        return found[layout].seconds

    with undisturbed():
        why_not = try_layouts(
            search, layouts, lambda: trial.run(Layout(1), search.warming_up), run, time.perf_counter
        )
    return [found.get(layout) or Measurement(layout, why_not=why_not[layout]) for layout in layouts]


def _measure(layouts: Sequence[Layout], configured: Layout, trial: Trial) -> list[Measurement]:
    """On a GPU."""
    import torch

    from chatbot_sft.train.randomness import undisturbed

    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    limit = (1 - trial.memory_margin) * card.total_memory
    losses = _Losses(configured, trial.tolerance)
    found: list[Measurement] = []
    started = time.perf_counter()
    with undisturbed():
        for layout in layouts:
            fits = [measured.seconds for measured in found if measured.seconds is not None]
            if fits and time.perf_counter() - started > max(
                BUDGET_SECONDS, BUDGET_SHARE * trial.steps * min(fits)
            ):
                found.append(Measurement(layout, why_not="no time left to measure"))
                continue
            without = [
                measured.layout.packs
                for measured in found
                if measured.seconds is not None and not measured.layout.checkpointing
            ]
            if layout.checkpointing and layout != configured and layout.packs <= max(without, default=0):
                found.append(Measurement(layout, why_not="as many fit without checkpointing"))
                continue
            found.append(losses.checked(*_try(layout, trial, limit, gpu=True)))
            # The first layout pays for the engine's compilation, which the run would pay as well.
            if len(found) == 1:
                started = time.perf_counter()
    return found


def _try(layout: Layout, trial: Trial, limit: float, gpu: bool) -> tuple[Measurement, float | None]:
    """The measurement, and the loss of the typical step where the layout ran."""
    import torch

    from chatbot_sft.train.graphs import CaptureFailed

    peak, first = None, 0.0
    try:
        if gpu:
            trial.use(layout)
            gc.collect()
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            trial.run(layout, trial.longest)
            first = _timed(lambda: trial.run(layout, trial.typical), gpu)[0]
            peak = round(torch.cuda.max_memory_reserved() / 1e9, 3)
            if torch.cuda.max_memory_reserved() > limit:
                return Measurement(layout, peak_gb=peak, why_not="over the memory margin"), None
        timed = [_timed(lambda: trial.run(layout, trial.typical), gpu) for _ in range(2 if gpu else 1)]
    except torch.OutOfMemoryError:
        return Measurement(layout, why_not="out of memory"), None
    except CaptureFailed as error:
        return Measurement(layout, why_not=f"cannot be captured: {error}"), None
    seconds, loss = min(seconds for seconds, _ in timed), timed[-1][1]
    return Measurement(
        layout, round(seconds, 6), peak, round(max(0.0, first - seconds), 3) if layout.captured else 0.0
    ), float(loss)


def step_seconds(layout: Layout, trial: Trial) -> float:
    """Of the typical step in `layout`, in which one was run before; of several processes, the slowest one's."""
    from chatbot_sft.train.randomness import undisturbed

    gpu = _on_gpu()
    with undisturbed():
        if gpu:
            trial.run(layout, trial.typical)  # captures its shape, where that is to be captured
        seconds = _timed(lambda: trial.run(layout, trial.typical), gpu)[0]
    return max(distributed.gathered(seconds))


def _timed(run: Callable[[], Any], gpu: bool) -> tuple[float, Any]:
    """Seconds, and what `run` returned."""
    import torch

    if gpu:
        torch.cuda.synchronize()
    started = time.perf_counter()
    returned = run()
    if gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - started, returned
