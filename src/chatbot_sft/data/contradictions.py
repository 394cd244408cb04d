"""Answers to the same question, after the same messages, that say different things. The same is what differs in
articles, in English plurals and in forms of be and do: how much is a croissant, how much are croissants.

Most questions with several answers have no wrong one: greetings, stories, the same fact in other words. So two
answers contradict each other only where they are otherwise alike and each has a number, a name or a day that
the other lacks, where one says yes and one no, or where only one of them denies. Where each has one number, of the
same thing, they are alike by their words without endings too.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass

from chatbot_sft.data.messages import Message
from chatbot_sft.data.plain import spoken
from chatbot_sft.data.shingles import digest, normalised

ALIKE = 0.5  # of the words of the shorter of two short answers, which stand in the other too
LONG = 40  # words; longer answers have to have that in common of all their words
DENIED = 0.7  # the same where the difference is a denial alone
NAMES = 3  # so many may differ; where more do, it is another answer
VARIANTS = 8  # of one question's answers, that each other one is compared with

TIME = re.compile(r"\b(\d{1,2})(?:[:.h](\d\d))?\s*(?:([ap])\.?m\b\.?)", re.IGNORECASE)
NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
NAME = re.compile(r"(?<![.!?:\n•*\-\"“(] )(?<!^)\b[^\W\d_a-z]\w+")  # but for those that begin with ê or đ
WORD = re.compile(r"[^\W\d_]+(?:['’]t)?")
# "one" is a pronoun too.
SPELT = {
    "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7", "eight": "8", "nine": "9",
    "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
MEASURED = re.compile(rf"(?:{NUMBER.pattern}|\b(?:{'|'.join(SPELT)})\b)\s*([^\W\d_]+)")
PLURAL = re.compile(r"(?:(?<=ch|sh|ss)es|(?<=[xz])es|(?<=\w\w[^\Wsiu])s)$")
FORMS = {"a": "", "an": "", "the": "", "please": "", "are": "is", "s": "is", "does": "do"}
DAYS = re.compile(
    r"\b(?:mon|tues|wednes|thurs|fri|satur|sun)days?\b"
    r"|\b(?:january|february|april|june|july|august|september|october|november|december)\b"
    r"|\bthứ (?:hai|ba|tư|năm|sáu|bảy)\b|\bchủ nhật\b"
)
YES = re.compile(
    r"\W*(?:yes|yeah|yep|sure|of course|certainly|correct|true|có|vâng|đúng|dạ có|được|ja|oui|sí)\b"
)
NO = re.compile(r"\W*(?:no|nope|false|incorrect|wrong|không|dạ không|chưa|sai|nein|non)\b")
DENIAL = re.compile(
    r"\b(?:not|no|never|none|cannot|\w+n['’]t|không|chưa|chẳng|nicht|kein\w*|nie|ne|pas|jamais)\b"
)


@dataclass(frozen=True)
class Contradiction:
    """What the row `one` says and the row `other` has instead."""

    one: int
    other: int
    says: str
    instead: str


class Answers:
    """Collects what is answered to what; keeps two numbers an answer."""

    def __init__(self) -> None:
        self._asked, self._said, self._rows = array("q"), array("q"), array("q")

    def see(self, row: int, messages: Sequence[Message]) -> None:
        """Take note of every answer of a row."""
        for asked, said in _exchanges(messages):
            self._asked.append(asked)
            self._said.append(digest(normalised(said)))
            self._rows.append(row)

    def contradictions(self, read: Callable[[int], Sequence[Message]]) -> list[Contradiction]:
        """Those among all that was seen, in the order of the later row."""
        import numpy as np

        if not self._asked:
            return []
        asked, said, rows = (np.frombuffer(one, np.int64) for one in (self._asked, self._said, self._rows))
        # The first row of each question and answer, then the questions with several.
        _, first = np.unique(np.stack([asked, said], 1), axis=0, return_index=True)
        first = np.sort(first)
        _, which, counts = np.unique(asked[first], return_inverse=True, return_counts=True)
        several = first[counts[which] > 1]
        variants: dict[int, list[tuple[int, Facts]]] = {}
        found = []
        for place in several.tolist():
            facts = _facts_of(read(int(rows[place])), int(asked[place]), int(said[place]))
            before = variants.setdefault(int(asked[place]), [])
            for row, other in before:
                if row != rows[place] and (differing := facts.against(other)):
                    found.append(Contradiction(int(rows[place]), row, *differing))
                    break
            if len(before) < VARIANTS:
                before.append((int(rows[place]), facts))
        return found


def _exchanges(messages: Sequence[Message]) -> Iterator[tuple[int, str]]:
    """(what was said before, as a number, the answer) of each answer of a row."""
    before = hashlib.blake2b(digest_size=8)
    for message in messages:
        text = spoken(message)
        if message["role"] == "assistant" and text:
            yield int.from_bytes(before.digest(), "little") >> 1, text
        plain = normalised(text)
        same = " ".join(_stems(plain.split())) or plain
        before.update(f"{message['role']}\0{same}\0".encode("utf-8", "surrogatepass"))


def _facts_of(messages: Sequence[Message], asked: int, said: int) -> Facts:
    answers = (text for before, text in _exchanges(messages) if before == asked)
    return Facts.of(next(text for text in answers if digest(normalised(text)) == said))


@dataclass(frozen=True)
class Facts:
    """What of an answer may contradict another."""

    numbers: dict[str, str]  # as they are compared → as they stand there
    names: dict[str, str]
    words: frozenset[str]
    stems: frozenset[str]
    measured: str | None  # what the first number is of: euro, in 2.40 euros
    length: int
    agrees: bool | None  # yes, no, or neither
    denies: bool

    @classmethod
    def of(cls, answer: str) -> Facts:
        text = unicodedata.normalize("NFC", answer)
        small = text.casefold()
        words = WORD.findall(small)
        names = {match[0].casefold(): match[0] for match in NAME.finditer(text) if match[0][0].isupper()}
        days = {match[0].removesuffix("s"): match[0] for match in DAYS.finditer(small)}
        names = {
            name: shown for name, shown in names.items() if not DAYS.fullmatch(name) and name not in SPELT
        }
        plain = frozenset(words) - names.keys() - days.keys()
        measured = MEASURED.search(small)
        yes, no = YES.match(small), NO.match(small)
        return cls(
            _numbers(small),
            names | days,
            plain,
            frozenset(_stems(plain)),
            next(iter(_stems([measured[1]])), None) if measured else None,
            len(words),
            None if not (yes or no) else bool(yes),
            bool(DENIAL.search(small)),
        )

    def against(self, other: Facts) -> tuple[str, str] | None:
        """(what it says, what the other has instead) where they contradict each other."""
        alike = self._alike(other, self.words, other.words)
        if None not in (self.agrees, other.agrees) and self.agrees != other.agrees:
            return ("yes", "no") if self.agrees else ("no", "yes")
        if alike < ALIKE:
            return self._figure_against(other)
        for mine, theirs in ((self.numbers, other.numbers), (self.names, other.names)):
            only, instead = (
                [one[key] for key in one if key not in two] for one, two in ((mine, theirs), (theirs, mine))
            )
            if only and instead and (mine is self.numbers or max(len(only), len(instead)) <= NAMES):
                return ", ".join(only[:NAMES]), ", ".join(instead[:NAMES])
        if self.denies != other.denies and alike >= DENIED and self.numbers.keys() == other.numbers.keys():
            return ("a denial", "none") if self.denies else ("no denial", "one")
        return None

    def _figure_against(self, other: Facts) -> tuple[str, str] | None:
        """The same of two answers with one number each: a croissant costs 2.60, croissants are 2.40 euros each."""
        if len(self.numbers) != 1 or len(other.numbers) != 1 or self.numbers.keys() == other.numbers.keys():
            return None
        if None not in (self.measured, other.measured) and self.measured != other.measured:
            return None
        if self._alike(other, self.stems, other.stems) < ALIKE:
            return None
        return next(iter(self.numbers.values())), next(iter(other.numbers.values()))

    def _alike(self, other: Facts, mine: Set[str], theirs: Set[str]) -> float:
        """The share of the words in common: of the shorter answer's, of all where one is long."""
        both = len(mine & theirs)
        if max(self.length, other.length) > LONG:
            return both / max(len(mine | theirs), 1)
        return both / max(min(len(mine), len(theirs)), 1)


def _stems(words: Iterable[str]) -> list[str]:
    """The words without articles, in one form each of be, do and English plurals."""
    return [stem for word in words if (stem := FORMS.get(word, PLURAL.sub("", word)))]


def _numbers(text: str) -> dict[str, str]:
    """Numbers and times of day: 9 pm and 21:00 are the same, and so are 14,000 and 14.000."""
    found = {}

    def of_the_day(match: re.Match[str]) -> str:
        hour = int(match[1]) % 12 + (12 if match[3] == "p" else 0)
        found[f"{hour}{match[2] if match[2] not in (None, '00') else ''}"] = match[0].strip(" .")
        return " "

    rest = TIME.sub(of_the_day, text)
    for match in NUMBER.finditer(rest):
        plain = re.sub(r":00$|[.,]0+$", "", match[0]) if len(match[0]) <= 5 else match[0]
        found[re.sub(r"\D", "", plain).lstrip("0") or "0"] = match[0]
    found |= {SPELT[word]: word for word in WORD.findall(rest) if word in SPELT}
    return found
