"""Which files a path names: held-out ones by their names, hidden ones and metadata passed by, what is no file
refused; and bytes that are no rows.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
from conftest import conversations, only_error, report_of, write_json

from chatbot_sft import UserError
from chatbot_sft.config import Config
from chatbot_sft.data.corpus import Corpus
from chatbot_sft.data.files import data_files, find, split_of
from chatbot_sft.data.sources import read_rows


def lines(path, *names):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        "".join(json.dumps({"from": name}) + "\n" for name in names or (path.name,)), encoding="utf-8"
    )
    return path


def read(path, **options):
    return [row.values["from"] for row in read_rows(str(path), **options)]


@pytest.mark.parametrize(
    ("file", "split"),
    [
        ("train.jsonl", "train"), ("test.jsonl", "test"), ("testset.jsonl", "test"), ("my_data_test.jsonl", "test"), ("tests/0.jsonl", "test"),
        ("data/test-00000-of-00002.parquet", "test"), ("squad-validation.arrow", "validation"),
        ("valid.csv", "validation"), ("dev.json", "validation"),
        ("val_split.jsonl", "validation"), ("eval_data.jsonl", "validation"), ("evaluation/a.jsonl", "validation"), ("split=test/a.parquet", "test"),
        ("train/test_0.jsonl", "test"), ("train_and_test.jsonl", "train"), ("test/train.jsonl", "train"), ("Test.JSONL", "test"),
        ("latest.jsonl", "train"),
        ("www_farodevigo_es.jsonl.gz", "train"), ("contest.jsonl", "train"), ("evaluate_this_chat.jsonl", "train"), ("devices.jsonl", "train"),
        ("validity.jsonl", "train"), ("my-test-chats.jsonl", "train"), ("test-drive/a.jsonl", "train"), ("chats.test.jsonl", "train"),
    ],
)  # fmt: skip
def test_a_name_says_which_split_it_is(file, split):
    """`datasets` once took contest.jsonl for a test set (huggingface/datasets#4477), and www_farodevigo_es
    for a dev set (#3788).
    """
    assert split_of(Path(file)) == split


def test_a_folder_holds_out_what_its_names_say(tmp_path):
    for name in ("train.jsonl", "more.jsonl", "validation.jsonl", "test.jsonl"):
        lines(tmp_path / name)
    assert read(tmp_path) == ["more.jsonl", "train.jsonl"]
    assert find(str(tmp_path)).held_out == "validation"  # a test set stays unseen
    assert read(tmp_path, split="test") == ["test.jsonl"]
    assert read(tmp_path / "*.jsonl") == ["more.jsonl", "train.jsonl"]
    assert read(tmp_path / "t*t.jsonl") == ["test.jsonl"]  # the pattern names it
    with pytest.raises(
        UserError, match=r"dataset.split=dev: .* has no such split \(it has train, test, validation\)"
    ):
        data_files(str(tmp_path), "dev")
    with pytest.raises(
        UserError, match=r"has no such split \(it has train\); part of a file is dataset.max_rows"
    ):
        data_files(str(tmp_path / "train.jsonl"), "train[:10]")
    lines(tmp_path / "only" / "test.jsonl")
    with pytest.raises(
        UserError,
        match=r"all of it is held out by its name \(test.jsonl\); name the file itself to train on it",
    ):
        read(tmp_path / "only")


def test_a_folders_held_out_files_are_evaluated_on_and_the_run_says_so(tmp_path, launch, tiny):
    data = tmp_path / "chats"
    data.mkdir()
    write_json(data / "train.json", conversations(8))
    write_json(data / "test.json", conversations(3, note="held out"))
    (data / "notes.txt").write_text("not data")
    (data / "test.json").write_text(
        (data / "test.json").read_text(encoding="utf-8").replace("câu", "khác"), encoding="utf-8"
    )
    process = launch(*tiny, "task=check", f"dataset.data_path={data}")
    assert process.returncode == 0, process.stderr
    found = report_of(tmp_path / "outputs")["dataset"]
    assert (found["rows_used"], found["rows_held_out"]) == (8, 3)
    (checked,) = (tmp_path / "outputs").rglob("data_report.json")
    assert [source["path"] for source in json.loads(checked.read_text())["sources"]] == [
        str(data),
        f"{data} [test]",
    ]
    assert f"data: {data}: held out: test.json; not read: notes.txt" in process.stdout + process.stderr
    (tmp_path / "second").mkdir()
    given = write_json(tmp_path / "mine.json", conversations(2))
    process = launch(
        *tiny,
        "task=check",
        f"dataset.data_path={data}",
        f"dataset.eval_data_path={given}",
        cwd=tmp_path / "second",
    )
    assert "not used: test.json" in process.stdout + process.stderr
    assert report_of(tmp_path / "second")["dataset"]["rows_used"] == 8


def test_a_split_of_the_hub_is_no_split_of_a_file_beside_it(tmp_path):
    """`dataset.split` of a mixture is for its hub ids; files of their own to evaluate on have no split to
    choose.
    """
    file = str(lines(tmp_path / "chats.jsonl"))
    dataset = {
        "split": "train_sft",
        "sources": [{"data_path": "org/name"}, {"data_path": file}],
        "eval_data_path": file,
    }
    assert [source.split for source in Corpus.of(Config.from_mapping({"dataset": dataset})).sources] == [
        "train_sft",
        "train",
        "train",
    ]
    lines(tmp_path / "both" / "validation.jsonl")
    dataset = {"data_path": file, "eval_data_path": str(tmp_path / "both")}
    (found,) = Corpus.of(Config.from_mapping({"dataset": dataset})).held_out
    assert data_files(found.data_path, found.split) == [tmp_path / "both" / "validation.jsonl"]


def test_hidden_files_and_metadata_are_passed_by(tmp_path):
    lines(tmp_path / "chats.jsonl")
    for other in (
        ".ipynb_checkpoints/chats-checkpoint.jsonl", "__MACOSX/chats.jsonl", "._chats.jsonl", "_delta_log/00000.json", ".git/x.json",
        "deeper/.cache/huggingface/x.json", "dataset_info.json", "dataset_infos.json", "cache-0123456789abcdef.arrow",
    ):  # fmt: skip
        lines(tmp_path / other)
    assert read(tmp_path) == ["chats.jsonl"]
    assert read(tmp_path / "**" / "*.json*") == ["chats.jsonl"]
    assert len(find(str(tmp_path)).passed_by) == 9


def test_links_lead_to_each_file_once_and_loops_end(tmp_path):
    data = tmp_path / "data"
    lines(data / "a" / "one.jsonl")
    lines(tmp_path / "elsewhere" / "two.jsonl")
    (data / "b").symlink_to(data / "a")
    (data / "loop").symlink_to(data)
    (data / "a" / "up").symlink_to(data)
    (data / "more").symlink_to(tmp_path / "elsewhere")
    (data / "newest.jsonl").symlink_to(data / "a" / "one.jsonl")
    assert read(data) == ["one.jsonl", "two.jsonl"]
    assert read(data / "*") == ["one.jsonl", "two.jsonl"]
    (data / "gone.jsonl").symlink_to(tmp_path / "nowhere.jsonl")
    with pytest.raises(UserError, match=r"gone.jsonl: a link to .*nowhere.jsonl, which is not there"):
        read(data)
    (tmp_path / "self.jsonl").symlink_to(tmp_path / "self.jsonl")
    with pytest.raises(UserError, match=r"self.jsonl: a link to .*self.jsonl, which is not there"):
        read(tmp_path / "self.jsonl")


def test_a_glob_reads_the_folders_it_matches_once(tmp_path):
    for name in ("part-1/a.jsonl", "part-2/b.jsonl", "part-2/notes.txt"):
        lines(tmp_path / name)
    assert read(tmp_path / "part-*") == ["a.jsonl", "b.jsonl"]
    assert read(tmp_path / "**" / "*.jsonl") == ["a.jsonl", "b.jsonl"]


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/stdin"])
def test_a_device_is_refused(path):
    with pytest.raises(UserError, match="a pipe or device, no file"):
        read(path)


def test_a_pipe_is_refused_and_not_waited_for(tmp_path, launch):
    os.mkfifo(tmp_path / "pipe.jsonl")
    error = only_error(launch(f"dataset.data_path={tmp_path / 'pipe.jsonl'}"))
    assert error.endswith(
        "pipe.jsonl: a pipe or device, no file; data is read more than once, so save it to a file first"
    )
    with pytest.raises(UserError, match=r"pipe.jsonl: a pipe or device"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("key", "path", "message"),
    [
        ("data_path", "", "dataset.data_path: is empty"),
        ("data_path", " ", "dataset.data_path: is empty"),
        ("eval_data_path", "", "dataset.eval_data_path: is empty"),
        ("sources", [{"data_path": ""}], "dataset.sources[0].data_path: is empty"),
        (
            "data_path",
            ["a.json", "b.json"],
            (
                "a list is not read; name a folder or a glob, or write dataset.sources=[{data_path: a.json},"
                " {data_path: b"
            ),
        ),
        ("max_row_mb", 0, "dataset.max_row_mb=0.0: must be above 0"),
    ],
)
def test_an_empty_path_or_a_list_is_refused(key, path, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Config.from_mapping({"dataset": {key: path}})


def test_an_empty_path_does_not_read_the_current_folder(tmp_path, launch):
    write_json(tmp_path / "private.json", conversations(3))
    assert only_error(launch("dataset.data_path=")).startswith("dataset.data_path: is empty")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://example.org/a/chats.jsonl?x=1", "https://example.org/a/chats.jsonl: a URL is not read; download the file and name it: dataset"),
        ("https://user:secret@example.org/chats.jsonl", "https://example.org/chats.jsonl: a URL is not read"),
        ("https://huggingface.co/datasets/org/name/blob/main/x.json", "write the id of the dataset: dataset.data_path=org/name"),
        ("hf://datasets/org/name@v1/x.json", "write the id of the dataset: dataset.data_path=org/name"),
        ("s3://bucket/chats", "s3://bucket/chats: a URL is not read"),
    ],
)  # fmt: skip
def test_a_url_says_what_to_write_instead(url, message):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        find(url)
    assert "secret" not in str(caught.value)


@pytest.fixture
def datasets_rows():
    return [{"from": f"row {number}"} for number in range(10)]


@pytest.mark.slow
def test_what_save_to_disk_wrote_is_read_without_datasets(tmp_path, datasets_rows):
    import datasets

    made = datasets.Dataset.from_list(datasets_rows)
    made.save_to_disk(tmp_path / "one")
    made.save_to_disk(tmp_path / "sharded", num_shards=3)
    datasets.DatasetDict({"train": made, "test": made.select([0, 1])}).save_to_disk(tmp_path / "splits")
    (tmp_path / "one" / "cache-0123456789abcdef.arrow").write_bytes(
        (tmp_path / "one" / "data-00000-of-00001.arrow").read_bytes()
    )
    whole = [row["from"] for row in datasets_rows]
    assert read(tmp_path / "one") == read(tmp_path / "sharded") == read(tmp_path / "splits") == whole
    assert read(tmp_path / "splits", split="test") == whole[:2]
    program = (
        "import sys; from chatbot_sft.data.sources import read_rows; list(read_rows(sys.argv[1]));"
        "print(sorted({'datasets', 'pandas', 'torch'} & set(sys.modules)))"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "splits")], capture_output=True, text=True
    )
    assert process.stdout.strip() == "[]", process.stderr
    (tmp_path / "sharded" / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(
        UserError,
        match=r"state.json lists data-00001-of-00003.arrow, which is not there; is the copy whole\?",
    ):
        read(tmp_path / "sharded")


def test_a_saved_selection_of_old_datasets_is_refused(tmp_path):
    """Old versions wrote the file of the whole dataset and an index of the rows that were meant
    (huggingface/datasets#2197).
    """
    state = {
        "_data_files": [{"filename": "data.arrow"}],
        "_indices_data_files": [{"filename": "indices.arrow"}],
    }
    write_json(tmp_path / "state.json", state)
    (tmp_path / "data.arrow").write_bytes(b"")
    with pytest.raises(UserError, match="saved with an index over its rows"):
        read(tmp_path)


@pytest.mark.parametrize(
    "state", ["", "null", "[]", '{"_data_files": null}', '{"_data_files": [1]}', '{"a": 1}']
)
def test_a_state_file_of_something_else_is_passed_by(tmp_path, state):
    lines(tmp_path / "chats.jsonl")
    (tmp_path / "state.json").write_text(state)
    assert read(tmp_path) == ["chats.jsonl"]


def zstd(data):
    import pyarrow

    return pyarrow.Codec("zstd").compress(data, asbytes=True)


@pytest.mark.parametrize(
    ("suffix", "compress"),
    [("bz2", bz2.compress), ("xz", lzma.compress), ("zst", zstd), ("gz", gzip.compress)],
)
def test_compressed_files_are_read_and_cut_ones_refused(tmp_path, suffix, compress):
    whole = "".join(
        json.dumps({"from": str(number), "noise": os.urandom(8).hex()}) + "\n" for number in range(3000)
    ).encode()
    (tmp_path / f"a.jsonl.{suffix}").write_bytes(compress(whole))
    (tmp_path / f"b.csv.{suffix}").write_bytes(compress(b"from,x\nlast,y\n"))
    assert read(tmp_path) == [*map(str, range(3000)), "last"]
    (tmp_path / f"two.jsonl.{suffix}").write_bytes(
        compress(b'{"from": "a"}\n') + compress(b'{"from": "b"}\n')
    )
    assert read(tmp_path / f"two.jsonl.{suffix}") == ["a", "b"]
    cut = tmp_path / f"cut.jsonl.{suffix}"
    cut.write_bytes(compress(whole)[:-20])
    with pytest.raises(UserError, match=r"the (bzip2|xz|zstd|gzip) file is damaged or cut short"):
        read(cut)
    if suffix == "zst":
        return  # a checksum is the writer's choice there
    flipped = bytearray(compress(whole))
    flipped[len(flipped) // 2] ^= 0xFF
    cut.write_bytes(flipped)
    with pytest.raises(UserError, match=r"damaged|not JSON|not UTF-8"):
        read(cut)


def test_a_zip_file_is_read_member_by_member(tmp_path):
    def pack(**members):
        with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
        return tmp_path / "data.zip"

    both = {
        "a.jsonl": '{"from": "a"}',
        "b/c.csv": "from\nc\n",
        "__MACOSX/._a.jsonl": "\0",
        "README.md": "x",
        "b/": "",
    }
    assert read(pack(**both)) == ["a", "c"]
    assert read(tmp_path) == ["a", "c"]
    with pytest.raises(UserError, match=r"data.zip/a.jsonl: not JSON"):
        read(pack(**{"a.jsonl": "x"}))
    with pytest.raises(
        UserError, match=r"some of it is held out by its name \(test.jsonl\); unpack it and name the folder"
    ):
        read(pack(**{"train.jsonl": "{}", "test.jsonl": "{}"}))
    with pytest.raises(UserError, match=r"a zip file without data files; it has x.txt"):
        read(pack(**{"x.txt": "x"}))
    with pytest.raises(UserError, match=r"an Excel file; save the sheet as CSV \(UTF-8\)"):
        read(pack(**{"[Content_Types].xml": "", "xl/workbook.xml": ""}))
    whole = pack(**{"a.jsonl": json.dumps({"from": os.urandom(5000).hex()})}).read_bytes()
    (tmp_path / "data.zip").write_bytes(whole[:-30])
    with pytest.raises(UserError, match="the zip file is damaged or cut short"):
        read(tmp_path / "data.zip")
    damaged = bytearray(whole)
    damaged[2000] ^= 0xFF
    (tmp_path / "data.zip").write_bytes(damaged)
    with pytest.raises(UserError, match="damaged"):
        read(tmp_path / "data.zip")


def tar():
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.jsonl"))
    return packed.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (b"/annex/objects/MD5-s5--0\n", "a git-annex pointer, not the file itself; run `git annex get`"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page, not data"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel or Word file; save the table as CSV"),
        (b"7z\xbc\xaf\x27\x1c\0", "a 7-Zip archive; unpack it"),
        (b"%PDF-1.7", "a PDF"),
        (b"SQLite format 3\0", "an SQLite database; export the table as CSV"),
        (b"Obj\x01\0", "an Avro file"),
        (b"ORC\x01", "an ORC file"),
        (b"\x80\x04\x95", "a pickle, which is never opened"),
        (tar(), "a tar archive; unpack it"),
        (gzip.compress(tar(), mtime=0), "a tar archive; unpack it"),
        (gzip.compress(b"PK\x03\x04", mtime=0), "a zip file inside another compression; unpack it"),
        (zstd(b"PAR1" * 200), "Parquet and Arrow files are read from any place of theirs; decompress it"),
        (b"PK\x05\x06" + b"\0" * 18, "a zip file without data files; it has nothing"),
        (gzip.compress(gzip.compress(b"{}", mtime=0), mtime=0), "compressed twice (gzip inside)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # every worker collects the same names
)  # fmt: skip
def test_what_is_no_data_file_is_named(tmp_path, content, message):
    for name in ("data.jsonl", "data.parquet", "data.csv"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=re.escape(f"{name}: {message}")):
            read(tmp_path / name)
