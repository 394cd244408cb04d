"""The folders that come with the package: at the root of a checkout, inside the package of a wheel."""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = PACKAGE.parent.parent


def conf_dir() -> Path:
    """The config tree: `<package>/conf`, else `<checkout>/conf`."""
    return next(folder for folder in (PACKAGE / "conf", CHECKOUT / "conf") if folder.is_dir())


def examples_dir() -> Path:
    """The example conversations: `<package>/examples`, else `<checkout>/data`."""
    return next(folder for folder in (PACKAGE / "examples", CHECKOUT / "data") if folder.is_dir())


def overrides_file() -> Path:
    """What an installation of ours asks for in place of its dependencies' own wishes; see its head."""
    return next(
        (folder / "overrides.txt" for folder in (PACKAGE, CHECKOUT) if (folder / "overrides.txt").is_file()),
        CHECKOUT / "overrides.txt",
    )
