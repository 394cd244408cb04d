"""Tokenised rows are made once: found again by content, rebuilt where damaged, whole under many processes,
and cleared on request.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EXAMPLE, conversations, write_json

from chatbot_sft import DatasetLoader, UserError, cache
from chatbot_sft.cache import LARGE, SPARE, cache_dir, part_folder
from chatbot_sft.data import store
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.model import embedded


@pytest.fixture
def chat(smollm2):
    return ChatTokenizer.from_folder(smollm2, "smollm2", {})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, smollm2):
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(SPARE, "")
    return tmp_path / "cache"


def loader(path, seed=3407, max_seq_length=2048, **dataset):
    return DatasetLoader(
        {
            "seed": seed,
            "model": {"name": "smollm2", "max_seq_length": max_seq_length},
            "dataset": {"data_path": str(path), **dataset},
        }
    )


def ids(made):
    return made.prepared.entry.table().column("input_ids").to_pylist()


def test_the_same_data_is_made_once_and_anything_that_matters_makes_it_anew(tmp_path, chat):
    file = write_json(tmp_path / "data.json", conversations(20))
    assert loader(file).check(chat)["cached"] is False
    assert loader(file).check(chat)["cached"] is True
    assert loader(file, seed=1).check(chat)["cached"] is True  # only the split depends on the seed
    assert loader(file, on_bad_row="drop", eval_fraction=0.5).check(chat)["cached"] is True
    for changed in (
        {"thinking": "drop"}, {"train_on": "all"}, {"overflow": "split"}, {"system_prompt": "s"}, {"max_rows": 5}, {"max_seq_length": 100},
        {"format": "messages"}, {"roles": {"customer": "user"}},
    ):  # fmt: skip
        assert loader(file, **changed).check(chat)["cached"] is False, changed
    assert loader(file, max_rows=5, seed=1).check(chat)["cached"] is False  # here the seed draws the rows
    write_json(file, conversations(21))
    assert loader(file).check(chat)["cached"] is False
    chat.template = dataclasses.replace(chat.template, source=chat.template.source + " ")
    del chat.fingerprint
    assert loader(file).check(chat)["cached"] is False


def test_rows_outlive_an_edit_of_the_code_but_not_a_new_version(tmp_path, chat, monkeypatch):
    file = write_json(tmp_path / "data.json", conversations(5))
    loader(file).check(chat)
    edited = shutil.copytree(Path(store.__file__).parent, tmp_path / "edited")
    with (edited / "preview.py").open("a") as code:
        code.write("# a comma,")
    for name, module in list(sys.modules.items()):
        if name.startswith("chatbot_sft.data."):
            monkeypatch.setattr(module, "__file__", str(edited / Path(module.__file__).name))
    assert loader(file).check(chat)["cached"] is True
    monkeypatch.setattr(store, "VERSION", store.VERSION + 1)
    assert loader(file).check(chat)["cached"] is False


# What the rows below become. Where a change makes something else of them, `store.VERSION` goes up by one, and
# both are written down anew.
PINNED = (5, "52b2625ebca2c8d4")


def test_what_rows_become_changes_with_the_version_alone(tmp_path, chat):
    """Else rows that older code made would be trained: every format, every kind of turn, a cut, a bad row,
    notes.
    """
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "beer", "arguments": {"n": 1}}}],
    }
    asked, answered = (
        {"role": "user", "content": "câu hỏi"},
        {"role": "assistant", "content": "trả lời", "thinking": "nghĩ"},
    )
    rows = {
        "messages.jsonl": [
            {
                "messages": [
                    {"role": "system", "content": "s"},
                    asked,
                    answered,
                    asked,
                    {**answered, "train": False},
                ],
                "extra": 1,
            },
            {
                "messages": [asked, call, {"role": "tool", "content": "9"}, answered],
                "tools": [{"type": "function", "function": {"name": "beer"}}],
            },
            {"messages": [asked, {"role": "assistant", "content": "word " * 200}, asked, answered]},
            {"messages": [asked, asked]},
        ],
        "sharegpt.jsonl": [
            {
                "conversations": [
                    {"from": "human", "value": "a"},
                    {"from": "gpt", "value": "<think>t</think>b"},
                ],
                "system": "s",
            }
        ],
        "alpaca.jsonl": [{"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}],
        "completion.jsonl": [
            {"prompt": "a", "completion": "b"},
            {"prompt": [asked], "completion": [answered]},
        ],
        "text.jsonl": [{"text": "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>\n"}],
    }
    digest = hashlib.sha256()
    for name, written in rows.items():
        file = tmp_path / name
        file.write_text("".join(f"{json.dumps(row)}\n" for row in written), encoding="utf-8")
        for options in (
            {},
            {"thinking": "drop", "overflow": "split", "system_prompt": "Mai", "train_on": "last_assistant"},
        ):
            made = loader(file, max_seq_length=100, on_bad_row="drop", eval_fraction=0, **options)
            with contextlib.suppress(UserError):  # one row that is bad leaves nothing
                made.check(chat)
            entry = {"rows": made.prepared.entry.table().to_pylist(), "about": made.prepared.entry.about}
            digest.update(json.dumps(entry, sort_keys=True).replace(str(tmp_path), "").encode())
    assert (
        store.VERSION,
        digest.hexdigest()[:16],
    ) == PINNED, "raise data/store.py's VERSION, so that rows of older code are not taken for these"


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
    rows = first.prepared.entry.file
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
    file = tmp_path / "data.json"
    file.write_text("[" + ",\n".join(json.dumps(row) for row in conversations(700)) + ',\n{"mess')
    with pytest.raises(UserError, match="row 701 is not JSON"):
        loader(file).check(chat)
    assert [entry for entry in (own_cache / "data").iterdir() if entry.is_dir()] == []


@pytest.mark.slow
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
        subprocess.Popen(
            [sys.executable, "-c", program, str(EXAMPLE), str(smollm2)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(6)
    ]
    answers = [process.communicate(timeout=600) for process in processes]
    assert all(process.returncode == 0 for process in processes), answers
    cached, fingerprints = zip(*(out.split() for out, _ in answers), strict=True)
    assert sorted(cached) == ["False"] + ["True"] * 5
    assert len(set(fingerprints)) == 1


@pytest.mark.parametrize(
    "about", ["", "null", "[]", "{}", "1", '{"rows": "x"}', '{"rows": -1, "sources": null}', "[" * 5000]
)
@pytest.mark.parametrize("name", [store.ABOUT, "checksums.json"])
def test_an_entry_with_a_foreign_record_is_made_again(tmp_path, chat, own_cache, about, name):
    file = write_json(tmp_path / "data.json", conversations(5))
    first = loader(file)
    first.check(chat)
    (first.prepared.entry.file.parent / name).write_text(about)
    again = loader(file)
    assert again.check(chat)["cached"] is False
    assert again.statistics == first.statistics
    assert loader(file).check(chat)["cached"] is True


def test_what_stands_in_place_of_an_entry_is_not_believed(tmp_path, chat, own_cache):
    """Files that were put beside ours, a link to another folder, a file, somebody else's folder."""
    file = write_json(tmp_path / "data.json", conversations(5))
    first = loader(file)
    first.check(chat)
    entry = first.prepared.entry.file.parent
    (entry / "more.py").write_text("")
    assert loader(file).check(chat)["cached"] is False
    elsewhere = entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(elsewhere)
    assert loader(file).check(chat)["cached"] is False
    assert elsewhere.is_dir()
    shutil.rmtree(entry)
    entry.write_text("")
    assert loader(file).check(chat)["cached"] is False
    assert loader(file).check(chat)["cached"] is True
    if os.geteuid() == 0:
        os.chown(entry, 1234, 1234)
        assert loader(file).check(chat)["cached"] is False


