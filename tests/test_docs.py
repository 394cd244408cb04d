"""What the documents say of the code is there."""

import ast
import re

from conftest import REPO

DOCUMENTS = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


def test_every_test_that_a_document_names_exists():
    named = re.findall(r"`(test_\w+)::(test_\w+)`", (REPO / "docs" / "faults.md").read_text(encoding="utf-8"))
    assert len(named) > 200
    tree = {file: ast.parse((REPO / "tests" / f"{file}.py").read_text(encoding="utf-8")) for file in {file for file, _ in named}}
    there = {(file, node.name) for file, module in tree.items() for node in ast.walk(module) if isinstance(node, ast.FunctionDef)}
    assert not sorted(set(named) - there)


def test_every_link_of_a_document_leads_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), f"{document.name}: {target}"
