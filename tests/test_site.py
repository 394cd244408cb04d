"""docs/ as a site: built strictly, every page in the navigation, opened without fetching anything from anywhere."""

import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest
from conftest import REPO
from filelock import FileLock

pytestmark = pytest.mark.slow  # mkdocs and a browser
BESIDE = Path(sys.prefix, "site")  # where `make setup` puts mkdocs
PAGES = sorted(page.stem for page in (REPO / "docs").glob("*.md"))


@pytest.fixture(scope="module")
def site(cache):
    """The folder of the built site, which the workers share. `--strict`: a broken link or anchor, or a page out of the
    navigation, is an error; with `--quiet` it would not be counted.
    """
    if not BESIDE.is_dir():
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no mkdocs; make setup brings it")
    folder = cache.with_name("site")
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            built = subprocess.run(
                [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", f"{folder}.new"],
                cwd=REPO,
                env={**os.environ, "PYTHONPATH": str(BESIDE), "NO_MKDOCS_2_WARNING": "1"},
                capture_output=True,
                text=True,
            )
            assert built.returncode == 0, built.stdout + built.stderr
            Path(f"{folder}.new").rename(folder)
    return folder


def test_every_page_is_there_and_in_the_navigation(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    for page in [*PAGES, "measurements", "example-data", "contributing", "changelog"]:
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        assert re.search(r"<h1[ >]", text), page
        assert f'href="{page}.html"' in home, page


def test_what_stands_elsewhere_in_the_repository_is_linked_to_the_site(site):
    training = (site / "training.html").read_text(encoding="utf-8")
    assert 'href="measurements.html"' in training
    assert "README.md" not in re.findall(r'href="([^"]*)"', training)


def test_no_page_shows_markdown_that_was_not_understood(site):
    for page in PAGES:
        text = (site / f"{page}.html").read_text(encoding="utf-8")
        prose = re.sub(r"<(pre|script|style|code)\b.*?</\1>", "", text, flags=re.DOTALL)
        shown = unescape(re.sub(r"<[^>]*>", " ", prose))
        assert not re.findall(r"\]\([\w./#-]+\)|\|---|```|\*\*\w", shown), page


def test_nothing_is_loaded_from_another_place(site):
    """Links may lead elsewhere; what a page loads by itself may not."""
    loads = re.compile(
        r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?(\S+?)[\">]|<link\b[^>]*\bhref=\"?(\S+?)[\" >]"
    )
    for file in site.rglob("*.html"):
        for target in (first or second for first, second in loads.findall(file.read_text(encoding="utf-8"))):
            assert not re.match(r"(https?:)?//", target), f"{file.name}: {target}"
    for file in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import )[\"']?(?:https?:)?//", file.read_text(encoding="utf-8")), (
            file.name
        )


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("tutorial.html", "workshop.json"),
        ("reference.html", "training.gradient_accumulation_steps"),
        ("troubleshooting.html", "CUDA out of memory"),
    ],
)
def test_a_page_opens_from_the_disk(site, page, words, browse, tmp_path):
    shown = browse(site / page, "", "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}")
    assert words in unescape(re.sub(r"<[^>]*>", "", shown))
    assert fetched(tmp_path / "net.json") == set()


def test_a_page_that_fetches_would_be_seen(browse, tmp_path):
    page = tmp_path / "page.html"
    page.write_text('<img src="https://fonts.example/a.png">', encoding="utf-8")
    browse(page, "", "--dump-dom", f"--log-net-log={tmp_path / 'net.json'}")
    assert fetched(tmp_path / "net.json") == {"https://fonts.example/a.png"}


def fetched(log: Path) -> set[str]:
    """What a page asked of the network; what the browser asks for itself (updates, the time) has no origin."""
    events = json.loads(log.read_text(encoding="utf-8"))["events"]
    asked = (event.get("params", {}) for event in events)
    return {
        params["url"]
        for params in asked
        if params.get("initiator", "not an origin") != "not an origin"
        and params.get("url", "").startswith("http")
    }


def test_the_search_finds_a_key_without_a_server(site, browse, tmp_path):
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    assert {f"{page}.html" for page in PAGES} <= {
        entry["location"].partition("#")[0] for entry in index["docs"]
    }
    log = tmp_path / "net.json"
    shown = browse(site / "index.html", "?q=near_duplicate_threshold", "--dump-dom", f"--log-net-log={log}")
    assert re.search(r"[1-9]\d* matching documents?", shown)
    assert "reference.html" in shown.partition("md-search-result__list")[2]
    assert fetched(log) == set()
