"""Files to rows: every kind of file as a stream, and every kind of broken file refused in one line with file
and row.
"""

import csv
import gzip
import json
import random
import subprocess
import sys

import pytest
from conftest import conversations, write_json
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot_sft import UserError
from chatbot_sft.data.files import data_files
from chatbot_sft.data.sources import read_rows
from chatbot_sft.data_names import is_hub_id

ROW = '{"messages": [{"role": "assistant", "content": "a"}]}'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{}", "not JSON: the list is not closed after row 1; is the file cut short?"),
        ("[{}, {]", "row 2 is not JSON"),
        (
            "[\n{},\n\n{'a': 1}]",
            "line 4 has 'single quotes', as Python prints, where JSON has \"double\" ones; write it with json.dumps",
        ),
        ('[{"a": "cut he', "row 1 is not JSON: Unterminated string starting at (line 1 of the file)"),
        ("[{} {}]", "row 2 is not JSON: expected a comma before it"),
        ("[{}] [{}]", "more text after the list ('[')"),
        ("this is no JSON", "not JSON"),
        ("", "no conversations in it"),
        (" \n ", "no conversations in it"),
        ("[]", "no conversations in it"),
        ('{"messages": 1', "not JSON"),
        (
            f"{ROW},\n{ROW},\n",
            "line 1 ends with a comma; leave them out where each line is a row, or put [ ]",
        ),
        (f"{ROW}\n{ROW},\n", "line 2 ends with a comma; leave"),
        (f"[{ROW},\n{ROW},\n]", "line 3 has a comma before its ]; take it out"),
        ('{"messages": [],}\n', "line 1 has a comma before its }; take it out"),
        (f"\n// mine\n{ROW}\n", "line 2 has a comment, and JSON has none; take it out"),
        ('{\n"messages": [], # none\n}', "line 2 has a comment"),
        ("{'messages': []}\n", "line 1 has 'single quotes'"),
        ('{\n"a": 1\n},\n{\n"a": 2\n}', "JSON objects one after another; write one a line"),
        (
            '{"data": [{"messages": []}]}',
            "expected a JSON list of conversations, found an object; save the list under its key 'data'",
        ),
        (
            '{\n"data": [{"messages": []}]\n}',
            "expected a JSON list of conversations, found an object; save the list under its key 'data'",
        ),
        ("42", "row 1 is a number, expected an object"),
        ('["a"]', "row 1 is a text"),
        (
            ROW + '\n{"mess\n',
            "line 2 is not JSON: Unterminated string starting at character 2, and the last one; is the file cut short?",
        ),
    ],
)
def test_a_broken_json_file_is_refused(tmp_path, content, message):
    file = tmp_path / "data.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        list(read_rows(str(file)))
    assert str(caught.value).startswith(str(file))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('instruction,output\n"a,b\n', "row 1 (line 2) is not CSV: unexpected end of data"),
        ('instruction,output\na,b\n"x"y,z\n', "row 2 (line 3) is not CSV"),
        ("instruction,output\n", "no conversations in it"),
        ("", "no conversations in it"),
    ],
)
def test_a_broken_csv_file_is_refused(tmp_path, content, message):
    file = tmp_path / "data.csv"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        list(read_rows(str(file)))
    assert str(caught.value).startswith(f"{file}: {message}")


