"""One small run that learned four answers, behind real servers: healthy ones pass, planted faults are named."""

from __future__ import annotations

import json
import shutil

import pytest
from conftest import only_error, random_llama, write_json
from ports import reserved
from real_servers import Proxy, llama_server, transformers_serve

from chatbot_sft.evaluation.server import Server
from chatbot_sft.save.verify.kept import TrainedAnswers
from chatbot_sft.served.ask import observe
from chatbot_sft.served.finding import BASE, format_of
from chatbot_sft.served.judge import judge

FACTS = {
    "When do you open?": "We open at nine, and close at ten.",
    "What is the best beer?": "The White Crane Gold is the best beer.",
    "Where are you?": "We are at the old harbour, near the bridge.",
    "Who are you?": "I am Mai, the assistant of White Crane.",
}
SYSTEM = {"role": "system", "content": "You are Mai of White Crane."}
TRAINED = [
    "model=local", "model.load_in_4bit=false", "model.engine=transformers", "training.max_steps=48", "training.learning_rate=1e-2",
    "training.warmup_steps=0", "training.per_device_train_batch_size=4", "training.gradient_accumulation_steps=1", "training.batch_layout=as_configured", "training.sample_max_new_tokens=0", "training.save_steps=1.0",
    "save.method=[merged_16bit,gguf]", "save.gguf_quantization=q8_0", "dataset.max_rows=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def starting(tmp_path_factory):
    """(where all of this is, transformers serve, which starts while the run trains)."""
    folder = tmp_path_factory.mktemp("served")
    with transformers_serve(folder) as ready:
        yield folder, ready


@pytest.fixture(scope="module")
def run(warm, smollm2, starting):
    folder, _ = starting
    rows = [
        {"messages": [SYSTEM, {"role": "user", "content": asked}, {"role": "assistant", "content": said}]}
        for asked, said in [*FACTS.items()] * 6
    ]
    base = random_llama(folder / "base", smollm2, 64, spread=0.3)
    data = write_json(folder / "data.json", rows)
    where = [f"model.name={base}", f"dataset.data_path={data}", f"hydra.run.dir={folder / 'run'}"]
    process = warm.run(["-m", "chatbot_sft", *TRAINED, *where], folder)
    assert process.returncode == 0, process.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def judged(run):
    """`judged(url, model)` is what task=verify finds, in this process."""
    kept = TrainedAnswers.read(run / "trained_answers.json")

    def ask(url, model=None):
        server = Server(url, model)
        served = format_of(None, [server.choose(), *server.paths()], {}, kept.over_4_bits)
        return judge(kept, observe(server, kept, lambda count: None), served)

    return ask


@pytest.fixture(scope="module")
def transformers(starting, run):
    return starting[1]()


def test_transformers_serve_passes(transformers, light, run, tmp_path):
    command = ["task=verify", f"run={run}", f"url={transformers}", f"hydra.run.dir={tmp_path / 'healthy'}"]
    process = light.run(["-m", "chatbot_sft", *command, f"model={run / 'model' / 'merged_16bit'}"], tmp_path)
    assert process.returncode == 0, process.stderr + process.stdout
    found = json.loads((tmp_path / "healthy" / "verify.json").read_text(encoding="utf-8"))
    assert (found["passed"], found["served_as"]) == (True, "merged_16bit")
    assert (found["numbers"]["prompts"], found["numbers"]["answers"]) == ("8/8", "2/2")
    assert found["numbers"]["ended"] == found["numbers"]["trained_ended"]
    process = light.run(["-m", "chatbot_sft", *command[:3], f"model={run.parent / 'base'}"], tmp_path)
    assert f"does not say what {run} was trained to say: {BASE}" in only_error(process)


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (None, []),
        ("drops_the_system_prompt", ["The system prompt is dropped"]),
        ("adds_a_beginning", ["Double beginning of text"]),
        ("swaps_the_template", ["Another chat template, or none"]),
        ("leaves_the_end", ["The end token is written, not obeyed"]),
        ("answers_with_the_base", [BASE]),
    ],
)
def test_a_fault_in_front_of_it_is_named(fault, cause, transformers, judged, run):
    proxy = Proxy(transformers, str(run / "model" / "merged_16bit"), str(run.parent / "base"))
    proxy.fault = fault
    try:
        assert causes(judged(proxy.url)) == cause
    finally:
        proxy.close()


def test_a_server_of_llama_cpp_with_a_template_of_its_own(judged, run):
    """cyllama's writes System:, User:, Assistant:, whatever the file says."""
    from cyllama.llama.server.python import PythonServer, ServerConfig

    (file,) = (run / "model" / "gguf").glob("*.gguf")
    with reserved() as port:
        server = PythonServer(ServerConfig(str(file), port=port, n_ctx=512, model_alias=file.name))
        assert server.start()
        try:
            found = judged(f"http://127.0.0.1:{port}/v1")
        finally:
            server.stop()
    assert (found.served.kind, causes(found)) == ("q8_0", ["Another chat template, or none"])


@pytest.mark.skipif(not shutil.which("llama-server"), reason="no llama-server on PATH")
def test_llama_cpps_own_server(judged, run):
    (file,) = (run / "model" / "gguf").glob("*.gguf")
    with llama_server(file, run.parent, "--jinja") as ready:
        found = judged(ready())
    assert (causes(found), found.served.kind, found.numbers["prompts_by"]) == ([], "q8_0", "token ids")
    assert found.numbers["kl"] < 0.03
    with llama_server(file, run.parent, "--no-jinja", "--chat-template", "zephyr") as ready:
        assert causes(judged(ready())) == ["Another chat template, or none"]
    with llama_server(file, run.parent, "--jinja", "--repeat-penalty", "1.8") as ready:
        assert causes(judged(ready())) == ["A repetition penalty of the server's own"]


def causes(found):
    return [finding.cause for finding in found.deciding]
