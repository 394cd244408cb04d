"""Every model of conf/model through the pipeline, as a tiny random checkpoint of its architecture."""

from __future__ import annotations

import json
import math
import re
from datetime import datetime
from pathlib import Path

import pytest
import replicas
from conftest import REPO, composed, conversations, only_error, write_json
from families import FAMILIES, write_folders

from chatbot_sft import pipeline
from chatbot_sft.data import template
from chatbot_sft.errors import UserError
from chatbot_sft.report import ending
from chatbot_sft.train import SFTTrainerWrapper

QUESTION = [{"role": "user", "content": "câu hỏi 3"}]
OPTIONS = sorted(file.stem for file in (REPO / "conf" / "model").glob("*.yaml"))
SPEED = [
    "training.learning_rate=5e-2",
    "training.warmup_steps=0",
    "training.max_steps=2",
    "training.gradient_accumulation_steps=1",
]


@pytest.fixture(scope="session")
def folders(smollm2, tmp_path_factory) -> dict[str, Path]:
    """A tokenizer folder per family, of few tokens."""
    whole = json.loads((smollm2 / "tokenizer.json").read_text(encoding="utf-8"))
    return write_folders(tmp_path_factory.mktemp("families"), replicas.small_vocabulary(whole))


@pytest.fixture(scope="session")
def replica_folder(folders, tmp_path_factory):
    """`replica_folder(replica)` writes the checkpoint, once."""
    base, made = tmp_path_factory.mktemp("replicas"), {}

    def folder(name: str, replica: replicas.Replica) -> Path:
        if name not in made:
            family = FAMILIES[replica.family]
            made[name] = replicas.write(replica, folders[replica.family], family.end, base / name)
        return made[name]

    return folder


@pytest.fixture
def one_day(monkeypatch):
    """Llama's templates write the day: what is trained and asked is that of one day, whenever it is tested."""
    from transformers.utils import chat_template_utils

    class Day(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2026, 11, 30, tzinfo=tz)

    monkeypatch.setattr(chat_template_utils, "datetime", Day)
    monkeypatch.setattr(pipeline, "render_as_of", lambda date: template.render_as_of(Day.now()))


@pytest.fixture
def train(tmp_path, monkeypatch):
    """`train("model=local", …)` runs the pipeline in this process; returns its trainer wrapper (model,
    tokenizer, dataset) and report.
    """
    kept = []
    made = SFTTrainerWrapper.__init__

    def keep(self, *args, **kwargs):
        made(self, *args, **kwargs)
        kept.append(self)

    monkeypatch.setattr(SFTTrainerWrapper, "__init__", keep)
    monkeypatch.setattr(ending, "write_loss_figure", lambda *_: None)  # half a second each
    data = write_json(tmp_path / "data.json", conversations(8))

    def run(*overrides: str):
        given = [
            "model.engine=transformers",
            "model.load_in_4bit=false",
            "model.dtype=float32",
            f"dataset.data_path={data}",
        ]
        quick = [
            "save=none",
            "save.verify=false",
            "dataset.eval_fraction=0",
            "training.sample_max_new_tokens=0",
            *SPEED,
        ]
        folder = tmp_path / f"run{len(kept)}"
        report = pipeline.run(composed(folder, *given, *quick, *overrides))
        kept[-1].folder = folder
        return kept[-1], report

    return run


def adapted(model) -> set[str]:
    return {
        match[1]
        for name, _ in model.named_parameters()
        if (match := re.fullmatch(r"base_model\.model\.(.*)\.lora_A\.default\.weight", name))
    }


def logits(model, tokenizer, said: list[int]):
    """Of the question and the answer `said`, shape (tokens, vocabulary)."""
    import torch

    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, return_dict=False)
    model.eval()
    with torch.inference_mode():
        return model(input_ids=torch.tensor([prompt + said])).logits[0].float()


def assert_saved(wrapper, tmp_path: Path) -> dict:
    """Both ways of saving load with the library a user would take, and are the trained model. Returns the
    loaded ones by method.
    """
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
        near = (
            first - second <= 2 * error
        )  # which of two such tokens comes out on top is the rounding's choice
        assert ((again.argmax(1) == trained.argmax(1)) | near).all(), method
        if not near.any():
            assert greedy_answer(model, tokenizer, QUESTION, 5) == said, method
    return loaded