def test_csv_with_quotes_line_breaks_semicolons_and_a_byte_order_mark(tmp_path):
    rows = [
        {"instruction": 'say "hi",\nthen\r\nbye', "output": "a; b"},
        {"instruction": "", "output": "x" * 200_000},
    ]
    for name, delimiter in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        with (tmp_path / name).open("w", encoding="utf-8-sig", newline="") as stream:
            writer = csv.DictWriter(stream, ["instruction", "output"], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(rows)
        assert [row.values for row in read_rows(str(tmp_path / name))] == rows


def test_a_missing_file_suggests_the_nearest(tmp_path):
    write_json(tmp_path / "conversations.json", conversations(1))
    with pytest.raises(UserError, match=r"no such data file; did you mean conversations.json\?"):
        read_rows(str(tmp_path / "conversation.json")).__next__()


@pytest.mark.parametrize(
    ("content", "message"),
    [(b'[{"messages": "\xff"}]', "byte 15"), (b'[{"a": "' + b"x" * (1 << 20) + b"\xe9\x80", "byte 1048584")],
)
def test_not_utf8_says_where(tmp_path, content, message):
    (tmp_path / "data.json").write_bytes(content)
    with pytest.raises(UserError, match=rf"not UTF-8 text \({message}\)"):
        list(read_rows(str(tmp_path / "data.json")))


TEXTS = {"json": '[{"text": "hi"}]', "jsonl": '{"text": "hi"}\n', "csv": "text,n\nhi,1\n"}


@pytest.mark.parametrize("suffix", TEXTS)
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_byte_order_mark_is_read_and_utf16_recognised(tmp_path, suffix, encoding):
    """Without a mark as well: its plain letters are UTF-8 with a zero byte each, and a CSV file would be read
    so.
    """
    file = tmp_path / f"data.{suffix}"
    file.write_text(TEXTS[suffix], encoding=encoding)
    if encoding == "utf-8-sig":
        (row,) = read_rows(str(file))
        assert row.values["text"] == "hi"
        return
    with pytest.raises(UserError) as error:
        list(read_rows(str(file)))
    assert (
        str(error.value) == f"{file}: not UTF-8 text (byte 0); it looks like UTF-16; save the file as UTF-8"
    )


def test_a_gzip_file_is_read_and_a_cut_one_refused(tmp_path):
    whole = gzip.compress(
        "\n".join(json.dumps({"n": n, "noise": random.Random(n).random()}) for n in range(5000)).encode()
    )
    (tmp_path / "data.jsonl.gz").write_bytes(whole)
    assert len(list(read_rows(str(tmp_path / "data.jsonl.gz")))) == 5000
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut.jsonl.gz: the gzip file is damaged or cut short"):
        list(read_rows(str(tmp_path / "cut.jsonl.gz")))


def test_parquet_and_arrow_are_read_and_damaged_ones_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = conversations(3)
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "data.parquet")
    with pa.ipc.new_file(tmp_path / "file.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(tmp_path / "stream.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("data.parquet", "file.arrow", "stream.arrow"):
        assert [(row.number, row.values) for row in read_rows(str(tmp_path / name))] == [
            (n, row) for n, row in enumerate(rows, 1)
        ]
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"zipped-{name}.gz").write_bytes(gzip.compress(whole))
        assert len(list(read_rows(str(tmp_path / f"zipped-{name}.gz")))) == 3
        (tmp_path / f"cut-{name}").write_bytes(whole[: len(whole) // 2])
        with pytest.raises(UserError, match="not a whole"):
            list(read_rows(str(tmp_path / f"cut-{name}")))
    (tmp_path / "text.parquet").write_text(ROW)
    with pytest.raises(UserError, match="not a Parquet file, whatever its name says"):
        list(read_rows(str(tmp_path / "text.parquet")))


def test_a_list_and_lines_are_read_alike(tmp_path):
    rows = conversations(3, note="a\nb\u2028c\rd")
    list_file = write_json(tmp_path / "list.json", rows)
    indented = tmp_path / "indented.json"
    indented.write_text(json.dumps(rows, indent=2), encoding="utf-8")
    lines = tmp_path / "lines.jsonl"
    lines.write_text(
        "\ufeff" + "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8"
    )
    assert [[row.values for row in read_rows(str(file))] for file in (list_file, indented, lines)] == [
        rows
    ] * 3


cells = st.recursive(st.none() | st.floats(allow_nan=False) | st.text(max_size=30), st.lists, max_leaves=4)


@pytest.mark.slow
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=4), cells), min_size=1),
    indent=st.none() | st.integers(0, 2),
    chunk=st.integers(1, 40),
)
def test_a_list_is_read_the_same_however_it_falls_into_pieces(tmp_path, monkeypatch, rows, indent, chunk):
    monkeypatch.setattr("chatbot_sft.data.streams.CHUNK", chunk)
    file = tmp_path / "list.json"
    file.write_text(json.dumps(rows, indent=indent, ensure_ascii=False), encoding="utf-8")
    assert [row.values for row in read_rows(str(file))] == rows


def test_a_folder_and_a_glob_are_read_in_the_order_of_names(tmp_path):
    for name in ("b.jsonl", "a.json", "notes.txt", ".hidden.json"):
        write_json(tmp_path / name, [{"from": name}] if name.endswith(".json") else {"from": name})
    (tmp_path / "deeper").mkdir()
    write_json(tmp_path / "deeper" / "c.json", [{"from": "c"}])
    assert [row.values["from"] for row in read_rows(str(tmp_path))] == ["a.json", "b.jsonl", "c"]
    assert [file.name for file in data_files(str(tmp_path / "*.json*"))] == ["a.json", "b.jsonl"]
    assert [file.name for file in data_files(str(tmp_path / ".h*"))] == [".hidden.json"]
    with pytest.raises(UserError, match="no file matches"):
        data_files(str(tmp_path / "*.csv"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no data files in this folder"):
        data_files(str(tmp_path / "empty"))


def test_a_hub_id_is_told_from_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_hub_id("HuggingFaceH4/ultrachat_200k")
    for path in (
        "data/missing",
        "org/data.json",
        "org/data.jsonl.gz",
        "./org/name",
        "/org/name",
        "name",
        "a/b/c",
    ):
        assert not is_hub_id(path), path


@pytest.mark.slow
def test_a_large_file_is_streamed(tmp_path):
    """120 MB of rows within 60 MB more than the interpreter has at the start: neither a list nor lines are
    ever held whole.
    """
    row = json.dumps({"messages": [{"role": "assistant", "content": "x" * 100_000}]})
    rows = 1200
    with (tmp_path / "list.json").open("w") as stream:
        stream.write("[" + ",\n".join([row] * rows) + "]")
    with (tmp_path / "lines.jsonl").open("w") as stream:
        stream.write("\n".join([row] * rows))
    program = (
        "import resource, sys\n"
        "from chatbot_sft.data.sources import read_rows\n"
        "used = int(next(l for l in open('/proc/self/status') if l.startswith('VmSize')).split()[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (60 << 20),) * 2)\n"
        "print(sum(1 for _ in read_rows(sys.argv[1])))\n"
    )
    for name in ("list.json", "lines.jsonl"):
        process = subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, timeout=600
        )
        assert process.stdout.strip() == str(rows), process.stderr
