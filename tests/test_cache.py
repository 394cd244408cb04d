"""Tokenised rows are made once: found again by content, rebuilt where damaged, whole under many processes, and cleared on request."""

import dataclasses
import json
import subprocess
import sys

import pytest
from conftest import EXAMPLE, conversations, write_json

from chatbot_sft import DatasetLoader, UserError
from chatbot_sft.data import store
from chatbot_sft.data.template import ChatTokenizer


@pytest.fixture
def chat(smollm2):
    return ChatTokenizer.from_folder(smollm2, "smollm2", {})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, smollm2):
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def loader(path, seed=3407, max_seq_length=2048, **dataset):
    return DatasetLoader(
        {"seed": seed, "model": {"name": "smollm2", "max_seq_length": max_seq_length}, "dataset": {"data_path": str(path), **dataset}}
    )


def ids(made):
    return made._entry.table().column("input_ids").to_pylist()


def test_the_same_data_is_made_once_and_anything_that_matters_makes_it_anew(tmp_path, chat):
    file = write_json(tmp_path / "data.json", conversations(20))
    assert loader(file).check(chat)["cached"] is False
    assert loader(file).check(chat)["cached"] is True
    assert loader(file, seed=1).check(chat)["cached"] is True  # only the split depends on the seed
    assert loader(file, on_bad_row="drop", eval_fraction=0.5).check(chat)["cached"] is True
    for changed in (
        {"thinking": "drop"}, {"train_on": "all"}, {"overflow": "split"}, {"system_prompt": "s"}, {"max_rows": 5}, {"max_seq_length": 100},
        {"format": "messages"},
    ):  # fmt: skip
        assert loader(file, **changed).check(chat)["cached"] is False, changed
    assert loader(file, max_rows=5, seed=1).check(chat)["cached"] is False  # here the seed draws the rows
    write_json(file, conversations(21))
    assert loader(file).check(chat)["cached"] is False
    chat.template = dataclasses.replace(chat.template, source=chat.template.source + " ")
    del chat.fingerprint
    assert loader(file).check(chat)["cached"] is False


def test_the_gates_tokenizer_and_transformers_share_an_entry(tmp_path, chat, tokenizer):
    file = write_json(tmp_path / "data.json", conversations(5))
    loader(file).check(chat)
    made = loader(file)
    made.tokenizer = tokenizer
    made.prepare_dataset()
    assert made.report["cached"] is True


def test_a_damaged_entry_is_made_again(tmp_path, chat, own_cache, caplog):
    file = write_json(tmp_path / "data.json", conversations(5))
    first = loader(file)
    first.check(chat)
    whole = ids(first)
    rows = first._entry.file
    for damage in (
        lambda: rows.write_bytes(rows.read_bytes()[:-10]),
        lambda: _flip(rows),
        lambda: (rows.parent / store.ABOUT).write_text("{"),
        rows.unlink,
    ):
        damage()
        again = loader(file)
        assert again.check(chat)["cached"] is False
        assert ids(again) == whole
        assert "are damaged; making them again" in caplog.text
        caplog.clear()
    assert loader(file).check(chat)["cached"] is True


def _flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_failed_build_leaves_nothing(tmp_path, chat, own_cache):
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in conversations(700)) + '\n{"mess')
    with pytest.raises(UserError, match="line 701 is not JSON"):
        loader(file).check(chat)
    assert [entry for entry in (own_cache / "data").iterdir() if entry.is_dir()] == []


def test_many_processes_want_it_at_once(tmp_path, smollm2, own_cache):
    """One builds, the others wait; all see the same rows."""
    program = (
        "import sys\nfrom pathlib import Path\n"
        "from chatbot_sft import DatasetLoader\nfrom chatbot_sft.data.template import ChatTokenizer\n"
        "made = DatasetLoader({'model': {'name': 'smollm2'}, 'dataset': {'data_path': sys.argv[1]}})\n"
        "made.check(ChatTokenizer.from_folder(Path(sys.argv[2]), 'smollm2', {}))\n"
        "print(made.report['cached'], made.statistics.fingerprint)\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(EXAMPLE), str(smollm2)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(6)
    ]
    answers = [process.communicate(timeout=120) for process in processes]
    assert all(process.returncode == 0 for process in processes), answers
    cached, fingerprints = zip(*(out.split() for out, _ in answers), strict=True)
    assert sorted(cached) == ["False"] + ["True"] * 5
    assert len(set(fingerprints)) == 1


def test_a_cache_that_cannot_be_written_is_named(tmp_path, chat, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"the tokenised rows cannot be kept .* set CHATBOT_SFT_CACHE to another folder"):
        loader(write_json(tmp_path / "data.json", conversations(3))).check(chat)


def test_the_doctor_shows_and_clears_it(tmp_path, chat, own_cache):
    loader(write_json(tmp_path / "data.json", conversations(5))).check(chat)
    (own_cache / "models").mkdir()

    def doctor(*arguments):
        return subprocess.run([sys.executable, "-m", "chatbot_sft.doctor", *arguments], capture_output=True, text=True)

    assert f"cache         {own_cache} (data 0 MB, models 0 MB)" in doctor().stdout
    wrong = doctor("--clear-cache", "dta")
    assert wrong.returncode == 1
    assert wrong.stderr == f"error: dta: no such part of the cache in {own_cache}; there is data, models\n"
    assert doctor("--clear-cache", "data").stdout == "cleared data: 0 MB\n"
    assert [folder.name for folder in own_cache.iterdir()] == ["models"]
    assert doctor("--clear-cache").stdout == "cleared models: 0 MB\n"
    assert list(own_cache.iterdir()) == []
