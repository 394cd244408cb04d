"""What the documents say of the code is there."""

import ast
import functools
import inspect
import re
from pathlib import Path

import pytest
from conftest import REPO, conversations, write_json
from documented import FENCE

TESTS = REPO / "tests"
DOCS = REPO / "docs"
DOCUMENTS = [REPO / "README.md", *sorted(DOCS.glob("*.md"))]


def test_every_test_that_a_document_names_exists():
    tables = [REPO / "docs" / "faults.md", REPO / "SECURITY.md"]
    texts = [table.read_text(encoding="utf-8") for table in tables]
    named = [name for text in texts for name in re.findall(r"`(test_\w+)::(test_\w+)`", text)]
    assert len(named) > 200
    files = {file.stem: ast.parse(file.read_text(encoding="utf-8")) for file in TESTS.rglob("test_*.py")}
    there = {
        (file, node.name)
        for file, module in files.items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
    }
    assert not sorted(set(named) - there)


def test_every_file_of_ours_that_a_document_names_exists():
    """As a path from the checkout, or from src/chatbot_sft."""
    ours = REPO / "src" / "chatbot_sft"
    rooms = "|".join(["src", "tests", "benchmarks", *(room.name for room in ours.iterdir() if room.is_dir())])
    for document in [*DOCUMENTS, REPO / "CONTRIBUTING.md"]:
        text = document.read_text(encoding="utf-8")
        for name in re.findall(rf"(?<![\w/.-])((?:{rooms})/[\w/]+\.py)\b", text):
            assert (REPO / name).exists() or (ours / name).exists(), f"{document.name}: {name}"


def test_an_installation_by_hand_is_that_of_make():
    made = re.findall(r"--editable '(.+)'", (REPO / "Makefile").read_text(encoding="utf-8"))
    for document in (REPO / "README.md", DOCS / "index.md"):
        by_hand = re.findall(r"uv pip install .* -e '(.+?)'", document.read_text(encoding="utf-8"))
        assert by_hand == made


def test_every_link_of_a_document_leads_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), (
                f"{document.name}: {target}"
            )


