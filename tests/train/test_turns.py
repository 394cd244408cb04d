"""Jobs of one process: on one base, one after the other or in turns, each as if it were alone."""

import functools
import json
import logging
import os
import random
import shutil
import signal
import sys
import warnings
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import composed, conversations, write_json

from chatbot_sft import pipeline, preemption
from chatbot_sft.config import Config
from chatbot_sft.data import template
from chatbot_sft.errors import UserError
from chatbot_sft.preemption import Preempted
from chatbot_sft.report import ending
from chatbot_sft.run import checkpoints
from chatbot_sft.run.report import Status
from chatbot_sft.run.turn import Pruned, Turn, to_the_end
from chatbot_sft.warm import Loan, Warm, shared_key

SHARED = [
    "dataset.max_rows=null", "dataset.eval_fraction=0.2", "model.max_seq_length=128", "training.max_steps=5",
    "training.eval_steps=2", "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=1",
    "training.learning_rate=1e-2", "training.warmup_steps=1", "training.sample_max_new_tokens=1", "save=none",
]  # fmt: skip
JOBS = {
    "ranked": ["lora.r=4", "seed=1", "lora.use_rslora=true", "lora.lora_dropout=0.3"],
    "dora": ["lora.r=8", "seed=2", "lora.use_dora=true", "lora.lora_dropout=0.1"],
    "failing": ["lora.r=2", "seed=3", "training.learning_rate=1e6", "lora.lora_alpha=1000000"],
}


@functools.cache
def configured(arguments):
    return json.dumps(composed(Path("/FOLDER"), *arguments))


def started(name, tiny, folder, warm, every, more=()):
    text = configured((*tiny, *SHARED, *JOBS[name], *more)).replace("/FOLDER", str(folder / name))
    return pipeline.turns(json.loads(text), warm=warm, every=every)


def in_turns(runs):
    """What each of `runs` (name → generator) came to, a report or an exception; they take turns."""
    ends = {}
    while going := [name for name in runs if name not in ends]:
        for name in going:
            try:
                assert isinstance(next(runs[name]), Turn)
            except StopIteration as end:
                ends[name] = end.value
            except UserError as error:
                ends[name] = error
    return ends


def figures(folder):
    """What there is to compare of the run in `folder`: losses, evaluations, why it failed, and its adapter."""
    from safetensors.torch import load_file

    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    evaluations = [{**record, "seconds": 0} for record in report["evaluations"]]
    adapters = [load_file(file) for file in folder.glob("checkpoints/checkpoint-5/adapter_model.safetensors")]
    error = str(report["error"]).replace(str(folder), "")
    return report["status"], error, report["training"]["history"], evaluations, adapters


def assert_same(found, expected):
    import torch

    assert found[:-1] == expected[:-1]
    for adapter, other in zip(found[-1], expected[-1], strict=True):
        assert adapter.keys() == other.keys()
        assert all(torch.equal(adapter[name], other[name]) for name in adapter)


@pytest.fixture(scope="module")
def tiny(tiny, tmp_path_factory):
    """On twenty short conversations."""
    file = write_json(tmp_path_factory.mktemp("data") / "chats.json", conversations(20))
    return [*tiny, f"dataset.data_path={file}"]


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ending, "write_loss_figure", lambda *given: False)
        yield


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """Each job with a model of its own."""
    folder = tmp_path_factory.mktemp("alone")
    for name in JOBS:
        in_turns({name: started(name, tiny, folder, None, 0)})
    found = {name: figures(folder / name) for name in JOBS}
    assert [found[name][0] for name in JOBS] == ["completed", "completed", "failed"]
    assert len(found["failing"][2]) >= 1  # it had begun
    assert all(adapters for *_, adapters in (found["ranked"], found["dora"]))
    return found


@pytest.fixture(scope="module")
def warm_jobs():
    return Warm()


def assert_as_published(base, folder):
    """Nothing of any run is left in `base`, loaded from `folder`."""
    import torch
    from transformers import AutoModelForCausalLM

    published = AutoModelForCausalLM.from_pretrained(folder, dtype=base.dtype)
    expected = published.state_dict()
    assert base.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in base.state_dict().items())
    assert [type(part) for part in base.modules()] == [type(part) for part in published.modules()]


A, B, C = JOBS


