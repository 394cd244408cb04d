"""`python tests/golden/renew.py` writes golden.json anew, on purpose: see CONTRIBUTING.md. It prints what has
changed.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from compare import ENGINES, FILE, differences, golden, machine, measured


def main() -> None:
    before = golden() if FILE.exists() else {}
    after: dict[str, Any] = {"machine": machine()}
    for engine in ENGINES:
        with tempfile.TemporaryDirectory() as folder:
            after[engine] = measured(engine, Path(folder))
        for line in differences(before.get(engine, {}), after[engine], exact=True):
            print(engine, line)
    FILE.write_text(as_text(after), encoding="utf-8")


def as_text(record: dict[str, Any]) -> str:
    """JSON with a line for each curve."""
    return (
        re.sub(r"\[[^\[\]]*\]", lambda found: " ".join(found[0].split()), json.dumps(record, indent=1)) + "\n"
    )


if __name__ == "__main__":
    main()