def test_the_cache_is_for_its_owner_alone(tmp_path, chat, own_cache):
    """An older version had made its folders for everybody to read."""
    old_mask = os.umask(0)
    try:
        (own_cache / "data").mkdir(parents=True, mode=0o777)
        made = loader(write_json(tmp_path / "data.json", conversations(3)))
        made.check(chat)
        assert stat.S_IMODE(part_folder("layouts").stat().st_mode) == 0o700
    finally:
        os.umask(old_mask)
    assert [
        stat.S_IMODE(folder.stat().st_mode)
        for folder in (own_cache / "data", made.prepared.entry.file.parent)
    ] == [0o700, 0o700]


def as_a_file(folder):
    folder.write_text("")


def of_somebody_else(folder):
    if os.geteuid() != 0:
        pytest.skip("needs the right to give a folder away")
    (folder / "data").mkdir(parents=True)
    os.chown(folder / "data", 1234, 1234)


@pytest.mark.parametrize("spoil", [as_a_file, of_somebody_else])
def test_a_cache_that_cannot_be_written_costs_speed_alone(tmp_path, chat, own_cache, caplog, spoil):
    spoil(own_cache)
    file = write_json(tmp_path / "data.json", conversations(3))
    made = loader(file)
    assert made.check(chat)["cached"] is False
    assert loader(file).check(chat)["cached"] is True  # of the same process
    assert not made.prepared.entry.file.is_relative_to(own_cache)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "chatbot_sft.cache"]
    assert line.startswith(f"cache: {own_cache}")
    assert "a temporary folder serves for this run" in line


