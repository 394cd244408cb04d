"""`python tests/errors/renew.py` writes docs/errors.md anew from the sources, and says which errors have not the form."""

from __future__ import annotations

import sys

from catalogue import faults, sites
from page import FILE, page

if __name__ == "__main__":
    found = sites()
    FILE.write_text(page(found), encoding="utf-8")
    bad = [
        f"{site.file}:{site.line}: {text}: {', '.join(wrong)}"
        for site in found
        for text in site.texts
        if (wrong := faults(text))
    ]
    sys.exit("\n".join(bad) or None)
