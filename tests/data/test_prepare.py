"""PreparedData: made once, refused or not, and what a user's own loader makes of it."""

import json

import pytest
from conftest import conversations, write_json

from chatbot_sft.config import Config
from chatbot_sft.data.gate import BadData
from chatbot_sft.data.prepare import prepare
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.seed_api import DatasetLoader


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def chat(smollm2):
    return ChatTokenizer.from_folder(smollm2, "smollm2", {})


def settings(file, **dataset):
    return Config.from_mapping({"model": {"name": "smollm2"}, "dataset": {"data_path": str(file), **dataset}})


def test_refused_data_is_a_value_with_all_that_was_found(tmp_path, chat):
    rows = [*conversations(3), {"messages": []}]
    prepared = prepare(settings(write_json(tmp_path / "data.json", rows), on_bad_row="error"), chat)
    assert prepared.findings["status"] == "refused"
    assert prepared.statistics.bad_rows == 1
    assert prepared.preview_rows()
    with pytest.raises(BadData) as refused:
        prepared.refuse_bad()
    assert str(refused.value) == prepared.refusal


def test_a_seed_of_their_own_keeps_the_held_out_rows(tmp_path, chat):
    """And which rows are chosen at all, whatever the seed is."""
    file = write_json(tmp_path / "data.json", conversations(40))

    def held_out(seed, **dataset):
        config = settings(file, max_rows=30, eval_fraction=0.2, **dataset).to_dict()
        return prepare(Config.from_mapping({**config, "seed": seed}), chat).statistics.held_out_fingerprint

    assert held_out(1) != held_out(2)
    assert held_out(1, split_seed=7) == held_out(2, split_seed=7) == held_out(7)


def test_it_is_made_once_and_again_for_another_tokenizer_alone(tmp_path, smollm2, chat, caplog):
    file = write_json(tmp_path / "data.json", conversations(9))
    first = prepare(settings(file), chat)
    same = ChatTokenizer.from_folder(smollm2, "smollm2", {})
    assert prepare(settings(file), same, before=first) is first
    assert "tokenising" not in caplog.text
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}!<|im_end|>\n{% endfor %}"
    other = ChatTokenizer.from_folder(smollm2, "smollm2", {}, template=template)
    again = prepare(settings(file), other, before=first)
    assert "transformers loads this tokenizer otherwise than its tokenizer.json says" in caplog.text
    assert again.fingerprint != first.fingerprint
    assert again.tokenizer is other


@pytest.mark.slow
@pytest.mark.parametrize(
    ("training", "system"),
    [({}, None), ({"sample_prompts": ["Bia?"]}, "Bạn là Mai."), ({"sample_max_new_tokens": 0}, None)],
)
def test_questions_are_asked_as_the_model_is_trained_to_be(training, system, tmp_path, chat):
    rows = [
        {"messages": [{"role": "system", "content": "Bạn là Mai."}, *row["messages"]]}
        for row in conversations(9)
    ]
    file = write_json(tmp_path / "data.json", rows)
    prepared = prepare(
        Config.from_mapping({**settings(file, eval_fraction=0.3).to_dict(), "training": training}), chat
    )
    assert prepared.system_prompt == "Bạn là Mai."
    if system:
        assert prepared.questions() == [
            [{"role": "system", "content": system}, {"role": "user", "content": "Bia?"}]
        ]
    elif training:
        assert prepared.questions() == []
    else:  # the first questions of held-out conversations, as they stand there
        assert prepared.questions() == [json.loads(text) for text in prepared.held_out["opening"]][:3]


@pytest.mark.slow
def test_rows_that_a_users_loader_makes_of_these_are_the_ones_to_train(tmp_path, chat):
    from transformers import PreTrainedTokenizerFast

    class Fewer(DatasetLoader):
        def prepare_dataset(self):
            return super().prepare_dataset().select([0])

    loader = Fewer(settings(write_json(tmp_path / "data.json", conversations(9)), eval_fraction=0.3))
    gate = loader.prepare(chat)
    assert len(gate.training) > 1
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=chat.backend, chat_template=chat.template.source, **chat.template.tokens
    )
    prepared = loader.prepare_for(tokenizer)
    assert len(prepared.training) == 1
    assert prepared.held_out is loader.eval_dataset
