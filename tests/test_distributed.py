"""One run in two processes: the losses of one, one run directory, one log, one report."""

import os
import socket
import subprocess
import sys

import pytest
from conftest import report_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm, tiny_llama):
    """(folder of one process, folder of two, what two printed): the same effective batch of 8, evaluated on the way, float32.

    Nine conversations are trained: the second step has one of them, and nothing for the second process.
    """
    from conftest import EXAMPLE

    folder = tmp_path_factory.mktemp("processes")
    common = [
        "-m", "chatbot_sft", "model=local", f"model.name={tiny_llama}", "model.load_in_4bit=false", "model.engine=transformers",
        "model.dtype=float32", f"dataset.data_path={EXAMPLE}", "dataset.max_rows=10", "training.max_steps=3", "training.warmup_steps=0",
        "training.eval_steps=2", "training.batch_layout=as_configured", "training.sample_max_new_tokens=4", "save=lora",
    ]  # fmt: skip
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *common, "training.gradient_accumulation_steps=2"]
    for name in ("one", "two"):
        (folder / name).mkdir()
    alone = warm.run([*common, "training.gradient_accumulation_steps=4"], folder / "one")
    assert alone.returncode == 0, alone.stderr
    process = subprocess.run(two, cwd=folder / "two", capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"})
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


def test_an_error_of_every_process_is_said_once_as_such(launch, tmp_path):
    """As torchrun starts the second process: its own line names it."""
    first, second = (launch("dataset.data_path=nowhere.json", env={"RANK": rank, "WORLD_SIZE": "2", "LOCAL_RANK": rank}, cold=True) for rank in "01")
    assert first.stderr.rstrip().splitlines()[-1].startswith("error: ")
    assert second.stderr.startswith("error in process 1: ")
    assert len(list(tmp_path.glob("outputs/*/*/report.json"))) == 1


def in_two_processes(warm, folder):
    """run.py in two processes that find each other, as torchrun starts them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    pair = [warm.start([folder / "run.py"], folder, {**address, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    for started in pair:
        process = started.finish(120)
        assert process.returncode == 0, process.stderr


def test_the_optimizers_single_vector_sees_the_gradients_of_all_processes(warm, tmp_path):
    """DistributedDataParallel keeps gradients in buckets of its own: the vector must be moved by their mean, not by its own process's."""
    (tmp_path / "run.py").write_text(
        """
import torch, torch.distributed as dist
from chatbot_sft.train.gradients import FlatParameters
dist.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(64, 80, bias=False), torch.nn.Linear(80, 64, bias=False))
alone = torch.nn.Sequential(*(torch.nn.Linear(*layer.weight.shape[::-1], bias=False) for layer in model))
alone.load_state_dict(model.state_dict())
flat = FlatParameters(list(model.parameters()))
ddp = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
optimizer = torch.optim.SGD([flat.vector], lr=0.1)
optimizer.register_step_pre_hook(lambda *_: flat.collect())
expected = torch.optim.SGD(alone.parameters(), lr=0.1)
for step in range(3):
    data = torch.randn(2, 8, 64, generator=torch.Generator().manual_seed(step))
    ddp(data[dist.get_rank()]).pow(2).mean().backward()
    alone(data.flatten(0, 1)).pow(2).mean().backward()
    for one in (optimizer, expected):
        one.step()
    model.zero_grad()
    alone.zero_grad()
assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(model.parameters(), alone.parameters())), "not the mean"
dist.destroy_process_group()
"""
    )
    in_two_processes(warm, tmp_path)


def test_gradients_are_averaged_where_no_distributed_data_parallel_does(warm, tmp_path):
    """Under Unsloth accelerate wraps the model in nothing: without this each process would train by its own rows."""
    (tmp_path / "run.py").write_text(
        """
import torch, torch.distributed as dist
from chatbot_sft.train.gradients import Gradients
dist.init_process_group("gloo")
parameters = [torch.nn.Parameter(torch.zeros(3, 4)), torch.nn.Parameter(torch.zeros(5))]
for number, parameter in enumerate(parameters, 1):
    parameter.grad = torch.full_like(parameter, number * (1.0 + 2 * dist.get_rank()))
Gradients(parameters).average()
assert all((parameter.grad == 2.0 * number).all() for number, parameter in enumerate(parameters, 1)), [p.grad for p in parameters]
dist.destroy_process_group()
"""
    )
    in_two_processes(warm, tmp_path)