def blocks(page: str, language: str) -> list[str]:
    """The code of that language in a page of docs/."""
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def test_the_sft_yaml_of_the_python_page_is_read_and_its_script_names_what_is_there(tmp_path, monkeypatch):
    """That such a script trains, test_seed_api.py shows."""
    import chatbot_sft
    from chatbot_sft import ConfigLoader

    monkeypatch.chdir(tmp_path)
    (written,), (script,) = blocks("python.md", "yaml"), blocks("python.md", "python")
    (tmp_path / "sft.yaml").write_text(written)
    data = write_json(tmp_path / "my.json", conversations(8))
    config = ConfigLoader.load_config("sft.yaml")
    assert config["dataset"]["data_path"] == str(data)
    assert config["save"]["save_path"] == str(tmp_path / "checkpoints" / "final_model")
    names = [
        alias.name
        for node in ast.walk(ast.parse(script))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert names
    assert set(names) <= set(chatbot_sft.__all__)


def test_the_defaults_of_python_and_of_the_command_differ_where_python_md_says(launch):
    """Without a run directory, and without what the options of model and data bring."""
    from omegaconf import OmegaConf

    from chatbot_sft.config import SECTIONS, Config

    ours = Config.from_mapping({"model": {"name": "smollm2"}}).to_dict()
    theirs = OmegaConf.to_container(OmegaConf.create(launch("--cfg", "job").stdout))
    sections = {name: theirs[name].items() for name in SECTIONS if name != "paths"}
    differ = {
        f"{name}.{key}" for name, keys in sections.items() for key, value in keys if ours[name][key] != value
    }
    assert differ == {
        *("training.output_dir", "save.save_path", "dataset.data_path", "dataset.format"),
        *(
            "model.brings",
            "dataset.brings",
            "model.load_in_4bit",
            "training.max_steps",
            "training.learning_rate",
        ),
    }


def test_the_readme_fits_three_screens():
    """Of 900 × 1000 pixels, as a hub shows it; what is longer belongs to a page of docs/."""
    lines = (REPO / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
    assert max(map(len, lines)) <= 150
    assert "\n".join(lines[:14]).count("make ") >= 3, "its first screen says how to begin"
    assert sum(line.startswith("<img ") for line in lines) == 2


def test_every_key_has_its_row_in_the_reference_and_no_other_is_there():
    """`python -m chatbot_sft.config.reference > docs/reference.md` renews it."""
    from chatbot_sft.config import keys
    from chatbot_sft.config.reference import page

    written = (DOCS / "reference.md").read_text(encoding="utf-8")
    assert written == page()
    assert re.findall(r"^\| `((?:\w+\.)?\w+)` \|.*\| (?:yes|no)", written, re.MULTILINE) == [
        key.path for key in keys()
    ]


def test_every_row_of_the_reference_has_the_cells_of_its_head():
    cells = 0
    for line in (DOCS / "reference.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            cells = 0
            continue
        found = len(re.findall(r"(?<!\\)\|", line))
        assert cells in (0, found), line
        cells = found


def ours(document: str) -> list[str]:
    """`section.key` and `section.key=value` in code of a document, without what it says of report.json."""
    from chatbot_sft.config import SECTIONS

    text = (DOCS / document).read_text(encoding="utf-8")
    return re.findall(
        rf"(?<![\w.`])`(?:python -m chatbot_sft )?((?:{'|'.join(SECTIONS)})\.(?!html|json)[a-z_]\w*)(?:=[^`]*)?`",
        text,
    )


def test_every_key_that_a_document_names_is_one():
    """Of ours, of TRL's SFTConfig, or a number of report.json; NONE are shown as ones that are not."""
    from chatbot_sft.config import find, sft_arguments
    from chatbot_sft.run.report import Report

    of_report = Path(inspect.getsourcefile(Report)).read_text(encoding="utf-8")
    for document in sorted(DOCS.glob("*.md")):
        for key in ours(document.name):
            name = key.partition(".")[2]
            known = find(key) or name in sft_arguments.PASSED or re.search(rf"\b{name}\b", of_report)
            assert known or key in NONE, f"{document.name}: {key}"


NONE = {
    "dataset.mine",
    "model.generate",
    "training.max_length",
    "training.max_stpes",
    "training.micro_batch_size",
}


@pytest.mark.parametrize("document", ["coming-from-trl.md", "coming-from-unsloth.md"])
def test_names_of_other_tools_are_answered_with_the_key_beside_them(document):
    """The run's own answer to a name that is not ours (config/aliases.py) agrees with the table."""
    from chatbot_sft.config import aliases

    compared = 0
    for line in (DOCS / document).read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) < 2 or not cells[1].startswith("`"):
            continue
        here = re.findall(r"`([^`]+)`", cells[1])
        for written in re.findall(r"`([\w.]+)(?:=[^`]*)?`", cells[0]):
            meant = aliases.look_up("", written, None)
            if meant and meant.setting and "=" not in meant.setting:
                assert any(key.startswith(meant.setting) for key in here), (
                    f"{document}: {written}: {meant.setting}"
                )
                compared += 1
    assert compared > 5


@functools.cache
def sayings() -> list[re.Pattern[str]]:
    """What the program can say: each text in its sources with at least 10 letters of its own, what is filled in being anything."""
    found = []
    for file in (REPO / "src" / "chatbot_sft").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                parts = [node.value.replace("{name}", "\0")]
            elif isinstance(node, ast.JoinedStr):
                parts = [part.value if isinstance(part, ast.Constant) else "\0" for part in node.values]
            else:
                continue
            text = re.sub(r"%[\d.]*[a-z]|\0", "\0", "".join(parts))
            if sum(map(str.isalpha, text)) >= 10:
                found.append(re.compile(".+".join(map(re.escape, text.split("\0")))))
    return found


def test_the_lines_that_troubleshooting_quotes_are_said_somewhere():
    """Those behind `$ …` are run by test_documented_commands.py."""
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    bodies = [fence["body"] for fence in FENCE.finditer(text) if fence["language"] == "console"]
    quoted = [line for body in bodies if not body.startswith("$ ") for line in body.splitlines()]
    assert len(quoted) > 12
    for line in quoted:
        said = max(
            (match.end() - match.start() for saying in sayings() if (match := saying.search(line))), default=0
        )
        assert said > 0.7 * len(line), line
