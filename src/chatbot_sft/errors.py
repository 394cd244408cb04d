"""The one exception that means "the user can mend this", and the words its messages share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from yaml import MarkedYAMLError, YAMLError

SHOW_TRACEBACK = "CHATBOT_SFT_TRACEBACK"  # a variable that `cli.main` sets for HYDRA_FULL_ERROR=1


class UserError(Exception):
    """What is wrong, where (file, row or key) and what to do, in one line. Shown without a traceback."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


SHORT, ALL = 10, 60  # a list is read to its end; a list is looked through for a word


def refuse_with(setting: str, *others: tuple[bool, str]) -> None:
    """Raises UserError for the first of `others`, (whether it is so here, why it does not go), that is so."""
    for wrong, why in others:
        if wrong:
            raise UserError(f"{setting}: {why}")


def listed(names: Iterable[object], most: int = 10) -> str:
    """Names for an error of one line: the first `most` of them, long ones cut, and how many more there are."""
    given = [str(name) for name in names]
    shown = [name if len(name) <= 60 else f"{name[:59]}…" for name in given[:most]]
    return ", ".join(shown) + (f" and {len(given) - most:,} more" if len(given) > most else "")


def not_one_of(word: object, known: Sequence[object], meant: str | None = None) -> str:
    """``"not one of a, b, c; did you mean b?"``: of many, what `word` may have meant, and all where that is nothing.

    `meant` is what it certainly means.
    """
    names = [str(name) for name in known]
    hint = question([meant]) if meant else did_you_mean(str(word), names)
    if hint and len(names) > SHORT:
        return f"not one of {len(names)} that there are{hint}"
    return f"not one of {listed(names, most=ALL)}{hint}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean X?"`` for those of `known` that `word` may have meant; empty where none is near."""
    return question(near(word, list(known)))


def beside(path: Path) -> list[str]:
    """The names in the folder where `path` should be."""
    return [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []


def question(names: Sequence[str]) -> str:
    """``"; did you mean X?"``, ``"; did you mean X, Y or Z?"``, nothing for no name."""
    if not names:
        return ""
    *others, last = names
    return f"; did you mean {', '.join(others)} or {last}?" if others else f"; did you mean {last}?"


def near(word: str, known: Sequence[str]) -> list[str]:
    """Those of `known` that `word` may have meant: spelled like it, or up to three that hold its words."""
    return misspelled(word, known) or _with_words(word, known)


def misspelled(word: str, known: Sequence[str]) -> list[str]:
    """The one of `known` that is spelled like `word`: but for case and separators, or with three quarters of
    its letters in order.
    """
    squashed = squash(word)
    same = [name for name in known if squash(name) == squashed]
    if squashed and same:
        return same[:1]
    by_letters = {name.lower(): name for name in reversed(known)}
    turned = [name for name in by_letters if _two_letters_turned(word.lower(), name)]
    if turned:
        return [by_letters[turned[0]]]
    close = difflib.get_close_matches(word.lower(), by_letters, n=1, cutoff=0.75)
    return [by_letters[name] for name in close]


def _two_letters_turned(word: str, name: str) -> bool:
    """`dri` and `dir`, which are too short to be told by their letters in order."""
    differ = [place for place, (one, other) in enumerate(zip(word, name, strict=False)) if one != other]
    return (
        len(word) == len(name) >= 3
        and len(differ) == 2
        and differ[1] == differ[0] + 1
        and word[differ[0]] + word[differ[1]] == name[differ[1]] + name[differ[0]]
    )


def squash(word: str) -> str:
    """`learning-rate`, `Learning_Rate` and `learningRate` are one word."""
    return re.sub(r"[\W_]", "", word).lower()


def _with_words(word: str, known: Sequence[str]) -> list[str]:
    """`lion` in lion_8bit, `llama` in llama3b: half of the name or more, or its beginning; none above three."""
    words = re.findall(r"[^\W_]+", word.lower())
    matching = []
    for name in known:
        parts = re.findall(r"[^\W_]+", name.lower())
        begins = len(word) >= 4 and name.lower().startswith(word.lower())
        if words and (begins or (set(words) <= set(parts) and 2 * len(words) >= len(parts))):
            matching.append(name)
    return matching if len(matching) <= 3 else []


def reason(error: BaseException, most: int = 300) -> str:
    """What a library says of a failure, as a part of a line of ours: without line breaks and the full stop, cut."""
    return " ".join(str(error).split())[:most].removesuffix(".")


def from_here(place: Path) -> str:
    """What to look at where a file or folder that a person named is not there."""
    return "; is it spelled so?" + ("" if place.is_absolute() else f" a relative path begins in {Path.cwd()}")


def not_yaml(error: YAMLError) -> str:
    """Where a file is not YAML, and why: `mine/my_run.yaml, line 3: a tab; YAML takes spaces alone …`."""
    if not isinstance(error, MarkedYAMLError) or error.problem_mark is None:
        return f"{reason(error)}; save the file as plain UTF-8 text"
    mark, problem = error.problem_mark, error.problem or ""
    where = f"{mark.name}, line {mark.line + 1}"
    if "'\\t'" in problem:
        return f"{where}: a tab; YAML takes spaces alone at the beginning of a line"
    if problem.startswith("expected ',' or") and (opened := error.context_mark):
        return (
            f"{mark.name}, line {opened.line + 1}, column {opened.column + 1}: a bracket that is not closed;"
            f" line {mark.line + 1} does not go on with it"
        )
    if problem.startswith("found duplicate key"):
        key = problem.removeprefix("found duplicate key ")
        return f"{where}: {key} is there twice; keep one of them"
    if problem == "mapping values are not allowed here":
        return (
            f"{where}, column {mark.column + 1}: a second colon; a text that holds `: ` stands in quotes, and"
            " what is nested on a line of its own"
        )
    return f"{where}, column {mark.column + 1}: {problem}; put text with signs in it in quotes"


def is_write_error(error: Exception) -> bool:
    """An OSError, or what safetensors, tokenizers and torch.save raise for the same thing."""
    text = str(error).lower()
    return (
        isinstance(error, OSError)
        or "os error " in text
        or "pytorchstreamwriter" in text
        or "inline_container" in text
    )
