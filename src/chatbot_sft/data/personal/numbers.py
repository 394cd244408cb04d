"""Payment cards, IBANs and national numbers: shapes whose check digits hold (python-stdnum)."""

from __future__ import annotations

import importlib
import re
import string
from collections.abc import Collection, Iterator
from typing import NamedTuple

from chatbot_sft.data.personal.context import an_amount, meant

Span = tuple[int, int]
# Digits and capitals in groups: what any of these numbers is inside of.
RUN = re.compile(r"[0-9A-Z](?:[ .\-/+\u00a0\u2011]?[0-9A-Z])+")
FEWEST = 6  # digits in a run
_SEPARATORS = re.compile(r"[ .\-/+\u00a0\u2011]")
# Neither the rest of a longer number nor the decimals of one.
_BEFORE, _AFTER = r"(?<![0-9])(?<![0-9][.,])", r"(?![0-9])(?!\.[0-9])"
_GAP = r"[ .\-\u00a0\u2011]"
# Lookaheads: one that fails must not hide another that begins inside of it.
_FOURS = rf"[0-9]{{4}}(?P<gap%s>{_GAP})[0-9]{{4}}(?P=gap%s)[0-9]{{4}}(?P=gap%s)[0-9]{{4}}"
CARD = re.compile(
    rf"{_BEFORE}(?="
    rf"(?P<nineteen>{_FOURS.replace('%s', '1')}(?P=gap1)[0-9]{{3}}){_AFTER}"
    rf"|(?P<sixteen>{_FOURS.replace('%s', '2')}){_AFTER}"
    rf"|(?P<other>[0-9]{{4}}(?P<gap3>{_GAP})[0-9]{{6}}(?P=gap3)[0-9]{{4,5}}){_AFTER}"
    rf"|(?P<bare>[0-9]{{13,19}}){_AFTER})"
)
# Brands by their first digits, with the lengths that their cards have.
BRANDS = (
    (re.compile(r"4"), (16,)),  # Visa
    (re.compile(r"5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720"), (16,)),  # Mastercard
    (re.compile(r"3[47]"), (15,)),  # American Express
    (re.compile(r"6011|64[4-9]|65"), (16, 19)),  # Discover
    (re.compile(r"352[89]|35[3-8]"), (16, 19)),  # JCB
    (re.compile(r"30[0-5]|36|3[89]"), (14,)),  # Diners Club
    (re.compile(r"62"), (16, 17, 18, 19)),  # UnionPay
)
RARE = ((re.compile(r"4"), (13, 19)), (re.compile(r"50|5[6-8]|6[0-9]"), (13, 14, 15, 16, 17, 18, 19)))
IBAN = re.compile(r"(?<![0-9A-Za-z])[A-Z]{2}[0-9]{2}(?:[ \-\u00a0]?[0-9A-Z]){11,30}(?![0-9A-Za-z])")
# In small letters: in one piece, or in fours.
SMALL_IBAN = re.compile(
    r"(?<![0-9A-Za-z])[a-z]{2}[0-9]{2}"
    r"(?:[0-9a-z]{11,30}|(?:[ \-\u00a0][0-9a-z]{4}){2,7}(?:[ \-\u00a0][0-9a-z]{1,3})?)(?![0-9A-Za-z])"
)


class National(NamedTuple):
    """A kind of national number. Where its `shape` is not of its own kind (`alone`), ordinary numbers pass its
    check digit too: it is looked for behind a word that says so, or where its country was asked for.
    """

    country: str
    module: str  # of stdnum; empty where there is no check
    shape: str
    alone: bool


