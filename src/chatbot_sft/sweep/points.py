"""What a sweep's command line asks for: its axes, and the points, one for each job. No torch, no Optuna.

An axis has values that exclude each other, each of them one override or several that go together (a zipped
pair, an entry of a file). Without a sampler the points are every combination of the axes' values; a sampler
chooses among them, and within intervals.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Sweep
from omegaconf import ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from chatbot_sft import refused_overrides, text_files
from chatbot_sft.config import aliases
from chatbot_sft.config.reading import added
from chatbot_sft.config.schema import OF_SWEEP, SECTIONS, Config, SweepConfig, kind_of
from chatbot_sft.errors import UserError, listed, not_yaml

MOST_JOBS = 10_000  # each is composed, checked and listed before the first begins


@dataclass(frozen=True)
class Quantity:
    """Numbers between two ends, both included."""

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False


@dataclass(frozen=True)
class Axis:
    """What one swept key, or several that go together, may be; `values` is empty for an interval."""

    key: str
    typed: str
    values: tuple[tuple[str, ...], ...] = ()
    quantity: Quantity | None = None

    @property
    def ends(self) -> Iterator[tuple[str, ...]]:
        """Values to check before a sampler has chosen any: all of a list, the ends of an interval."""
        yield from self.values
        if self.quantity and not self.values:
            for number in (self.quantity.low, self.quantity.high):
                yield (self.at(number),)

    def at(self, number: float) -> str:
        """The override for a number of the quantity."""
        whole = self.quantity is not None and self.quantity.whole
        return f"{self.key}={int(number) if whole else number!r}"


@dataclass(frozen=True)
class Space:
    """`fixed` overrides are those that every job has; `order` are all keys of the command line, each where
    it was last written.
    """

    fixed: list[str]
    axes: list[Axis] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    @property
    def typed(self) -> list[str]:
        """The swept words as they were written."""
        return [axis.typed for axis in self.axes]

    def job(self, point: Sequence[str]) -> list[str]:
        """All overrides of the job at `point`, in the order of the command line."""
        places = {key: place for place, key in enumerate(self.order)}
        return sorted([*self.fixed, *point], key=lambda word: places.get(bare(key_of(word)), len(places)))

    def points(self) -> Iterator[list[str]]:
        """Every combination, the first axis slowest: the swept overrides of each job."""
        for values in itertools.product(*(axis.values for axis in self.axes)):
            yield list(itertools.chain(*values))

    def samples(self) -> Iterator[list[str]]:
        """What stands for more points than can be walked: every value of each axis once, the other axes at
        their first.
        """
        ends = [list(axis.ends) for axis in self.axes]
        first = [values[0] for values in ends]
        yield list(itertools.chain(*first))
        for place, values in enumerate(ends):
            for value in values[1:]:
                yield list(itertools.chain(*first[:place], value, *first[place + 1 :]))


def space(
    overrides: Sequence[str],
    params: Mapping[str, Any] | None = None,
    zipped: Sequence[str] = (),
    file: str | None = None,
    loader: ConfigLoader | None = None,
) -> Space:
    """The space of a command line's `overrides`, Hydra's own left out, and of `hydra.sweeper.params`.

    `zipped` and `file` are `sweep.zip` and `sweep.points`; the `loader` knows what `group=glob(*)` stands for.

    Raises:
        UserError: an axis without a value, or what does not go together.
    """
    given = [*(f"{added(key)}={value}" for key, value in (params or {}).items()), *overrides]
    fixed: dict[str, str] = {}
    axes: dict[str, Axis] = {}
    order: dict[str, None] = {}
    for override, parsed in zip(given, OverridesParser.create(loader).parse_overrides(given), strict=True):
        key = bare(parsed.get_key_element())
        for one in (order, fixed, axes):
            one.pop(key, None)  # the later word wins: the command line is behind the params
        order[key] = None
        _refuse_around(axes, key, override)
        if not parsed.is_sweep_override():
            fixed[key] = override
        elif key.startswith(OF_SWEEP):
            raise UserError(f"{override}: says how the sweep is run; give it one value")
        else:
            axes[key] = _axis(override, parsed)
    together = _zipped(axes, zipped)
    if file is not None:
        listed_in = _of_file(file)
        taken = {*fixed, *axes}
        for word in itertools.chain(*listed_in.values):
            if (key := bare(key_of(word))) in taken:
                raise UserError(
                    f"sweep.points={file}: {key} is on the command line too; leave it out in one of the two"
                )
        together.insert(0, listed_in)
    for axis in together:
        for word in itertools.chain(*axis.values):
            if refused_overrides.is_group(bare(key_of(word))):
                _refuse_no_option(axis, word)
    return Space(list(fixed.values()), together, list(order))


def _refuse_around(axes: Mapping[str, Axis], key: str, override: str) -> None:
    """Raise UserError for a word behind a swept one that sets a part of it too, or the whole that it is a part of:
    jobs would be listed by values that they do not have. A group's option is no such whole: its keys count over it.
    """
    for swept, axis in axes.items():
        whole, part = sorted((swept, key), key=len)
        if part.startswith(f"{whole}.") and not refused_overrides.is_group(whole):
            raise UserError(
                f"{override}: sets what {axis.typed} tries, or a part of it; leave one of them out, or write what"
                f" both say as values of {whole}"
            )


def _refuse_no_option(axis: Axis, word: str) -> None:
    try:
        refused_overrides.refuse(OverridesParser.create().parse_override(word))
    except UserError as error:
        of_a_file = axis.key == "sweep.points"
        raise UserError(f"{axis.typed}: {error}" if of_a_file else str(error)) from None


def settings(config: Any) -> SweepConfig:
    """The section `sweep` of a composed sweep, checked, but for what asks something of the jobs."""
    anything_asked = {"eval_steps": 1, "golden_steps": 1, "max_steps": 100}
    return Config.from_mapping({"sweep": _plain(config.sweep), "training": anything_asked}).sweep


def of_config(config: Any, loader: ConfigLoader | None) -> Space:
    """The space of a composed sweep: Hydra's configuration and the section `sweep` in it."""
    sweep = settings(config)
    found = space(
        _plain(config.hydra.overrides.task),
        _plain(config.hydra.sweeper.get("params") or {}),
        sweep.zip,
        sweep.points,
        loader,
    )
    for axis in found.axes:
        if axis.quantity and not axis.values and sweep.sampler is None:
            raise UserError(_no_grid(axis))
    count = math.prod(len(axis.values) for axis in found.axes)
    if sweep.sampler is None and count > MOST_JOBS:
        raise UserError(
            f"-m: {count:,} combinations, and a sweep has {MOST_JOBS:,} jobs at most; leave values out, or set"
            " sweep.sampler and sweep.trials, which choose among them"
        )
    if sweep.sampler and not found.axes:
        raise UserError(
            f"sweep.sampler={sweep.sampler}: nothing to choose from; for instance"
            " 'training.learning_rate=tag(log, interval(1e-5, 1e-3))' lora.r=8,16,32"
        )
    return found


