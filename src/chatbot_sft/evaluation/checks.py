"""What an answer has to be: one small class for each check of a golden file.

A class reads what the file says (`read`, which refuses what makes no sense) and says of an answer why the check
does not hold (`fault`), or nothing. Nothing here loads a model or reaches a network.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from chatbot_sft.data.rendering import OutOfBounds, bounded
from chatbot_sft.errors import UserError, did_you_mean, listed
from chatbot_sft.evaluation.answer import Answer
from chatbot_sft.extras import install
from chatbot_sft.report.words import amount

SECONDS = 5.0  # for the regular expressions of one check; they take microseconds
SHORT = 20  # letters; the language of less is guessed
REFERENCE = 50.0  # chrF, where a case does not say: about the same sentence in other words


class BadCheck(Exception):
    """What is wrong with what the file says of a check, in one line."""


class CannotTell(Exception):
    """Whether a check holds is not known here, and why."""


@contextlib.contextmanager
def _in_time() -> Iterator[None]:
    """For what a golden file brings of regular expressions: there are some that search for years."""
    try:
        with bounded(SECONDS):
            yield
    except OutOfBounds:
        raise CannotTell(f"its regular expression takes over {SECONDS:.0f} seconds here") from None


class Check(Protocol):
    """One expectation of one case."""

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        """Of what the golden file says under the check's name.

        Raises:
            BadCheck: it makes no sense.
        """

    def fault(self, answer: Answer) -> str:
        """Why it does not hold, empty where it does.

        Raises:
            CannotTell: that is not known.
        """


@dataclass(frozen=True)
class Texts:
    """What is looked for: a text, or a list of them."""

    texts: tuple[str, ...]
    case_sensitive: bool

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        return cls(tuple(_texts(value)), case_sensitive)


class Exact(Texts):
    """The whole answer is one of these texts, but for white space around and between words."""

    def fault(self, answer: Answer) -> str:
        said = folded(answer.spoken, self.case_sensitive)
        if any(said == folded(text, self.case_sensitive) for text in self.texts):
            return ""
        return f"is not {_either(self.texts)}"


@dataclass(frozen=True)
class Contains:
    """All of these texts are in the answer; of a list within the list, one."""

    groups: tuple[tuple[str, ...], ...]
    case_sensitive: bool

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        given = [value] if isinstance(value, str) else value
        if not isinstance(given, list) or not given:
            raise BadCheck("expected a text or a list of texts")
        return cls(tuple(tuple(_texts(one)) for one in given), case_sensitive)

    def fault(self, answer: Answer) -> str:
        said = folded(answer.spoken, self.case_sensitive)
        missing = [
            _either(group)
            for group in self.groups
            if not any(folded(text, self.case_sensitive) in said for text in group)
        ]
        return f"lacks {', '.join(missing)}" if missing else ""


class NotContains(Texts):
    """None of these texts is in the answer."""

    def fault(self, answer: Answer) -> str:
        said = folded(answer.spoken, self.case_sensitive)
        there = [quoted(text) for text in self.texts if folded(text, self.case_sensitive) in said]
        return f"has {', '.join(there)}" if there else ""


@dataclass(frozen=True)
class Regex:
    """Each of these regular expressions is found in the answer (Python's `re.search`)."""

    patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        flags = re.NOFLAG if case_sensitive else re.IGNORECASE
        patterns = []
        for text in _texts(value):
            try:
                patterns.append(re.compile(text, flags))
            except (re.error, OverflowError, RecursionError) as error:
                raise BadCheck(f"{quoted(text)} is no regular expression: {error}") from None
        return cls(tuple(patterns))

    def fault(self, answer: Answer) -> str:
        said = unicodedata.normalize("NFC", answer.spoken)
        with _in_time():
            missing = [quoted(one.pattern) for one in self.patterns if not one.search(said)]
        return f"{', '.join(missing)} is not found" if missing else ""


# Words with which an assistant declines or says that it does not know, in small letters. What others cannot do is
# none of it, nor an apology: "I am sorry, you cannot pay by cheque" answers the question.
ITSELF = r"(?:\b(?<!if )(?:i|we)(?:'m|'re| am| are)? (?:\w+ )?|^|\bsorry,? (?:but )?)"
REFUSALS = re.compile(
    rf"{ITSELF}(?:can't|cannot|can not|won't) (?:\w+ly )?(?:help(?! but)|assist|answer|provide|share|tell|give|say|do"
    r"|discuss|comply|disclose|create|generate|write)\b"
    rf"|{ITSELF}(?:couldn't (?:say|tell)|(?:don't|do not) (?:know|answer)|not (?:able|allowed|permitted) to"
    r"|unable to)\b"
    r"|\bi (?:don't|do not) have\b|\b(?:we (?:don't|do not) have|have no) (?:\w+ )?(?:information|data)\b"
    r"|\bno information\b|\bnot (?:something (?:i|we) can|mine to)\b"
    r"|\bas an ai\b.*(?:n't|\bnot|\bcannot|\bunable)\b"
    r"|(?<!bạn )(?<!khách )(?<!hàng )\bkhông thể\b|\b(?:không|chưa) (?:có thông tin|biết|rõ)\b"
    r"|\bkhông (?:giúp|hỗ trợ|trả lời|cung cấp|làm) được\b"
    r"|(?:\b(?:ich|wir) (?:kann|können|darf|dürfen)|\b(?:kann|können|darf|dürfen) (?:ich|wir)|^kann)\b"
    r"[^,]*\bnichts?\b"
    r"|\b(?:ich weiß|weiß ich|wir wissen|wissen wir|^weiß)(?: \w+){0,2} nicht\b"
    r"|\b(?:ich habe|habe ich|wir haben|haben wir)\b[^,]*\bkeine (?:informationen|angaben|auskunft)\b"
    r"|\b(?:je|nous) ne (?:peux|pouvons|sais|savons)(?: \w+)? pas\b|\bje n'ai (?:pas|aucune)\b"
    r"|\bno (?:te |le |les |os )?(?:puedo|podemos)\b|\bno (?:lo )?sé\b"
)
# With an apology in the same sentence, whatever it is that cannot be done.
APOLOGY = re.compile(r"\b(?:sorry|apologi[sz]e|unfortunately|afraid)\b")
CANNOT = re.compile(r"\b(?:i|we)(?: \w+)? (?:can't|cannot|can not)\b")
# One of these is in each of them; most sentences have none, and are not searched.
DENIALS = ("n't", "not", "no ", "unable", "không", "chưa", "nicht", "keine", "pas", "aucune")
SENTENCE = re.compile(r"\S.*?(?:[.!?…](?=\s)|$)", re.MULTILINE)
REFUSED_WITHIN = 200  # characters
SHOWN = 80  # characters of a sentence


@dataclass(frozen=True)
class Refuses:
    """The answer declines or says that it does not know; with false, it does not."""

    wanted: bool

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        return cls(_yes_or_no(value))

    def fault(self, answer: Answer) -> str:
        found = refusal_in(answer.spoken)
        if bool(found) == self.wanted:
            return ""
        return f"refuses ({quoted(found)})" if found else "does not refuse"


@dataclass(frozen=True)
class JsonSchema:
    """The answer is JSON, in a code fence or not, that fits the schema."""

    validator: Any

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        if not isinstance(value, (dict, bool)):
            raise BadCheck("expected a JSON schema, an object")
        for reference in _references(value):
            if not str(reference).startswith("#"):
                raise BadCheck(
                    f"$ref {quoted(str(reference))} is in another document, and nothing is fetched"
                )
        try:
            import jsonschema
            from referencing import Registry
        except ImportError:
            raise _missing("json_schema", "jsonschema") from None
        kind = jsonschema.validators.validator_for(value, default=jsonschema.Draft202012Validator)
        try:
            kind.check_schema(value)
        except jsonschema.SchemaError as error:
            raise BadCheck(f"no JSON schema: {error.json_path}: {_cut(error.message)}") from None
        return cls(kind(value, registry=Registry()))

    def fault(self, answer: Answer) -> str:
        from referencing.exceptions import Unresolvable

        try:
            value = json_in(answer.spoken)
        except ValueError as error:
            return f"is not JSON ({error})"
        try:
            with _in_time():
                errors = sorted(self.validator.iter_errors(value), key=lambda error: error.json_path)
        except Unresolvable as error:
            raise UserError(
                f"json_schema: $ref {error.ref!r} leads nowhere in the schema; define it there"
            ) from None
        return "; ".join(f"{error.json_path}: {_cut(error.message)}" for error in errors[:3])


NUMBER = re.compile(r"(?:(?<![\w.,])[-−])?\d+(?:(?:[.,'’\u00a0\u202f]| (?=\d{3}(?!\d)))\d+)*")


@dataclass(frozen=True)
class Number:
    """A number in the answer is `value`, give or take `tolerance`.

    `320,000` and `320.000` are read both ways: a comma may be a decimal point or stand between thousands.
    """

    value: float
    tolerance: float

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        given = value if isinstance(value, dict) else {"value": value}
        _known_keys(given, ("value", "tolerance"), needed="value")
        number, tolerance = given["value"], given.get("tolerance", 0)
        for name, one in (("value", number), ("tolerance", tolerance)):
            if isinstance(one, bool) or not isinstance(one, (int, float)) or not math.isfinite(one):
                raise BadCheck(f"{name} is no number")
        if tolerance < 0:
            raise BadCheck("tolerance is below 0")
        return cls(float(number), float(tolerance))

    def fault(self, answer: Answer) -> str:
        rounding = 1e-9 * max(1.0, abs(self.value))
        if any(abs(one - self.value) <= self.tolerance + rounding for one in numbers_in(answer.spoken)):
            return ""
        about = f" ± {self.tolerance:g}" if self.tolerance else ""
        return f"has no number {self.value:,.10g}{about}"


@dataclass(frozen=True)
class Reference:
    """As much alike one of these texts as chrF says: 100 for the same, 0 for nothing in common."""

    texts: tuple[str, ...]
    chrf: float

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        given = value if isinstance(value, dict) else {"text": value}
        _known_keys(given, ("text", "chrf"), needed="text")
        least = given.get("chrf", REFERENCE)
        if isinstance(least, bool) or not isinstance(least, (int, float)) or not 0 < least <= 100:
            raise BadCheck("chrf is a number above 0 and up to 100")
        _chrf()
        return cls(tuple(_texts(given["text"])), float(least))

    def fault(self, answer: Answer) -> str:
        score = _chrf().sentence_score(answer.spoken, list(self.texts)).score
        return "" if score >= self.chrf else f"chrF {score:.0f} to the reference, below {self.chrf:g}"


@dataclass(frozen=True)
class MaxTokens:
    """The answer has no more tokens than this, its thinking among them."""

    most: int

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise BadCheck("expected a whole number above 0")
        return cls(value)

    def fault(self, answer: Answer) -> str:
        if answer.tokens is None:
            raise CannotTell("the server does not say how many tokens an answer has")
        if answer.tokens <= self.most:
            return ""
        return (
            f"has {amount(answer.tokens, 'token')}, {'' if answer.ended else 'at least, '}over {self.most:,}"
        )


@dataclass(frozen=True)
class Ends:
    """The answer ends by itself, before evaluation.max_new_tokens; with false, it does not."""

    wanted: bool

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        return cls(_yes_or_no(value))

    def fault(self, answer: Answer) -> str:
        if answer.ended is None:
            raise CannotTell("the server does not say whether an answer ended by itself")
        if answer.ended == self.wanted:
            return ""
        return "ends by itself" if answer.ended else "does not end by itself"


@dataclass(frozen=True)
class Language:
    """The answer is in this language (ISO 639-1: en, vi); one of fewer than 20 letters may be in any."""

    code: str

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        known = _languages()
        if value not in known:
            raise BadCheck(
                f"{_shown(value)} is no language code{did_you_mean(str(value), known)}; en, vi, de, …"
            )
        return cls(value)

    def fault(self, answer: Answer) -> str:
        import py3langid

        letters = sum(letter.isalpha() for letter in answer.spoken)
        if letters < SHORT:
            return "" if letters else "has no words"
        found = py3langid.classify(answer.spoken)[0]
        return "" if found == self.code else f"is in {found}, not in {self.code}"


@dataclass(frozen=True)
class Judge:
    """A model finds that the answer meets the rubric. It is asked elsewhere, see `judge`."""

    rubric: str

    @classmethod
    def read(cls, value: Any, case_sensitive: bool) -> Self:
        given = value if isinstance(value, dict) else {"rubric": value}
        _known_keys(given, ("rubric",), needed="rubric")
        (rubric,) = _texts([given["rubric"]])
        return cls(rubric)

    def fault(self, answer: Answer) -> str:
        raise CannotTell("evaluation.judge_url is not set")


CHECKS: dict[str, type[Check]] = {
    "exact": Exact, "contains": Contains, "not_contains": NotContains, "regex": Regex, "refuses": Refuses,
    "json_schema": JsonSchema, "number": Number, "reference": Reference, "max_tokens": MaxTokens, "ends": Ends,
    "language": Language, "judge": Judge,
}  # fmt: skip


def refusal_in(answer: str) -> str:
    """The first sentence with which an answer declines, cut short; empty where none does."""
    text = unicodedata.normalize("NFC", answer[: 2 * REFUSED_WITHIN]).replace("’", "'")
    for sentence in SENTENCE.finditer(text):
        if _declines(sentence[0][: max(REFUSED_WITHIN - sentence.start(), 0)].lower()):
            return _beginning(sentence[0])
    return ""


def _declines(said: str) -> bool:
    if not any(word in said for word in DENIALS):
        return False
    return bool(REFUSALS.search(said) or (APOLOGY.search(said) and CANNOT.search(said)))


def _beginning(sentence: str) -> str:
    """Its first words, and no number at the end: half a phone number would not be known as one."""
    if len(sentence) <= SHOWN:
        return sentence
    return re.sub(r"(?:\s+\S*\d\S*)*\s+\S*$", "…", sentence[: SHOWN - 1])


def folded(text: str, case_sensitive: bool = False) -> str:
    """`text` with its white space made one space each and, unless that counts, in small letters."""
    text = " ".join(unicodedata.normalize("NFC", text).replace("’", "'").split())
    return text if case_sensitive else unicodedata.normalize("NFC", text.casefold())


def json_in(text: str) -> Any:
    """The JSON that `text` is, or that its one code fence holds.

    Raises:
        ValueError: there is none.
    """
    fence = re.fullmatch(r"\s*```(?:json)?\s*\n(.*?)\n?\s*```\s*", text, re.DOTALL)
    try:
        return json.loads(fence[1] if fence else text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def numbers_in(text: str) -> Iterator[float]:
    """Every number of `text`, in every way that it may be read."""
    for match in NUMBER.finditer(text):
        sign = -1.0 if match[0][0] in "-−" else 1.0
        groups = re.findall(r"\d+", match[0])
        separators = re.findall(r"[^\d]", match[0].lstrip("-−"))
        readings = list(_readings(groups, separators))
        yield from (sign * float(reading) for reading in readings or groups)


def _readings(groups: Sequence[str], separators: Sequence[str]) -> Iterator[str]:
    """As thousands, and with a decimal point or comma before the last group."""
    thousands = all(len(group) == 3 for group in groups[1:]) and (len(groups) == 1 or len(groups[0]) <= 3)
    if thousands and len(set(separators)) <= 1:
        yield "".join(groups)
    *whole, fraction = groups
    between = set(separators[:-1])
    if (
        whole
        and separators[-1] in ".,"
        and separators[-1] not in between
        and len(between) <= 1
        and all(len(group) == 3 for group in whole[1:])
    ):
        yield f"{''.join(whole)}.{fraction}"


def quoted(text: str) -> str:
    return f"“{_cut(' '.join(text.split()), SHOWN)}”"


def _either(texts: Sequence[str]) -> str:
    return " or ".join(map(quoted, texts[:5]))


def _cut(text: str, most: int = 120) -> str:
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def _shown(value: Any) -> str:
    return _cut(json.dumps(value, ensure_ascii=False), 60)


def _texts(value: Any) -> list[str]:
    """A text as a list of one.

    Raises:
        BadCheck: it is no text with something in it, nor a list of such.
    """
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not given or not all(isinstance(one, str) for one in given):
        raise BadCheck("expected a text or a list of texts")
    if not all(one.strip() for one in given):
        raise BadCheck("an empty text, which every answer has")
    return given


def _yes_or_no(value: Any) -> bool:
    if not isinstance(value, bool):
        raise BadCheck(f"{_shown(value)}: expected true or false")
    return value


def _known_keys(given: Mapping[str, Any], known: Sequence[str], needed: str) -> None:
    for name in given:
        if name not in known:
            raise BadCheck(f"{name}: no such key{did_you_mean(name, known) or f'; it has {listed(known)}'}")
    if needed not in given:
        raise BadCheck(f"{needed} is missing")


def _references(schema: Any) -> Iterator[Any]:
    """Every `$ref` and `$dynamicRef` in it."""
    if isinstance(schema, dict):
        for name, value in schema.items():
            if name in ("$ref", "$dynamicRef") and isinstance(value, str):
                yield value
            yield from _references(value)
    if isinstance(schema, list):
        for value in schema:
            yield from _references(value)


@functools.cache
def _chrf() -> Any:
    try:
        from sacrebleu.metrics import CHRF
    except ImportError:
        raise _missing("reference", "sacrebleu") from None
    return CHRF()


@functools.cache
def _languages() -> tuple[str, ...]:
    try:
        import py3langid
    except ImportError:
        raise _missing("language", "py3langid") from None
    no_language = "zxx"  # ISO's code for what is in none
    return tuple(sorted({str(code) for code, _ in py3langid.rank("")} - {no_language}))


def _missing(check: str, package: str) -> UserError:
    return UserError(f"the check {check} needs {package}: {install('evaluation')}")
