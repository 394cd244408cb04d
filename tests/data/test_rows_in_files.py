"""Rows as real and hostile files have them: too long, too deep, keys and columns that stand twice, NaN, nulls
of a table's struct, habits of CSV.
"""

import bz2
import datetime
import gzip
import json
import re
import subprocess
import sys

import pytest
from conftest import conversations, only_error, write_json

from chatbot_sft import UserError
from chatbot_sft.data.sources import read_rows
from chatbot_sft.data.template import ChatTokenizer


def values(path, **options):
    return [row.values for row in read_rows(str(path), **options)]


def written(path, content):
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.arrow", "dictionary.parquet"])
def test_a_row_that_is_too_long_is_named(tmp_path, name):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"text": "x" * size} for size in (900_000, 2_000_000, 10)]
    table = pa.Table.from_pylist(rows)
    if name.endswith(".json"):
        write_json(tmp_path / name, rows)
    elif name.endswith(".jsonl"):
        written(tmp_path / name, "\n".join(map(json.dumps, rows)))
    elif name.endswith(".csv"):
        written(tmp_path / name, "text\n" + "\n".join(row["text"] for row in rows))
    elif name == "a.parquet":
        pq.write_table(table, tmp_path / name)
    elif name == "dictionary.parquet":
        pq.write_table(table.set_column(0, "text", table["text"].dictionary_encode()), tmp_path / name)
    else:
        with pa.ipc.new_stream(tmp_path / name, table.schema) as writer:
            writer.write_table(table)
    assert values(tmp_path / name) == rows
    with pytest.raises(
        UserError,
        match=(
            rf"{name}: (a row|row 2|line 2).* has over 1 million (characters|bytes), the most that"
            r" dataset.max_row_mb allows"
        ),
    ):
        values(tmp_path / name, max_row_mb=1)


BOMBS = {
    "string.json.gz": (b'[{"text": "', gzip.compress),
    "string.jsonl.gz": (b'{"text": "', gzip.compress),
    "header.csv.gz": (b'"', gzip.compress),
    "names.csv.gz": (b"", gzip.compress),
    "string.json.bz2": (b'[{"text": "', bz2.compress),
    "spaces.json.gz": (b"[", gzip.compress),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_decompression_bomb_is_refused_within_little_memory(tmp_path, name):
    """300 MB of one letter in 300 kB: within 120 MB more than the interpreter has at the start."""
    begin, compress = BOMBS[name]
    filler = {"names.csv.gz": b",", "spaces.json.gz": b" "}.get(name, b"x")
    (tmp_path / name).write_bytes(compress(begin + filler * (300 << 20)))
    program = (
        "import resource, sys\n"
        "from chatbot_sft import UserError\n"
        "from chatbot_sft.data.sources import read_rows\n"
        "used = int(next(l for l in open('/proc/self/status') if l.startswith('VmSize')).split()[1]) * 1024\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (120 << 20),) * 2)\n"
        "try: list(read_rows(sys.argv[1]))\n"
        "except UserError as error: print(error)\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / name)], capture_output=True, text=True, timeout=600
    )
    assert re.search(
        "the most that dataset.max_row_mb allows|the list is not closed|no conversations", process.stdout
    ), process.stderr[-500:]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": ' * 100_000, "nested too deeply"),
        ('[{"a": 1}, {"a": ' + "[" * 5000 + "]" * 5000 + "}]", "row 2 is nested too deeply to be read"),
        ('[{"a": 1}, {"a": ' + "7" * 5000 + "}]", "row 2 has a number of over 4,300 digits"),
    ],
)
def test_what_the_decoder_cannot_take_is_named_by_row(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        values(written(tmp_path / "a.json", content))


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ('{"text": "a", "text": "b"}', "doubled key"),
        ('{"messages": [{"role": "user", "role": "assistant", "content": "a"}]}', "doubled key"),
        ('{"text": "a", "tools": [{"x": {"y": 1, "y": 2}}]}', "doubled key"),
        ('{"text": "a", "arguments": {"x": NaN}}', "not a number"),
        ('{"text": "a", "x": Infinity}', "not a number"),
        ('{"text": "a", "x": [-Infinity]}', "not a number"),
        ('{"text": "a", "x": 1e999}', "not a number"),
    ],
)
def test_what_json_leaves_open_is_a_bad_row(tmp_path, row, kind):
    """The last of two keys wins in Python, the first elsewhere; NaN is no JSON, and Python writes it."""
    for content in (f'[{{"text": "a"}}, {row}]', f'{{"text": "a"}}\n{row}\n'):
        good, bad = read_rows(str(written(tmp_path / "a.json", content)))
        assert (good.fault, bad.fault[0]) == (None, kind)


