"""Do the installed packages go together, by what they say of themselves? Nothing is imported of them."""

from __future__ import annotations

import functools
import os
import platform
import re
import shlex
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import Distribution, PackageMetadata
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot_sft.doctor.finding import Finding, fault, note, ok
from chatbot_sft.resources import overrides_file
from chatbot_sft.run.versions import PACKAGES

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = "chatbot-sft"
EGG = ".egg-info"
OF_EXTRA = re.compile(r";(?!.*\bor\b).*\bextra\s*==")


@dataclass
class Wanted:
    """Of one package: what `by` (packages with their versions) asks for."""

    specifiers: dict[str, str] = field(default_factory=dict)

    @property
    def together(self) -> str:
        """All of it as pip takes it: `>=5.10,<=5.17.0`, each part once."""
        parts = [part.strip() for one in self.specifiers.values() for part in one.split(",") if part.strip()]
        return ",".join(dict.fromkeys(parts))


def check(extras: Sequence[str], folders: Sequence[str] | None = None) -> Iterator[Finding]:
    """The closure of chatbot-sft with the `extras` that a run uses, in `folders` (sys.path)."""
    yield ok("python", f"{platform.python_version()} at {sys.executable}, {platform.platform()}")
    places = sys.path if folders is None else list(folders)
    found = installed(places)
    if OURS not in found:
        yield fault(
            "packages",
            f"{OURS} is not installed for {sys.executable}: it runs from a folder on PYTHONPATH",
            f"{shlex.quote(sys.executable)} -m pip install {OURS}",
        )
        return
    versions = (str(found[name][0]) for name in map(canonical, PACKAGES) if name in found)
    yield ok("versions", ", ".join(versions))
    closure = closure_of(found, extras)
    faults = [
        *_twice(found, closure),
        *_left_over(places),
        *_conflicts(found, closure),
        *_python(found, closure),
        *_vision(found),
    ]
    yield from faults
    if not faults:
        asked = f" with {', '.join(extras)}" if extras else ""
        yield ok("packages", f"{len(closure)} that {OURS}{asked} asks for go together")


@dataclass(frozen=True)
class Installed:
    """A package as its folder of metadata says, `transformers-5.17.0.dist-info` in `folder`."""

    name: str
    version: str
    folder: Path
    place: Path

    @functools.cached_property
    def metadata(self) -> PackageMetadata:
        return Distribution.at(self.place).metadata

    @property
    def requires(self) -> list[str]:
        if self.place.suffix == EGG:
            return Distribution.at(self.place).requires or []
        return self.metadata.get_all("Requires-Dist") or []

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


def installed(folders: Sequence[str]) -> dict[str, list[Installed]]:
    """Name → its installations, in the order in which Python looks."""
    found: dict[str, list[Installed]] = {}
    for folder in dict.fromkeys(Path(folder).resolve() for folder in folders):
        for one in _in_folder(folder) if folder.is_dir() else ():
            found.setdefault(one.name, []).append(one)
    return found


def _in_folder(folder: Path) -> Iterator[Installed]:
    """By the names of the folders, which is a hundred times faster than reading them all."""
    for place in sorted(folder.glob("*.dist-info")):
        name, dash, version = place.stem.partition("-")
        if dash and (place / "METADATA").is_file() and not name.startswith("~"):
            yield Installed(canonical(name), version, folder, place)
    for place in sorted(folder.glob(f"*{EGG}")):  # of setup.py, conda and Linux distributions
        about = Distribution.at(place).metadata
        if about["Name"]:
            yield Installed(canonical(about["Name"]), about["Version"], folder, place)


