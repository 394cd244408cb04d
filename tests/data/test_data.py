"""DatasetLoader: thinking, truncation and splitting, mixtures and the held-out split, and a user's own
formatting function.
"""

import json
import re
import sys
from collections import Counter

import pytest
from conftest import EXAMPLE, conversations, only_error, write_json
from hypothesis import given
from hypothesis import strategies as st

from chatbot_sft import DatasetLoader, UserError
from chatbot_sft.config import SourceConfig
from chatbot_sft.data.labels import IGNORED
from chatbot_sft.data.mixture import chosen_rows, wanted_rows


def loader(path, tokenizer=None, max_seq_length=2048, seed=3407, **dataset):
    config = {
        "seed": seed,
        "model": {"name": "smollm2", "max_seq_length": max_seq_length},
        "dataset": {"eval_fraction": 0, **dataset},
    }
    if path:
        config["dataset"]["data_path"] = str(path)
    return DatasetLoader(config, tokenizer)


def trained(tokenizer, row):
    return tokenizer.decode([label for label in row["labels"] if label != IGNORED])


def test_the_example_data_is_as_its_readme_says():
    rows = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    assert len(rows) == 244
    turns = [sum(message["role"] == "user" for message in row["messages"]) for row in rows]
    assert [turns.count(n) for n in (1, 2, 3, 4)] == [162, 60, 16, 6]
    answers = [m for row in rows for m in row["messages"] if m["role"] == "assistant"]
    assert all(answer["thinking"].strip() for answer in answers)
    assert all(
        row["messages"][0]["role"] == "system" and row["messages"][-1]["role"] == "assistant" for row in rows
    )
    texts = [m["content"] for row in rows for m in row["messages"] if m["role"] != "system"]
    assert len(set(texts)) == len(texts)


def json_lines(name):
    return [json.loads(line) for line in (EXAMPLE.parent / name).read_text(encoding="utf-8").splitlines()]


def shingles(text):
    """Runs of four letters, spaces among them."""
    plain = re.sub(r"[^\w ]", "", text.lower())
    return {plain[at : at + 4] for at in range(len(plain) - 3)}


def test_the_quick_start_data_is_as_its_readme_says():
    rows = [row["messages"] for row in json_lines("white_crane.jsonl")]
    assert len(rows) == 296
    asked = [[m["content"] for m in row if m["role"] == "user"] for row in rows]
    assert [len(questions) for questions in asked].count(2) == 16
    assert sum(row[0]["role"] == "system" for row in rows) == 25
    questions = [question for row in asked for question in row]
    assert len(set(map(str.lower, questions))) == len(questions)


def test_the_golden_questions_are_not_in_the_training_data_and_can_be_answered_from_it():
    rows, golden = json_lines("white_crane.jsonl"), json_lines("white_crane_golden.jsonl")
    assert len(golden) == len({case["id"] for case in golden}) == 40
    said = [m["content"] for row in rows for m in row["messages"]]
    trained = [shingles(text) for text in said]
    for case in golden:
        assert case["tags"]
        (question,) = (m["content"] for m in case["messages"])
        own = shingles(question)
        assert max(len(own & other) / len(own | other) for other in trained) < 0.6, question
        facts = [[fact] if isinstance(fact, str) else fact for fact in case["contains"]]
        assert any(all(any(form in text for form in forms) for forms in facts) for text in said), case["id"]


def test_the_judged_answers_are_as_their_readme_says():
    pairs, logs = json_lines("white_crane_pairs.jsonl"), json_lines("white_crane_thumbs.jsonl")
    assert len(pairs) == len({row["prompt"][-1]["content"] for row in pairs}) == 60
    assert len({row[kind][0]["content"] for row in pairs for kind in ("chosen", "rejected")}) == 120
    thumbs = [turn["feedback"] for row in logs for turn in row["messages"] if "feedback" in turn]
    assert (len(logs), thumbs.count("up"), thumbs.count("down")) == (84, 76, 44)
    asked = [turn["content"] for row in pairs for turn in row["prompt"] if turn["role"] == "user"]
    asked += [turn["content"] for row in logs for turn in row["messages"] if turn["role"] == "user"]
    learned = [shingles(question) for question in asked]
    for case in json_lines("white_crane_golden.jsonl"):
        own = shingles(case["messages"][0]["content"])
        assert max(len(own & other) / len(own | other) for other in learned if other) < 0.6, case["id"]


