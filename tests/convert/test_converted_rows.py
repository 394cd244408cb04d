"""The rows of converted files, read as the peers' documents say that they read them, and a step trained on them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from chatbot_sft.config import Config
from chatbot_sft.config.containers import as_dict
from chatbot_sft.config.hydra_glue import composed
from chatbot_sft.convert import __main__ as command
from chatbot_sft.data.prepare import prepare
from chatbot_sft.data.template import ChatTokenizer
from chatbot_sft.run.report import Report

FILES = Path(__file__).parent / "files"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"  # the template's own


@pytest.fixture
def place(tmp_path, monkeypatch):
    folder = tmp_path / "work"
    shutil.copytree(FILES, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "cache"))
    return folder


def converted(name):
    command.run(command.parse([name]))
    return f"experiment={name.partition('.')[0]}"


def rows(name, smollm2):
    """(what is written, what of it is trained) of each row of the converted file, by the embedded model."""
    experiment = converted(name)
    config = composed([experiment, "model.name=smollm2", "paths.output_dir=o"], config_dir="mine")
    plain = as_dict(config, resolve=False)
    plain.pop("hydra", None)
    chat = ChatTokenizer.from_folder(smollm2, "smollm2", {})
    prepared = prepare(Config.from_mapping(plain), chat)
    assert not prepared.statistics.bad_rows
    for row in prepared.entry.table().to_pylist():
        ids, labels = np.array(row["input_ids"]), np.array(row["labels"])
        yield row["text"], chat.backend.decode(ids[labels >= 0].tolist(), skip_special_tokens=False)


def written(*turns, system=SYSTEM):
    """A conversation in ChatML, as that model's template has it."""
    return "".join(
        f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in (("system", system), *turns)
    )


def data(name):
    text = (FILES / "data" / name).read_text(encoding="utf-8")
    return json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]


def test_axolotls_chat_template_type(place, smollm2):
    """docs/dataset-formats/conversation.qmd: message_property_mappings, roles_to_train: [assistant], train_on_eos:
    turn, message_field_training: all answers with their ends, but for those that say no.
    """
    names = {"human": "user", "gpt": "assistant"}
    expected = []
    for row in data("sharegpt.jsonl"):
        (first, *turns) = row["conversations"]
        said = [(names[turn["from"]], turn["value"]) for turn in turns]
        answers = [turn["value"] for turn in turns if turn["from"] == "gpt" and turn.get("train", True)]
        expected.append(
            (written(*said, system=first["value"]), "".join(f"{text}<|im_end|>" for text in answers))
        )
    assert list(rows("axolotl_qlora_chat.yml", smollm2)) == expected


def test_axolotls_alpaca_type_beside_another(place, smollm2):
    """docs/dataset-formats/inst_tune.qmd: instruction, input (optional), output; by the chat template here."""
    expected = []
    for row in data("alpaca.json"):
        asked = "\n\n".join(filter(None, (row["instruction"], row["input"])))
        expected.append(
            (written(("user", asked), ("assistant", row["output"])), f"{row['output']}<|im_end|>")
        )
    for row in data("chats.jsonl"):
        (asked, answered) = (turn["text"] for turn in row["chat"])
        expected.append((written(("user", asked), ("assistant", answered)), f"{answered}<|im_end|>"))
    found = list(rows("axolotl_lora_mixture.yml", smollm2))
    assert found[: len(expected)] == expected
    assert [trained for _, trained in found[len(expected) :]] == [
        "Mai does.<|im_end|>",
        "By the canal.<|im_end|>",
    ]


def test_axolotls_chat_template_default_of_dpo(place, smollm2):
    """src/axolotl/prompt_strategies/dpo/chat_template.py: the prompt's messages, then the chosen or the rejected one."""
    expected = []
    for row in data("pairs.jsonl"):
        asked = ("user", row["conversation"][0]["content"])
        answers = [row[name]["content"] for name in ("chosen", "rejected")]
        texts = [written(asked, ("assistant", answer)) for answer in answers]
        expected.append(("".join(texts), "".join(f"{answer}<|im_end|>" for answer in answers)))
    assert list(rows("axolotl_dpo.yml", smollm2)) == expected


def test_llama_factorys_alpaca_and_sharegpt(place, smollm2):
    """data/README.md: the alpaca columns' defaults; of sharegpt tags, and the system column."""
    expected = [
        (written(("user", row["instruction"]), ("assistant", row["output"])), f"{row['output']}<|im_end|>")
        for row in data("identity.json")
    ]
    for row in data("tools.json"):
        asked, answered = (turn["content"] for turn in row["messages"])
        text = written(("user", asked), ("assistant", answered), system=row["about"])
        expected.append((text, f"{answered}<|im_end|>"))
    assert list(rows("llama_factory_lora_sft.yaml", smollm2)) == expected


def test_llama_factorys_kto(place, smollm2):
    """data/README.md: the last answer is the one that kto_tag judges."""
    expected = [row["messages"][-1]["content"] + "<|im_end|>" for row in data("thumbs.json")]
    assert [trained for _, trained in rows("llama_factory_qlora_kto.yaml", smollm2)] == expected


@pytest.mark.parametrize(
    ("name", "steps", "rows_used"),
    [
        ("axolotl_qlora_chat.yml", 2, 6),
        ("axolotl_lora_mixture.yml", 2, 16),
        ("llama_factory_qlora_kto.yaml", 2, 8),
    ],
)
def test_a_converted_file_trains(name, steps, rows_used, place, tiny, tiny_llama, launch):
    """On the tiny model; a card, a hub and a logger are not here."""
    experiment = converted(name)
    finished = launch(
        "--config-dir", "mine", experiment, f"model.name={tiny_llama}", "model.load_in_4bit=false", "model.dtype=null",
        "model.engine=transformers", f"training.max_steps={steps}", "training.batch_layout=as_configured",
        "training.sample_max_new_tokens=0", "training.report_to=none", "save.push_to_hub=false",
        "save.hub_model_id=null", "save.verify=false", "hydra.run.dir=run", "training.dataloader_num_workers=0",
        cwd=place,
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    report = Report.from_json(json.loads((place / "run" / "report.json").read_text(encoding="utf-8")))
    assert report.training.steps == steps
    assert report.dataset.rows_used == rows_used
    assert (place / "run" / "model" / "adapter_config.json").is_file()
