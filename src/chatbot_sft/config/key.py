"""What there is to say of one key, said once, beside its default in the schema: help, bounds, choices."""

from __future__ import annotations

import copy
import math
from dataclasses import MISSING, Field, dataclass, field
from typing import Any

from chatbot_sft.config import aliases
from chatbot_sft.errors import UserError, not_one_of

ABOUT = "about"  # the name of an `About` in a dataclass field's metadata


@dataclass(frozen=True)
class Bound:
    """The smallest and the largest value of a number.

    An upper bound stands where everything above it is certainly a slip: no model has a matrix of rank
    100,000, no run 10^12 steps. A learning rate that ruins the model is not refused here: the guard of the
    training judges it by the losses.
    """

    smallest: float | None
    largest: float
    above: bool = False  # the smallest value itself is out
    below: bool = False  # the largest value itself is out

    def refusal(self, value: float) -> str | None:
        """Why `value` is out of these bounds, or None."""
        if math.isnan(value):
            return "must be a number"
        if self.below and self.smallest is not None and not self.smallest <= value < self.largest:
            return f"must be at least {self.smallest:g} and below {self.largest:g}"
        if self.smallest is not None and (value < self.smallest or (self.above and value == self.smallest)):
            return f"must be {'above' if self.above else 'at least'} {self.smallest:g}"
        if value > self.largest:
            return f"must be at most {self.largest:,.0f}"
        return None


@dataclass(frozen=True)
class About:
    """Of one key. Its type and its default are the field's own."""

    help: str
    bound: Bound | None = None
    choices: tuple[Any, ...] = ()
    decides: bool = True  # the run's result
    through: str = ""  # the entry of a run's identity that stands for the key, where its own value does not
    elsewhere: str = ""  # what the command line has in place of the default, where conf/ is meant to differ


@dataclass(frozen=True)
class Key:
    """One key of the schema, with everything that is known of it."""

    section: str  # empty at the top
    name: str
    kind: str  # the annotation: "str | None"
    default: Any
    about: About

    @property
    def path(self) -> str:
        """As it is written on the command line."""
        return f"{self.section}.{self.name}" if self.section else self.name


def key(default: Any, help: str, **about: Any) -> Any:
    """A field of the schema: its default, and an `About` of `help` and what else there is to say."""
    metadata = {ABOUT: About(help, **about)}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def described(section: str, definition: Field[Any]) -> Key:
    """The key that a field of the schema defines."""
    factory = definition.default_factory
    default = definition.default if factory is MISSING else factory()
    return Key(section, definition.name, str(definition.type), default, definition.metadata[ABOUT])


def one_of(key: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """Raises UserError where `value` is none of `allowed`; `1` is not taken for `true`."""
    if not any(value == option and type(value) is type(option) for option in allowed):
        names = [aliases.plain(option) for option in allowed]
        given = aliases.plain(value)
        raise UserError(f"{key}={given}: {not_one_of(given, names, aliases.value_of(key, value))}")