# What was measured of random numbers of each shape stands in docs/data.md.
NATIONAL = (
    National("AU", "au.tfn", r"[0-9]{3} ?[0-9]{3} ?[0-9]{3}", False),
    National("BE", "be.nn", r"[0-9]{2}\.?[0-9]{2}\.?[0-9]{2}-?[0-9]{3}\.?[0-9]{2}", True),
    National("BR", "br.cpf", r"[0-9]{3}\.[0-9]{3}\.[0-9]{3}-[0-9]{2}", True),
    National("BR", "br.cpf", r"[0-9]{11}", False),
    National("CA", "ca.sin", r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{3}", False),
    National("CH", "ch.ssn", r"756\.?[0-9]{4}\.?[0-9]{4}\.?[0-9]{2}", True),
    National("CN", "cn.ric", r"[0-9]{17}[0-9X]", True),
    National("CZ", "cz.rc", r"[0-9]{6}/?[0-9]{3,4}", False),
    National("DE", "de.idnr", r"[0-9]{2} ?[0-9]{3} ?[0-9]{3} ?[0-9]{3}", False),
    National("DK", "dk.cpr", r"[0-9]{6}-?[0-9]{4}", False),
    National("ES", "es.dni", r"[0-9]{8}-?[A-Z]", True),
    National("ES", "es.nie", r"[XYZ]-?[0-9]{7}-?[A-Z]", True),
    National("FI", "fi.hetu", r"[0-9]{6}[-+A][0-9]{3}[0-9A-Y]", True),
    National("FR", "fr.nir", r"[12] ?[0-9]{2} ?[0-9]{2} ?[0-9][0-9AB] ?[0-9]{3} ?[0-9]{3} ?[0-9]{2}", True),
    National("GB", "gb.nhs", r"[0-9]{3}[ -]?[0-9]{3}[ -]?[0-9]{4}", False),
    # National insurance; it has no check digit.
    National(
        "GB",
        "",
        r"(?!BG|GB|NK|KN|TN|NT|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z](?: ?[0-9]{2}){3} ?[A-D]",
        False,
    ),
    National("ID", "id.nik", r"[0-9]{16}", False),
    National("IN", "in_.aadhaar", r"[0-9]{4} ?[0-9]{4} ?[0-9]{4}", False),
    National("IT", "it.codicefiscale", r"[A-Z]{6}[0-9]{2}[A-Z][0-9]{2}[A-Z][0-9]{3}[A-Z]", True),
    National("KR", "kr.rrn", r"[0-9]{6}-[0-9]{7}", True),
    National("MX", "mx.curp", r"[A-Z]{4}[0-9]{6}[HM][A-Z]{5}[0-9A-Z][0-9]", True),
    National("NL", "nl.bsn", r"[0-9]{9}|[0-9]{4}\.[0-9]{2}\.[0-9]{3}", False),
    National("NO", "no.fodselsnummer", r"[0-9]{6} ?[0-9]{5}", True),
    National("PL", "pl.pesel", r"[0-9]{11}", False),
    National("RO", "ro.cnp", r"[0-9]{13}", False),
    National("SE", "se.personnummer", r"(?:[0-9]{2})?[0-9]{6}[-+][0-9]{4}", True),
    National("TH", "th.pin", r"[0-9]-[0-9]{4}-[0-9]{5}-[0-9]{2}-[0-9]", True),
    National("TH", "th.pin", r"[0-9]{13}", False),
    National("TR", "tr.tckimlik", r"[0-9]{11}", False),
    National("US", "us.ssn", r"[0-9]{3}-[0-9]{2}-[0-9]{4}", True),
    # CCCD: province, century and sex, year of birth; it has no check digit.
    National("VN", "", r"0(?:[0-8][0-9]|9[0-6]) ?[0-3][0-9]{2} ?[0-9]{3} ?[0-9]{3}", False),
    National("ZA", "za.idnr", r"[0-9]{13}", False),
)
COUNTRIES = tuple(dict.fromkeys(one.country for one in NATIONAL))


def _compiled(shape: str) -> re.Pattern[str]:
    return re.compile(rf"{_BEFORE}(?<![A-Za-z])(?<![0-9]-)(?=({shape}){_AFTER}(?![A-Za-z])(?!-[0-9]))")


_SHAPES = tuple((one, _compiled(one.shape)) for one in NATIONAL)


def runs(text: str) -> Iterator[Span]:
    """Where `text` has digits and capitals enough for any of these numbers."""
    for run in RUN.finditer(text):
        if sum(map(str.isdigit, run.group())) >= FEWEST:
            yield run.span()


def cards(text: str, run: Span) -> Iterator[Span]:
    """Payment cards: a brand's first digits and length, and Luhn's check digit."""
    for match in CARD.finditer(text, run[0], run[1] + 2):
        begin, end = match.span(match.lastgroup or 0)
        groups = match.lastgroup != "bare"
        # Behind four groups of four may stand three digits of a card of 19, or those of its back.
        ends = [end, end - 4] if match.lastgroup == "nineteen" else [end]
        end = next((end for end in ends if _a_card(text, begin, end, groups)), 0)
        if end:
            yield begin, end


def _a_card(text: str, begin: int, end: int, groups: bool) -> bool:
    digits = _SEPARATORS.sub("", text[begin:end])
    word = None if groups else meant(text, begin)
    brands = (*BRANDS, *RARE) if word == "card" else BRANDS
    if word == "other" or not any(len(digits) in sizes and first.match(digits) for first, sizes in brands):
        return False
    from stdnum import luhn

    return luhn.is_valid(digits) and len(set(digits)) > 1


def ibans(text: str, run: Span) -> Iterator[Span]:
    """International bank account numbers: the structure of their country, and the check digits."""
    for match in IBAN.finditer(text, run[0], run[1] + 2):
        yield from _an_iban(text, *match.span())


def small_ibans(text: str) -> Iterator[Span]:
    """The same in small letters."""
    for match in SMALL_IBAN.finditer(text):
        yield from _an_iban(text, *match.span())


def _an_iban(text: str, begin: int, end: int) -> Iterator[Span]:
    """The longest that text[begin:end] begins with; words may stand behind it."""
    from stdnum import iban

    while end - begin >= 15:
        # Without the banks of a country: those that stdnum knows are not all.
        if iban.is_valid(_SEPARATORS.sub("", text[begin:end]).upper(), check_country=False):
            yield begin, end
            return
        end = begin + len(text[begin:end].rstrip(string.ascii_letters + string.digits).rstrip(" -\u00a0"))


def nationals(text: str, run: Span, countries: Collection[str] | None) -> list[Span]:
    """National numbers of `countries`; None: of all, where their shape or a word before them says what they are. The
    longest come first: one may end as another does.
    """
    found = []
    for national, shape in _SHAPES:
        if countries is not None and national.country not in countries:
            continue
        for match in shape.finditer(text, run[0], run[1] + 2):
            begin, end = match.span(1)
            word = meant(text, begin)
            if word == "other" or an_amount(text, begin, end):
                continue
            named = countries is not None and bool(national.module)
            if (national.alone or named or word == "id") and _checks(national.module, text[begin:end]):
                found.append((begin, end))
    return sorted(found, key=lambda span: span[0] - span[1])


def _checks(module: str, number: str) -> bool:
    if not module:
        return True
    try:
        return bool(importlib.import_module(f"stdnum.{module}").is_valid(number))
    except KeyError:  # stdnum 2.2 of a Chinese number whose region has no counties
        return False
