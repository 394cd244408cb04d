"""A hook of mkdocs: pages that stand elsewhere in the repository, because its readers look for them there, and the
links between them and docs/.

A link leads where it leads in the repository; here it is turned to where that page is on the site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "measurements.md": "benchmarks/README.md",
    "example-data.md": "data/README.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "changelog.md": "CHANGELOG.md",
}
ON_SITE = {"README.md": "index.md", **{source: page for page, source in ELSEWHERE.items()}}
CODE = re.compile(r"`[^`]*`")
LINK = re.compile(r"\[([^\]]*)\]\((?!https?:|#|mailto:)([^)#\s]*)([^)\s]*)\)")


def on_config(config: Any) -> None:
    """A page of `nav` that this checkout does not have is left out of it."""
    config.nav = [present(entry) for entry in config.nav if present(entry)]


def present(entry: Any) -> Any:
    """A page, `{title: page}` or `{title: [entries]}` of the navigation without what is not there; else None."""
    if isinstance(entry, str):
        return entry if (REPO / ELSEWHERE.get(entry, f"docs/{entry}")).exists() else None
    ((title, inside),) = entry.items()
    kept = [one for one in map(present, inside) if one] if isinstance(inside, list) else present(inside)
    return {title: kept} if kept else None


def on_files(files: Files, config: Any) -> Files:
    for page, source in ELSEWHERE.items():
        if (REPO / source).exists():
            files.append(File.generated(config, page, abs_src_path=str(REPO / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Links as the site has them; and in code of a table a plain |, which GitHub wants escaped."""
    source = REPO / ELSEWHERE.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def turned(match: re.Match[str]) -> str:
        text, written, anchor = match.groups()
        target = os.path.relpath(source.parent / written, REPO)
        place = ON_SITE.get(target, os.path.relpath(target, "docs"))
        if place.startswith("..") and (REPO / target).exists():
            return text  # a file of the checkout, such as the Dockerfile
        return f"[{text}]({os.path.relpath(place, Path(page.file.src_uri).parent)}{anchor})"

    lines = LINK.sub(turned, markdown).split("\n")
    return "\n".join(CODE.sub(unescaped, line) if line.startswith("|") else line for line in lines)


def unescaped(code: re.Match[str]) -> str:
    return code[0].replace("\\|", "|")