def test_jobs_on_one_base_are_the_same_to_the_bit_in_all_orders(alone, tiny, tiny_llama, tmp_path, warm_jobs):
    for place, name in enumerate([A, B, C, A, B, A, C, B, A]):  # every order is three neighbours of these
        in_turns({name: started(name, tiny, tmp_path / str(place), warm_jobs, 0)})
        assert_same(figures(tmp_path / str(place) / name), alone[name])
    assert_as_published(warm_jobs.latest.model, tiny_llama)


@pytest.mark.parametrize(
    ("every", "order"),
    [(1, (C, B, A)), (None, (B, C, A))],
)
def test_jobs_that_take_turns_are_the_same_to_the_bit(
    every, order, alone, tiny, tiny_llama, tmp_path, warm_jobs
):
    """Turns of a step, and to the next evaluation."""
    in_turns({name: started(name, tiny, tmp_path, warm_jobs, every) for name in order})
    for name in order:
        assert_same(figures(tmp_path / name), alone[name])
        log = (tmp_path / name / "run.log").read_text(encoding="utf-8")
        assert [other for other in JOBS if f"{tmp_path / other}" in log] == [name]
    assert_as_published(warm_jobs.latest.model, tiny_llama)


def test_the_base_is_loaded_and_asked_once(tiny, tmp_path, monkeypatch):
    from chatbot_sft.model import transformers_engine
    from chatbot_sft.train import session

    loaded, asked = [], []
    load, answers = transformers_engine.load, session.sample_answers
    monkeypatch.setattr(transformers_engine, "load", lambda *given: loaded.append(given) or load(*given))
    monkeypatch.setattr(session, "sample_answers", lambda *given: asked.append(given[-1]) or answers(*given))
    warm, two = Warm(), ["training.max_steps=2"]
    for number, more in enumerate(
        ([], ["lora.r=2"], ["model.dtype=bfloat16"], ["lora.init_lora_weights=olora"])
    ):
        to_the_end(started("ranked", tiny, tmp_path / str(number), warm, 0, [*two, *more]))
    assert len(loaded) == 3
    assert asked == [0, 2, 2, 0, 2, 0, 2]
    assert warm.latest is None  # OLoRA's own base is nobody else's, and had the room