def test_a_full_cache_costs_speed_alone(tmp_path, launch, small_disk, tiny):
    folder = small_disk("1m")
    (folder / "filler").write_bytes(b"x" * (900 << 10))
    process = launch(
        *tiny,
        "task=check",
        f"dataset.data_path={EXAMPLE}",
        env={"CHATBOT_SFT_CACHE": str(folder), "TMPDIR": str(tmp_path)},
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("a temporary folder serves for this run") == 1
    assert "No space left on device" in process.stderr
    assert list(tmp_path.glob("chatbot_sft_cache_*")) == []


def test_a_read_only_cache_is_read_and_not_written(tmp_path, launch, small_disk, tiny):
    folder = small_disk("20m")
    arguments = (
        *tiny,
        "task=check",
        f"dataset.data_path={write_json(tmp_path / 'data.json', conversations(5))}",
    )
    environment = {"CHATBOT_SFT_CACHE": str(folder / "cache")}
    assert launch(*arguments, env=environment).returncode == 0
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    again = launch(*arguments, env=environment)
    assert again.returncode == 0, again.stderr
    assert "a temporary folder serves" not in again.stderr
    other = launch(*arguments, "dataset.train_on=all", env=environment)
    assert other.returncode == 0, other.stderr
    assert "Read-only file system; a temporary folder serves for this run" in other.stderr


def test_nowhere_to_write_is_one_line(tmp_path, chat, own_cache, monkeypatch):
    as_a_file(own_cache)
    monkeypatch.setattr("tempfile.mkdtemp", lambda **_: str(own_cache / "none"))
    with pytest.raises(
        UserError,
        match=r"cannot be written .* and the cache neither; set CHATBOT_SFT_CACHE to a folder with room",
    ):
        loader(write_json(tmp_path / "data.json", conversations(3))).check(chat)


def test_a_user_without_a_home_gets_a_temporary_cache(monkeypatch, tmp_path):
    """As in a container that runs under a number: `Path.home` raises."""
    monkeypatch.delenv("CHATBOT_SFT_CACHE")

    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("pathlib.Path.home", home)
    assert cache_dir().name.startswith("chatbot_sft_cache_")
    assert cache_dir() == cache_dir()


def test_a_home_that_is_not_there_costs_speed_alone(tmp_path, launch, tiny):
    """HOME=/nonexistent is what containers' system users have (wyoming-faster-whisper#27, datasets#1581)."""
    (tmp_path / "file").write_text("")
    data = write_json(tmp_path / "data.json", conversations(3))
    process = launch(
        *tiny,
        "task=check",
        f"dataset.data_path={data}",
        env={"CHATBOT_SFT_CACHE": "", "HOME": str(tmp_path / "file")},
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("a temporary folder serves for this run") == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "adapter", "config", "missing"])
def test_a_damaged_converted_model_is_made_again(tmp_path, monkeypatch, own_cache, damage):
    """The conversion itself is stood in for: 540 MB of weights are written and read again elsewhere."""

    def convert(folder):
        (folder / "model.safetensors").write_bytes(
            bytes(range(256)) * 400_000
        )  # as large as what is not read each time
        (folder / "config.json").write_text('{"model_type": "llama"}')

    monkeypatch.setattr(embedded, "convert", convert)
    folder = embedded.folder()
    weights = folder / "model.safetensors"
    assert weights.stat().st_size > LARGE
    whole = weights.read_bytes()
    assert embedded.folder() == folder
    if damage == "cut":
        weights.write_bytes(whole[:-1])
    elif damage == "flipped":
        _flip(weights)
    elif damage == "adapter":
        (folder / "adapter_config.json").write_text("{}")
    elif damage == "config":
        (folder / "config.json").write_text('{"model_type": "llame"}')
    else:
        weights.unlink()
    assert embedded.folder() == folder
    assert sorted(file.name for file in folder.iterdir()) == [
        "checksums.json",
        "config.json",
        "model.safetensors",
    ]
    assert weights.read_bytes() == whole
    assert (folder / "config.json").read_text() == '{"model_type": "llama"}'


@pytest.mark.slow
def test_the_doctor_shows_and_clears_it(tmp_path, own_cache):
    keep = "from chatbot_sft.cache import cached\nfor part in ('data', 'findings'): cached(part, 'rows', lambda folder: None, '')"
    subprocess.run([sys.executable, "-c", keep], check=True)
    (own_cache / "models").mkdir()
    (own_cache / "my_photos").mkdir()  # where CHATBOT_SFT_CACHE names a folder that was there before

    def doctor(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "chatbot_sft.doctor", *arguments], capture_output=True, text=True
        )

    def left():
        return sorted(folder.name for folder in own_cache.iterdir() if folder.name[0] != ".")

    assert f"cache       {own_cache} (data 0 MB, findings 0 MB, models 0 MB), 0.0 of 50 GB" in doctor().stdout
    wrong = doctor("--clear-cache", "dta")
    assert wrong.returncode == 1
    assert (
        wrong.stderr
        == f"error: dta: no such part of the cache in {own_cache}; did you mean data?; there is data, findings, models\n"
    )
    assert doctor("--clear-cache", "data").stdout == "cleared data: 0 MB\n"
    assert left() == ["findings", "models", "my_photos"]
    assert cache.find("findings", "rows")  # this process uses it now
    used = doctor("--clear-cache", "--json")
    assert json.loads(used.stdout) == {
        "error": None,
        "cleared": "cleared findings, models: 0 MB; 1 left that a running process uses",
    }
    assert left() == ["findings", "my_photos"]