def test_every_model_has_a_replica():
    assert sorted(replicas.REPLICAS) == OPTIONS


@pytest.mark.usefixtures("one_day")
@pytest.mark.parametrize("option", OPTIONS)
def test_a_model_loads_trains_saves_and_loads_again(option, replica_folder, train, tmp_path):
    replica = replicas.REPLICAS[option]
    folder = replica_folder(option, replica)
    wrapper, report = train(f"model={option}", f"model.name={folder}")

    assert adapted(wrapper.model) == replica.adapted
    trained = {name for name, parameter in wrapper.model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * len(replica.adapted), "nothing but the adapter"
    losses = [point["loss"] for point in report.history]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))
    for name, parameter in wrapper.model.named_parameters():
        assert not name.endswith("lora_B.default.weight") or parameter.abs().max() > 0, (
            f"{name} was not trained"
        )

    end = wrapper.tokenizer.convert_tokens_to_ids(FAMILIES[replica.family].end)
    assert all(end in row for row in wrapper.dataset["labels"])

    merged = assert_saved(wrapper, tmp_path)["merged_16bit"]
    assert (merged.get_output_embeddings().weight is merged.get_input_embeddings().weight) == replica.tied
    kept = {file.name for file in (tmp_path / "merged_16bit").iterdir()}
    assert set(replica.files or ()) <= kept


def test_a_phi_that_was_split_is_adapted_as_well(replica_folder, train):
    folder = replica_folder("llamafied", replicas.LLAMAFIED_PHI)
    wrapper, _ = train("model=phi4_mini", f"model.name={folder}")
    assert adapted(wrapper.model) == replicas.LLAMAFIED_PHI.adapted


def test_targets_that_a_model_does_not_have_are_named(replica_folder, train):
    """The default list on fused layers would adapt two of four, silently."""
    folder = replica_folder("phi4_mini", replicas.REPLICAS["phi4_mini"])
    with pytest.raises(UserError) as caught:
        train("model=local", f"model.name={folder}")
    assert (
        str(caught.value)
        == "lora.target_modules: the model has no q_proj, k_proj, v_proj, gate_proj, up_proj; its linear"
        " layers are down_proj, gate_up_proj, o_proj, qkv_proj; lora.target_modules=all-linear takes"
        " them all"
    )
    with pytest.raises(UserError) as caught:
        train("model=phi4_mini", f"model.name={folder}", "lora.modules_to_save=[embed]")
    assert (
        str(caught.value)
        == "lora.modules_to_save: the model has no embed; did you mean embed_tokens?; the usual ones are"
        " embed_tokens and lm_head"
    )


def test_all_linear_leaves_the_vision_tower_alone(replica_folder, train):
    replica = replicas.REPLICAS["gemma3_4b"]
    wrapper, _ = train(
        "model=gemma3_4b",
        f"model.name={replica_folder('gemma3_4b', replica)}",
        "lora.target_modules=all-linear",
    )
    assert adapted(wrapper.model) == replica.adapted


# ---- rows and matrices of the embeddings


def thinking(tmp_path: Path) -> Path:
    rows = conversations(8)
    for row in rows:
        row["messages"][1]["content"] = f"<|think|> đã nghĩ <|/think|> {row['messages'][1]['content']}"
    return write_json(tmp_path / "thinking.json", rows)


NEW = 'model.new_tokens=["<|think|>","<|/think|>"]'


