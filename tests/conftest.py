"""What the tests share: real command lines in subprocesses, a cache of their own, a tiny random Llama beside
the real SmolLM2.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.internal.conjecture import providers
from warm import Warm

REPO = Path(__file__).resolve().parent.parent
EXAMPLE = REPO / "data" / "thinking_teacher_conversations.json"
SEED = Path(__file__).with_name("seed.yaml")  # the sft.yaml of the original training module's document

# A first call that imports something is no slow example, and a busy machine no slow strategy. The same examples each time:
# chance decides no submission. `pytest --hypothesis-profile=explore` looks for new ones.
TIMELESS = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("chatbot_sft", derandomize=True, **TIMELESS)
settings.register_profile("explore", max_examples=1000, **TIMELESS)
settings.load_profile("chatbot_sft")
# Nor does the order of the tests: Hypothesis draws from the constants of every module that happens to be imported.
providers._get_local_constants = lambda: providers._local_constants
# Two workers on two cores: a thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A freed tensor's memory is kept for the next one: page faults were a third of a run's time.
os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
# Nothing a test does may reach the network; read at import by huggingface_hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.pop("HF_TOKEN", None)
os.environ.pop("HYDRA_FULL_ERROR", None)


# A test is `slow` if it has a model or runs of the whole command line on `data`, which these fixtures bring, or
# says so itself: because it imports one of HEAVY, starts a process that does or several of any kind, compiles, or
# reads hundreds of megabytes. Every other test is `fast`: all of them together take less than a minute.
SLOW = {
    "tiny_llama", "tiny_adapter", "trained", "replica_folder", "warm", "warm_unsloth", "tokenizer", "loaded", "real", "small", "gguf",
    "tiny_gguf", "llama_cpp", "ollama", "client", "shared", "data", "preferring",
}  # fmt: skip
HEAVY = {"torch", "transformers", "datasets"}


def pytest_collection_modifyitems(items):
    for item in items:
        if SLOW & set(item.fixturenames):
            item.add_marker("slow")
        elif item.get_closest_marker("slow") is None:
            item.add_marker("fast")
    if "PYTEST_XDIST_WORKER" in os.environ:
        items[:] = dealt(items, int(os.environ["PYTEST_XDIST_WORKER_COUNT"]))


def dealt(items, workers):
    """Each worker begins with one part of the list, and what is left of the other's it takes from the end: so
    every part has files of slow tests, and then fast ones, which alone are left for that.
    """
    slow, fast = {}, []
    for item in items:
        if item.get_closest_marker("slow"):
            slow.setdefault(item.path, []).append(item)
        else:
            fast.append(item)
    parts = [[] for _ in range(workers)]
    for tests in slow.values():
        min(parts, key=len).extend(tests)
    for part in parts[:-1]:
        count = max(0, len(items) // workers - len(part))
        part += fast[:count]
        del fast[:count]
    return [*itertools.chain(*parts), *fast]


@pytest.fixture(autouse=True)
def light_where_fast(request):
    """A fast test that imports one of HEAVY fails, unless a slow one has done so before it."""
    before = HEAVY & sys.modules.keys()
    yield
    imported = HEAVY & sys.modules.keys() - before
    if request.node.get_closest_marker("fast") and imported:
        pytest.fail(f"imports {', '.join(sorted(imported))}: mark it slow")


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory):
    """A cache for this test session, shared by its workers, so that the conversion of the embedded model is
    tested too.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["CHATBOT_SFT_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def warm(cache):
    """`warm.run(["-m", "chatbot_sft", …], cwd)`: see warm.py."""
    warm = Warm("transformers", cache.parent)
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def light(cache):
    """The same without torch."""
    warm = Warm("none", cache.parent)
    yield warm
    warm.close()


@pytest.fixture(scope="session")
def warm_unsloth(cache, warm):
    """The same with Unsloth, which has to be imported before the others. What it exports is read in a fork of
    `warm`.
    """
    warm = Warm("unsloth", cache.parent)
    yield warm
    warm.close()


@pytest.fixture
def warm_probe(warm, monkeypatch):
    """An export that a test makes in this process is read by a fork of a warm one, not by one that imports
    torch anew.
    """
    forked = SimpleNamespace(run=lambda command, env, **_: warm.run(command[1:], Path.cwd(), env))
    monkeypatch.setattr("chatbot_sft.save.verify.probe.subprocess", forked)


@pytest.fixture
def launch(request, tmp_path):
    """`launch("training.max_steps=1", …)` runs `python -m chatbot_sft` in an empty folder and returns the
    finished process.

    It is forked from a process (warm.py) that has imported what the command line imports, and torch too where
    the test has `tiny`; unless it is to be `cold`.
    """

    def run(*arguments, cwd=tmp_path, env=None, timeout=600, cold=False):
        command = ["-m", "chatbot_sft", *map(str, arguments)]
        if not cold:
            name = "warm_unsloth" if "model.engine=unsloth" in command else "warm"
            warm = request.getfixturevalue(name if "tiny" in request.fixturenames else "light")
            return warm.run(command, cwd, env, timeout)
        return subprocess.run(
            [sys.executable, *command],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run


@pytest.fixture
def stand_in(monkeypatch):
    """`stand_in("vllm")` is a server of that kind, of tests/served, which ends with the test."""
    from stand_in import StandIn

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    made = []

    def make(kind):
        made.append(StandIn(kind))
        return made[-1]

    yield make
    for server in made:
        server.close()


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk("1m")` is the folder of a file system of that size; the test is skipped where none may be
    mounted.
    """
    folder = tmp_path / "small"
    mounted = []

    def mount(size):
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
            pytest.skip("needs the right to mount a small tmpfs")
        mounted.append(folder)
        return folder

    yield mount
    for place in mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.fixture(scope="session")
def browse(tmp_path_factory):
    """`browse(path, "#q=beer")` is the document after its scripts ran, as text; further arguments go to the
    browser. What it says on its console fails the test.
    """
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if not browser:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no Chromium on PATH")
    profile = tmp_path_factory.mktemp("profile")

    def run(path, fragment="", *arguments):
        command = [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=2000",
            "--enable-logging=stderr",
        ]
        process = subprocess.run(
            [*command, *(arguments or ["--dump-dom"]), path.as_uri() + fragment],
            capture_output=True,
            timeout=600,
        )
        told = process.stderr.decode(errors="replace")
        assert process.returncode == 0, told
        assert not [line for line in told.splitlines() if ":CONSOLE" in line]
        return process.stdout.decode()

    return run


@pytest.fixture(scope="session")
def smollm2(cache):
    from chatbot_sft.model import embedded

    return embedded.folder()


@pytest.fixture(scope="session")
def tokenizer(smollm2):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


@pytest.fixture(scope="session")
def tiny_llama(smollm2, tmp_path_factory):
    """A Llama of random weights with the first tokens of SmolLM2's tokenizer: two small layers, for tests
    about everything but the answers.
    """
    from replicas import small_vocabulary

    folder = tmp_path_factory.mktemp("models")
    whole = json.loads((smollm2 / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer = folder / "tokenizer"
    tokenizer.mkdir()
    write_json(tokenizer / "tokenizer.json", small_vocabulary(whole))
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(smollm2 / name, tokenizer)
    return random_llama(folder / "tiny-llama", tokenizer, 32, vocabulary=2000)


def random_llama(
    folder: Path, tokenizer: Path, width: int, vocabulary: int = 49152, spread: float = 0.02
) -> Path:
    """bitsandbytes wants a `width` of 64 and more; with a `spread` of 0.3 the model is sure of what it says, and an
    adapter can change that.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        max_position_embeddings=2048, tie_word_embeddings=True, initializer_range=spread, bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer / name, folder)
    return folder


@pytest.fixture(scope="session")
def tiny(tiny_llama, tmp_path_factory):
    """Arguments of a run that takes two seconds: the tiny model, the plain engine, two steps, conversations
    of a few words.
    """
    data = write_json(tmp_path_factory.mktemp("data") / "chats.json", conversations(60))
    return [
        "model=local",
        f"model.name={tiny_llama}",
        "model.load_in_4bit=false",
        "model.engine=transformers",
        f"dataset.data_path={data}",
        "training.max_steps=2",
        "training.batch_layout=as_configured",
        "training.sample_max_new_tokens=4",
        "save.verify=false",
    ]


@pytest.fixture
def two_jobs(tmp_path):
    """The directory of a sweep of two jobs, neither of which has been run."""
    from chatbot_sft.sweep.directory import Point, Study, Sweep

    place = Sweep(tmp_path / "sweep")
    place.folder.mkdir()
    points = [Point(number, [f"lora.r={4 + number}"], str(number)) for number in range(2)]
    for point in points:
        place.run(point).folder.mkdir()
    place.write_study(Study("python -m chatbot_sft", "", "training.eval_loss", "minimise", [], [], points))
    return place


@pytest.fixture(scope="module")
def preferring(tiny_llama, tmp_path_factory):
    """`preferring(objective, rows)`: a session around the tiny model in float32; its adapter begins at random, as one that
    is gone on from does. Without rows: the model and the tokenizer.
    """
    import torch
    from preferences import BATCH, STEPS, as_dataset

    from chatbot_sft import ModelLoader, SFTTrainerWrapper

    def made(objective=None, rows=None, held_out=None, origin=None, **training):
        config = {
            "model": {
                "name": str(tiny_llama), "engine": "transformers", "load_in_4bit": False, "dtype": "float32", "max_seq_length": 256,
            },
            "objective": objective or {},
            "dataset": {"shuffle": False},
            "lora": {"r": 4},
            "training": {
                "output_dir": str(tmp_path_factory.mktemp("objective")), "max_steps": STEPS, "learning_rate": 5e-3, "warmup_steps": 0,
                "lr_scheduler_type": "constant", "optim": "adamw_torch", "weight_decay": 0.0, "max_grad_norm": 1.0,
                "per_device_train_batch_size": 2, "gradient_accumulation_steps": BATCH // 2, "batch_layout": "as_configured",
                "sample_max_new_tokens": 0, **training,
            },
            "save": {"method": "none"},
        }  # fmt: skip
        model, tokenizer = ModelLoader(config).load_and_configure()
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.02 * torch.randn_like(parameter)
        if rows is None:
            return model, tokenizer
        held = as_dataset(held_out) if held_out else None
        session = SFTTrainerWrapper(config, model, tokenizer, as_dataset(rows), held)
        session.origin = origin or session.origin
        session.setup()
        return session

    return made


def conversations(count: int, **extra) -> list[dict]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"câu hỏi {n}"},
                {"role": "assistant", "content": f"trả lời {n}"},
            ],
            **extra,
        }
        for n in range(count)
    ]


def composed(output: Path, *overrides: str) -> dict:
    """The configuration as the command line makes it."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from chatbot_sft.command_line import opened
    from chatbot_sft.config import hydra_glue  # noqa: F401 (registers resolvers)

    with initialize_config_dir(str(REPO / "conf"), version_base=None):
        return OmegaConf.to_container(
            compose("config", [f"paths.output_dir={output}", *map(opened, overrides)]), resolve=True
        )


TRAINING = {
    "steps": 4, "effective_batch_size": 8, "batch_layout": "2 x 4", "tokens": 100, "seconds": 1.0, "tokens_per_second": 100.0,
    "loss_first": 3.0, "loss_last": 2.0, "train_loss": 2.5, "weights_of_step": 4, "eval_loss": 1.5,
}  # fmt: skip
MODEL = {
    "name": "org/base",
    "engine": "transformers",
    "parameters": 100,
    "trainable_parameters": 10,
    "dtype": "float32",
}


def a_report(**parts) -> dict:
    """The report.json of a finished training, with `parts` in place of its own."""
    from chatbot_sft.run.report import Report

    whole = Report("python -m chatbot_sft", "train", 1).to_json()
    return {
        **whole,
        "status": "completed",
        "model": MODEL,
        "training": TRAINING,
        "save": {"method": "none"},
        **parts,
    }


def write_json(path: Path, value) -> Path:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def report_of(folder: Path) -> dict:
    """The one report.json below `folder`."""
    (found,) = folder.rglob("report.json")
    return json.loads(found.read_text(encoding="utf-8"))


def only_error(process: subprocess.CompletedProcess) -> str:
    """The one line a failed command ends with: no traceback, an exit code that is not 0."""
    assert process.returncode not in (0, None), process.stdout + process.stderr
    assert "Traceback" not in process.stderr, process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, process.stderr
    assert process.stderr.rstrip().splitlines()[-1] == lines[0]
    return lines[0].removeprefix("error: ")