@pytest.fixture
def own_folder(tiny_llama, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(tiny_llama, folder)
    return folder


@pytest.fixture
def tokenizers_of(own_folder, monkeypatch):
    """`tokenizers_of(loan, dataset={…}, new_tokens=[…])`: the gate's and transformers' tokenizer for a job, and how
    often either kind was read for that.
    """
    from transformers import AutoTokenizer

    from chatbot_sft import ModelLoader
    from chatbot_sft.data.template import Backend

    read = []
    for loader, name in ((Backend, "from_folder"), (AutoTokenizer, "from_pretrained")):
        original = getattr(loader, name)
        monkeypatch.setattr(
            loader, name, lambda *given, original=original, **more: read.append(1) or original(*given, **more)
        )

    def of(loan, dataset=None, **model):
        before = len(read)
        given = {"name": str(own_folder), "load_in_4bit": False, "engine": "transformers", **model}
        loader = ModelLoader({"model": given, "dataset": dataset or {}})
        loader.loan = loan
        chat, tokenizer = loader.chat_tokenizer(), loader.load_tokenizer()
        return chat, tokenizer, len(read) - before

    return of


def same(tokenizer, other):
    """Whether two of transformers' are equal in all that they are."""
    from tokenizers import Tokenizer

    def values(of):
        return {name: value for name, value in vars(of).items() if not isinstance(value, Tokenizer)}

    ours, theirs = tokenizer.backend_tokenizer, other.backend_tokenizer
    flags = ours.encode_special_tokens == theirs.encode_special_tokens
    return ours.to_str() == theirs.to_str() and values(tokenizer) == values(other) and flags


def test_a_tokenizer_is_read_once_and_each_job_has_its_own(own_folder, tokenizers_of):
    from tokenizers import AddedToken

    warm = Warm()
    alone, loaded, count = tokenizers_of(None)
    assert count == 2
    _, first, count = tokenizers_of(Loan(warm))
    assert count == 2
    first.pad_token, first.padding_side, first.chat_template = "<|im_start|>", "left", "none"
    first.add_tokens([AddedToken("<mine>", special=True)])
    first.model_input_names.append("more")
    first.init_kwargs["padding_side"] = "left"
    first(["Hi", "Hello you"], padding=True, truncation=True, max_length=3)
    chat, second, count = tokenizers_of(Loan(warm))
    assert count == 0
    assert same(second, loaded)
    assert chat.fingerprint == alone.fingerprint
    assert chat.template == alone.template


def test_another_tokenizer_is_read_anew(own_folder, tokenizers_of):
    warm = Warm()
    plain, *_ = tokenizers_of(Loan(warm))
    more, tokenizer, count = tokenizers_of(Loan(warm), new_tokens=["<think>"])
    assert count == 2
    assert more.backend.token_to_id("<think>") == tokenizer.convert_tokens_to_ids("<think>") == 2000
    assert plain.backend.token_to_id("<think>") is None
    template = own_folder.parent / "other.jinja"
    template.write_text("{{ messages[0].content }}")
    chat, tokenizer, _ = tokenizers_of(Loan(warm), chat_template=str(template))
    assert chat.template.source == tokenizer.chat_template == "{{ messages[0].content }}"
    _, tokenizer, count = tokenizers_of(Loan(warm))
    assert (count, tokenizer.chat_template) == (0, plain.template.source)


def test_a_file_that_was_changed_between_two_jobs_is_read_anew(own_folder, tokenizers_of):
    warm = Warm()
    before, *_ = tokenizers_of(Loan(warm))
    about = json.loads((own_folder / "tokenizer.json").read_text(encoding="utf-8"))
    about["added_tokens"][2]["special"] = False
    write_json(own_folder / "tokenizer.json", about)
    chat, tokenizer, count = tokenizers_of(Loan(warm))
    assert count == 2
    assert len(chat.special_tokens) == len(before.special_tokens) - 1
    assert chat.fingerprint != before.fingerprint
    (own_folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    chat, tokenizer, _ = tokenizers_of(Loan(warm))
    assert chat.template.source == tokenizer.chat_template == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    "change",
    [{"dataset": {"_target_": "mine.Loader"}}, {"_target_": "mine.Loader"}, {"trust_remote_code": True}],
)
def test_code_of_others_has_a_tokenizer_of_its_own(change, tokenizers_of):
    warm = Warm()
    tokenizers_of(Loan(warm))
    assert tokenizers_of(Loan(warm), **change)[2] == 2


def test_a_pruned_run_keeps_its_best_checkpoint_and_can_be_taken_up_again(alone, tiny, tmp_path, warm_jobs):
    run = started("ranked", tiny, tmp_path, warm_jobs, None)
    first = next(run)
    assert first.step == 2
    assert first.eval_loss == alone["ranked"][3][1]["loss"]
    other = started("dora", tiny, tmp_path, warm_jobs, None)
    next(other)
    with pytest.raises(StopIteration) as end:
        run.throw(Pruned("worse than the others"))
    report = end.value.value
    assert (report.status, report.error) == (Status.PRUNED, "worse than the others")
    written = json.loads((tmp_path / "ranked" / "report.json").read_text(encoding="utf-8"))
    assert (written["status"], written["evaluations"][-1]["step"]) == ("pruned", 2)
    folder = tmp_path / "ranked" / "checkpoints"
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text(encoding="utf-8"))
    assert Path(state["best_model_checkpoint"]) == checkpoints.last_in(folder).folder
    to_the_end(other)
    assert_same(figures(tmp_path / "dora"), alone["dora"])
    to_the_end(started("ranked", tiny, tmp_path, warm_jobs, None))
    assert_same(figures(tmp_path / "ranked"), alone["ranked"])


@pytest.mark.parametrize(
    "end", [Preempted("SIGTERM"), KeyboardInterrupt(), GeneratorExit()], ids=lambda end: type(end).__name__
)
def test_a_run_that_is_ended_while_it_waits_goes_on_from_there(end, alone, tiny, tmp_path, warm_jobs):
    run = started("dora", tiny, tmp_path, warm_jobs, 1)
    assert [next(run).step for _ in range(3)] == [1, 2, 3]
    with pytest.raises(type(end)):
        run.throw(end)
    assert figures(tmp_path / "dora")[0] == "interrupted"
    assert checkpoints.last_in(tmp_path / "dora" / "checkpoints").step == 3
    if isinstance(end, Preempted):
        to_the_end(started("dora", tiny, tmp_path, warm_jobs, 1))
        assert_same(figures(tmp_path / "dora"), alone["dora"])