@pytest.mark.parametrize(
    ("option", "resized"), [("llama1b", True), ("llama8b", True), ("qwen3_4b", False), ("gemma3_4b", False)]
)
def test_new_tokens_are_trained_and_saved(option, resized, replica_folder, train, tmp_path):
    """Tied and untied, with and without rows to spare."""
    import torch
    from transformers import AutoModelForCausalLM

    replica = replicas.REPLICAS[option]
    folder = replica_folder(option, replica)
    wrapper, _ = train(
        f"model={option}", f"model.name={folder}", NEW, f"dataset.data_path={thinking(tmp_path)}"
    )
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    known = base.get_input_embeddings().weight.shape[0] - replica.spare_rows
    ids = wrapper.tokenizer.convert_tokens_to_ids(["<|think|>", "<|/think|>"])
    assert ids == [known, known + 1]
    assert all(row.count(ids[0]) == row.count(ids[1]) == 1 for row in wrapper.dataset["labels"])
    assert adapted(wrapper.model) == replica.adapted

    for name, merged in assert_saved(wrapper, tmp_path).items():
        if name == "merged_16bit":
            rows, before = merged.get_input_embeddings().weight, base.get_input_embeddings().weight
            assert len(rows) == (known + 2 if resized else len(before))
            mean = before[:known].mean(0)
            assert all((rows[number] - mean).abs().max() > 1e-2 for number in ids), (
                "trained, from the mean of the others"
            )
            assert torch.equal(rows[:known], before[:known])
            assert (merged.get_output_embeddings().weight is rows) == replica.tied
            if not replica.tied:
                head, mean = (
                    merged.get_output_embeddings().weight,
                    base.get_output_embeddings().weight.mean(0),
                )
                assert all((head[number] - mean).abs().max() > 1e-2 for number in ids)


