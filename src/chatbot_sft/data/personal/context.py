"""What the words before a number say that it is, and characters beside it by which it is none of ours."""

from __future__ import annotations

import functools
import re

REACH = 40  # characters before a number in which a word tells what it is
# The last of these before a number decides. `other`: a number that belongs to a thing.
WORDS = {
    "card": (
        r"\bcard|\bvisa\b|mastercard|\bamex\b|credit|debit|\bthẻ\b|karte|\bcarte\b|tarjeta|cartão|carta di credito"
        r"|カード|카드"
    ),
    "phone": r"\btel\b|\bfax\b|whatsapp|viber|\bsms\b|portable",
    "phone_en": r"phone|mobile|\bcell\b|\bcall|text me|reach (?:me|us|him|her)",
    "phone_vi": r"điện thoại|\bđt\b|\bsđt\b|\bsdt\b|\bgọi\b|liên hệ|di động|số máy|liên lạc|zalo",
    "phone_de": r"telefon|\bhandy|\bruf\b|anrufen|mobilnummer",
    "phone_fr": r"\btél\b|téléphone|appelez|appelle",
    "phone_es": r"teléfono|móvil|celular|llám",
    "phone_pt": r"telefone|\bligue|telemóvel",
    "phone_it": r"cellulare|chiama",
    "phone_ja": r"電話|携帯",
    "phone_ko": r"전화|휴대폰",
    "phone_th": r"โทร",
    "id": (
        r"national (?:id|number|insurance)|\bnino\b|\bni (?:no|number)\b|identity|\bid (?:card|number|no)\b"
        r"|social security|\bssn\b|tax id"
        r"|tax number|\btin\b|\bsin\b|\bnhs\b|\btfn\b|passport|\bcccd\b|căn cước|\bcmnd\b|chứng minh|định danh"
        r"|\bpesel\b|\bbsn\b|burgerservicenummer|\bcpf\b|steuer-?id|identifikationsnummer|aadhaar|kimlik|\btckn\b"
        r"|\bnik\b|\bktp\b|rodné|\bcnp\b|id-?nummer|personal (?:id|code|number)|\bcpr\b"
        r"|เลขประจำตัวประชาชน|身份证|주민등록"
    ),
    "other": (
        r"\border|invoice|tracking|serial|\bbatch|ticket|receipt|parcel|shipment|\bref(?:erence)?\b|\bisbn|\bissn"
        r"|\bean\b|\bupc\b|\bsku\b|\bimei\b|barcode|version|\bmodel|part (?:no|number)|article|timestamp|commit"
        r"|\bbuild|account|đơn hàng|hóa đơn|hoá đơn|\bmã\b|vận đơn|số lô|sê-?ri|số khung|tài khoản|bestell|rechnung"
        r"|commande|facture|pedido|factura|注文|주문"
    ),
}
# Where the language of the word is spoken.
REGIONS = {
    "phone": ("US", "GB", "VN", "DE", "FR"),
    "phone_en": ("US", "GB", "AU", "IN", "IE", "NZ", "ZA", "SG"),
    "phone_vi": ("VN",),
    "phone_de": ("DE", "AT", "CH"),
    "phone_fr": ("FR", "BE", "CH"),
    "phone_es": ("ES", "MX", "AR", "CO", "CL", "PE"),
    "phone_pt": ("BR", "PT"),
    "phone_it": ("IT",),
    "phone_ja": ("JP",),
    "phone_ko": ("KR",),
    "phone_th": ("TH",),
}
_WORD = re.compile("|".join(f"(?P<{name}>{words})" for name, words in WORDS.items()), re.IGNORECASE)
# An amount, a share or a measure ends so, an amount or the number of a ticket begins so.
_UNIT = re.compile(
    r"\s?(?:đ\b|₫|vnđ|vnd|đồng|usd|eur|€|\$|£|¥|%|円|원|kg|km|ml|mb|gb|tokens?\b)", re.IGNORECASE
)
_SIGN = re.compile(r"[$€£¥₫#]\s?$")


def meant(text: str, begin: int) -> str | None:
    """Which of `WORDS` stands nearest before `begin`, in the same line; None for none."""
    return _last(text[max(0, begin - REACH) : begin].rpartition("\n")[2])


@functools.lru_cache(4096)
def _last(before: str) -> str | None:
    """The last of `WORDS`; each place is asked for every kind of number."""
    found = None
    for match in _WORD.finditer(before):
        found = match.lastgroup
    return found


def an_amount(text: str, begin: int, end: int) -> bool:
    """Whether a currency, a unit or # stands beside text[begin:end]."""
    return bool(_UNIT.match(text, end) or _SIGN.search(text[max(0, begin - 2) : begin]))