def canonical(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def closure_of(found: Mapping[str, Sequence[Installed]], extras: Iterable[str]) -> dict[str, Wanted]:
    """All packages that chatbot-sft needs here, those that are missing among them, and what asks for them.

    What overrides.txt lifts is asked for by nobody; where such a package is installed all the same, what it asks
    for counts.
    """
    lifted = _lifted()
    closure: dict[str, Wanted] = {OURS: Wanted()}
    done = set()
    pending = [(OURS, extra) for extra in ("", *extras)]
    while pending:
        name, extra = pending.pop()
        if (name, extra) in done:
            continue
        done.add((name, extra))
        for requirement in _requirements(found[name][0], extra):
            asked = canonical(requirement.name)
            by = str(found[name][0])
            if asked in lifted:
                if asked not in found:
                    continue
                requirement.specifier = lifted[asked].specifier
                by = "overrides.txt"
            if extra and name == OURS and asked not in found:
                continue  # extras.py says whether the run misses it
            closure.setdefault(asked, Wanted()).specifiers[by] = str(requirement.specifier)
            if asked in found:
                pending += [(asked, further) for further in ("", *sorted(requirement.extras))]
    return closure


def _requirements(one: Installed, extra: str) -> Iterator[Requirement]:
    """Those that hold here: for `extra` those alone that are not asked for without it."""
    from packaging.requirements import Requirement

    for line in one.requires:
        if not extra and OF_EXTRA.search(line):
            continue  # most of them are, and parsing takes its time
        requirement = Requirement(line)
        marker = requirement.marker
        always = marker is None or marker.evaluate({"extra": ""})
        if always if not extra else (not always and marker is not None and marker.evaluate({"extra": extra})):
            yield requirement


def _lifted() -> dict[str, Requirement]:
    """overrides.txt: what an installation of ours replaces; "never" installs it nowhere, and asks for no version."""
    from packaging.requirements import Requirement

    file = overrides_file()
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    given = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonical(requirement.name): requirement for requirement in given}


def _conflicts(found: Mapping[str, Sequence[Installed]], closure: Mapping[str, Wanted]) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    for name, wanted in sorted(closure.items()):
        repair = f"pip install {shlex.quote(name + wanted.together)}"
        if name not in found:
            by = ", ".join(wanted.specifiers)
            yield fault("packages", f"{name} is not installed, and {by} needs it", repair)
            continue
        version = found[name][0].version
        against = [
            f"{by} wants {specifier}"
            for by, specifier in wanted.specifiers.items()
            if not SpecifierSet(specifier).contains(version, prereleases=True)
        ]
        if against:
            yield fault("packages", f"{name} {version} is installed, and {'; '.join(against)}", repair)


def _python(found: Mapping[str, Sequence[Installed]], closure: Mapping[str, Wanted]) -> Iterator[Finding]:
    from packaging.specifiers import SpecifierSet

    for name in sorted(closure.keys() & found.keys()):
        wanted = found[name][0].metadata["Requires-Python"]
        if wanted and not SpecifierSet(wanted).contains(platform.python_version(), prereleases=True):
            what = f"{found[name][0]} needs Python {wanted}, this is {platform.python_version()}"
            venv = "uv venv --python 3.11 && uv pip install chatbot-sft"
            yield fault("python", what, venv if name == OURS else f"pip install --force-reinstall {name}")


def _vision(found: Mapping[str, Sequence[Installed]]) -> Iterator[Finding]:
    """PyPI's torchvision is built for CUDA: beside a torch for the CPU Unsloth does not import."""
    torch, vision = (found.get(name, [None])[0] for name in ("torch", "torchvision"))
    if torch and vision and "+cpu" in torch.version and "+cpu" not in vision.version:
        what = f"{vision} is built for CUDA and {torch} for the CPU: unsloth does not import; text needs none"
        yield fault("packages", what, "pip uninstall -y torchvision")


def _twice(found: Mapping[str, Sequence[Installed]], closure: Mapping[str, Wanted]) -> Iterator[Finding]:
    """Two of one name: which one counts is the accident of a folder's order, or of PYTHONPATH."""
    for name in sorted(closure.keys() & found.keys()):
        first, *others = found[name]
        here = first.folder
        for other in others:
            if other.folder == here:
                what = f"{name} is there twice in {here}, {first.version} and {other.version}: one was not removed"
                yield fault(
                    "packages", what, f"pip install --force-reinstall --no-deps {name}=={first.version}"
                )
            elif other.version != first.version:
                what = f"{name} {first.version} in {here} hides {other.version} in {other.folder}"
                yield note(
                    "packages",
                    what,
                    "unset PYTHONPATH" if _named(here) else f"rm -r {shlex.quote(str(here))}",
                )


def _named(folder: Path) -> bool:
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return any(part and Path(part).resolve() == folder for part in given)


def _left_over(folders: Sequence[str]) -> Iterator[Finding]:
    """`~orch-2.13.dist-info` is what pip renames a package to while it replaces it."""
    for folder in map(Path, dict.fromkeys(folders)):
        if folder.is_dir():
            for path in sorted(folder.glob("~*")):
                what = f"{path.name} in {folder} is left of an installation that broke off"
                yield note("packages", what, f"rm -r {shlex.quote(str(path))}")