def test_new_rows_begin_as_the_mean(replica_folder):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from chatbot_sft.model.tokens import add_tokens, extend_embeddings

    folder = replica_folder("llama8b", replicas.REPLICAS["llama8b"])
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32),
        AutoTokenizer.from_pretrained(folder),
    )
    means = [
        module.weight.mean(0) for module in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    add_tokens(tokenizer, ["<|think|>"], "it")
    (number,) = extend_embeddings(model, tokenizer, ["<|think|>"])
    for module, mean in zip(
        (model.get_input_embeddings(), model.get_output_embeddings()), means, strict=True
    ):
        assert torch.allclose(module.weight[number], mean, atol=1e-5)
    assert tokenizer("a<|think|>b").input_ids.count(number) == 1


@pytest.mark.slow
def test_the_gate_and_the_trainer_number_new_tokens_alike(folders):
    from transformers import AutoTokenizer

    from chatbot_sft.data.template import ChatTokenizer
    from chatbot_sft.model.tokens import add_tokens

    new = ["<|think|>", "<tool>"]
    for name, folder in folders.items():
        plain, gate = (
            ChatTokenizer.from_folder(folder, name, {}),
            ChatTokenizer.from_folder(folder, name, {}, new),
        )
        trainer = AutoTokenizer.from_pretrained(folder)
        add_tokens(trainer, new, name)
        text = "a <|think|>b<tool> c"
        assert (
            gate.backend.encode(text, add_special_tokens=False).ids
            == trainer(text, add_special_tokens=False).input_ids
        )
        assert [gate.backend.token_to_id(token) for token in new] == trainer.convert_tokens_to_ids(new)
        assert gate.fingerprint != plain.fingerprint
        assert gate.fingerprint == ChatTokenizer.from_transformers(trainer, name, {}, new).fingerprint


def test_a_token_that_is_there_already_is_refused(launch, tiny):
    error = only_error(launch(*tiny, 'model.new_tokens=["<|think|>","<|im_end|>"]'))
    assert error.startswith("model.new_tokens: <|im_end|> is already a token of ")
    assert error.endswith(" (id 2); leave it out")


@pytest.mark.parametrize("option", ["llama1b", "llama8b"])
def test_embeddings_trained_in_full(option, replica_folder, train, tmp_path):
    import torch

    replica = replicas.REPLICAS[option]
    folder = replica_folder(option, replica)
    wrapper, _ = train(
        f"model={option}", f"model.name={folder}", "lora.modules_to_save=[embed_tokens,lm_head]", NEW
    )
    assert wrapper.model.get_output_embeddings().weight.requires_grad
    merged = assert_saved(wrapper, tmp_path)["merged_16bit"]
    inputs, outputs = merged.get_input_embeddings().weight, merged.get_output_embeddings().weight
    assert (inputs is outputs) == replica.tied
    trained = wrapper.model.get_output_embeddings().weight.detach()
    assert torch.allclose(outputs, trained, atol=2e-2)


# ---- every kind of adapter


@pytest.mark.parametrize("option", sorted(file.stem for file in (REPO / "conf" / "lora").glob("*.yaml")))
def test_every_lora_option_trains(option, replica_folder, train):
    import torch

    folder = replica_folder("mistral7b", replicas.REPLICAS["mistral7b"])
    arguments = ["model=mistral7b", f"model.name={folder}", f"lora={option}", "training.learning_rate=2e-3"]
    if option == "loftq" and not torch.cuda.is_available():
        with pytest.raises(UserError) as caught:
            train(*arguments)
        assert str(caught.value).startswith(
            "lora.init_lora_weights=loftq: PEFT computes it on a GPU, and there is none here"
        )
        return
    _, report = train(*arguments)
    losses = [point["loss"] for point in report.history]
    assert losses[1] < losses[0]


def test_initialisations_begin_as_the_base_and_are_saved(replica_folder, train, tmp_path):
    folder, seen = replica_folder("mistral7b", replicas.REPLICAS["mistral7b"]), {}
    for init in ("true", "gaussian", "orthogonal", "olora", "pissa", "mica"):
        wrapper, report = train(
            "model=mistral7b", f"model.name={folder}", f"lora.init_lora_weights={init}", "lora.r=4"
        )
        seen[init] = [point["loss"] for point in report.history]
        assert abs(seen[init][0] - seen["true"][0]) < 1e-4, init
        if init in ("olora", "pissa", "mica"):
            assert_saved(wrapper, tmp_path / init)
    assert len({second for _, second in seen.values()}) == len(seen)


# ---- Unsloth


def test_unsloth_trains_the_replicas_as_transformers_does(warm_unsloth, replica_folder, train, tmp_path):
    """One process for all of them: the same modules, and the same losses in float32."""
    data, full = thinking(tmp_path), "lora.modules_to_save=[embed_tokens,lm_head]"
    runs = [
        ("llama8b", NEW),
        ("qwen3_4b", full),
        ("gemma3_4b", NEW),
        ("phi4_mini", "lora.init_lora_weights=pissa"),
        ("mistral7b", "lora.r=4"),
    ]
    jobs, plain = [], []
    for option, extra in runs:
        folder = replica_folder(option, replicas.REPLICAS[option])
        overrides = [
            f"model={option}",
            f"model.name={folder}",
            extra,
            f"dataset.data_path={data}",
            "lora.r=4",
        ]
        _, report = train(*overrides)
        plain.append([point["loss"] for point in report.history])
        given = [
            "model.engine=unsloth",
            "model.load_in_4bit=false",
            "model.dtype=float32",
            "dataset.eval_fraction=0",
            "training.sample_max_new_tokens=0",
        ]
        jobs.append(composed(tmp_path / f"unsloth-{option}", *given, *SPEED, *overrides))
    script = tmp_path / "replicas_on_unsloth.py"
    write_json(tmp_path / "jobs.json", jobs)
    script.write_text(
        "import json, sys\nfrom pathlib import Path\nfrom chatbot_sft import pipeline\nfrom chatbot_sft.train"
        " import SFTTrainerWrapper\nmade = SFTTrainerWrapper.__init__\ndef keep(self, *args):\n    made(self,"
        " *args)\n    global wrapper\n    wrapper = self\nSFTTrainerWrapper.__init__ = keep\nfor job in"
        " json.loads(Path('jobs.json').read_text()):\n    history = pipeline.run(job).history\n    names ="
        " [name for name, _ in wrapper.model.named_parameters() if name.endswith('lora_A.default.weight')]\n "
        "   print('RESULT', json.dumps([[point['loss'] for point in history], names]), flush=True)\n"
    )
    process = warm_unsloth.run([script], tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    results = [
        json.loads(line.removeprefix("RESULT "))
        for line in process.stdout.splitlines()
        if line.startswith("RESULT ")
    ]
    for (option, _), (losses, names), expected in zip(runs, results, plain, strict=True):
        assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 1e-3, option
        ours = {
            name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight") for name in names
        }
        assert ours == replicas.REPLICAS[option].adapted, option
        assert list((tmp_path / f"unsloth-{option}" / "model").glob("model*.safetensors")), option


# ---- keys of SFTConfig


def arguments_of(tiny_llama, output: Path, *overrides: str):
    from chatbot_sft.config import Config
    from chatbot_sft.model.engine import load_engine
    from chatbot_sft.train.arguments import sft_arguments

    given = [
        "model=local",
        f"model.name={tiny_llama}",
        "model.load_in_4bit=false",
        "model.engine=transformers",
    ]
    return sft_arguments(
        Config.from_mapping(composed(output, *given, *overrides)), load_engine("transformers")[0], "native"
    )


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.lr_scheduler_type=cosine", "lr_scheduler_type", "cosine"),
        ("training.lr_scheduler_type=constant_with_warmup", "lr_scheduler_type", "constant_with_warmup"),
        ("training.warmup_steps=7", "warmup_steps", 7),
        ("training.weight_decay=0.3", "weight_decay", 0.3),
        ("+training.neftune_noise_alpha=5", "neftune_noise_alpha", 5),
        ("+training.max_grad_norm=0.5", "max_grad_norm", 0.5),
        ("+training.adam_beta2=0.95", "adam_beta2", 0.95),
        ("+training.label_smoothing_factor=0.1", "label_smoothing_factor", 0.1),
        ("training.save_steps=3", "save_steps", 3),
        ("training.optim=adafactor", "optim", "adafactor"),
        ("training.optim=adamw_torch_fused", "optim", "adamw_torch_fused"),
        ("training.optim=sgd", "optim", "sgd"),
    ],
)
def test_keys_reach_trl(override, key, value, tiny_llama, tmp_path):
    assert getattr(arguments_of(tiny_llama, tmp_path, override), key) == value


