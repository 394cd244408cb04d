"""Which room imports which: told from the sources, imports inside functions too. The lists of exceptions may
only shrink.
"""

import ast
import functools
from pathlib import Path

import pytest

import chatbot_sft

ROOT = Path(chatbot_sft.__file__).parent
# Room → (what it does not import, the files that still do).
RULES = {
    "config": (
        (
            "chatbot_sft.report",
            "chatbot_sft.data",
            "chatbot_sft.model",
            "chatbot_sft.train",
            "chatbot_sft.save",
        ),
        {},
    ),
    "data": (
        ("chatbot_sft.model", "chatbot_sft.train", "chatbot_sft.save"),
        {},
    ),
    "model": (("chatbot_sft.save",), {}),
    "objective": (
        (
            "chatbot_sft.report",
            "chatbot_sft.data",
            "chatbot_sft.model",
            "chatbot_sft.train",
            "chatbot_sft.save",
        ),
        {},
    ),
    "train": (
        ("chatbot_sft.save",),
        {},
    ),
    "convert": (("chatbot_sft.model", "chatbot_sft.train", "chatbot_sft.save"), {}),
    "inference": (("chatbot_sft.train", "chatbot_sft.save", "chatbot_sft.served"), {}),
    "evaluation": (("chatbot_sft.train", "chatbot_sft.save", "chatbot_sft.served"), {}),
    "served": (("chatbot_sft.train", "chatbot_sft.model"), {}),
}
HYDRA = {
    "cli.py",
    "command_line.py",
    "config/hydra_glue.py",
    "config/hydra_errors.py",
    "config/hydra_targets.py",
    "run_directory.py",  # a callback
    "hydra_job.py",
    "sweep/begin.py",
    "sweep/job_of_launcher.py",
    "sweep/launch.py",
    "sweep/points.py",
}
PRIVATE = {  # Hydra's flags have no public name
    ("command_line.py", "hydra._internal.utils"),
    ("command_line.py", "hydra._internal.utils.get_args_parser"),
}


@functools.cache
def imports(file, at_top=False):
    """Every name that `file` imports, but for type checkers alone; `at_top`: not those inside functions."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    if at_top:
        tree.body = [node for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return set(_imports(tree))


def _imports(tree):
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module, packages):
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def modules_only(found):
    """Without the names inside a module: those that are files or packages."""
    places = {name: ROOT.parent / name.replace(".", "/") for name in found}
    return {name for name, place in places.items() if place.with_suffix(".py").exists() or place.is_dir()}


@pytest.mark.parametrize("room", RULES)
def test_a_room_imports_what_is_below_it_alone(room):
    refused, exceptions = RULES[room]
    found = {}
    for file in (ROOT / room).rglob("*.py"):
        names = modules_only(name for name in imports(file) if within(name, refused))
        if names:
            found[str(file.relative_to(ROOT))] = names
    assert found == exceptions


def test_the_seeds_api_is_above_the_rooms():
    """Three rooms offer a class of it under the name that conf/ has, once that is asked for; the pipeline and
    the package itself use it.
    """
    at_top, anywhere = (
        {
            str(file.relative_to(ROOT))
            for file in ROOT.rglob("*.py")
            if any(within(name, ["chatbot_sft.seed_api"]) for name in imports(file, at_top))
        }
        for at_top in (True, False)
    )
    assert at_top == {"pipeline.py"}
    assert anywhere == {"pipeline.py", *(f"{room}/__init__.py" for room in ("data", "model", "train"))}


def test_nothing_but_the_entrypoint_and_sweeps_imports_hydra():
    found = {
        str(file.relative_to(ROOT))
        for file in ROOT.rglob("*.py")
        if any(within(name, ["hydra"]) for name in imports(file))
    }
    assert found == HYDRA


def test_one_private_name_of_hydra_is_left():
    found = {
        (str(file.relative_to(ROOT)), name)
        for file in ROOT.rglob("*.py")
        for name in imports(file)
        if name.startswith("hydra._internal")
    }
    assert found == PRIVATE


def test_any_module_can_be_imported_first():
    """No module needs, at the top of a file, one that is being imported because of it."""
    modules = {
        ".".join(("chatbot_sft", *file.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        ): file
        for file in ROOT.rglob("*.py")
    }

    def needs(module):
        """With a module its packages are imported, but for those that are on their way already."""
        for name in imports(modules[module], at_top=True):
            parts = name.split(".")
            for length in range(2, len(parts) + 1):
                needed = ".".join(parts[:length])
                if needed in modules and needed != module and not module.startswith(f"{needed}."):
                    yield needed

    done = set()

    def walk(module, way):
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module not in done:
            for needed in sorted(set(needs(module))):
                walk(needed, [*way, module])
            done.add(module)

    for module in modules:
        walk(module, [])
