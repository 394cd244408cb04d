"""Phone numbers that exist by the plan of their country (phonenumbers): in international form, and in the form
of the countries that were named or that the writing shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from chatbot_sft.data.personal.context import REGIONS, an_amount, meant

Span = tuple[int, int]
_GAP = r"[ .\-/()\u00a0\u2009\u202f\u2010\u2011\u2013]"
INTERNATIONAL = re.compile(rf"\+ ?\(?[1-9](?:{_GAP}{{0,3}}[0-9]){{6,14}}(?![0-9])")
NATIONAL = re.compile(
    rf"(?<![0-9A-Za-z_+])(?<![0-9][.,:])\(?[0-9](?:{_GAP}{{0,2}}[0-9]){{6,24}}(?![0-9A-Za-z_])(?![.,:][0-9])"
)
_BETWEEN = " .-/()\u00a0\u2009\u202f\u2010\u2011\u2013"
GROUP = re.compile(r"\(?[0-9]+\)?")
# A region's own form, where a text is written so that nobody else's is meant.
WRITTEN = (
    (re.compile("[ăđơưĂĐƠƯạảấầẩẫậắằẳẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹ]"), "VN"),
    (re.compile("[\u3040-\u30ff]"), "JP"),
    (re.compile("[\uac00-\ud7a3]"), "KR"),
    (re.compile("[\u0e00-\u0e7f]"), "TH"),
)


class Mobile(NamedTuple):
    """Mobile phones of a region that shares its letters with others: found where the text around speaks of it, by
    so many of these `words`, each another one.
    """

    region: str
    shape: re.Pattern[str]
    words: re.Pattern[str]
    enough: int


def _alone(shape: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w+.,:/-]){shape}(?!\w)(?![.,:/-][0-9])")


MOBILES = (
    Mobile(
        "GB",
        _alone(r"07[0-9](?:[ \-]?[0-9]){8}"),
        re.compile(
            r"\bUK\b|\bU\.K\.|\bEngland\b|\bScotland\b|\bBritain\b|\bBritish\b|\bLondon\b|£"
            r"|\b[A-Z]{1,2}[0-9][A-Z0-9]? [0-9][A-Z]{2}\b"  # a postcode
        ),
        1,
    ),
    Mobile(
        "DE",
        _alone(r"01[567][0-9](?:[ \-/]{0,3}[0-9]){7,8}"),
        re.compile(
            r"\b(?:ich|und|nicht|bitte|meine[rmn]?|mich|mir|ist|wir|auf|haben|deutschland|nummer|erreichen|unter)\b"
            r"|ß",
            re.IGNORECASE,
        ),
        2,
    ),
)
NORTH_AMERICAN = re.compile(
    r"(?<![0-9A-Za-z_+.-])(?:1[ .-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[-. ])[2-9][0-9]{2}[-. ][0-9]{4}"
    r"(?![0-9A-Za-z_])(?![.-][0-9])"
)
# Dates and addresses of the Internet: digits in groups, as phone numbers are.
_DAY, _MONTH, _YEAR = r"(?:0?[1-9]|[12][0-9]|3[01])", r"(?:0?[1-9]|1[0-2])", r"(?:19|20)[0-9]{2}"
NO_PHONE = re.compile(
    rf"(?<![0-9])(?:{_YEAR}(?P<a>[-./]){_MONTH}(?P=a){_DAY}|{_DAY}(?P<b>[-./]){_MONTH}(?P=b){_YEAR}"
    rf"|{_YEAR} ?[-–] ?{_YEAR})(?![0-9])"
    r"|(?<![0-9.])[0-9]{1,3}(?:\.[0-9]{1,3}){3}(?![0-9.])"
)
_THOUSANDS = re.compile(r"[1-9][0-9]{0,2}(?P<gap>[ .\u00a0\u202f])[0-9]{3}(?:(?P=gap)[0-9]{3})*")


def phones(text: str, written: str, regions: Sequence[str] | None) -> Iterator[Span]:
    """Those of a person: not the free and the charged numbers that companies have.

    `regions` are those whose national form is found too. None: of the country that the writing of `written` shows, of
    those where a word for phones before the number is spoken, and North America's in its usual groups.
    """
    if "+" in text:
        for match in INTERNATIONAL.finditer(text):
            if span := _international(text, *match.span()):
                yield span
    told: tuple[str, ...] = ()
    if regions is None:
        told = tuple(region for shown, region in WRITTEN if shown.search(written))[:1]
        yield from _mobiles(text, written)
        for match in NORTH_AMERICAN.finditer(text):
            sure = not an_amount(text, *match.span()) and meant(text, match.start()) != "other"
            if sure and _belongs(match.group(), "US"):
                yield match.span()
    blank = NO_PHONE.sub(lambda found: "x" * len(found.group()), text)
    for match in NATIONAL.finditer(blank):
        yield from _national(text, *match.span(), regions, told)


def _mobiles(text: str, written: str) -> Iterator[Span]:
    """Mobile phones of the country that what is `written` around them speaks of."""
    for mobile in MOBILES:
        found = [match.span() for match in mobile.shape.finditer(text)]
        if not found or len({word.casefold() for word in mobile.words.findall(written)}) < mobile.enough:
            continue
        for begin, end in found:
            sure = meant(text, begin) != "other" and not an_amount(text, begin, end)
            if sure and _belongs(text[begin:end], mobile.region):
                yield begin, end


def _international(text: str, begin: int, end: int) -> Span | None:
    """The longest number that text[begin:end] begins with; else the longest that is as long as those of its country:
    plans change.
    """
    if meant(text, begin) == "other":
        return None
    ends = [end]
    while shorter := text[begin : ends[-1]].rstrip("0123456789").rstrip(_BETWEEN).lstrip("+"):
        ends.append(begin + 1 + len(shorter))
    ends = [end for end in ends if not an_amount(text, begin, end)]
    for exists in (_belongs, _is_possible):
        found = next((end for end in ends if exists(text[begin:end], None)), None)
        if found:
            return begin, found
    return None


def _national(
    text: str, begin: int, end: int, regions: Sequence[str] | None, told: Sequence[str]
) -> Iterator[Span]:
    """The numbers in text[begin:end], which may hold others before and behind them."""
    groups = [group.span() for group in GROUP.finditer(text, begin, end)]
    first = 0
    while first < len(groups):
        word = meant(text, groups[first][0])
        here = regions if regions is not None else (*told, *REGIONS.get(word or "", ()))
        ends = range(len(groups), first, -1)
        last = next((last for last in ends if _is_number(text, groups[first:last], word, here)), None)
        if last is None:
            first += 1
            continue
        yield groups[first][0], groups[last - 1][1]
        first = last


def _is_number(text: str, groups: Sequence[Span], word: str | None, regions: Sequence[str]) -> bool:
    begin, end = groups[0][0], groups[-1][1]
    number = text[begin:end]
    if word == "other" or not 8 <= sum(map(str.isdigit, number)) <= 14 or an_amount(text, begin, end):
        return False
    return any(
        _formatted(number, len(groups), region, word in REGIONS) and _belongs(number, region)
        for region in regions
    )


def _formatted(number: str, groups: int, region: str, behind_a_word: bool) -> bool:
    """Whether it is written as phone numbers are: with the 0 before the area or, where there is none, in groups or
    behind a word for phones.
    """
    import phonenumbers

    if phonenumbers.ndd_prefix_for_region(region, True) == "0":
        return number.lstrip("(").startswith("0")
    return behind_a_word or (groups > 1 and not _THOUSANDS.fullmatch(number))


def _belongs(number: str, region: str | None) -> bool:
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    kinds = phonenumbers.PhoneNumberType
    companies = (kinds.TOLL_FREE, kinds.PREMIUM_RATE, kinds.SHARED_COST, kinds.UAN)
    return phonenumbers.is_valid_number(parsed) and phonenumbers.number_type(parsed) not in companies


def _is_possible(number: str, region: str | None) -> bool:
    """Whether it is as long as the numbers of its country, with ten digits at least, and is none of a company's."""
    import phonenumbers

    if sum(map(str.isdigit, number)) < 10:
        return False
    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    reason = phonenumbers.is_possible_number_with_reason(parsed)
    return reason == phonenumbers.ValidationResult.IS_POSSIBLE and not phonenumbers.is_valid_number(parsed)
