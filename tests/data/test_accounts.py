"""The figures of the table of task=check add up to the rows of the files, whatever became of them."""

import re

import pytest
from conftest import conversations, write_json

from chatbot_sft import DatasetLoader
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.report.data_summary import facts

pytestmark = pytest.mark.slow

NEAR = "The taproom opens at ten on Sundays, and the kitchen opens an hour later"


def row(question, answer):
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


ROWS = [
    *conversations(8),
    row("When do you open?", NEAR),
    row("when do you open", NEAR.replace("an hour", "one hour") + "!"),
    row("When do you close?", "We close at 9 pm."),
    row("when do you close", "We close at 10 pm."),
    {
        "messages": [
            *row("Tell me all.", "word " * 80)["messages"],
            *row("And the rest?", "more " * 80)["messages"],
        ]
    },
    row("Where do I write?", "To anna.berger@gmail.com, please."),
    {"messages": [{"role": "user", "content": "nothing said"}]},
    conversations(1)[0],
]


@pytest.fixture(scope="module")
def told(smollm2, tmp_path_factory):
    """`told(overflow="drop", …)`: (what the line of the conversations says, data_report.json)."""
    chat = ChatTokenizer.from_folder(smollm2, "smollm2", {})
    folder = tmp_path_factory.mktemp("accounts")
    data, held_out = write_json(folder / "data.json", ROWS), write_json(folder / "held.json", ROWS[:2])

    def look(given=False, length=128, **dataset):
        more = {"eval_data_path": str(held_out)} if given else {}
        config = {
            "model": {"name": "smollm2", "max_seq_length": length},
            "dataset": {
                "data_path": str(data),
                "eval_fraction": 0.2,
                "on_bad_row": "drop",
                **more,
                **dataset,
            },
        }
        loader = DatasetLoader(config)
        loader.check(chat)
        return dict(facts(loader.report))["conversations"], loader.report

    return look


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        ({}, {}),
        ({"overflow": "drop"}, {"over model.max_seq_length": 1}),
        ({"overflow": "split"}, {}),
        ({"on_near_duplicate": "drop"}, {"near-duplicate": 2}),
        ({"on_near_duplicate": "drop", "on_contradiction": "drop"}, {"near-duplicate": 2, "contradiction": 2}),
        ({"personal_data": "drop"}, {"personal data": 1}),
        ({"given": True}, {"not held out: trained on": 2}),
        ({"given": True, "on_contamination": "drop"}, {"not trained: held out": 3}),
        ({"max_rows": 10}, {}),
        ({"overflow": "drop", "personal_data": "drop", "on_near_duplicate": "drop", "on_contradiction": "drop"}, None),
    ],
    ids=str,
)  # fmt: skip
def test_the_figures_add_up_to_the_rows_of_the_file(told, options, left_out):
    text, report = told(**{"eval_fraction": 0, **options})
    rows, trained, held_out, *rest = (
        int(number) for number in re.findall(r"(?<![-\w])\d+", re.sub(r"\(.*?\)", "", text))
    )
    assert rows == report["rows"] == trained + held_out + sum(rest), text
    accounts = report["accounts"]
    assert (
        sum(accounts["left_out"].values())
        == rows - accounts["trained"] - accounts["held_out"] - accounts["bad"]
    )
    if left_out is not None:
        assert accounts["left_out"] == left_out, text


def test_pieces_of_a_row_and_rows_used_again_are_one_row(told):
    text, report = told(overflow="split", eval_fraction=0)
    assert report["rows_used"] > report["accounts"]["trained"]
    assert f"(as {report['rows_used']}: pieces, or more than once)" in text
