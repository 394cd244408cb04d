"""The options of conf/debug, each in a process, as a user starts them."""

import json

import pytest
from conftest import conversations, only_error, report_of, write_json


@pytest.fixture
def data(tmp_path):
    return write_json(tmp_path / "my.json", conversations(40))


def arguments(tiny, data):
    """Those of a tiny run, without what the options themselves set."""
    kept = ("model", "training.batch_layout")
    return [*(word for word in tiny if word.startswith(kept)), f"dataset.data_path={data}"]


def test_overfit_learns_eight_conversations_word_for_word(launch, tiny, tmp_path):
    """The tiny model is random and narrow: all of its weights are trained, fast, on answers that are easy to
    tell apart.
    """
    words = ["apple", "river", "stone", "cloud", "tiger", "piano", "bread", "ocean", "lemon", "horse"]
    rows = [
        [{"role": "user", "content": word}, {"role": "assistant", "content": f"{word} {word[::-1]}"}]
        for word in words
    ]
    data = write_json(tmp_path / "words.json", [{"messages": row} for row in rows])
    own = (
        "lora=none",
        "training.learning_rate=0.01",
        "training.max_steps=100",
        "training.sample_max_new_tokens=20",
    )
    process = launch(*arguments(tiny, data), "debug=overfit", *own)
    assert process.returncode == 0, process.stderr
    report = report_of(tmp_path)
    dataset, training = report["dataset"], report["training"]
    assert (dataset["rows_used"], dataset["rows_held_out"]) == (8, 8)
    assert training["loss_last"] < 0.05
    assert training["eval_loss"] < 0.05
    assert training["eval_token_accuracy"] == 1
    assert not training["warnings"]
    assert len(report["samples"]) == 3
    for sample in report["samples"]:
        assert sample["after"] == f"{sample['prompt']} {sample['prompt'][::-1]}"


def test_what_is_not_learned_is_said():
    from chatbot_sft.config import Config
    from chatbot_sft.train.outcome import not_learned

    settings = Config.from_mapping({"dataset": {"eval_on_training": True, "eval_fraction": 0}})
    assert not_learned(settings, 1.0) == not_learned(Config(), 0.5) == []
    assert not_learned(settings, 0.93)[0].startswith(
        "the training conversations do not come back word for word (93.0% of"
    )


def test_fast_is_two_steps_of_everything(launch, tiny, data, tmp_path):
    process = launch(*arguments(tiny, data), "debug=fast", "save=lora", "experiment=quick")
    assert process.returncode == 0, process.stderr
    report = report_of(tmp_path)
    assert report["training"]["steps"] == 2  # over the experiment's 3
    assert [evaluation["step"] for evaluation in report["evaluations"]] == [0, 1, 2]
    assert len(list(tmp_path.rglob("checkpoint-*/run.json"))) == 2
    assert report["samples"]
    assert report["save"]["verified"]


def test_profile_leaves_a_trace_and_a_table(launch, tiny, data, tmp_path):
    process = launch(*arguments(tiny, data), "debug=profile")
    assert process.returncode == 0, process.stderr
    (table,) = tmp_path.rglob("profile/table.txt")
    assert "aten::mm" in table.read_text(encoding="utf-8")
    trace = json.loads((table.parent / "trace.json").read_text(encoding="utf-8"))
    assert {f"ProfilerStep#{step}" for step in (3, 4, 5)} <= {
        event.get("name") for event in trace["traceEvents"]
    }
    assert f"profile: {table}" in process.stderr


def test_a_debug_option_that_is_not_there(launch):
    assert (
        only_error(launch("debug=overfitt"))
        == "debug=overfitt: no such option; did you mean overfit? (there are fast, overfit, profile)"
    )


def test_nothing_is_held_out_where_the_training_rows_are_evaluated(launch):
    assert only_error(launch("dataset.eval_on_training=true")).startswith(
        "dataset.eval_on_training=true holds nothing out: set dataset.eval_fr"
    )
