"""Every model of conf/model through the pipeline, as a tiny random checkpoint of its architecture."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import replicas
from conftest import REPO, conversations, write_json
from test_templates import FAMILIES, folders  # noqa: F401 (a fixture)

from chatbot_sft import pipeline
from chatbot_sft.train import SFTTrainerWrapper

QUESTION = [{"role": "user", "content": "câu hỏi 3"}]
OPTIONS = sorted(file.stem for file in (REPO / "conf" / "model").glob("*.yaml"))
SPEED = ["training.learning_rate=5e-2", "training.warmup_steps=0", "training.max_steps=2", "training.gradient_accumulation_steps=1"]


def composed(output: Path, *overrides: str) -> dict:
    """The configuration as the command line makes it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from chatbot_sft import cli  # noqa: F401 (registers resolvers)

    with initialize_config_dir(str(REPO / "conf"), version_base=None):
        return OmegaConf.to_container(compose("config", [f"paths.output_dir={output}", *overrides]), resolve=True)


@pytest.fixture(scope="session")
def replica_folder(folders, tmp_path_factory):  # noqa: F811
    """`replica_folder(replica)` writes the checkpoint, once."""
    base, made = tmp_path_factory.mktemp("replicas"), {}

    def folder(name: str, replica: replicas.Replica) -> Path:
        if name not in made:
            family = FAMILIES[replica.family]
            made[name] = replicas.write(replica, folders[replica.family], family.end, base / name)
        return made[name]

    return folder


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`train("model=local", …)` runs the pipeline in this process; returns its trainer wrapper (model, tokenizer, dataset) and report."""
    kept = []
    made = SFTTrainerWrapper.__init__

    def keep(self, *args, **kwargs):
        made(self, *args, **kwargs)
        kept.append(self)

    monkeypatch.setattr(SFTTrainerWrapper, "__init__", keep)
    data = write_json(tmp_path / "data.json", conversations(8))

    def run(*overrides: str):
        given = ["model.engine=transformers", "model.load_in_4bit=false", "model.dtype=float32", f"dataset.data_path={data}", "save=none"]
        quick = ["dataset.eval_fraction=0", "training.sample_max_new_tokens=0", *SPEED]
        folder = tmp_path / f"run{len(kept)}"
        report = pipeline.run(composed(folder, *given, *quick, *overrides))
        kept[-1].folder = folder
        return kept[-1], report

    return run


def adapted(model) -> set[str]:
    return {match[1] for name, _ in model.named_parameters() if (match := re.fullmatch(r"base_model\.model\.(.*)\.lora_A\.default\.weight", name))}


def logits(model, tokenizer, said: list[int]):
    """Of the question and the answer `said`, shape (tokens, vocabulary)."""
    import torch

    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    model.eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([prompt + said])).logits[0].float()


def assert_saved(wrapper, tmp_path: Path) -> dict:
    """Both ways of saving load with the library a user would take, and are the trained model. Returns the loaded ones by method."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from chatbot_sft.model.generate import greedy_answer

    wrapper.engine.for_inference(wrapper.model)
    said = greedy_answer(wrapper.model, wrapper.tokenizer, QUESTION, 5)
    trained = logits(wrapper.model, wrapper.tokenizer, said)
    first, second = trained.topk(2).values.T
    loaded = {}
    for method, auto in (("lora", AutoPeftModelForCausalLM), ("merged_16bit", AutoModelForCausalLM)):
        folder = wrapper.save_model({"method": method, "save_path": str(tmp_path / method)}).path
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = loaded[method] = auto.from_pretrained(folder, dtype=torch.float32)
        again = logits(model, tokenizer, said)
        assert again.shape == trained.shape
        error = (again - trained).abs().max()
        assert error < trained.std() * (1e-4 if method == "lora" else 0.1), (method, error)
        near = first - second <= 2 * error  # which of two such tokens comes out on top is the rounding's choice
        assert ((again.argmax(1) == trained.argmax(1)) | near).all(), method
        if not near.any():
            assert greedy_answer(model, tokenizer, QUESTION, 5) == said, method
    return loaded


def test_every_model_has_a_replica():
    assert OPTIONS == sorted(replicas.REPLICAS)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_model_loads_trains_saves_and_loads_again(option, replica_folder, train, tmp_path):
    replica = replicas.REPLICAS[option]
    folder = replica_folder(option, replica)
    wrapper, report = train(f"model={option}", f"model.name={folder}")

    assert adapted(wrapper.model) == replica.adapted
    trained = {name for name, parameter in wrapper.model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * len(replica.adapted), "nothing but the adapter"
    losses = [point["loss"] for point in report["training"]["history"]]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    for name, parameter in wrapper.model.named_parameters():
        assert not name.endswith("lora_B.default.weight") or parameter.abs().max() > 0, f"{name} was not trained"

    end = wrapper.tokenizer.convert_tokens_to_ids(FAMILIES[replica.family].end)
    assert all(end in row for row in wrapper.dataset["labels"])

    merged = assert_saved(wrapper, tmp_path)["merged_16bit"]
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == replica.tied
    kept = {file.name for file in (tmp_path / "merged_16bit").iterdir()}
    assert set(replica.files or ()) <= kept
