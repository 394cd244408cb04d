"""Packages that do not go together, planted as metadata in a folder."""

import sys

from planted import metadata

from chatbot_sft.doctor import packages
from chatbot_sft.doctor.finding import State


def test_metadata_of_a_small_environment(tmp_path):
    """A package that is missing, one that is there twice, one for another Python; markers and extras as pip has them."""
    folder = tmp_path / "site-packages"
    wants = (
        "needed>=2,<3",
        "missing==1.0",
        "elsewhere>=9; sys_platform == 'win32'",
        "optional>=5; extra == 'sweep'",
        "unused>=5; extra == 'data'",
        "absent>=1; extra == 'sweep'",
    )
    metadata(folder, "chatbot-sft", "0.1.0", *(f"Requires-Dist: {line}" for line in wants))
    metadata(folder, "needed", "2.1", "Requires-Python: >=3.99", "Requires-Dist: deep[more]<1")
    metadata(folder, "deep", "1.4", "Requires-Dist: deeper>3; extra == 'more'")
    metadata(folder, "deeper", "3.0")
    metadata(folder, "optional", "4")
    metadata(folder, "unused", "4")
    metadata(folder, "Deeper", "2.0")
    (folder / "~eeper").mkdir()
    found = list(packages.check(["sweep"], [str(folder)]))
    said = {(one.state, one.what, one.repair) for one in found if one.state is not State.OK}
    here = folder.resolve()
    assert said == {
        (State.FAULT, "missing is not installed, and chatbot-sft 0.1.0 needs it", "pip install missing==1.0"),
        (State.FAULT, "deep 1.4 is installed, and needed 2.1 wants <1", "pip install 'deep<1'"),
        (
            State.FAULT,
            "optional 4 is installed, and chatbot-sft 0.1.0 wants >=5",
            "pip install 'optional>=5'",
        ),
        (
            State.FAULT,
            f"needed 2.1 needs Python >=3.99, this is {sys.version.split()[0]}",
            "pip install --force-reinstall needed",
        ),
        (
            State.FAULT,
            f"deeper is there twice in {here}, 2.0 and 3.0: one was not removed",
            "pip install --force-reinstall --no-deps deeper==2.0",
        ),
        (State.FAULT, "deeper 2.0 is installed, and deep 1.4 wants >3", "pip install 'deeper>3'"),
        (State.NOTE, f"~eeper in {here} is left of an installation that broke off", f"rm -r '{here}/~eeper'"),
    }


def test_metadata_in_its_older_form(tmp_path):
    """As setup.py, conda and Linux distributions leave it."""
    folder = tmp_path / "site-packages"
    metadata(folder, "chatbot-sft", "0.1.0", "Requires-Dist: Old_Package<2")
    place = folder / "old_package.egg-info"
    place.mkdir()
    (place / "PKG-INFO").write_text("Metadata-Version: 1.0\nName: old.package\nVersion: 1.5\n")
    (place / "requires.txt").write_text("gone>3\n\n[more]\nunused\n")
    faults = [one.what for one in packages.check([], [str(folder)]) if one.state is State.FAULT]
    assert faults == ["gone is not installed, and old-package 1.5 needs it"]


def test_what_overrides_lift_is_no_fault_and_what_it_breaks_is(tmp_path):
    """unsloth asks for torchvision and a newer certifi; of a torchvision that is there all the same, its own wishes count."""
    folder = tmp_path / "site-packages"
    metadata(folder, "chatbot-sft", "0.1.0", "Requires-Dist: unsloth", "Requires-Dist: torch")
    metadata(
        folder, "unsloth", "2026.10.9", "Requires-Dist: torchvision", "Requires-Dist: certifi>=2026.10.19"
    )
    metadata(folder, "certifi", "2026.10.18")
    metadata(folder, "torch", "2.13.0+cpu")
    assert not [one for one in packages.check([], [str(folder)]) if one.state is State.FAULT]
    metadata(folder, "torchvision", "0.20.0", "Requires-Dist: torch==2.5.0")
    said = [one.what for one in packages.check([], [str(folder)]) if one.state is State.FAULT]
    assert said == [
        "torch 2.13.0+cpu is installed, and torchvision 0.20.0 wants ==2.5.0",
        "torchvision 0.20.0 is built for CUDA and torch 2.13.0+cpu for the CPU: unsloth does not import; text needs none",
    ]