def test_a_run_that_waits_leaves_nothing_in_the_process(tiny, tmp_path):
    import torch

    def process():
        root, ours = logging.getLogger(), logging.getLogger("chatbot_sft")
        return {
            "streams": (sys.stdout, sys.stderr),
            "log": (list(root.handlers), root.level, list(ours.handlers), warnings.showwarning),
            "signals": [signal.getsignal(number) for number in preemption.SIGNALS],
            "date": template._date.get(),
            "random": (random.getstate(), torch.get_rng_state().tolist()),
            "deterministic": (torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")),
            "hub": os.environ.get("HF_HUB_OFFLINE"),
        }  # fmt: skip

    template.render_as_of(datetime(2020, 1, 1))
    try:
        before = process()
        run = started("ranked", tiny, tmp_path, Warm(), 1, ["training.full_determinism=true"])
        next(run)
        assert process() == before
        inside = {}
        with pytest.MonkeyPatch.context() as patch:
            from chatbot_sft.train import loop

            train_step = loop.train_step
            patch.setattr(loop, "train_step", lambda *given: inside.update(process()) or train_step(*given))
            next(run)
        assert [name for name in before if inside[name] == before[name]] == ["hub"]  # the tests' own: offline
        run.close()
        assert process() == before
    finally:
        template._date.set(None)


def test_a_signal_in_a_turn_ends_that_run_in_it(tiny, tmp_path):
    from chatbot_sft.train import loop

    run = started("ranked", tiny, tmp_path, None, 1)
    next(run)
    with pytest.MonkeyPatch.context() as patch:
        wait = loop.wait
        patch.setattr(loop, "wait", lambda *given: os.kill(os.getpid(), signal.SIGTERM) or wait(*given))
        with pytest.raises(Preempted):
            next(run)
    assert figures(tmp_path / "ranked")[0] == "interrupted"
    assert not preemption.requested()


CHANGES = [
    {"lora": {"r": 0}},
    {"lora": {"init_lora_weights": "pissa"}},
    {"lora": {"init_lora_weights": "olora"}},
    {"lora": {"init_lora_weights": "loftq"}},
    {"lora": {"bias": "all"}},
    {"lora": {"modules_to_save": ["lm_head"]}},
    {"lora": {"_target_": "mine.add_adapter"}},
    {"model": {"new_tokens": ["<|note|>"]}},
    {"model": {"load_in_fp8": True}},
    {"save": {"_target_": "mine.Saver"}},
    {"training": {"shard": True}},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(next(iter(change.values()))))
def test_what_changes_a_base_has_its_own(change):
    plain = {"model": {"name": "smollm2", "load_in_4bit": False}}
    settings = Config.from_mapping({**change, "model": {**plain["model"], **change.get("model", {})}})
    assert shared_key(settings, "smollm2", None) is None


def test_of_several_processes_each_has_its_own(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert shared_key(Config.from_mapping({"model": {"name": "smollm2"}}), "smollm2", None) is None


def test_on_unsloth_too(warm_unsloth, tiny, tmp_path):
    """In a process that has imported it first."""
    arguments = json.dumps([argument for argument in tiny if "engine" not in argument])
    here = Path(__file__)
    code = f"import sys; sys.path[:0] = {[str(here.parent), str(here.parent.parent)]}; import {here.stem} as tests"
    run = "tests.on_unsloth(sys.argv[1], sys.argv[2])"
    process = warm_unsloth.run(["-c", f"{code}; {run}", arguments, tmp_path], tmp_path)
    assert process.returncode == 0, process.stderr


def on_unsloth(arguments, folder):
    tiny, folder, runs = (*json.loads(arguments), "model.engine=unsloth"), Path(folder), ("ranked", "dora")
    for name in runs:
        in_turns({name: started(name, tiny, folder / "alone", None, 0)})
    warm = Warm()
    in_turns({"dora": started("dora", tiny, folder / "first", warm, 0)})
    in_turns({name: started(name, tiny, folder / "turns", warm, 2) for name in runs})
    for place, name in (("first", "dora"), ("turns", "dora"), ("turns", "ranked")):
        assert_same(figures(folder / place / name), figures(folder / "alone" / name))
    report = json.loads((folder / "turns" / "dora" / "report.json").read_text(encoding="utf-8"))
    assert report["model"]["engine"] == "unsloth"
    assert not [name for name in warm.latest.model.state_dict() if "lora" in name]


@pytest.fixture
def captured(monkeypatch):
    """As on a GPU, without one: conversations are packed, the base is in bfloat16 and an adapter has a copy in it,
    projections are joined, and a graph is right as long as what it reads and writes is where it was. `shapes` were
    captured; graphs that are `stale` are wrong for every run but their own.
    """
    import torch

    from chatbot_sft.model import transformers_engine
    from chatbot_sft.model.joined import adjoin
    from chatbot_sft.train import graphs, packing, planning, step
    from chatbot_sft.train.layout import Layout
    from chatbot_sft.train.tuning import Plan

    seen, load = SimpleNamespace(shapes=[], stale=False), transformers_engine.load

    def loaded(*arguments):
        model = load(*arguments).to(torch.bfloat16)
        adjoin(model)
        return model

    monkeypatch.setattr(transformers_engine, "load", loaded)

    class Graph:
        def __init__(self, of, inputs):
            self.of, self.inputs, self.model = of, {name: t.clone() for name, t in inputs.items()}, of.model
            self.places = self.now()
            self.forward, self.backward = SimpleNamespace(replay=self.run), SimpleNamespace(replay=self.back)

        def now(self):
            parameters = self.of.model.parameters()
            return [(p.data_ptr(), p.grad.data_ptr() if p.requires_grad else None) for p in parameters]

        def run(self):
            assert self.places == self.now()
            with torch.enable_grad():
                self.computed = self.of.layers(**self.inputs)
            wrong = seen.stale and self.of.model is not self.model
            self.hidden = self.computed.detach() * (0 if wrong else 1)
            self.hidden_gradient = torch.zeros_like(self.hidden)

        def back(self):
            self.computed.backward(self.hidden_gradient)

    class Captured(graphs.CapturedLayers):
        def __init__(self, random=False, read=None):
            self.random, self.read, self.unseen, self.graphs = random, read, set(), {}

        def prove(self, layers, inputs):
            self.layers, self.model = layers, layers.__self__.model
            super().prove(layers, inputs)

        def _capture(self, layers, inputs):
            assert layers.__self__.model.get_base_model().get_decoder().layers[0].mlp.up_proj.joined
            seen.shapes.append(inputs["input_ids"].shape)
            return Graph(self, inputs)

    class Step(step.Step):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.gradients = self.flat = step.FlatParameters(self.trained, arguments[-1])
            self.precision = "bf16"

    def planned(job, batches, step, trial, as_configured):
        assert step.not_packable() is None
        layout = Layout(2, packed=True, captured=True)
        step.pack(lambda layout: packing.shapes(batches, trial.steps, layout), layout)
        return Plan(layout, "asked for here")

    monkeypatch.setattr(planning, "planned", planned)
    monkeypatch.setattr(step, "CapturedLayers", Captured)
    monkeypatch.setattr(step, "Step", Step)
    return seen


def test_jobs_with_adapters_of_one_form_share_what_is_captured(captured, tiny, tmp_path, monkeypatch):
    """The same to the bit, alone and in turns, and with graphs that are no good any more."""
    more = {
        "one": ["lora.r=4"],
        "another": ["lora.r=4", "training.learning_rate=2e-2"],
        "wider": ["lora.r=8"],
    }
    monkeypatch.setattr(sys.modules[__name__], "JOBS", more)

    def trained(folder, warm, every):
        runs = {name: started(name, tiny, folder, warm, every) for name in more}
        ends = in_turns(runs) if every else {name: in_turns({name: run})[name] for name, run in runs.items()}
        assert [end.status for end in ends.values()] == [Status.COMPLETED] * 3
        taken, captured.shapes = len(captured.shapes), []
        return {name: figures(folder / name) for name in more}, taken

    alone, each = trained(tmp_path / "alone", None, 0)
    for place, (every, captured.stale, share) in enumerate(
        ((0, False, 2 / 3), (1, False, 2 / 3), (0, True, 1))
    ):
        found, taken = trained(tmp_path / str(place), Warm(), every)
        for name in more:
            assert_same(found[name], alone[name])
        assert taken == each * share
