"""What becomes of one key of a peer's file: a rule, as data; what it said of a file: a line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from chatbot_sft.config.schema import find
from chatbot_sft.errors import did_you_mean, question

NOTHING = object()  # no default that would have to be written
# Values that leave a feature out, whatever it is.
OFF: tuple[Any, ...] = (None, False, 0, "", "no", "none", "off", [], {})
LEFT_EMPTY = "left empty"
SWITCHED_OFF = "off in the file too"
AS_HERE = "as it is here"


class Kind(Enum):
    """What became of a key; the value is the heading under which it is told."""

    CARRIED = "carried"
    CHANGED = "carried with a change"
    NOT_NEEDED = "not needed here"
    NOT_CARRIED = "not carried"


@dataclass
class Line:
    """What is said of one key: `datasets[0].path`, say.

    `settings` are ours: path → value ("lora.r": 8); a path that begins with a slash is a group and its option
    ("/lora": "none"). `shown` stands in their place where they are told elsewhere.
    """

    key: str
    kind: Kind
    settings: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    shown: str = ""


@dataclass(frozen=True)
class Given:
    """One key of a file, with its value, and what stands around it."""

    key: str
    value: Any
    file: Mapping[str, Any]  # the whole of it
    folder: Path  # in which the file is

    def get(self, key: str, default: Any = None) -> Any:
        """What the file has for another key; `default` also where it is left empty."""
        value = self.file.get(key)
        return default if value is None else value

    def of(self, key: str, value: Any) -> Given:
        """A key inside this one."""
        return Given(key, value, self.file, self.folder)

    def carried(self, settings: Mapping[str, Any], note: str = "") -> list[Line]:
        return [Line(self.key, Kind.CARRIED, dict(settings), note)]

    def changed(self, settings: Mapping[str, Any], note: str) -> list[Line]:
        return [Line(self.key, Kind.CHANGED, dict(settings), note)]

    def not_needed(self, note: str) -> list[Line]:
        return [Line(self.key, Kind.NOT_NEEDED, note=note)]

    def not_carried(self, note: str) -> list[Line]:
        return [Line(self.key, Kind.NOT_CARRIED, note=note)]


@dataclass(frozen=True)
class Rule:
    """`becomes` says what a value becomes; `here` and `says` are for the pages, which know no value.

    `default` is what the peer takes where the file is silent: written where it decides the result and is another
    than ours. With `null` an empty value is one that `becomes` is asked about.
    """

    names: tuple[str, ...]
    becomes: Callable[[Given], list[Line]]
    here: str
    says: str = ""
    default: Any = NOTHING
    null: bool = False


def same(name: str, ours: str, says: str = "", default: Any = NOTHING) -> Rule:
    """The same thing under our name."""

    def becomes(given: Given) -> list[Line]:
        return given.carried({ours: as_ours(ours, given.value)}, says)

    return Rule(tuple(name.split()), becomes, f"`{ours}`", says, default)


def words(name: str, ours: str, values: Mapping[Any, Any], says: str = "", default: Any = NOTHING) -> Rule:
    """The same thing where single values are called otherwise; those that are not in `values` stay."""

    def becomes(given: Given) -> list[Line]:
        value = values.get(given.value, given.value) if isinstance(given.value, (str, bool)) else given.value
        return given.carried({ours: value}, says)

    pairs = ", ".join(f"{_plain(theirs)} is `{_plain(mine)}`" for theirs, mine in values.items())
    return Rule(tuple(name.split()), becomes, f"`{ours}`", "; ".join(filter(None, (pairs, says))), default)


def made(
    name: str,
    becomes: Callable[[Given], list[Line]],
    here: str,
    says: str = "",
    default: Any = NOTHING,
    null: bool = False,
) -> Rule:
    """What needs arithmetic, or a look at other keys; `here` are our keys, as the pages name them."""
    ours = ", ".join(f"`{path}`" for path in here.split()) if here else "not carried"
    return Rule(tuple(name.split()), becomes, ours, says, default, null)


def switched(names: str, ours: str, value: Any, note: str = "") -> Rule:
    """Keys that are on or off: on is our `value`."""

    def becomes(given: Given) -> list[Line]:
        if given.value in OFF:
            return given.not_needed(SWITCHED_OFF)
        return given.changed({ours: value}, note) if note else given.carried({ours: value})

    return Rule(
        tuple(names.split()),
        becomes,
        f"`{ours}`",
        "; ".join(filter(None, (f"on is `{_plain(value)}`", note))),
    )


def unneeded(names: str, why: str) -> Rule:
    """Keys that say how the peer does what happens here by itself."""
    return Rule(tuple(names.split()), lambda given: given.not_needed(why), "not needed", why)


def uncarried(names: str, why: str, off: tuple[Any, ...] = ()) -> Rule:
    """Keys of what is not here, each with what to do; values in `off` leave it out there too."""

    def becomes(given: Given) -> list[Line]:
        if given.value in OFF:
            return given.not_needed(SWITCHED_OFF)
        if given.value in off:
            return given.not_needed(AS_HERE)
        return given.not_carried(why)

    return Rule(tuple(names.split()), becomes, "not carried", why)


def belonging(names: str, to: str, why: str) -> Rule:
    """Keys that count only where `to` is on, which is not carried."""

    def becomes(given: Given) -> list[Line]:
        if given.get(to) in OFF:
            return given.not_needed(f"of {to}, which is off in the file too")
        return given.not_carried(why)

    return Rule(tuple(names.split()), becomes, "not carried", f"of `{to}`: {why}")


def as_variable(names: str, variable: str) -> Rule:
    """Names under which a logger files a run: it reads them from the environment."""

    def becomes(given: Given) -> list[Line]:
        return given.not_carried(f"set the environment variable {variable}, which the logger reads")

    return Rule(tuple(names.split()), becomes, "not carried", f"set the environment variable {variable}")


def as_ours(path: str, value: Any) -> Any:
    """A number in quotes as a number, where ours is one; the schema says what is wrong with anything else."""
    key = find(path)
    kind = key.kind if key else ""
    if isinstance(value, str) and kind.startswith(("int", "float")):
        number = as_number(value)
        if number is not None:
            return int(number) if number.is_integer() and kind.startswith("int") else number
    if isinstance(value, (int, float)) and not isinstance(value, bool) and kind.startswith("str"):
        return str(value)
    return value


def as_number(value: Any) -> float | None:
    """`value` as a number, also in quotes; None where it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if abs(number) < 1e15 else None  # NaN is none either


def unknown(key: str, known: list[str], title: str, meant: str = "") -> Line:
    """A key that the peer does not have: told, never guessed; `meant` is what it certainly means."""
    hint = question([meant]) if meant else did_you_mean(key, known)
    return Line(key, Kind.NOT_CARRIED, note=f"no key of {title} as we know it{hint or '; see its manual'}")


def _plain(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