def test_thinking_is_kept_or_dropped(tmp_path, tokenizer):
    row = {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4", "thinking": "add"},
        ]
    }
    file = write_json(tmp_path / "data.json", [row])
    kept = loader(file, tokenizer, thinking="keep").prepare_dataset()[0]["text"]
    dropped = loader(file, tokenizer, thinking="drop").prepare_dataset()[0]["text"]
    assert "<|im_start|>assistant\n<think>\nadd\n</think>\n\n4<|im_end|>" in kept
    assert dropped == kept.replace("<think>\nadd\n</think>\n\n", "")


def test_the_split_is_by_conversation_seeded_and_disjoint(tmp_path, tokenizer):
    file = write_json(tmp_path / "data.json", conversations(50))

    def held_out(seed):
        made = loader(file, tokenizer, seed=seed, eval_fraction=0.1)
        training = made.prepare_dataset()
        assert sorted([*training["text"], *made.eval_dataset["text"]]) == sorted(
            loader(file, tokenizer).prepare_dataset()["text"]
        )
        return list(made.eval_dataset["text"])

    assert len(held_out(1)) == 5
    assert held_out(1) == held_out(1) != held_out(2)


def test_one_conversation_cannot_be_split(tmp_path, tokenizer):
    file = write_json(tmp_path / "data.json", conversations(1))
    with pytest.raises(UserError, match=r"set dataset\.eval_fraction=0"):
        loader(file, tokenizer, eval_fraction=0.1).prepare_dataset()


LONG = {"role": "assistant", "content": "word " * 300}
QUESTION = {"role": "user", "content": "hi"}


def test_truncation_is_counted_and_a_row_without_an_answer_before_the_cut_is_bad(tmp_path, tokenizer):
    late = {
        "messages": [{"role": "user", "content": "word " * 300}, {"role": "assistant", "content": "late"}]
    }
    file = write_json(tmp_path / "data.json", [late, {"messages": [QUESTION, LONG]}, *conversations(1)])
    for policy in ("drop", "warn"):
        made = loader(file, tokenizer, max_seq_length=128, on_bad_row=policy)
        assert [len(row["input_ids"]) <= 128 for row in made.prepare_dataset()] == [True, True]
        assert (made.statistics.rows_used, made.statistics.truncated_rows, made.statistics.bad_rows) == (
            2,
            1,
            1,
        )
        assert made.report["problems"]["no answer before the cut"]["rows"][0]["row"] == 1
        assert made.report["notes"]["an answer cut in two"]["rows"][0]["row"] == 2
    for policy in ("auto", "error"):
        with pytest.raises(
            UserError,
            match=(
                r"row 1: every answer lies beyond model\.max_seq_length=128: the row has \d+ tokens; 1 of 3"
                r" rows is bad"
            ),
        ):
            loader(file, tokenizer, max_seq_length=128, on_bad_row=policy).prepare_dataset()
    only_late = write_json(tmp_path / "long.json", [late])
    with pytest.raises(UserError, match=r"every answer lies beyond model\.max_seq_length=128"):
        loader(only_late, tokenizer, max_seq_length=128).prepare_dataset()
    assert (
        loader(file, tokenizer, max_seq_length=128, overflow="drop", on_bad_row="error").check()["rows_used"]
        == 1
    )


def test_long_rows_are_dropped_or_an_error_where_asked(tmp_path, tokenizer):
    file = write_json(tmp_path / "data.json", [*conversations(2), {"messages": [QUESTION, LONG]}])
    made = loader(file, tokenizer, max_seq_length=128, overflow="drop")
    assert len(made.prepare_dataset()) == 2
    assert (made.statistics.dropped_rows, made.statistics.truncated_rows) == (1, 0)
    with pytest.raises(
        UserError,
        match=(
            r"data.json: row 3 has \d+ tokens, over model.max_seq_length=128; raise it, or set"
            r" dataset.overflow=truncate"
        ),
    ):
        loader(file, tokenizer, max_seq_length=128, overflow="error").prepare_dataset()


def test_a_long_conversation_is_split_at_its_turns(tmp_path, tokenizer):
    system = {"role": "system", "content": "Be brief."}
    turns = [
        [
            {"role": "user", "content": f"question {n}"},
            {"role": "assistant", "content": f"answer {n}: " + "word " * 30},
        ]
        for n in range(6)
    ]
    row = {"messages": [system, *(message for turn in turns for message in turn)]}
    file = write_json(tmp_path / "data.json", [row, {"messages": [system, *turns[0]]}])
    made = loader(file, tokenizer, max_seq_length=128, overflow="split")
    dataset = made.prepare_dataset()
    assert len(dataset) == 4
    assert all(
        len(ids) <= 128 and text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n")
        for ids, text in zip(dataset["input_ids"], dataset["text"], strict=True)
    )
    whole = loader(file, tokenizer).prepare_dataset()[0]
    assert "".join(trained(tokenizer, dataset[index]) for index in range(3)) == trained(tokenizer, whole)
    assert made.statistics.rows == 2
    assert made.statistics.truncated_rows == 0
    held = loader(file, tokenizer, max_seq_length=128, overflow="split", eval_fraction=0.2, seed=1)
    held.prepare_dataset()
    assert (held.statistics.rows_used, held.statistics.rows_held_out) in (
        (1, 3),
        (3, 1),
    )  # the pieces of one conversation stay together


