"""One run in two processes: the losses of one, one run directory, one log, one report."""

import json
import subprocess
import sys

import pytest
from conftest import conversations, report_of, write_json
from ports import reserved


def command_line(model, folder) -> list[str]:
    """A short training, evaluated on the way."""
    data = write_json(folder / "chats.json", conversations(10))
    return [
        "-m", "chatbot_sft", "model=local", f"model.name={model}", "model.load_in_4bit=false", "model.engine=transformers",
        "model.dtype=float32", f"dataset.data_path={data}", "training.max_steps=3", "training.warmup_steps=0",
        "training.eval_steps=2", "training.batch_layout=as_configured", "training.sample_max_new_tokens=4", "save=lora",
    ]  # fmt: skip


def together(warm, arguments, folder, local=2, each=({}, {})):
    """Two forked processes that find each other as torchrun's do, on one machine or on two; `each`: what more
    is in the environment of one.
    """
    with reserved() as port:
        meeting = {"WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": port}
        meeting |= {"LOCAL_WORLD_SIZE": local, "GROUP_WORLD_SIZE": 2 // local}
        started = []
        for rank, more in enumerate(each):
            place = {**meeting, "RANK": rank, "LOCAL_RANK": rank % local, **more}
            started.append(warm.start(arguments, folder, {name: str(value) for name, value in place.items()}))
        ended = [process.finish() for process in started]
    assert [process.returncode for process in ended] == [0, 0], [process.stderr for process in ended]
    return ended


@pytest.fixture(scope="module")
def runs(tmp_path_factory, warm, cache, tiny_llama):
    """(folder of one process, folder of two, output of two, their errors): the same effective batch of 8,
    evaluated on the way, float32. The two are nodes whose caches are on disks of their own.

    Nine conversations are trained: the second step has one of them, and nothing for the second process.
    """
    folder = tmp_path_factory.mktemp("processes")
    common = command_line(tiny_llama, folder)
    for name in ("one", "two"):
        (folder / name).mkdir()
    alone = warm.run([*common, "training.gradient_accumulation_steps=4"], folder / "one")
    assert alone.returncode == 0, alone.stderr
    given = [*common, "training.gradient_accumulation_steps=2", "hydra.run.dir=outputs/two/nodes"]
    caches = [{"CHATBOT_SFT_CACHE": str(place)} for place in (cache, folder / "another disk")]
    nodes = together(warm, given, folder / "two", local=1, each=caches)
    out, err = (getattr(nodes[0], name) + getattr(nodes[1], name) for name in ("stdout", "stderr"))
    return folder / "one", folder / "two", out, err


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
    _, folder, out, err = runs
    (run,) = folder.glob("outputs/*/*")
    one = next(runs[0].glob("outputs/*/*"))
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in one.iterdir())
    log = (run / "run.log").read_text()
    assert log.count("layout: ") == 1
    assert log.count("saved: lora") == 1
    assert len([line for line in out.splitlines() if line.startswith("loss ")]) == 1
    assert err.count("run: ") == 1


