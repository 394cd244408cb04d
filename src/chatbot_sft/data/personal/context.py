"""What the words before a number say that it is, and characters beside it by which it is none of ours."""

from __future__ import annotations

import re

REACH = 40  # characters before a number in which a word tells what it is
# The last of these before a number decides. `other`: a number that belongs to a thing.
WORDS = {
    "card": (
        r"\bcard|\bvisa\b|mastercard|\bamex\b|credit|debit|\bthẻ\b|karte|\bcarte\b|tarjeta|cartão|carta di credito"
        r"|カード|카드"
    ),
    "phone": (
        r"phone|\btel\b|mobile|\bcell\b|\bcall|\bfax\b|whatsapp|zalo|viber|\bsms\b|text me|reach (?:me|us|him|her)"
        r"|điện thoại|\bđt\b|\bsđt\b|\bsdt\b|\bgọi\b|liên hệ|di động|số máy|liên lạc"
        r"|telefon|\bhandy|rufen|téléphone|portable|appelez|teléfono|móvil|celular|llám|telefone|\bligue|cellulare"
        r"|電話|携帯|전화|휴대폰|โทร"
    ),
    "id": (
        r"national (?:id|number|insurance)|identity|\bid (?:card|number|no)\b|social security|\bssn\b|tax id"
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
_WORD = re.compile("|".join(f"(?P<{name}>{words})" for name, words in WORDS.items()), re.IGNORECASE)
# An amount, a share or a measure ends so, an amount or the number of a ticket begins so.
_UNIT = re.compile(
    r"\s?(?:đ\b|₫|vnđ|vnd|đồng|usd|eur|€|\$|£|¥|%|円|원|kg|km|ml|mb|gb|tokens?\b)", re.IGNORECASE
)
_SIGN = re.compile(r"[$€£¥₫#]\s?$")


def meant(text: str, begin: int) -> str | None:
    """Which of `WORDS` stands nearest before `begin`, in the same line; None for none."""
    before = text[max(0, begin - REACH) : begin].rpartition("\n")[2]
    found = None
    for match in _WORD.finditer(before):
        found = match.lastgroup
    return found


def an_amount(text: str, begin: int, end: int) -> bool:
    """Whether a currency, a unit or # stands beside text[begin:end]."""
    return bool(_UNIT.match(text, end) or _SIGN.search(text[max(0, begin - 2) : begin]))