def test_ready_made_text_is_labelled_by_the_templates_markers(tmp_path, tokenizer):
    text = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nhello<|im_end|>\n"
    file = write_json(tmp_path / "data.json", [{"text": text}])
    assert trained(tokenizer, loader(file, tokenizer).prepare_dataset()[0]) == "hello<|im_end|>"
    assert trained(tokenizer, loader(file, tokenizer, train_on="all").prepare_dataset()[0]) == text


def test_a_users_function_sees_the_files_columns_and_checked_messages(tmp_path, tokenizer):
    seen = []

    class Mine(DatasetLoader):
        def formatting_prompts_func(self, examples):
            seen.append({name: list(values) for name, values in examples.items()})
            return {
                "text": [
                    f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>\n"
                    for q, a in zip(examples["ask"], examples["reply"], strict=True)
                ]
            }

    file = write_json(tmp_path / "data.json", [{"ask": "a", "reply": "b"}, {"ask": "c", "reply": "d"}])
    config = {"model": {"name": "smollm2"}, "dataset": {"data_path": str(file), "eval_fraction": 0}}
    dataset = Mine(config, tokenizer).prepare_dataset()
    assert seen == [{"ask": ["a", "c"], "reply": ["b", "d"]}]
    assert [trained(tokenizer, row) for row in dataset] == ["b<|im_end|>", "d<|im_end|>"]

    config["dataset"]["eval_fraction"] = 0.5
    made = Mine(config, tokenizer)
    assert len(made.prepare_dataset()) == len(made.eval_dataset) == 1

    class Listed(DatasetLoader):
        def formatting_prompts_func(self, examples):
            return ["one", "two"]

    with pytest.raises(
        UserError, match=r'Listed.formatting_prompts_func: expected {"text": \[...\]}, got list'
    ):
        Listed(config, tokenizer).prepare_dataset()

    class TooFew(DatasetLoader):
        def formatting_prompts_func(self, examples):
            return {"text": ["one"]}

    with pytest.raises(
        UserError, match=r"TooFew.formatting_prompts_func: expected one text for each of 2 conversations"
    ):
        TooFew(config, tokenizer).prepare_dataset()


def test_a_mixture_has_the_shares_and_counts_that_were_asked_for(tmp_path, tokenizer):
    many = write_json(tmp_path / "many.json", conversations(40))
    few = tmp_path / "few.csv"
    few.write_text("q,a\n" + "".join(f"frage {n},antwort {n}\n" for n in range(10)), encoding="utf-8")
    alpaca = {"data_path": str(few), "columns": {"instruction": "q", "output": "a"}}

    def counts(sources, **options):
        made = loader(None, tokenizer, sources=sources, **options)
        texts = made.prepare_dataset()["text"]
        return Counter("few" if "frage" in text else "many" for text in texts), texts

    assert counts([{"data_path": str(many)}, alpaca])[0] == {"many": 40, "few": 10}
    assert counts([{"data_path": str(many), "weight": 3}, {**alpaca, "weight": 1}])[0] == {
        "many": 30,
        "few": 10,
    }
    assert counts([{"data_path": str(many), "weight": 1}, {**alpaca, "weight": 1}], max_rows=6)[0] == {
        "many": 3,
        "few": 3,
    }
    found, texts = counts([{"data_path": str(many), "count": 5}, {**alpaca, "count": 25}])
    assert found == {"many": 5, "few": 25}
    assert sorted(Counter(text for text in texts if "frage" in text).values()) == [2] * 5 + [3] * 5
    again, other = (
        counts([{"data_path": str(many), "count": 5}, alpaca])[1],
        counts([{"data_path": str(many), "count": 5}, alpaca], seed=1)[1],
    )
    assert counts([{"data_path": str(many), "count": 5}, alpaca])[1] == again != other
    with pytest.raises(UserError, match=r"many.json: give every source of dataset.sources a weight, or none"):
        counts([{"data_path": str(many)}, {**alpaca, "weight": 1}])


