"""What is measured on the held-out conversations: loss, token accuracy, answers; when training stops, and
whose weights are kept.
"""

import json

import pytest
from conftest import conversations, only_error, report_of, write_json

PROGRAM = """
import json, sys
from pathlib import Path
from chatbot_sft import DatasetLoader, ModelLoader, SFTTrainerWrapper
config = json.loads(Path("config.json").read_text())
loader = ModelLoader(config)
model, tokenizer = loader.load_and_configure()
dataset = DatasetLoader(config, tokenizer)
rows = dataset.prepare_dataset()
trainer = SFTTrainerWrapper(config, model, tokenizer, rows, dataset.eval_dataset)
trainer.sample_prompts = [[{"role": "user", "content": "Bia?"}]]
trainer.setup()
import torch
from torch.nn.functional import cross_entropy
from chatbot_sft.train import scores
"""


def run(warm, folder, script, model, data, training, engine="transformers", r=4):
    """`script` after PROGRAM in a process of its own; what it printed as JSON last."""
    config = {
        "model": {"name": str(model), "load_in_4bit": False, "dtype": "float32", "engine": engine},
        "dataset": {"data_path": str(data), "eval_fraction": 0.3},
        "lora": {"r": r},
        "training": {"output_dir": "checkpoints", "warmup_steps": 0, "sample_max_new_tokens": 4, **training},
    }
    write_json(folder / "config.json", config)
    process = warm.run(["-c", PROGRAM + script], folder)
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout.splitlines()[-1])


@pytest.fixture
def short(tmp_path):
    """Forty one-line conversations: a step takes milliseconds."""
    return write_json(tmp_path / "short.json", conversations(40))


INDEPENDENT = """
def independent():
    loss = right = tokens = 0
    model.eval()
    with torch.no_grad():
        for row in dataset.eval_dataset:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
            logits = model(input_ids=ids).logits[0, :-1].float()[labels != -100]
            labels = labels[labels != -100]
            loss += cross_entropy(logits, labels, reduction="sum").item()
            right += (logits.argmax(-1) == labels).sum().item()
            tokens += len(labels)
    return loss / tokens, right / tokens
trainer.train()
scores.CHUNK = 7
loss = trainer.evaluate()
(record,) = [found for found in trainer.evaluations.records if found["loss"] is not None]
hooks = len(model.get_output_embeddings()._forward_pre_hooks)
# Gemma's own forward bounds its logits: 7 positions at a time, all at once, and the loss that the model itself gives.
from transformers import Gemma2Config, Gemma2ForCausalLM
torch.manual_seed(0)
gemma = Gemma2ForCausalLM(Gemma2Config(vocab_size=99, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, final_logit_softcapping=0.5, initializer_range=1.0)).eval()
ids = torch.randint(0, 99, (3, 20))
labels = ids.masked_fill(torch.rand(3, 20) < 0.3, -100)
labels[1] = -100
inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
with torch.no_grad():
    chunks = scores.token_scores(gemma, inputs).tolist()
    scores.CHUNK = 1000
    whole = scores.token_scores(gemma, inputs).tolist()
    own = gemma(**inputs).loss.item()
print(json.dumps({"independent": independent(), "loss": loss, "record": record, "hooks": hooks, "chunks": chunks, "whole": whole, "own": own}))
"""


@pytest.mark.parametrize("engine", ["transformers", "unsloth"])
def test_loss_and_accuracy_are_those_of_all_logits(engine, request, short, tiny_llama, tmp_path):
    warm = request.getfixturevalue({"transformers": "warm", "unsloth": "warm_unsloth"}[engine])
    training = {"max_steps": 8, "learning_rate": 0.01, "gradient_accumulation_steps": 1}
    found = run(warm, tmp_path, INDEPENDENT, tiny_llama, short, training, engine, r=0)
    (loss, accuracy), record = found["independent"], found["record"]
    assert abs(found["loss"] - loss) < 1e-6
    assert 0 < accuracy < 1
    assert record["token_accuracy"] == accuracy
    assert record["perplexity"] == pytest.approx(2.718281828**loss, rel=1e-4)
    assert record["samples"][0]["prompt"] == "Bia?"
    assert found["hooks"] == 0
    chunks, whole = found["chunks"], found["whole"]
    assert chunks[1] == [0, 0, 0]
    for row, same in zip(chunks, whole, strict=True):
        assert row == pytest.approx(same, rel=1e-6)
    assert sum(row[0] for row in whole) / sum(row[2] for row in whole) == pytest.approx(
        found["own"], rel=1e-6
    )


