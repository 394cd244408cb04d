"""Finds personal data in a text, and puts placeholders in its place."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from chatbot_sft.data.personal.numbers import COUNTRIES, Span, cards, ibans, nationals, runs, small_ibans
from chatbot_sft.data.personal.phones import phones
from chatbot_sft.data.personal.secrets import may_hold_secrets, secrets
from chatbot_sft.errors import UserError, did_you_mean, listed
from chatbot_sft.extras import install

if TYPE_CHECKING:
    from chatbot_sft.config import DatasetConfig

EMAIL, PHONE, CARD, IBAN, ID, SECRET = "EMAIL", "PHONE", "CARD", "IBAN", "ID", "SECRET"
KINDS = {
    EMAIL: "e-mail address",
    PHONE: "phone number",
    CARD: "payment card",
    IBAN: "IBAN",
    ID: "national number",
    SECRET: "key or password",  # "secret" would be masked, as a key that is called so
}
LIBRARIES = {"phonenumbers": "phonenumbers", "stdnum": "python-stdnum"}  # module → package
NEED_THEM = (PHONE, CARD, IBAN, ID)
VERSION = 2  # raise it with every change of what is found: cached rows are then made anew

ADDRESS = re.compile(
    r"\w(?:[\w.+%'-]{0,62}[\w+-])?@(?:[^\W_](?:[\w-]{0,62}[^\W_])?\.){1,8}(?P<top>[^\W\d_]{2,24})(?![\w-])(?!:[\w/])"
)
# As people write it for people alone: anna (at) gmail.com, anna [at] gmail [dot] com.
AT = re.compile(r"[(\[{] ?at ?[)\]}]", re.IGNORECASE)
_DOT = r"(?:\.| ?[(\[{] ?dot ?[)\]}] ?| dot )"
SPELT = re.compile(
    rf"(?<![\w.+-])\w[\w.+-]{{0,62}} ?{AT.pattern} ?(?:[^\W_](?:[\w-]{{0,62}}[^\W_])?{_DOT}){{1,4}}"
    r"(?P<top>[^\W\d_]{2,24})(?![\w-])",
    re.IGNORECASE,
)
NOWHERE = ("example", "invalid", "test", "localhost", "local")  # reserved: no mail reaches anybody there
# icon@2x.png is a file.
FILES = (
    "png", "jpg", "jpeg", "gif", "svg", "webp", "ico", "pdf", "zip", "gz", "tar", "css", "js", "ts", "json", "py",
    "md", "txt", "html", "xml", "yaml", "yml",
)  # fmt: skip
SHORTEST = 6  # characters of anything that is looked for
DIGITS = re.compile(r"[0-9](?:[^0-9A-Za-z\n]{0,3}[0-9A-Z]){5}|[A-Z][0-9]{2}")


class Finding(NamedTuple):
    kind: str
    begin: int
    end: int

    @property
    def placeholder(self) -> str:
        return f"[{self.kind}]"


@dataclass(frozen=True)
class Detector:
    """`regions` and `countries` as dataset.phone_regions and dataset.national_numbers have them; what is
    `allowed` is none: a value, or a domain of e-mail addresses (@example.com).

    Without the libraries (`complete` is False) only e-mail addresses and secrets are found.
    """

    regions: tuple[str, ...] | None = None
    countries: tuple[str, ...] | None = None
    allowed: tuple[str, ...] = ()
    complete: bool = True

    @classmethod
    def of(cls, dataset: DatasetConfig) -> Detector | None:
        """None where nothing is looked for."""
        if dataset.personal_data == "off":
            return None
        regions, countries = dataset.phone_regions, dataset.national_numbers
        return cls(
            None if regions is None else tuple(regions),
            None if countries is None else tuple(countries),
            tuple(dataset.personal_data_allowed),
            not missing(),
        )._checked(dataset.personal_data)

    def _checked(self, policy: str) -> Detector:
        """Raises UserError where `policy` promises more than can be found, or a country is unknown."""
        if not self.complete and policy != "note":
            raise UserError(
                f"dataset.personal_data={policy} finds phone numbers, cards, IBANs and national numbers with"
                f" {' and '.join(missing())}: {install('data')}; or set dataset.personal_data=note or off"
            )
        _known("national_numbers", self.countries, COUNTRIES)
        if self.regions and self.complete:
            import phonenumbers

            _known("phone_regions", self.regions, sorted(phonenumbers.SUPPORTED_REGIONS))
        return self

    @property
    def kinds(self) -> tuple[str, ...]:
        """Those that are looked for."""
        return tuple(kind for kind in KINDS if self.complete or kind not in NEED_THEM)

    @property
    def signature(self) -> str:
        """Equal where the same is found."""
        versions = [importlib.metadata.version(name) for name in LIBRARIES.values()] if self.complete else []
        return json.dumps([VERSION, self.regions, self.countries, self.allowed, versions])

    def may_find(self, text: str) -> bool:
        """False where certainly nothing is in it; quick."""
        if len(text) < SHORTEST:
            return False
        written = "@" in text or AT.search(text) is not None
        return written or may_hold_secrets(text) or (self.complete and bool(DIGITS.search(text)))

    def find(self, text: str, written: str | None = None) -> list[Finding]:
        """In the order of the text; none overlaps another. What is `written` around it (`text` itself, where
        nothing is given) may tell the country of its phone numbers.
        """
        found: list[Finding] = []
        for kind, (begin, end) in self._all(text, text if written is None else written):
            # The first that finds a place has it.
            apart = all(end <= other.begin or other.end <= begin for other in found)
            if apart and not self._is_allowed(text[begin:end]):
                found.append(Finding(kind, begin, end))
        return sorted(found, key=lambda finding: finding.begin)

    def redact(self, text: str, written: str | None = None) -> tuple[str, list[str]]:
        """(`text` with a placeholder for each finding, their kinds); what a placeholder lays bare is found too."""
        kinds: list[str] = []
        if not self.may_find(text):
            return text, kinds
        while found := self.find(text, written):
            kinds += [finding.kind for finding in found]
            for finding in reversed(found):
                text = text[: finding.begin] + finding.placeholder + text[finding.end :]
        return text, kinds

    def clean(self, text: str, written: str | None = None) -> str:
        """`redact`'s text alone."""
        return self.redact(text, written)[0]

    def _all(self, text: str, written: str) -> Iterator[tuple[str, Span]]:
        """What any of them finds, the surest first."""
        for span in secrets(text):
            yield SECRET, span
        for span in addresses(text):
            yield EMAIL, span
        if not self.complete or not DIGITS.search(text):
            return
        for span in small_ibans(text):
            yield IBAN, span
        where = list(runs(text))
        for run in where:
            for span in ibans(text, run):
                yield IBAN, span
        for run in where:
            for span in cards(text, run):
                yield CARD, span
        for run in where:
            for span in nationals(text, run, self.countries):
                yield ID, span
        for span in phones(text, written, self.regions):
            yield PHONE, span

    def _is_allowed(self, value: str) -> bool:
        return any(
            value.casefold().endswith(item.casefold())
            if item.startswith("@")
            else _bare(value) == _bare(item)
            for item in self.allowed
        )


def addresses(text: str) -> Iterator[Span]:
    """E-mail addresses."""
    shapes = [*([ADDRESS] if "@" in text else []), *([SPELT] if AT.search(text) else [])]
    for shape in shapes:
        for match in shape.finditer(text):
            if match["top"].lower() not in (*FILES, *NOWHERE):
                yield match.span()


def _known(key: str, given: tuple[str, ...] | None, known: Sequence[str]) -> None:
    """Raises UserError where one of the countries `given` is none of those `known`."""
    for country in given or ():
        if country == "False":
            raise UserError(f'dataset.{key}: a YAML file reads NO as false; write "NO"')
        if country not in known:
            meant = did_you_mean("GB" if country.upper() == "UK" else country.upper(), known)
            raise UserError(
                f"dataset.{key}=[{country}]: no such country{meant or f'; there are {listed(known, 300)}'}"
            )


def missing() -> list[str]:
    """The packages that are not installed."""
    return [package for module, package in LIBRARIES.items() if importlib.util.find_spec(module) is None]


def _bare(value: str) -> str:
    return re.sub(r"[\s.()\-/]", "", value).casefold()