def key_of(override: str) -> str:
    """The key of an override, with the plus signs before it."""
    return override.partition("=")[0]


def bare(key: str) -> str:
    """`key` of an override without the plus signs before it."""
    return key.lstrip("+")


def _plain(config: Any) -> Any:
    return OmegaConf.to_container(config, resolve=False) if OmegaConf.is_config(config) else config


def _axis(override: str, parsed: Override) -> Axis:
    key = parsed.get_key_element()
    if (count := _length(parsed.value())) > MOST_JOBS:
        raise UserError(
            f"{override}: {count:,} values, and a sweep has {MOST_JOBS:,} jobs at most; give it a larger step, or"
            " have sweep.sampler choose from an interval"
        )
    swept = parsed.value()
    known = {"log"} if isinstance(swept, IntervalSweep) else set()
    if isinstance(swept, Sweep) and (other := sorted(swept.tags - known)):
        raise UserError(f"{override}: the tag {other[0]} means nothing here; log does, around an interval")
    quantity = _quantity(parsed)
    if not parsed.is_discrete_sweep():
        return Axis(key, override, quantity=quantity)
    values = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
    if not values:
        raise UserError(f"{override}: stands for no value; there is nothing to run")
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise UserError(f"{override}: {listed(twice)} is there twice; two jobs would be the same")
    return Axis(key, override, tuple((value,) for value in values), quantity)


def _length(swept: Any) -> float:
    """How many values a range has; 0 for all else, whose values stand there."""
    if not isinstance(swept, RangeSweep) or swept.start is None or swept.stop is None or not swept.step:
        return 0
    return max(0, math.ceil((float(swept.stop) - float(swept.start)) / float(swept.step)))


def _quantity(parsed: Override) -> Quantity | None:
    """What a sampler may take for a range or an interval; None for a list, whose values have no order."""
    swept = parsed.value()
    if isinstance(swept, IntervalSweep) and swept.start is not None and swept.end is not None:
        log, (low, high) = "log" in swept.tags, sorted((float(swept.start), float(swept.end)))
        if not (math.isfinite(low) and math.isfinite(high)) or low == high:
            raise UserError(f"{parsed.input_line}: an interval has two ends; write interval(1e-5, 1e-3)")
        if log and low <= 0:
            raise UserError(f"{parsed.input_line}: an end at or below 0 has no logarithm; write one above 0")
        return Quantity(low, high, log=log, whole=kind_of(bare(parsed.key_or_group)).startswith("int"))
    if isinstance(swept, RangeSweep):
        numbers = [float(value) for value in parsed.sweep_string_iterator()]
        whole = all(number == int(number) for number in numbers) and isinstance(swept.start, int)
        if len(numbers) > 1:
            return Quantity(min(numbers), max(numbers), abs(float(swept.step)), whole=whole)
    return None