def test_a_sharded_run_is_the_whole_one_to_its_exports(runs, warm, tiny_llama, tmp_path):
    """Every pass of the model is one of both processes: in evaluations, sample answers and verification too."""
    whole = [
        "training.gradient_accumulation_steps=2",
        "training.shard=true",
        "training.batch_layout=auto",
        "save=merged_16bit",
        "hydra.run.dir=outputs/sharded/run",  # both are forks of other processes, whose starts may be a second apart
    ]
    process, _ = together(warm, [*command_line(tiny_llama, tmp_path), *whole], tmp_path)
    one, sharded = report_of(runs[0]), report_of(tmp_path)
    for a, b in zip(one["evaluations"], sharded["evaluations"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-6)
        assert [sample["answer"] for sample in a["samples"]] == [sample["answer"] for sample in b["samples"]]
    losses = [[entry["loss"] for entry in report["training"]["history"]] for report in (one, sharded)]
    assert losses[1] == pytest.approx(losses[0], abs=1e-6)
    assert sharded["save"]["verified"] is True
    assert "nothing is tried" in process.stderr


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
    assert not list(tmp_path.glob("outputs/*/*/*"))


def test_processes_sum_their_gradients_and_agree(warm, tmp_path):
    """Also where the optimizer sees one vector, and where a parameter has no gradient; the first process's
    weights become everyone's.
    """
    (tmp_path / "run.py").write_text("""
import torch, torch.distributed as dist
from chatbot_sft import distributed
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
place = flat.vector.grad.data_ptr()
loss, stops = flat.sum(torch.tensor(0.1), 0.0)
assert (loss.item(), stops.item(), flat.vector.grad.data_ptr()) == (torch.tensor(0.1).add(0.1).item(), 0.0, place)
half = FlatParameters([torch.nn.Parameter(torch.ones(64, 80, dtype=torch.bfloat16))])
half.attach()
half.gradient.fill_(1 + dist.get_rank())
(loss,) = half.sum(torch.tensor(0.1))
assert loss == torch.tensor(0.1).add(0.1) and (half.gradient == 3).all(), loss  # in bfloat16 it would be 0.2002

# A layout is taken where it fits in both.
from types import SimpleNamespace
from chatbot_sft.errors import UserError
from chatbot_sft.train import trials
from chatbot_sft.train.captures import Captures
from chatbot_sft.train.graphs import CaptureFailed
from chatbot_sft.train.layout import Layout, packed_ladder
rank, peak = dist.get_rank(), {}
torch.cuda.get_device_properties = lambda device: SimpleNamespace(total_memory=100)
torch.cuda.reset_peak_memory_stats = lambda: None
torch.cuda.max_memory_reserved = lambda: peak["now"]
trials.largest, trials.packing.shapes, trials.disagreement = (lambda *_: None for _ in range(3))
def trial_run(layout, rows):
    if layout.captured and rank == 0:
        raise CaptureFailed("a layer asks the device")
    if layout.packs == 8 and rank == 1:
        raise torch.OutOfMemoryError
    peak["now"] = 95 if layout.packs == 4 and rank == 0 else 50 + rank
training = SimpleNamespace(training=SimpleNamespace(memory_margin=0.1))
step = SimpleNamespace(args=SimpleNamespace(device="cuda"), settings=training, pack=lambda shapes, layout: None, use_layout=lambda layout: None, trial_run=trial_run, captures=Captures(), passes=lambda: SimpleNamespace(captured=None))
plan = trials.packed_plan(step, SimpleNamespace(batch_size=16), packed_ladder(8, compiled=True, four_bit=False), 500)
assert plan.layout == Layout(2, packed=True), plan
assert [found.why_not for found in plan.measurements] == ["out of memory", "over the memory margin", None]
assert plan.measurements[-1].peak_gb == round(51 / 1e9, 3)
trials.disagreement, step.captures = lambda *_: "other losses" if rank else None, Captures()
assert trials.packed_plan(step, SimpleNamespace(batch_size=16), packed_ladder(8, compiled=True, four_bit=False), 500) is None

# Two that were started by other commands.
distributed.agree({"seed": 1})
try:
    distributed.agree({"seed": rank + 1})
    raise AssertionError
except UserError as error:
    assert "process 1 has another seed than process 0: 2, not 1" in str(error)
distributed.part()
""")
    together(warm, [tmp_path / "run.py"], tmp_path)


TWO = """
import copy, hashlib, json, sys
import torch
from chatbot_sft import DatasetLoader, ModelLoader, SFTTrainerWrapper, distributed
from chatbot_sft.errors import UserError
from chatbot_sft.train import planning, scores, step
from chatbot_sft.train.layout import Layout
from chatbot_sft.train.packing import shapes
from chatbot_sft.train.tuning import Plan

def packed(job, batches, step, trial, as_configured):
    assert step.not_packable() is None
    step.pack(lambda layout: shapes(batches, trial.steps, layout), layout := Layout(2, packed=True))
    return Plan(layout, "asked for here")

class Late(step.Step):  # as on a GPU: one vector, and figures that are read a step late
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.flat = step.FlatParameters(self.trained)
        self.gradients, self.waits = self.flat, False

class OneFails(Late):
    def run(self, *arguments):
        self.steps = getattr(self, "steps", 0) + 1
        if self.args.process_index == 1 and self.steps > 2:
            raise torch.OutOfMemoryError
        return super().run(*arguments)

scores.CHUNK = 4  # so that batches take several passes, one more than the other
plain, planned = step.Step, planning.planned
config, printed = json.loads(sys.argv[1]), {}
for name in sys.argv[2:]:
    config["training"]["shard"] = "sharded" in name
    step.Step = OneFails if name == "fails" else Late if "packed" in name else plain
    planning.planned = packed if "packed" in name else planned
    model, tokenizer = ModelLoader(config).load_and_configure()
    dataset = DatasetLoader(config, tokenizer)
    trainer = SFTTrainerWrapper(config, model, tokenizer, dataset.prepare_dataset(), dataset.eval_dataset)
    trainer.setup()
    before, error = trainer.evaluate(), None
    try:
        trainer.train()
    except UserError as failure:
        error = str(failure)
    after = trainer.evaluate_trained()
    weights = b"".join(p.detach().numpy().tobytes() for p in model.parameters() if p.requires_grad)
    all_of_it = [hashlib.sha256(weights).hexdigest()], [error]
    if trainer.args.world_size == 2:
        both = [None, None]
        torch.distributed.all_gather_object(both, (all_of_it[0][0], error))
        all_of_it = zip(*both)
    parts = {type(p).__name__ for p in model.parameters()}
    printed[name] = [[loss for _, loss in trainer.progress.losses], [before, after], *map(list, all_of_it), sorted(parts)]
if trainer.args.process_index == 0:
    print(json.dumps(printed))
model = trainer = dataset = None
distributed.part()
"""
ACCELERATE = [
    "accelerate.commands.launch",
    "--multi_gpu",
    "--num_processes=2",
    "--mixed_precision=no",
    "--main_process_port=0",
]
VARIANTS = {
    "transformers": ["plain", "packed", "sharded", "packed and sharded", "fails"],
    "unsloth": ["plain"],
}


@pytest.fixture(scope="module", params=["transformers", "unsloth"])
def by_hand(request, tiny_llama, tmp_path_factory):
    """(what one process printed, what two did), by the variants of the engine: its losses, the held-out losses
    before and after, and of each process a hash of its weights and its error; and the kinds of its parameters.

    Evaluated before training, after which accelerate would wrap the model in nothing; a learning rate under
    which training apart would show; 25 conversations, so that the last step of an epoch is uneven.
    """
    engine, folder = request.param, tmp_path_factory.mktemp("by-hand")
    config = {
        "model": {"name": str(tiny_llama), "load_in_4bit": False, "dtype": "float32", "engine": engine},
        "dataset": {"data_path": str(write_json(folder / "short.json", conversations(35))), "eval_fraction": 0.3},
        "training": {
            "max_steps": 6, "learning_rate": 1e-2, "warmup_steps": 0, "per_device_train_batch_size": 2, "batch_layout": "as_configured",
            "save_strategy": "no", "sample_max_new_tokens": 0,
        },
    }  # fmt: skip
    warm = request.getfixturevalue({"transformers": "warm", "unsloth": "warm_unsloth"}[engine])
    (folder / "run.py").write_text(TWO)
    printed = []
    for processes in (1, 2):
        config["training"] |= {
            "gradient_accumulation_steps": 4 // processes,
            "output_dir": str(folder / f"checkpoints-{processes}"),
        }
        given = [json.dumps(config), *(VARIANTS[engine] if processes == 2 else ["plain"])]
        if processes == 1:
            process = warm.run([folder / "run.py", *given], folder)
        elif engine == "unsloth":
            process, _ = together(warm, [folder / "run.py", *given], folder)
        else:
            process = subprocess.run(
                [sys.executable, "-m", *ACCELERATE, "run.py", *given],
                cwd=folder, capture_output=True, text=True, timeout=600,
            )  # fmt: skip
        assert process.returncode == 0, process.stderr
        printed.append(json.loads(process.stdout.splitlines()[-1]))
    return printed


def test_two_processes_end_with_the_adapter_of_one(by_hand):
    """Packed, or over a sharded base, too."""
    one, two = by_hand
    losses, held_out, _, _, _ = one["plain"]
    assert losses[0] - losses[-1] > 0.1
    for name in two.keys() - {"fails"}:
        shared_losses, shared_held_out, hashes, errors, kinds = two[name]
        assert len(set(hashes)) == 1, name
        assert errors == [None, None]
        assert ("DTensor" in kinds) == ("sharded" in name)
        assert shared_losses == pytest.approx(losses, rel=1e-6), name
        assert shared_held_out == pytest.approx(held_out, rel=1e-6), name


def test_a_process_that_cannot_go_on_takes_the_others_along(by_hand):
    """It tries smaller layouts first, alone; then both end at the same step, with the weights before it."""
    _, two = by_hand
    if "fails" not in two:
        pytest.skip("the loop is the same")
    losses, _, hashes, errors, _ = two["fails"]
    assert len(losses) == 2
    assert len(set(hashes)) == 1
    assert errors[0] == "step 3: another process could not go on; it says why"
    assert errors[1].startswith("step 3: out of memory (1 × 4 padded, checkpointing)")