def test_max_rows_without_shuffling_takes_the_first(tmp_path, tokenizer):
    file = write_json(tmp_path / "data.json", conversations(20))
    first = loader(file, tokenizer, max_rows=3, shuffle=False).prepare_dataset()["text"]
    assert [f"câu hỏi {n}<" in text for n, text in enumerate(first)] == [True] * 3
    drawn = loader(file, tokenizer, max_rows=3).prepare_dataset()["text"]
    assert len(drawn) == 3
    assert list(drawn) != list(first)


@given(
    available=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    weights=st.lists(st.floats(0.1, 10), min_size=4, max_size=4),
    cap=st.none() | st.integers(1, 100),
)
def test_weights_never_repeat_a_row_and_keep_their_shares(available, weights, cap):
    sources = [SourceConfig("x", weight=weight) for weight in weights[: len(available)]]
    wanted = wanted_rows(available, sources, cap)
    assert all(number <= rows + 1e-9 for number, rows in zip(wanted, available, strict=True))
    assert cap is None or sum(wanted) <= cap
    share = sum(source.weight for source in sources)
    assert all(
        abs(number - sum(wanted) * source.weight / share) < 2
        for number, source in zip(wanted, sources, strict=True)
    )


@given(
    available=st.integers(1, 30), wanted=st.integers(1, 100), shuffle=st.booleans(), seed=st.integers(0, 5)
)
def test_rows_are_repeated_evenly(available, wanted, shuffle, seed):
    uses = chosen_rows(available, wanted, shuffle, seed)
    assert sum(uses.values()) == wanted
    assert set(uses) <= set(range(available))
    assert max(uses.values()) - min([uses.get(index, 0) for index in range(available)]) <= 1


@pytest.mark.slow
def test_a_hub_dataset_without_a_network_says_so(launch):
    error = only_error(
        launch("dataset.data_path=some-org/some-chats", "task=check", env={"HF_HUB_OFFLINE": "1"}, cold=True)
    )
    assert error.startswith("some-org/some-chats: cannot be had from the Hugging Face hub (")
    assert "a local file or folder works without a network" in error


def test_a_hub_dataset_is_read_through_datasets(tmp_path, tokenizer, monkeypatch):
    """The loading code is the real one; `load_dataset` is handed a local folder in place of the hub."""
    import datasets

    pytest.importorskip("datasets")
    write_json(tmp_path / "train.json", conversations(6))
    real = datasets.load_dataset
    asked = []

    def load_dataset(name, config_name, split, revision):
        asked.append((name, config_name, split, revision))
        return real(
            "json",
            data_files={"train": str(tmp_path / "train.json")},
            split=split,
            cache_dir=str(tmp_path / "cache"),
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    made = loader("some-org/some-chats", tokenizer, split="train[:4]", config_name="vi", revision="v1")
    assert len(made.prepare_dataset()) == 4
    assert set(asked) == {("some-org/some-chats", "vi", "train[:4]", "v1")}
    assert made.report["sources"] == [
        {"path": "some-org/some-chats", "held_out": False, "format": "messages", "rows": 4}
    ]


def test_importing_the_package_imports_nothing_heavy():
    import subprocess

    program = (
        "import sys, chatbot_sft; print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'tokenizers',"
        " 'numpy'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
    )


def test_the_fingerprint_is_of_the_data_not_of_its_place(tmp_path, tokenizer):
    rows = conversations(6)
    first, second = (
        loader(write_json(tmp_path / "a.json", rows), tokenizer),
        loader(write_json(tmp_path / "b.json", rows), tokenizer),
    )
    other = loader(write_json(tmp_path / "c.json", rows[::-1]), tokenizer)
    last = loader(tmp_path / "a.json", tokenizer, train_on="all")
    for made in (first, second, other, last):
        made.prepare_dataset()
    assert first.statistics.fingerprint == second.statistics.fingerprint
    assert len({made.statistics.fingerprint for made in (first, other, last)}) == 3


def test_a_split_conversation_is_repeated_whole(tmp_path, tokenizer):
    turns = [
        [
            {"role": "user", "content": f"question {n}"},
            {"role": "assistant", "content": f"answer {n}: " + "word " * 30},
        ]
        for n in range(4)
    ]
    file = write_json(tmp_path / "data.json", [{"messages": [message for turn in turns for message in turn]}])
    made = loader(
        None, tokenizer, sources=[{"data_path": str(file), "count": 3}], max_seq_length=128, overflow="split"
    )
    texts = Counter(made.prepare_dataset()["text"])
    assert len(texts) > 1
    assert set(texts.values()) == {3}