@pytest.fixture
def quick(tiny, short):
    """A run on the command line that takes seconds, with dropout so that one random number too many shows."""
    kept = [argument for argument in tiny if not argument.startswith(("dataset.", "training.max_steps"))]
    return [
        *kept, "model.dtype=float32", f"dataset.data_path={short}", "dataset.eval_fraction=0.2", "lora.lora_dropout=0.2",
        "training.max_steps=6", "training.warmup_steps=0", "training.gradient_accumulation_steps=1", "save=none",
    ]  # fmt: skip


def test_training_is_the_same_with_and_without_evaluations(launch, quick, tmp_path):
    assert launch(*quick, "hydra.run.dir=without").returncode == 0
    process = launch(
        *quick, "training.eval_steps=2", "training.per_device_eval_batch_size=3", "hydra.run.dir=with"
    )
    assert process.returncode == 0, process.stderr
    without, watched = report_of(tmp_path / "without"), report_of(tmp_path / "with")
    assert watched["training"]["history"] == without["training"]["history"]
    assert [record["step"] for record in without["evaluations"]] == [0, 6]
    assert [record["step"] for record in watched["evaluations"]] == [0, 2, 4, 6]
    assert (
        watched["training"]["eval_loss"]
        == watched["evaluations"][-1]["loss"]
        == pytest.approx(without["training"]["eval_loss"], abs=1e-6)
    )
    assert watched["training"]["eval_token_accuracy"] == watched["evaluations"][-1]["token_accuracy"]
    assert watched["training"]["eval_perplexity_before"] == watched["evaluations"][0]["perplexity"]
    for record in watched["evaluations"]:
        assert [sample["prompt"] for sample in record["samples"]] == [
            sample["prompt"] for sample in watched["samples"]
        ]
    lines = [
        json.loads(line)
        for line in (tmp_path / "with" / "checkpoints" / "evaluations.jsonl").read_text().splitlines()
    ]
    assert lines == watched["evaluations"]
    text = (tmp_path / "with" / "report.md").read_text()
    assert "## Held-out conversations" in text
    assert text.count("<details>") == 3
    assert "## Held-out conversations" not in (tmp_path / "without" / "report.md").read_text()
    assert process.stderr.count("of tokens right") == 4
    state = json.loads(
        (tmp_path / "with" / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text()
    )
    logged = {entry["step"]: entry for entry in state["log_history"] if "eval_loss" in entry}
    assert [logged[step]["eval_token_accuracy"] for step in (2, 4, 6)] == [
        record["token_accuracy"] for record in watched["evaluations"][1:]
    ]


def test_training_stops_early_and_ends_with_the_best_weights(launch, quick, tmp_path):
    """A learning rate that destroys the model: the first evaluation stays the best."""
    arguments = [argument for argument in quick if argument != "save=none"]
    process = launch(
        *arguments, "save=lora", "training.max_steps=40", "training.learning_rate=0.3", "training.lr_scheduler_type=constant", "training.eval_steps=3",
        "training.early_stopping_patience=2", "training.load_best_model_at_end=true", "training.stop_on_divergence=false", "hydra.run.dir=run",
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    report = report_of(tmp_path)
    training, evaluations = report["training"], report["evaluations"]
    losses = [record["loss"] for record in evaluations]
    best = min(evaluations[1:], key=lambda record: record["loss"])
    assert training["stopped_early"]
    assert training["steps"] == evaluations[-1]["step"] == best["step"] + 6
    assert losses[-1] > best["loss"]
    assert training["weights_of_step"] == training["best_step"] == best["step"]
    assert training["eval_loss"] == training["best_eval_loss"] == pytest.approx(best["loss"], abs=1e-6)
    assert [sample["after"] for sample in report["samples"]] == [
        sample["answer"] for sample in best["samples"]
    ]
    assert f"step {best['step']}: its weights are loaded back" in process.stderr
    assert "2 evaluations in a row without a better held-out loss" in process.stderr
    run_directory = tmp_path / "run"
    from safetensors import safe_open

    kept = run_directory / "checkpoints" / f"checkpoint-{best['step']}" / "adapter_model.safetensors"
    with (
        safe_open(run_directory / "model" / "adapter_model.safetensors", "pt") as saved,
        safe_open(kept, "pt") as checkpoint,
    ):
        assert set(saved.keys()) == set(checkpoint.keys())
        assert all(saved.get_tensor(name).equal(checkpoint.get_tensor(name)) for name in saved.keys())  # noqa: SIM118


# The pipeline's run dies at step 5; then a trainer resumes from the checkpoint of step 4.
DIES = """
from chatbot_sft import pipeline
from transformers import TrainerCallback
class Dies(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise RuntimeError("power cut")
class Trainer(SFTTrainerWrapper):
    def create_trainer(self):
        super().create_trainer().add_callback(Dies())
sys.modules["mine"] = sys.modules["__main__"]
try:
    pipeline.run({**config, "training": {**config["training"], "_target_": "mine.Trainer"}, "paths": {"output_dir": "run"}})
except RuntimeError:
    pass
with open("checkpoints/evaluations.jsonl", "ab") as file:
    file.write(b'\\xff no record\\n{"step": 6, "loss": 1')
from chatbot_sft.run.checkpoints import read
from chatbot_sft.train.resume import Origin
trainer.origin = Origin(checkpoint=read(Path("checkpoints/checkpoint-4").absolute()))
trainer.train()
print(json.dumps({"records": trainer.evaluations.records, "patience": trainer.job.stopping.early_stopping_patience_counter}))
"""


def test_a_run_that_dies_keeps_its_evaluations_and_resumes_from_them(warm, short, tiny_llama, tmp_path):
    training = {
        "max_steps": 6, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "gradient_accumulation_steps": 1, "eval_steps": 2, "save_steps": 2,
        "save_total_limit": 9, "early_stopping_patience": 9, "early_stopping_threshold": 5, "sample_prompts": ["Bia?"],
    }  # fmt: skip
    resumed = run(warm, tmp_path, DIES, tiny_llama, short, training)
    report = report_of(tmp_path / "run")
    assert (report["status"], report["error"]) == ("failed", "power cut")
    assert [record["step"] for record in report["evaluations"]] == [0, 2, 4]
    assert (tmp_path / "run" / "loss.png").exists()
    assert resumed["records"][:3] == report["evaluations"]
    assert [record["step"] for record in resumed["records"]] == [0, 2, 4, 6]
    lines = (tmp_path / "checkpoints" / "evaluations.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == resumed["records"]
    assert resumed["patience"] == 2  # steps 4 and 6: nothing is better by 5 nats


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["training.eval_steps=2.5"],
            (
                "training.eval_steps=2.5: must be a whole number of optimizer steps, or a share of the run"
                " between 0 and 1"
            ),
        ),
        (["training.eval_steps=0"], "training.eval_steps=0: must be a whole number"),
        (
            ["training.eval_steps=4", "dataset.eval_fraction=0"],
            "training.eval_steps=4: nothing is held out; set dataset.eval_fraction or",
        ),
        (
            ["training.early_stopping_patience=2"],
            "training.early_stopping_patience=2 needs evaluations during training: set training.eval_steps",
        ),
        (
            ["training.load_best_model_at_end=true"],
            "training.load_best_model_at_end=true needs evaluations during training",
        ),
        (
            ["training.eval_steps=4", "training.early_stopping_threshold=-1"],
            "training.early_stopping_threshold=-1.0: must be at least 0",
        ),
        (
            ["training.per_device_eval_batch_size=0"],
            "training.per_device_eval_batch_size=0: must be at least 1",
        ),
        (["training.eval_strategy=epoch"], "training.eval_strategy: set training.eval_steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, message):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from chatbot_sft.config import Config
    from chatbot_sft.errors import UserError

    config = {}
    for override in OverridesParser.create().parse_overrides(arguments):
        section, key = override.key_or_group.split(".")
        config.setdefault(section, {})[key] = override.value()
    with pytest.raises(UserError) as refused:
        Config.from_mapping(config)
    assert str(refused.value).startswith(message)


def test_too_few_conversations_to_hold_any_out(launch, quick, tmp_path):
    """Copies of one conversation stay together, so none can be held out."""
    same = write_json(tmp_path / "same.json", conversations(1) * 30)
    process = launch(*quick, f"dataset.data_path={same}", "training.eval_steps=2")
    assert (
        only_error(process)
        == "training.eval_steps=2: no conversation is held out; give dataset.eval_data_path or more data"
    )
    assert "engine" not in process.stderr
