"""One run in two processes: the losses of one, one run directory, one log, one report."""

import json
import os
import subprocess
import sys

import pytest
from conftest import conversations, report_of, write_json


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm, tiny_llama):
    """(folder of one process, folder of two, what two printed): the same effective batch of 8, evaluated on
    the way, float32.

    Nine conversations are trained: the second step has one of them, and nothing for the second process.
    """
    from conftest import EXAMPLE

    folder = tmp_path_factory.mktemp("processes")
    common = [
        "-m", "chatbot_sft", "model=local", f"model.name={tiny_llama}", "model.load_in_4bit=false", "model.engine=transformers",
        "model.dtype=float32", f"dataset.data_path={EXAMPLE}", "dataset.max_rows=10", "training.max_steps=3", "training.warmup_steps=0",
        "training.eval_steps=2", "training.batch_layout=as_configured", "training.sample_max_new_tokens=4", "save=lora",
    ]  # fmt: skip
    two = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        *common,
        "training.gradient_accumulation_steps=2",
    ]
    for name in ("one", "two"):
        (folder / name).mkdir()
    alone = warm.run([*common, "training.gradient_accumulation_steps=4"], folder / "one")
    assert alone.returncode == 0, alone.stderr
    process = subprocess.run(
        two,
        cwd=folder / "two",
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr
    return folder / "one", folder / "two", process


def test_two_processes_train_the_losses_of_one(runs):
    one, two = (report_of(folder) for folder in runs[:2])
    assert one["training"]["effective_batch_size"] == two["training"]["effective_batch_size"] == 8
    assert two["training"]["processes"] == 2
    assert one["training"]["tokens"] == two["training"]["tokens"]
    for a, b in zip(one["training"]["history"], two["training"]["history"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    for a, b in zip(one["evaluations"], two["evaluations"], strict=True):
        assert a["step"] == b["step"]
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)
    assert [sample["after"] for sample in one["samples"]] == [sample["after"] for sample in two["samples"]]


def test_two_processes_leave_one_directory_one_log_and_one_report(runs):
    _, folder, process = runs
    (run,) = folder.glob("outputs/*/*")
    one = next(runs[0].glob("outputs/*/*"))
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in one.iterdir())
    log = (run / "run.log").read_text()
    assert log.count("layout: ") == 1
    assert log.count("saved: lora") == 1
    assert len([line for line in process.stdout.splitlines() if line.startswith("loss ")]) == 1
    assert process.stderr.count("run: ") == 1


@pytest.mark.slow
def test_an_error_of_every_process_is_said_once_as_such(launch, tmp_path):
    """As torchrun starts the second process: its own line names it."""
    first, second = (
        launch(
            "dataset.data_path=nowhere.json",
            env={"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank},
            cold=True,
        )
        for rank in "01"
    )
    assert first.stderr.rstrip().splitlines()[-1].startswith("error: ")
    assert second.stderr.startswith("error in process 1: ")
    assert len(list(tmp_path.glob("outputs/*/*/report.json"))) == 1


@pytest.mark.slow
def test_gradients_and_figures_are_summed_over_all_processes_in_one_vector(tmp_path):
    """Also where the optimizer sees one vector, and where a parameter has no gradient; the first process's
    weights become everyone's.
    """
    (tmp_path / "run.py").write_text("""
import torch, torch.distributed as dist
from chatbot_sft.train.gradients import FlatParameters, Gradients
dist.init_process_group("gloo")
torch.manual_seed(dist.get_rank())
parameters = [torch.nn.Parameter(torch.randn(64, 80)), torch.nn.Parameter(torch.randn(80, 64)), torch.nn.Parameter(torch.randn(5))]
gradients = Gradients(parameters)
gradients.share()
torch.manual_seed(0)
assert torch.equal(parameters[0], torch.randn(64, 80))
for number, parameter in enumerate(parameters[:2], 1):
    parameter.grad = torch.full_like(parameter, number * (1.0 + 2 * dist.get_rank()))
loss, stops = gradients.sum(torch.tensor(0.25), float(dist.get_rank()))
assert (loss, stops) == (0.5, 1.0), (loss, stops)
assert all((parameter.grad == 4.0 * number).all() for number, parameter in enumerate(parameters[:2], 1)) and parameters[2].grad is None
flat = FlatParameters(parameters[:2])
flat.attach()
sum((parameter * (1 + dist.get_rank())).sum() for parameter in flat.parameters).backward()
flat.sum()
assert (flat.vector.grad == 3).all()
flat.compute_in(torch.bfloat16)
flat.attach()
sum((parameter * (1 + dist.get_rank())).sum() for parameter in flat.parameters).backward()
flat.collect()
(loss,) = flat.sum(torch.tensor(0.25))
assert loss == 0.5 and flat.vector.grad.dtype == torch.float32 and (flat.vector.grad == 3).all()
dist.destroy_process_group()
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "run.py"]
    process = subprocess.run(
        command,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.returncode == 0, process.stderr


TWO = """
import hashlib, json, sys
import torch
from chatbot_sft import DatasetLoader, ModelLoader, SFTTrainerWrapper
config = json.loads(sys.argv[1])
model, tokenizer = ModelLoader(config).load_and_configure()
dataset = DatasetLoader(config, tokenizer)
trainer = SFTTrainerWrapper(config, model, tokenizer, dataset.prepare_dataset(), dataset.eval_dataset)
trainer.setup()
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate_trained()
weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters() if p.requires_grad)
hashes = [hashlib.sha256(weights).hexdigest()]
if trainer.args.world_size == 2:
    hashes = [None, None]
    torch.distributed.all_gather_object(hashes, hashlib.sha256(weights).hexdigest())
if trainer.args.process_index == 0:
    print(json.dumps([[loss for _, loss in trainer.progress.losses], [before, after], hashes]))
trainer.close()
"""


@pytest.mark.parametrize("engine", ["transformers", "unsloth"])
def test_both_processes_end_with_the_adapter_of_one(engine, request, tiny_llama, tmp_path):
    """Evaluated before training, after which accelerate would wrap the model in nothing; a learning rate
    under which training apart would show.
    """
    config = {
        "model": {"name": str(tiny_llama), "load_in_4bit": False, "dtype": "float32", "engine": engine},
        "dataset": {"data_path": str(write_json(tmp_path / "short.json", conversations(40))), "eval_fraction": 0.3},
        "training": {
            "max_steps": 6, "learning_rate": 1e-2, "warmup_steps": 0, "per_device_train_batch_size": 2, "batch_layout": "as_configured",
            "save_strategy": "no", "sample_max_new_tokens": 0,
        },
    }  # fmt: skip
    warm = request.getfixturevalue({"transformers": "warm", "unsloth": "warm_unsloth"}[engine])
    printed = []
    for processes in (1, 2):
        config["training"] |= {
            "gradient_accumulation_steps": 4 // processes,
            "output_dir": str(tmp_path / f"checkpoints-{processes}"),
        }
        (tmp_path / "run.py").write_text(TWO)
        if processes == 1:
            process = warm.run([tmp_path / "run.py", json.dumps(config)], tmp_path)
        else:
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
            process = subprocess.run(
                [sys.executable, *launcher, "run.py", json.dumps(config)], cwd=tmp_path, capture_output=True, text=True,
                timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        assert process.returncode == 0, process.stderr
        printed.append(json.loads(process.stdout.splitlines()[-1]))
    (losses, held_out, _), (shared_losses, shared_held_out, (first, second)) = printed
    assert first == second
    assert losses[0] - losses[-1] > 0.1
    assert shared_losses == pytest.approx(losses, rel=1e-6)
    assert shared_held_out == pytest.approx(held_out, rel=1e-6)
