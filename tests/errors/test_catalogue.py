"""Every error has one form, and is on docs/errors.md: read from the sources."""

from __future__ import annotations

import functools

import pytest
from catalogue import faults, sites
from page import FILE, page, parted

from chatbot_sft.errors import UserError

found = functools.cache(sites)


def test_every_error_has_the_form():
    bad = [
        f"{site.file}:{site.line}: {text}: {', '.join(wrong)}"
        for site in found()
        for text in site.texts
        if (wrong := faults(text))
    ]
    assert not bad, "\n".join(bad)


def test_every_place_that_raises_is_read():
    """A text that the reader cannot follow would be held to nothing."""
    unread = [f"{site.file}:{site.line}" for site in found() if not site.texts]
    assert not unread, unread
    texts = [text for site in found() for text in site.texts]
    assert len(found()) > 450 and len(texts) > 750
    assert sum(text == "…" for text in texts) <= 8  # what is handed on whole


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("something went wrong", "says not where"),
        ("my.json: it is odd", "says not what to do"),
        ("lora.r=0: too small; set it above 0.", "ends with a full stop"),
        ("lora.r=x: int is not a ListConfig; write a list", "speaks of ListConfig"),
    ],
)
def test_what_has_not_the_form_is_told(text, wrong):
    assert any(fault.startswith(wrong) for fault in faults(text))


def test_the_page_is_the_sources():
    assert FILE.read_text(encoding="utf-8") == page(found()), "python tests/errors/renew.py"


def test_advice_stands_behind_the_semicolon():
    assert parted("a.json: row 7 (5; 6) is bad; mend it; or not") == (
        "a.json: row 7 (5; 6) is bad",
        "mend it; or not",
    )


def test_an_error_is_one_line():
    assert str(UserError("a\nb\r\nc")) == "a b c"