@pytest.mark.parametrize(
    ("row", "read"),
    [
        ('{"text": "a", "text": "a"}', {"text": "a"}),  # nothing is lost
        ('{"text": "a", "score": NaN}', {"text": "a"}),  # an empty cell of pandas
        (
            '{"text": "a", "x": null, "y": [null, {"z": null}]}',
            {"text": "a", "x": None, "y": [None, {"z": None}]},
        ),  # the user's own
        ('{"text": "a", "x": 1.5e3}', {"text": "a", "x": 1500.0}),
    ],
)
def test_what_is_certain_in_json_is_read(tmp_path, row, read):
    (row,) = read_rows(str(written(tmp_path / "a.json", row)))
    assert (row.values, row.fault) == (read, None)


def test_a_doubled_key_is_refused_by_the_gate(tmp_path, launch):
    rows = (
        "\n".join(map(json.dumps, conversations(3)))
        + '\n{"messages": [], "messages": [{"role": "user", "content": "a"}]}'
    )
    error = only_error(launch("task=check", f"dataset.data_path={written(tmp_path / 'a.jsonl', rows)}"))
    assert (
        "a.jsonl: row 4: the key 'messages' stands twice in one object, with different values; 1 of 4 rows"
        " is bad (25.0%): doubled key (1)" in error
    )


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({f"id-{n}": {"messages": []} for n in range(2000)}, "found an object keyed by 'id-0', 'id-1', 'id-2', 'id-3', 'id-4', 'id-5', 'id-6',"),
        ({f"id-{n}": {"messages": []} for n in range(2000)}, "'id-9' and 1,990 more; save its values as a list"),
        ({f"{n}": [{"role": "user", "content": "a"}] for n in range(30)}, " and 20 more; save its values as a list"),
        ({"train": [{"messages": []}], "test": [{"messages": []}]}, "found an object with several lists (train, test); save each as a file"),
        ({"version": 1, "data": [{"text": "a"}]}, "found an object; save the list under its key 'data' as the file"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("indent", [None, 1])
def test_all_of_the_data_in_one_object_is_named_in_one_short_line(tmp_path, value, message, indent):
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        values(written(tmp_path / "a.json", json.dumps(value, indent=indent)))
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("content", ['{"a": 1}{"a": 2}', '{\n  "a": 1\n}\n{\n  "a": 2\n}\n'])
def test_objects_one_after_another_say_how_to_write_them(tmp_path, content):
    with pytest.raises(
        UserError,
        match=r"JSON objects one after another; write one a line \(`jq -c .` does\) or a list of them",
    ):
        values(written(tmp_path / "a.json", content))


def test_one_row_alone_is_a_row(tmp_path):
    row = {
        "messages": [{"role": "user", "content": "a"}],
        "tools": [{"type": "function", "function": {"name": "f"}}],
    }
    assert values(write_json(tmp_path / "a.jsonl", row)) == [row]
    row = {"instruction": "a", "output": "b", "sources": [{"url": "c"}]}
    assert values(write_json(tmp_path / "a.jsonl", row)) == [row]


def test_jsonl_that_was_joined_from_files_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\r\n\xef\xbb\xbf{"a": 2}\r\n')
    assert values(tmp_path / "a.jsonl") == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("output,instruction,output\na,b,c\n", "the header has 'output' twice; rename one of them"),
        ("a, a \nb,c\n", "the header has 'a' twice"),
        (
            'a,b\n"' + "x\n" * 600_000,
            (
                "row 1 has over 1 million characters, the most that dataset.max_row_mb allows; is a quote"
                " missing?"
            ),
        ),
    ],
)
def test_a_csv_file_that_would_be_read_otherwise_than_meant_is_refused(tmp_path, content, message):
    with pytest.raises(UserError, match=re.escape(message)):
        values(written(tmp_path / "a.csv", content), max_row_mb=1)


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("a.csv", 'a, b\n"x, y", "z"\n', [{"a": "x, y", "b": "z"}]),  # the quote would have stood in the text
        ("a.csv", "a,b\nx, y\n", [{"a": "x", "b": " y"}]),
        ("a.csv", "sep=;\na;b\nx;y\n", [{"a": "x", "b": "y"}]),
        ("a.csv", ",a\n0,x\n1,y\n", [{"": "0", "a": "x"}, {"": "1", "a": "y"}]),
        ("a.csv", "a,b,,\nx,y,,\n", [{"a": "x", "b": "y"}]),
        ("a.csv", '"a; or b;",c\nx,y\n', [{"a; or b;": "x", "c": "y"}]),
        ("a.csv", "\n\na,b\nx,y\n", [{"a": "x", "b": "y"}]),
        ("a.tsv", "a\tb, or c\nx, y\tz\n", [{"a": "x, y", "b, or c": "z"}]),
        ("a.csv", '\ufeff"a","b"\r\n"x\r\ny","z"\r\n\r\n', [{"a": "x\r\ny", "b": "z"}]),
    ],
)
def test_habits_of_csv_files_are_read(tmp_path, name, content, read):
    (tmp_path / name).write_bytes(content.encode())
    assert values(tmp_path / name) == read


