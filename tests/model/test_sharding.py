"""Where training.shard is refused, without a model library."""

import pytest

from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model import sharding


@pytest.mark.parametrize(
    ("processes", "given", "why"),
    [
        ("1", {}, "there is one process"),
        ("2", {"model": {"load_in_4bit": True}}, "which cannot be cut; set model.load_in_4bit=false"),
        ("2", {"model": {"engine": "unsloth", "load_in_4bit": False}}, "set model.engine=transformers"),
        ("2", {"lora": {"r": 0}}, "trains the base itself"),
        ("2", {"training": {"shard": True, "loop": "trl"}}, "TRL's loop does not have it"),
    ],
)
def test_what_cannot_be_sharded_is_refused_in_a_line(monkeypatch, processes, given, why):
    monkeypatch.setenv("WORLD_SIZE", processes)
    settings = {"model": {"load_in_4bit": False}, "training": {"shard": True}}
    with pytest.raises(UserError, match=f"training.shard=true: .*{why}"):
        sharding.check(Config.from_mapping(settings | given))


@pytest.mark.parametrize("task", ["train", "check"])
def test_what_can_be_is_not_nor_is_a_look_at_the_data(monkeypatch, task):
    monkeypatch.setenv("WORLD_SIZE", "2" if task == "train" else "1")
    given = {"model": {"load_in_4bit": False}, "training": {"shard": True}, "task": task}
    sharding.check(Config.from_mapping(given))