@pytest.mark.parametrize("optim", ["adamw_8bit", "paged_adamw_8bit", "paged_adamw_32bit", "adamw_bnb_8bit"])
def test_optimizers_of_a_gpu_are_replaced_on_a_cpu(optim, tiny_llama, tmp_path):
    import torch

    expected = optim if torch.cuda.is_available() else "adamw_torch_fused"
    assert arguments_of(tiny_llama, tmp_path, f"training.optim={optim}").optim in (
        expected,
        "adamw_bnb_8bit" if optim == "adamw_8bit" else expected,
    )


def test_keys_change_the_run(replica_folder, train):
    """NEFTune's noise, a schedule, a decay: each is seen in the losses of the same two steps."""
    folder, seen = replica_folder("mistral7b", replicas.REPLICAS["mistral7b"]), {}
    for override in (
        "seed=3407",
        "+training.neftune_noise_alpha=5",
        "training.optim=adafactor",
        "training.weight_decay=0.9",
        "training.warmup_steps=2",
    ):
        _, report = train(
            "model=mistral7b", f"model.name={folder}", "lora.r=4", "training.max_steps=3", override
        )
        seen[override] = [point["loss"] for point in report.history]
    noise, plain = seen["+training.neftune_noise_alpha=5"], seen["seed=3407"]
    assert abs(noise[0] - plain[0]) > 1e-4, "noise is in the embeddings from the first step on"
    assert seen["training.optim=adafactor"][0] == seen["training.warmup_steps=2"][0] == plain[0]
    assert len({losses[2] for losses in seen.values()}) == len(seen)


# Of the keys that are passed on to change the losses: a value, and what else has to be set.
LOSSES = {
    "lr_scheduler_kwargs": [
        "+training.lr_scheduler_kwargs={min_lr_rate: 0.5}",
        "training.lr_scheduler_type=cosine_with_min_lr",
    ],
    "adam_beta1": ["+training.adam_beta1=0.1"],
    "adam_beta2": ["+training.adam_beta2=0.1"],
    "adam_epsilon": ["+training.adam_epsilon=1"],
    "max_grad_norm": ["+training.max_grad_norm=1e-9"],
    "neftune_noise_alpha": ["+training.neftune_noise_alpha=50"],
    "label_smoothing_factor": ["+training.label_smoothing_factor=0.5"],
}


def test_every_key_that_is_passed_on_for_its_effect_on_the_losses_has_one(replica_folder, train):
    from chatbot_sft.config import sft_arguments

    assert LOSSES.keys() == {key for key, changes in sft_arguments.PASSED.items() if changes == "the losses"}
    folder, seen = replica_folder("mistral7b", replicas.REPLICAS["mistral7b"]), {}
    for key, overrides in {"nothing": ["seed=3407"], **LOSSES}.items():
        _, report = train(
            "model=mistral7b", f"model.name={folder}", "lora.r=4", "training.max_steps=4", *overrides
        )
        seen[key] = [point["loss"] for point in report.history]
    same = [
        key
        for key in LOSSES
        if max(abs(one - other) for one, other in zip(seen[key], seen["nothing"], strict=True)) < 1e-5
    ]
    assert same == []


