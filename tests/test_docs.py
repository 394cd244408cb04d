"""What the documents say of the code is there."""

import ast
import re

from conftest import REPO, conversations, write_json

TESTS = REPO / "tests"
DOCUMENTS = [REPO / "README.md", *sorted((REPO / "docs").glob("*.md"))]


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


def test_every_link_of_a_document_leads_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (document.parent / target).exists(), (
                f"{document.name}: {target}"
            )


def blocks(section: str, language: str) -> list[str]:
    """The code of that language under the heading `section` of README.md."""
    text = (
        (REPO / "README.md")
        .read_text(encoding="utf-8")
        .partition(f"\n## {section}\n")[2]
        .partition("\n## ")[0]
    )
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_readmes_sft_yaml_is_read_and_its_script_names_what_is_there(tmp_path, monkeypatch):
    """That such a script trains, test_seed_api.py shows."""
    import chatbot_sft
    from chatbot_sft import ConfigLoader

    monkeypatch.chdir(tmp_path)
    (written,), (script,) = blocks("Python", "yaml"), blocks("Python", "python")
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


def test_the_defaults_of_python_and_of_the_command_differ_where_the_readme_says(launch):
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