def _no_grid(axis: Axis) -> str:
    low, high = (axis.quantity.low, axis.quantity.high) if axis.quantity else (0.0, 0.0)
    middle = math.sqrt(low * high) if low > 0 else (low + high) / 2
    whole = axis.quantity is not None and axis.quantity.whole
    values = ",".join(f"{round(value) if whole else value:g}" for value in (low, middle, high))
    return (
        f"{axis.typed}: an interval has no combinations to run; add sweep.sampler=tpe sweep.trials=20,"
        f" or name values: {bare(axis.key)}={values}"
    )


def _zipped(axes: Mapping[str, Axis], keys: Sequence[str]) -> list[Axis]:
    """The axes, those of `keys` as one in which they go hand in hand, where the first of them stood."""
    for key in keys:
        if key not in axes:
            raise UserError(
                f"sweep.zip: {key} has no list of values on the command line, for instance {key}=…,…"
            )
    if keys and (len(keys) == 1 or len(set(keys)) < len(keys)):
        raise UserError(
            f"sweep.zip=[{','.join(keys)}]: a list goes hand in hand with another; name two keys or more, each once"
        )
    chosen = [axes[key] for key in keys]
    lengths = {axis.key: len(axis.values) for axis in chosen}
    if len(set(lengths.values())) > 1:
        counts = ", ".join(f"{bare(key)} has {count}" for key, count in lengths.items())
        raise UserError(f"sweep.zip: lists of different lengths ({counts}); give each as many values")
    if not chosen:
        return list(axes.values())
    pairs = zip(*(axis.values for axis in chosen), strict=True)
    joined = Axis(
        "+".join(lengths),
        " ".join(axis.typed for axis in chosen),
        tuple(tuple(itertools.chain(*pair)) for pair in pairs),
    )
    first = next(axis for axis in axes.values() if axis in chosen)
    return [
        joined if axis is first else axis for axis in axes.values() if axis is first or axis not in chosen
    ]


# A list in a file


def _of_file(name: str) -> Axis:
    """The axis of `sweep.points`: a YAML or JSON list of jobs, each a mapping key → value.

    Raises:
        UserError: the file, the entry, and what is wrong with it.
    """
    where = f"sweep.points={name}"
    try:
        text = text_files.read(Path(name))
        try:
            text_files.check_yaml(text, Path(name))
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        entries = OmegaConf.load(Path(name))
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}") from None
    except YAMLError as error:
        raise UserError(f"{where}: neither YAML nor JSON: {not_yaml(error)}") from None
    except OmegaConfBaseException as error:
        raise UserError(f"{where}: {str(error).splitlines()[0]}; is it plain YAML?") from None
    if not isinstance(entries, ListConfig):
        raise UserError(f"{where}: expected a list of jobs, for instance `- {{lora.r: 8, seed: 1}}`")
    if not entries:
        raise UserError(f"{where}: an empty list; there is nothing to run")
    values: dict[frozenset[str], tuple[str, ...]] = {}  # by the same words in any order
    for number, entry in enumerate(_plain(entries), 1):
        if not isinstance(entry, dict) or not entry:
            raise UserError(f"{where}, entry {number}: expected keys and values, for instance {{lora.r: 8}}")
        value = tuple(_written(where, number, entry))
        if (words := frozenset(value)) in values:
            first = list(values).index(words) + 1
            raise UserError(f"{where}, entry {number}: the same as entry {first}; leave one out")
        values[words] = value
    return Axis("sweep.points", where, tuple(values.values()))


def _written(where: str, number: int, entry: Mapping[Any, Any], section: str = "") -> Iterable[str]:
    """The overrides of one entry; keys may stand in their section."""
    from chatbot_sft.command_line import written_out

    for name, value in entry.items():
        key = f"{section}{name}"
        if not section and key in SECTIONS and isinstance(value, dict):
            yield from _written(where, number, value, f"{key}.")
            continue
        if key.startswith((OF_SWEEP, "hydra.", "hydra/")):
            raise UserError(
                f"{where}, entry {number}: {key} says how the sweep is run; write it on the command line"
            )
        yield written_out(added(key), value) if isinstance(value, str) else f"{added(key)}={_literal(value)}"


def _literal(value: Any) -> str:
    """A value that is no text as Hydra reads it; text inside of lists and mappings in quotes."""
    from chatbot_sft.command_line import written_out

    if isinstance(value, str):
        return written_out("", value)[1:]
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}: {_literal(inner)}" for key, inner in value.items()) + "}"
    return aliases.plain(value)