def test_smoothed_labels_do_not_depend_on_the_layout(replica_folder, train):
    """transformers issue 46731: its smoothed loss was a mean over each micro-batch, summed over all of them."""
    folder, seen = replica_folder("mistral7b", replicas.REPLICAS["mistral7b"]), []
    for size in (1, 4):
        layout = [
            f"training.per_device_train_batch_size={size}",
            f"training.gradient_accumulation_steps={4 // size}",
        ]
        smoothed = "+training.label_smoothing_factor=0.5"
        _, report = train(
            "model=mistral7b",
            f"model.name={folder}",
            "lora.r=4",
            "training.batch_layout=as_configured",
            smoothed,
            *layout,
        )
        seen.append([point["loss"] for point in report.history])
    assert seen[0] == pytest.approx(seen[1], abs=1e-3)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.warmup_steps=0.1", "warmup_steps", 0.1),
        ("training.warmup_ratio=0.25", "warmup_steps", 0.25),
        ("training.logging_steps=0.5", "logging_steps", 0.5),
        ("training.num_train_epochs=3", "max_steps", -1),
        ("training.num_train_epochs=3", "num_train_epochs", 3),
    ],
)
def test_shares_and_lengths_reach_trl(override, key, value, tiny_llama, tmp_path):
    assert getattr(arguments_of(tiny_llama, tmp_path, override), key) == value


@pytest.mark.parametrize("optim", ["lion_8bit", "ademamix_8bit", "rmsprop_bnb_8bit", "paged_lion_32bit"])
def test_another_algorithm_is_never_put_in_an_optimizers_place(optim, tiny_llama, tmp_path):
    assert arguments_of(tiny_llama, tmp_path, f"training.optim={optim}").optim == optim


def test_an_8bit_optimizer_of_its_own_kind_trains_on_a_cpu(replica_folder, train):
    folder = replica_folder("mistral7b", replicas.REPLICAS["mistral7b"])
    wrapper, report = train(
        "model=mistral7b",
        f"model.name={folder}",
        "lora.r=4",
        "training.optim=lion_8bit",
        "training.learning_rate=1e-3",
    )
    assert report.training.steps == 2
    assert "Lion" in type(wrapper.job.optimizer).__name__


def test_the_same_keys_change_the_losses_under_unsloth(warm_unsloth, replica_folder, tmp_path):
    folder, data = (
        replica_folder("llama1b", replicas.REPLICAS["llama1b"]),
        write_json(tmp_path / "data.json", conversations(8)),
    )
    given = [
        "model=llama1b",
        f"model.name={folder}",
        "model.engine=unsloth",
        "model.load_in_4bit=false",
        "model.dtype=float32",
        "lora.r=4",
    ]
    given += [
        f"dataset.data_path={data}",
        "dataset.eval_fraction=0",
        "training.sample_max_new_tokens=0",
        "training.batch_layout=as_configured",
    ]
    given += ["save=none", *SPEED, "training.max_steps=4"]
    keys = {"nothing": ["seed=3407"], **LOSSES}
    write_json(
        tmp_path / "jobs.json",
        {key: composed(tmp_path / key, *given, *overrides) for key, overrides in keys.items()},
    )
    script = tmp_path / "keys_on_unsloth.py"
    script.write_text(
        "import json\nfrom pathlib import Path\nfrom chatbot_sft import pipeline\n"
        "from chatbot_sft.report import ending\nending.write_loss_figure"
        " = lambda *_: None\nfor key, job in json.loads(Path('jobs.json').read_text()).items():\n   "
        " print('RESULT', json.dumps([key, [point['loss'] for point in pipeline.run(job).history]]),"
        " flush=True)\n"
    )
    process = warm_unsloth.run([script], tmp_path)
    assert process.returncode == 0, process.stderr[-3000:]
    seen = dict(
        json.loads(line.removeprefix("RESULT "))
        for line in process.stdout.splitlines()
        if line.startswith("RESULT ")
    )
    same = [
        key
        for key in LOSSES
        if max(abs(one - other) for one, other in zip(seen[key], seen["nothing"], strict=True)) < 1e-5
    ]
    assert same == []
