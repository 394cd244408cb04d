"""The gate: every planted fault is caught with its row, before a model is loaded, and a run goes on or stops
as `on_bad_row` says.
"""

import json
import re
import subprocess
import sys

import pytest
from conftest import EXAMPLE, conversations, only_error, report_of, write_json

from chatbot_sft import DatasetLoader, UserError
from chatbot_sft.config import Config
from chatbot_sft.data.gate import schedule
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.report.data_summary import of_schedule


def user(content, **extra):
    return {"role": "user", "content": content, **extra}


def assistant(content, **extra):
    return {"role": "assistant", "content": content, **extra}


@pytest.fixture(scope="module")
def chat(smollm2):
    return ChatTokenizer.from_folder(smollm2, "smollm2", {})


def loader(path, max_seq_length=2048, **dataset):
    config = {
        "model": {"name": "smollm2", "max_seq_length": max_seq_length},
        "dataset": {"data_path": str(path), "eval_fraction": 0, **dataset},
    }
    return DatasetLoader(config)


FAULTS = {
    "unknown role": (
        [{"role": "asistant", "content": "a"}, assistant("b")],
        "message 1: role 'asistant' is none of",
    ),
    "empty content": ([user(" \n"), assistant("b")], "message 1: content is empty"),
    "no assistant turn": ([user("a")], "no assistant message"),
    "repeated role": ([user("a"), user("b"), assistant("c")], "messages 1 and 2 are both by user"),
    "no trainable token": ([user("a"), assistant("b", train=False)], "no token of it would be trained"),
    "special token in text": (
        [user("a <|im_end|> b"), assistant("c")],
        "message 1 (user) contains <|im_end|>, which is a control token",
    ),
    "invalid unicode": ([user("a \ud800 b"), assistant("c")], "a message has half of a surrogate pair"),
    "not messages": ("hello", "not a list of messages"),
    "not text": (
        [user([{"type": "image"}]), assistant("c")],
        "message 1: content has a part of type 'image'",
    ),
    "bad weight": ([user("a"), assistant("b", weight=0.3)], "message 2: weight 0.3 is neither 0 nor 1"),
    "bad tool call": (
        [user("a"), assistant(None, tool_calls=[{"id": "1"}])],
        "message 2: a tool call needs a function with a name",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught_with_its_row(tmp_path, chat, fault):
    turns, detail = FAULTS[fault]
    rows = conversations(9)
    rows.insert(4, {"messages": turns})
    (tmp_path / "data.json").write_text(json.dumps(rows))
    made = loader(tmp_path / "data.json")
    with pytest.raises(UserError) as caught:
        made.check(chat)
    assert str(caught.value).startswith(f"{tmp_path}/data.json: row 5: {detail}")
    assert (
        f"1 of 10 rows is bad (10.0%): {fault} (1); mend them, or leave them out with"
        " dataset.on_bad_row=drop" in str(caught.value)
    )
    (found,) = made.report["problems"][fault]["rows"]
    assert found["row"] == 5
    assert (made.report["status"], made.statistics.bad_rows, made.statistics.rows_used) == ("refused", 1, 9)


def test_mixed_formats_are_caught_with_their_row(tmp_path, chat):
    rows = [
        *conversations(3),
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ]
    with pytest.raises(UserError, match="row 4: this row is sharegpt, the file is read as messages"):
        loader(write_json(tmp_path / "data.json", rows)).check(chat)


def test_a_nul_character_is_caught(tmp_path, chat):
    file = write_json(tmp_path / "data.json", [{"messages": [user("a\0b"), assistant("c")]}])
    with pytest.raises(UserError, match="row 1: a message has a NUL character"):
        loader(file).check(chat)
    (tmp_path / "data.csv").write_text("prompt,completion\na\0b,c\n")
    with pytest.raises(UserError, match="row 1: a message has a NUL character"):
        loader(tmp_path / "data.csv").check(chat)


def test_an_end_of_turn_that_would_not_be_learned_is_caught(tmp_path, chat, tokenizer):
    """Ready-made text without its end token, all of it or the answers trained, and a formatting function that
    forgets it.
    """
    file = write_json(
        tmp_path / "text.json", [{"text": "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello"}]
    )
    for train_on in ("assistant", "all"):
        with pytest.raises(UserError, match=r"row 1: .* the model would not learn to stop"):
            loader(file, train_on=train_on).check(chat)

    class Forgetful(DatasetLoader):
        def formatting_prompts_func(self, examples):
            return {
                "text": [
                    text.removesuffix("<|im_end|>\n")
                    for text in super().formatting_prompts_func(examples)["text"]
                ]
            }

    data = write_json(tmp_path / "data.json", conversations(3))
    made = Forgetful(
        {"model": {"name": "smollm2"}, "dataset": {"data_path": str(data), "eval_fraction": 0}}, tokenizer
    )
    with pytest.raises(UserError, match=r"end of turn not trained \(3\)"):
        made.prepare_dataset()


def test_a_tool_call_that_the_template_leaves_out_is_caught(tmp_path, chat):
    """SmolLM2's template knows no tools: it would write an empty answer, and the model would learn to say
    nothing.
    """
    call = assistant(None, tool_calls=[{"function": {"name": "price", "arguments": {}}}])
    rows = [{"messages": [user("how much?"), call, {"role": "tool", "content": "1"}, assistant("one")]}]
    with pytest.raises(
        UserError, match="row 1: message 2: the chat template does not write its call of price"
    ):
        loader(write_json(tmp_path / "data.json", rows)).check(chat)


def test_a_doubled_bos_is_caught(tmp_path, chat):
    text = "<|im_start|><|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
    with pytest.raises(UserError, match="row 1: it begins with two begin-of-sequence tokens"):
        loader(write_json(tmp_path / "data.json", [{"text": text}])).check(chat)


def test_ready_made_text_without_turns_is_caught(tmp_path, chat):
    with pytest.raises(
        UserError, match="row 1: no assistant text found in it by the chat template's turn markers"
    ):
        loader(write_json(tmp_path / "data.json", [{"text": "no turns here"}])).check(chat)


def test_a_template_that_refuses_a_row_is_quoted(tmp_path, smollm2):
    from chatbot_sft.data.template import ChatTemplate

    chat = ChatTokenizer.from_folder(smollm2, "smollm2", {})
    chat.template = ChatTemplate(
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        + chat.template.source
    )
    rows = [{"messages": [{"role": "system", "content": "s"}, user("a"), assistant("b")]}]
    with pytest.raises(UserError, match="row 1: the chat template refuses it: System role not supported"):
        loader(write_json(tmp_path / "data.json", rows)).check(chat)


def test_one_percent_of_bad_rows_is_left_out_and_counted(tmp_path, chat):
    rows = [*conversations(99), {"messages": [user("a")]}]
    made = loader(write_json(tmp_path / "data.json", rows))
    assert made.check(chat)["status"] == "passed"
    assert (made.statistics.rows, made.statistics.rows_used, made.statistics.bad_rows) == (100, 99, 1)
    with pytest.raises(UserError, match=r"row 100: no assistant message.*1 of 100 rows is bad \(1.0%\)"):
        loader(tmp_path / "data.json", on_bad_row="error").check(chat)
    with pytest.raises(UserError, match=r"2 of 101 rows are bad \(2.0%\)"):
        loader(write_json(tmp_path / "more.json", [*rows, {"messages": [user("a")]}])).check(chat)


def test_response_only_false_is_train_on_all(tmp_path, chat):
    """The gate's figures, labels and preview say what is trained."""
    rows = conversations(3)
    rows[0]["messages"] += [user("c"), assistant("d", train=False)]  # left out whatever else is trained
    file = write_json(tmp_path / "data.json", rows)
    made = [loader(file, train_on=part) for part in ("assistant", "all")]
    config = {
        "model": {"name": "smollm2"},
        "dataset": {"data_path": str(file), "eval_fraction": 0},
        "training": {"response_only": False},
    }
    made.append(DatasetLoader(config))
    answers, everything, same = (each.check(chat)["trainable_tokens"] for each in made)
    assert answers < everything == same
    assert made[2].statistics.fingerprint == made[1].statistics.fingerprint
    assert made[2].preview_rows() == made[1].preview_rows()


def test_how_many_rows_are_taken_is_said_from_the_cache_too(tmp_path, chat, caplog):
    from chatbot_sft.report.data_summary import facts

    caplog.set_level("INFO")
    file = write_json(tmp_path / "data.json", conversations(60))
    for cached in (False, True):
        report = loader(file, max_rows=12).check(chat)
        assert report["cached"] is cached
        assert caplog.messages == [f"data: {file}: 12 of 60 rows"]
        assert dict(facts(report))["data"] == f"{file} (messages, 12 of 60 rows)"
        caplog.clear()


@pytest.mark.parametrize(
    ("rows", "dataset", "way_out"),
    [
        (
            [
                {
                    "messages": [
                        user("a"),
                        assistant("", tool_calls=[{"function": {"name": "price", "arguments": {}}}]),
                    ]
                }
            ],
            {},
            (
                "take a model whose chat template writes tool calls, or give it one that does with"
                " model.chat_template=FILE"
            ),
        ),
        ([{"text": "### Q: a"}], {}, "dataset.train_on=all trains all of each text"),
        (
            conversations(1),
            {"format": "sharegpt"},
            "leave dataset.format out: the format is told from the content",
        ),
        (
            conversations(1),
            {"format": "alpaca"},
            "leave dataset.format out: the format is told from the content",
        ),
        ([{"messages": [user("a"), assistant("b", weight=0.5)]}], {}, "mend them"),
        ([{"messages": [user([{"type": "image"}]), assistant("c")]}], {}, "mend them"),
        (
            [{"messages": [user("a"), user("b"), assistant("c")]}],
            {},
            "dataset.on_bad_row=warn trains on 3 of them as they are",
        ),
    ],
)
@pytest.mark.parametrize("policy", ["auto", "warn"])
def test_where_every_row_is_bad_the_way_out_is_one(tmp_path, chat, rows, dataset, way_out, policy):
    made = loader(write_json(tmp_path / "data.json", rows * 3), on_bad_row=policy, **dataset)
    if policy == "warn" and "warn" in way_out:
        assert made.check(chat)["rows_used"] == 3
        return
    with pytest.raises(UserError) as caught:
        made.check(chat)
    assert str(caught.value).endswith(f"; none is left to train on: {way_out}")


def test_bad_rows_that_are_used_are_counted_and_named(tmp_path, chat):
    from chatbot_sft.report.data_summary import facts

    rows = [
        *conversations(2),
        {"messages": [user("a"), user("b"), assistant("c")]},
        {"messages": [user("a")]},
    ]
    file = write_json(tmp_path / "data.json", rows)
    report = loader(file, on_bad_row="warn").check(chat)
    assert (
        dict(facts(report))["conversations"]
        == "4: 3 trained, 0 held out, 1 bad (1 of those used is bad: row 3)"
    )
    assert report["bad_rows_used"] == {"count": 1, "rows": [{"file": str(file), "row": 3}]}
    assert (
        dict(facts(loader(file, on_bad_row="drop").check(chat)))["conversations"]
        == "4: 2 trained, 0 held out, 2 bad"
    )


def test_where_nothing_can_be_held_out_a_line_says_why(tmp_path, chat):
    from chatbot_sft.report.data_summary import remarks

    same, other = conversations(1) * 20, conversations(4)[1:]
    named = write_json(tmp_path / "eval.json", same[:2])
    for rows, dataset, said in (
        (
            same,
            {},
            "nothing is held out by dataset.eval_fraction=0.1: conversations that say the same stay on",
        ),
        ([*same, *other], {}, None),
        (same, {"eval_fraction": 0}, None),
        (other, {"eval_fraction": 0.5}, None),
        (
            same,
            {"eval_data_path": str(named)},
            "nothing is held out: each of the 2 conversations given for it",
        ),
    ):
        made = loader(write_json(tmp_path / "data.json", rows), **{"eval_fraction": 0.1, **dataset})
        lines = [line for line in remarks(made.check(chat)) if "nothing is held out" in line]
        assert [line[: len(said or "")] for line in lines] == ([said] if said else [])


def test_the_template_line_and_a_remark_say_what_a_given_system_prompt_does(tmp_path, chat):
    from chatbot_sft.report.data_summary import remarks

    own = [
        {"messages": [{"role": "system", "content": "mine"}, *row["messages"]]} for row in conversations(3)
    ]
    nothing = "dataset.system_prompt does nothing here: no row is without a system prompt of its own"
    for rows, said in ((conversations(3), []), ([*own, *conversations(1)], []), (own, [nothing])):
        report = loader(write_json(tmp_path / "data.json", rows), system_prompt="Other").check(chat)
        assert (
            report["template"]["system_prompt"]
            == "a turn of its own; where a row has none, dataset.system_prompt stands in"
        )
        assert remarks(report) == said


def test_warn_trains_on_what_can_be_trained(tmp_path, chat):
    rows = [
        *conversations(2),
        {"messages": [user("a"), user("b"), assistant("c")]},
        {"messages": [user("a")]},
    ]
    file = write_json(tmp_path / "data.json", rows)
    made = {policy: loader(file, on_bad_row=policy) for policy in ("warn", "drop")}
    for policy, used in (("warn", 3), ("drop", 2)):
        assert made[policy].check(chat)["rows_used"] == used
        assert made[policy].statistics.bad_rows == 2


def test_a_file_of_only_bad_rows_is_refused_whatever_the_policy(tmp_path, chat):
    file = write_json(tmp_path / "data.json", [{"messages": [user("a")]}] * 3)
    for policy in ("auto", "drop", "warn", "error"):
        with pytest.raises(UserError, match=r"3 of 3 rows are bad .* none is left to train on"):
            loader(file, on_bad_row=policy).check(chat)


def test_that_the_good_rows_are_held_out_is_said(tmp_path, chat):
    file = write_json(tmp_path / "data.json", [*conversations(1), *[{"messages": [user("a")]}] * 8])
    with pytest.raises(UserError, match=r"; 1 is held out, and none is left to train on: mend them$"):
        loader(file, eval_fraction=0.5).check(chat)


def test_duplicates_are_named(tmp_path, chat):
    rows = conversations(5)
    made = loader(write_json(tmp_path / "data.json", [*rows, rows[1], rows[1]]))
    note = made.check(chat)["notes"]["exact duplicate"]
    assert [(entry["row"], entry["detail"]) for entry in note["rows"]] == [
        (6, "the same as row 2 of data.json"),
        (7, "the same as row 2 of data.json"),
    ]
    assert made.statistics.duplicates == note["count"] == 2


def test_what_is_held_out_is_never_trained_on(tmp_path, chat):
    """The same dialogue under another system prompt, in other case: our own split keeps both on one side, a
    given one is cleaned.
    """
    once = conversations(20)
    again = [
        {
            "messages": [
                {"role": "system", "content": "s"},
                *({**m, "content": m["content"].upper()} for m in row["messages"]),
            ]
        }
        for row in once
    ]
    made = loader(write_json(tmp_path / "data.json", once + again), eval_fraction=0.3)
    made.check(chat)
    training, held_out = (
        set(rows.tolist()) for rows in (made.prepared.split.once, made.prepared.split.held_out)
    )
    assert len(training) + len(held_out) == 40
    assert {row % 20 for row in training}.isdisjoint({row % 20 for row in held_out})
    own = loader(
        write_json(tmp_path / "train.json", once),
        eval_data_path=str(write_json(tmp_path / "eval.json", again[:3] + conversations(25)[20:])),
    )
    leaks = own.check(chat)["notes"]["not held out: trained on"]
    assert [(entry["file"], entry["row"], entry["detail"]) for entry in leaks["rows"]] == [
        (f"{tmp_path}/eval.json", n, f"the same as row {n} of train.json") for n in (1, 2, 3)
    ]
    assert (own.statistics.rows_used, own.statistics.rows_held_out, own.statistics.leaked_rows) == (20, 5, 3)


def test_lengths_steps_and_the_template_are_reported(chat):
    from chatbot_sft.report.data_summary import remarks

    made = DatasetLoader(
        {
            "model": {"name": "smollm2", "max_seq_length": 300},
            "dataset": {"data_path": str(EXAMPLE)},
            "training": {"warmup_steps": 40},
        }
    )
    report = made.check(chat)
    assert report["lengths"]["p50"] < report["lengths"]["p95"] < report["lengths"]["p100"]
    over = report["lengths"]["over_max_seq_length"]
    assert (
        0
        < over
        == made.statistics.truncated_rows
        + sum(
            1
            for row in made.prepared.split.held_out
            if made.prepared.entry.table().column("truncated")[int(row)].as_py()
        )
    )
    cut = report["notes"]["an answer cut in two"]["count"]
    assert 0 < cut <= over
    (said,) = [text for text in remarks(report) if "cut in two" in text]
    assert said.startswith(f"an answer cut in two in {cut} of 244 rows: trained without its end; ")
    assert report["training"] == {
        "effective_batch_size": 8, "steps_per_epoch": 28, "steps": 30, "epochs": 1.071, "some_never": False,
        "warning": "training.warmup_steps=40 is not below the 30 steps of the run: the learning rate never reaches its full value",
    }  # fmt: skip
    assert report["template"] == {
        "system_prompt": "a turn of its own; where a row has none, the template writes "
        "'You are a helpful AI assistant named SmolLM, trained by Hugging Face'",
        "end_of_turn": ["<|im_end|>"], "end_of_turn_stops_generation": True, "writes_todays_date": False,
        "leaves_thoughts_out": False, "opens_thought": False,
    }  # fmt: skip
    assert 0.5 < report["trainable_share"] < 0.8


@pytest.mark.parametrize(
    ("settings", "named", "rows", "said"),
    [
        ({}, (), 2000, "30 steps, a default, are 0.12 epochs: "),
        ({"model": {"brings": {"max_steps": 24}}}, (), 200, "24 steps, a default, are 0.96 epochs: "),
        ({}, (), 240, None),
        ({}, ["training.max_steps"], 2000, None),
        ({"training": {"max_steps": 29}}, (), 2000, None),
        ({"training": {"num_train_epochs": 0.5}}, (), 2000, None),
        ({"dataset": {"brings": {"max_steps": 30}}}, (), 2000, None),
        ({"model": {"brings": {"max_steps": 24}}, "training": {"max_steps": 30}}, (), 2000, None),
        ({"training": {"packing": True}}, (), 2000, None),  # how many are in a sequence?
    ],
)
def test_steps_that_nobody_chose_and_that_leave_data_out_are_noted(settings, named, rows, said):
    lines = of_schedule(schedule(Config.from_mapping(settings), rows), named)
    repair = (
        "part of the data is never trained on; training.num_train_epochs=3 trains on all of it, three times"
    )
    assert len(lines) == bool(said)
    assert not said or (lines[0].startswith(said) and lines[0].endswith(repair))


def test_a_step_of_two_processes_is_of_twice_as_many(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = schedule(Config.from_mapping({}), 480)
    assert (found["effective_batch_size"], found["steps_per_epoch"], found["epochs"]) == (16, 30, 1)


@pytest.mark.parametrize(
    ("source", "fact"),
    [
        ("{% for m in messages %}[{{ m.role }}]{{ m.content }}<|im_end|>{% endfor %}", "joined to the first user message"),
        ("{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>{% endfor %}", "left out"),
        ("{{ raise_exception('no') if messages[0].role == 'system' }}{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}", "refused"),
    ],
)  # fmt: skip
def test_what_becomes_of_a_system_prompt(smollm2, source, fact):
    from chatbot_sft.data.encode import Encoder
    from chatbot_sft.data.gate import template_facts
    from chatbot_sft.data.template import ChatTemplate

    chat = ChatTokenizer.from_folder(smollm2, "smollm2", {})
    chat.template = ChatTemplate(source)
    found = template_facts(chat, Encoder(chat, 100, "assistant", "truncate"))["system_prompt"]
    assert found.startswith("a turn of its own" if fact.startswith("joined") else fact)


@pytest.mark.slow
def test_the_check_task_reports_and_stops(launch, tmp_path):
    check = ("task=check", "dataset=thinking_teacher")
    process = launch(*check, "hydra.run.dir=run")
    assert process.returncode == 0, process.stderr
    assert "conversations  244: 220 trained, 24 held out" in process.stdout
    assert "63% of them trained" in process.stdout
    assert "error" not in process.stderr
    assert "model:" not in process.stderr
    data = json.loads((tmp_path / "run" / "data_report.json").read_text())
    report = report_of(tmp_path)
    assert report["status"] == "completed"
    assert data["status"] == "passed"
    assert data["rows"] == report["dataset"]["rows"] == 244
    page = (tmp_path / "run" / "data_preview.html").read_text(encoding="utf-8")
    assert page.count("<mark>") >= 40
    assert page.count('title="measured on, not trained on"') > 0
    again = launch(*check, "hydra.run.dir=again")
    assert json.loads((tmp_path / "again" / "data_report.json").read_text())["cached"] is True
    assert again.stdout.replace("again/", "run/") == process.stdout
    write_json(tmp_path / "mine.json", conversations(20, history=[]) + conversations(1, history="x"))
    own = (
        "dataset.data_path=mine.json",
        "training.per_device_train_batch_size=1",
        "training.gradient_accumulation_steps=1",
    )
    noted = launch("task=check", *own, "training.warmup_steps=40", "model.brings={max_steps: 18}")
    assert noted.returncode == 0, noted.stderr
    for said in (
        "not read: history",
        "training.warmup_steps=40 is not below",
        "18 steps, a default, are 0.947 epochs",
    ):
        assert (noted.stdout + noted.stderr).count(said) == 1, noted
    judged = launch("task=check", "objective=dpo", "dataset=white_crane_pairs", "hydra.run.dir=judged")
    assert re.search("pairs +60: 54 trained, 6 held out", judged.stdout), judged.stderr
    page = (tmp_path / "judged" / "data_preview.html").read_text(encoding="utf-8")
    assert page.count("<h3 class=chosen>") == page.count("<h3 class=rejected>") == 40


@pytest.mark.slow
def test_the_roles_that_a_bad_row_offers_are_read(launch, tmp_path):
    talk = [{"role": "customer", "content": "hi"}, {"role": "agent", "content": "hello"}]
    rows = [{"messages": [{**talk[0], "content": f"q{n}"}, talk[1]]} for n in range(9)]
    check = ("task=check", f"dataset.data_path={write_json(tmp_path / 'logs.json', rows)}")
    refused = launch(*check, "hydra.run.dir=run")
    offered = re.findall(r"dataset\.roles\.\w+=\w+", only_error(refused))
    assert offered == ["dataset.roles.customer=user", "dataset.roles.agent=assistant"]
    read = launch(*check, *offered, "dataset.roles.boss=user", "hydra.run.dir=again")
    assert read.returncode == 0, read.stderr
    assert re.search("conversations +9: 8 trained, 1 held out", read.stdout)
    assert (read.stdout + read.stderr).count("dataset.roles: no row read has boss") == 1


@pytest.mark.slow
def test_a_bad_file_stops_a_training_run_before_torch_is_imported(tmp_path):
    rows = [*conversations(5), {"messages": [user("a"), user("b"), assistant("c")]}]
    write_json(tmp_path / "my.json", rows)
    program = (
        "import sys\nfrom chatbot_sft.cli import main\nsys.argv[1:] = sys.argv[1:]\ntry:\n   "
        " main()\nfinally:\n    print('heavy:', sorted({'torch', 'transformers', 'trl', 'unsloth',"
        " 'datasets', 'pandas'} & set(sys.modules)))\n"
    )
    arguments = ["dataset.data_path=my.json", "hydra.run.dir=run"]
    process = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=600
    )
    assert only_error(process).startswith(
        "my.json: row 6: messages 1 and 2 are both by user; 1 of 6 rows is bad (16.7%): repeated role (1);"
        " mend them"
    )
    assert "heavy: []" in process.stdout
    assert "repeated role" in process.stdout
    assert report_of(tmp_path)["dataset"]["bad_rows"] == 1
    assert json.loads((tmp_path / "run" / "data_report.json").read_text())["problems"]["repeated role"][
        "rows"
    ] == [{"file": "my.json", "row": 6, "detail": "messages 1 and 2 are both by user"}]
    assert "messages 1 and 2 are both by user" in (tmp_path / "run" / "data_preview.html").read_text(
        encoding="utf-8"
    )


def test_files_of_one_name_are_told_apart_by_their_folders():
    from chatbot_sft.report.data_summary import short_names

    files = ["/data/a/chats.json", "/data/b/chats.json", "/data/more.json", "b/chats.json"]
    assert short_names(files[:3]) == {
        files[0]: "a/chats.json",
        files[1]: "b/chats.json",
        files[2]: "more.json",
    }
    assert short_names(files) == {
        files[0]: "a/chats.json",
        files[1]: "/data/b/chats.json".removeprefix("/"),
        files[2]: "more.json",
        files[3]: "b/chats.json",
    }
    assert short_names([]) == {}


def test_what_is_found_is_one_line_a_kind_in_a_pipe(tmp_path, chat, capsys, monkeypatch):
    from chatbot_sft.report.data_summary import show

    monkeypatch.delenv("COLUMNS", raising=False)
    rows = conversations(5)
    made = loader(write_json(tmp_path / f"{'long' * 20}.json", [*rows, rows[1]]), on_bad_row="drop")
    show(made.check(chat), [])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("exact duplicate"))
    assert line.split()[2:] == ["1", *f"row 6: the same as row 2 of {'long' * 20}.json".split()]
    assert str(tmp_path) not in line


def test_where_no_row_became_tokens_there_is_no_length(tmp_path, chat):
    from chatbot_sft.report.data_summary import facts

    made = loader(write_json(tmp_path / "data.json", [{"messages": [user("a")]}]), on_bad_row="drop")
    with pytest.raises(UserError):
        made.check(chat)
    assert dict(facts(made.report))["length"] == "no row became tokens"