CALL = {"type": "function", "function": {"name": "stock", "arguments": {"crates": 3}}}
OTHER = {
    "type": "function",
    "function": {
        "name": "order",
        "arguments": {"beer": "Gold", "notes": [None, "cold"], "to": {"city": "Ashford"}},
    },
}
SCHEMA = {
    "name": "stock",
    "parameters": {"properties": {"crates": {"type": "integer"}}, "required": ["crates"]},
}
OTHER_SCHEMA = {
    "name": "order",
    "parameters": {"properties": {"beer": {"type": "string", "enum": ["Gold", None]}}},
}
TOOL_ROWS = [
    {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [CALL]}],
        "tools": [SCHEMA],
        "x": "z",
    },
    {
        "messages": [
            {"role": "user", "content": "b"},
            {"role": "assistant", "content": "c", "tool_calls": [OTHER]},
        ],
        "tools": [OTHER_SCHEMA],
        "x": "y",
    },
]


@pytest.mark.parametrize(
    "kind",
    [
        "parquet",
        "arrow",
        "feather",
        *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("saved", "hub")),
    ],
)
def test_keys_of_other_rows_are_not_read_as_nulls(tmp_path, monkeypatch, kind):
    """One struct for all rows: huggingface/datasets#7617 and #6699 are about the nulls that this makes of
    keys.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_pylist(TOOL_ROWS)
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    elif kind == "feather":
        import pyarrow.feather

        pyarrow.feather.write_feather(table, path)
    elif kind == "arrow":
        with pa.ipc.new_stream(path, table.schema) as writer:
            writer.write_table(table)
    else:
        import datasets

        made = datasets.Dataset(table)
        if kind == "saved":
            made.save_to_disk(path)
        else:
            from chatbot_sft.data.sources import read_hub

            monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
            assert [row.values for row in read_hub("org/name", None, "train", None)[0]] == TOOL_ROWS
            return
    assert values(path) == TOOL_ROWS


def test_what_tables_have_beside_text_and_numbers_is_as_json_has_it(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "dictionary": pa.array(["a", "b"]).dictionary_encode(),
        "large": pa.array(["a", "b"], pa.large_string()),
        "view": pa.array(["a", "b"], pa.string_view()),
        "binary": pa.array(
            ["ü".encode(), b"\xff"], pa.binary()
        ),  # Spark and old fastparquet do not mark text as text
        "map": pa.array([[("crates", 3), ("none", None)], []], pa.map_(pa.string(), pa.int64())),
        "nan": pa.array([1.5, float("nan")]),
        "large_list": pa.array(
            [[{"role": "user", "x": None}], None],
            pa.large_list(pa.struct({"role": pa.string(), "x": pa.int64()})),
        ),
        "in_list": pa.array([[None, "a"], [None]], pa.list_(pa.string())),
        "null_struct": pa.array([None, {"a": None}], pa.struct({"a": pa.int64()})),
        "date": pa.array([datetime.date(2026, 1, 2), None]),
    }
    table = pa.table(columns)
    expected = [
        {
            "dictionary": "a", "large": "a", "view": "a", "binary": "ü", "map": {"crates": 3, "none": None}, "nan": 1.5,
            "large_list": [{"role": "user"}], "in_list": [None, "a"], "date": datetime.date(2026, 1, 2),
        },
        {"dictionary": "b", "large": "b", "view": "b", "binary": b"\xff", "map": {}, "in_list": [None], "null_struct": {}},
    ]  # fmt: skip
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table)
    pq.write_table(table, tmp_path / "a.parquet")
    assert values(tmp_path / "a.arrow") == values(tmp_path / "a.parquet") == expected


@pytest.mark.slow
def test_json_columns_of_datasets_are_decoded(tmp_path):
    """Newer `datasets` keep what has no common type as JSON in an extension type; its nulls are the row's
    own.
    """
    import datasets

    features = datasets.Features({"arguments": datasets.Json(), "n": datasets.Value("int64")})
    rows = [{"arguments": {"a": None}, "n": 1}, {"arguments": [1, "x"], "n": 2}]
    made = datasets.Dataset.from_list(rows, features=features)
    made.save_to_disk(tmp_path / "saved")
    made.to_parquet(tmp_path / "a.parquet")
    assert values(tmp_path / "saved") == values(tmp_path / "a.parquet") == rows


def test_two_columns_of_one_name_are_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match="two columns are called 'text'; rename one of them"):
        values(tmp_path / "a.parquet")


def test_an_arrow_file_with_wrong_offsets_is_refused(tmp_path):
    """Arrow believes them: text of other rows, or of elsewhere in memory, would be trained."""
    import pyarrow as pa

    with pa.ipc.new_stream(tmp_path / "a.arrow", pa.schema({"text": pa.string()})) as writer:
        writer.write_batch(pa.record_batch([["first", "second", "third"]], names=["text"]))
    whole = (tmp_path / "a.arrow").read_bytes()
    offsets = b"".join(number.to_bytes(4, "little") for number in (0, 5, 11, 16))
    assert whole.count(offsets) == 1
    (tmp_path / "a.arrow").write_bytes(
        whole.replace(offsets, offsets[:4] + b"\x0e" + offsets[5:8] + offsets[8:])
    )
    with pytest.raises(UserError, match="not a whole Arrow file"):
        values(tmp_path / "a.arrow")


@pytest.mark.slow
@pytest.mark.parametrize(
    "unit",
    [
        "some words here ",
        "câu hỏi này dài\n\n",
        "你好世界今天天气",
        "x",
        "   ",
        "<|im_end|>",
        "12345 67.89 I'm  two\r\n",
        "👩‍👩‍👧‍👦",
    ],
)
def test_a_long_text_is_cut_where_no_token_is(smollm2, unit):
    """Tokenised in pieces of 200,000 characters, it has the tokens that it has whole."""
    from chatbot_sft.data.encode import PIECE, Encoder

    chat = ChatTokenizer.from_folder(smollm2, "smollm2", {})
    encoder = Encoder(chat, 2048, "assistant", "truncate")
    text = "It begins. " + unit * (5 * PIECE // 2 // len(unit))
    assert encoder._tokenised(["a b", text]) == [
        chat.backend.encode(given, add_special_tokens=False).ids for given in ("a b", text)
    ]


@pytest.mark.slow
def test_a_long_row_takes_a_bounded_multiple_of_its_size(tmp_path, smollm2):
    """Eight rows of 2 million characters: neither one nor a batch of them takes the memory."""
    row = json.dumps(
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "some words here " * 125_000},
            ]
        }
    )
    written(tmp_path / "a.jsonl", "\n".join([row] * 8))
    program = (
        "import sys\nfrom pathlib import Path\nfrom chatbot_sft import DatasetLoader\nfrom"
        " chatbot_sft.data.template import ChatTokenizer\nmade = DatasetLoader({'model': {'name': 'smollm2'},"
        " 'dataset': {'data_path': sys.argv[1], 'eval_fraction':"
        " 0}})\nmade.check(ChatTokenizer.from_folder(Path(sys.argv[2]), 'smollm2',"
        " {}))\nprint(made.statistics.rows, next(l for l in open('/proc/self/status') if"
        " l.startswith('VmHWM')).split()[1])\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "a.jsonl"), str(smollm2)],
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    rows, kilobytes = process.stdout.split()
    assert rows == "8"
    assert int(kilobytes) < 500_000
