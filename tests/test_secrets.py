"""Secrets, and what a terminal obeys, wherever they can come in; every file and stream is searched for them. Training,
exports and sweeps with secrets in their settings are in report/test_words.py.
"""

import json
import re
import subprocess
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import conversations, write_json

pytestmark = pytest.mark.slow
# Where one comes in → the secret. Those of the environment are under the variable's name.
ENVIRONMENT = {
    "HF_TOKEN": "hf_planted0environment0abcdefghij",
    "WANDB_API_KEY": "0123planted45678901234567890123456789abc",
    "OPENAI_API_KEY": "sk-proj-planted0environment0abcdefgh",
    "SERVER_KEY": "a-servers-own-planted-key",
    "MY_PASSWORD": "correct-planted-horse",
}
PLANTED = {
    "a data URL": "planted-9-in-a-url",
    "the hub's address": "planted-9-in-the-endpoint",
    "model.token": "hf_planted0setting0abcdefghijklm",
    "a key of a class of one's own": "planted-9-own-key",
    "a key in the address of a server": "planted-9-in-the-query",
    "a server's reply": "sk-planted0reply0abcdefghijklmnop",
    "an exception": "planted-9-raised",
    "a row": "ghp_planted0row0abcdefghijklmnopqrstuv",
    "a golden case": "sk-planted0golden0case0abcdefghij",
    "a git remote": "planted-9-in-the-remote",
    "a change that is not committed": "ghp_planted0diff0abcdefghijklmnopqrstu",
}
# Sets the terminal's title and clears it; turns what follows around.
OBEYED = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202e"
TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
LOADER = """
import os
from chatbot_sft import DatasetLoader

class Failing(DatasetLoader):
    def prepare(self, chat=None):
        raise RuntimeError("\\x1b[2Jlogin failed with password=PLANTED and " + os.environ["MY_PASSWORD"])

class Mine(DatasetLoader):
    pass
"""


class Chatty(BaseHTTPRequestHandler):
    """Refuses every request, and says what it was asked with and a secret of its own."""

    def do_GET(self):
        reply = PLANTED["a server's reply"]
        said = f"{OBEYED}no: {self.headers['Authorization']}, {self.path}, {reply}"
        content = json.dumps({"error": {"message": said}}).encode()
        self.send_response(401, "no")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def chatty():
    """The address of such a server."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Chatty) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()


def texts_in(*folders):
    """Name → bytes of every file there, and of every member of those that are zip files; but for what Python keeps of
    the user's own module, where secrets stand in its text.
    """
    for file in (path for folder in folders for path in folder.rglob("*") if path.is_file()):
        if file.parent.name == "__pycache__":
            continue
        yield str(file), file.read_bytes()
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as members:
                for name in members.namelist():
                    yield f"{file}/{name}", members.read(name)
        if file.suffix == ".html":
            yield f"{file} as it is read", re.sub(rb"<[^>]*>", b"", file.read_bytes())


def test_no_planted_secret_comes_out(warm, tiny, chatty, tmp_path):
    work, cache, given = tmp_path / "work", tmp_path / "cache", tmp_path / "given"
    work.mkdir()
    (given / "mine" / "experiment").mkdir(parents=True)
    (work / "my_loader.py").write_text(LOADER.replace("PLANTED", PLANTED["an exception"]))
    (given / "mine" / "experiment" / "own.yaml").write_text(
        "# @package _global_\ndataset:\n  _target_: my_loader.Mine\n  api_key: ${oc.env:MY_PASSWORD}\n"
    )
    rows = conversations(24, **{f"column {OBEYED}": 1})
    rows[3]["messages"][1]["content"] += f" {PLANTED['a row']} {OBEYED}"
    data = write_json(given / "rows\u202e.json", rows)
    golden = given / "golden.jsonl"
    question = f"{OBEYED} is {PLANTED['a golden case']} a key?"
    golden.write_text(
        json.dumps({"messages": [{"role": "user", "content": question}], "contains": "yes"}) + "\n"
    )
    repository = ["git", "-c", "user.name=me", "-c", "user.email=me@host"]
    remote = f"https://me:{PLANTED['a git remote']}@host/r.git"
    for words in (
        ["init", "-q"],
        ["remote", "add", "origin", remote],
        ["add", "my_loader.py"],
        ["commit", "-qm", "a"],
    ):
        subprocess.run([*repository, *words], cwd=work, check=True)
    with (work / "my_loader.py").open("a") as file:
        file.write(f"# {PLANTED['a change that is not committed']}\n")

    hub = PLANTED["the hub's address"]
    environment = {
        **ENVIRONMENT, "CHATBOT_SFT_CACHE": str(cache), "HF_ENDPOINT": f"http://me:{hub}@127.0.0.1:9", "HF_HUB_OFFLINE": "0",
    }  # fmt: skip
    processes = []

    def run(*words, module="chatbot_sft", succeeds=True):
        process = warm.run(["-m", module, *map(str, words)], work, environment)
        processes.append(SimpleNamespace(words=words, text=process.stdout + process.stderr))
        assert succeeds is None or (process.returncode == 0) is succeeds, (
            words,
            process.stdout,
            process.stderr,
        )

    key = PLANTED["a key of a class of one's own"]
    own = ["dataset._target_=my_loader.Mine", f"+dataset.api_key={key}"]
    trained = [*tiny, f'dataset.data_path="{data}"', "save=lora", *own]
    run(*trained, "hydra.run.dir=trained")
    run("--config-dir", given / "mine", "experiment=own", *tiny, "task=check", "hydra.run.dir=checked")
    run(*trained, "task=plan", "hydra.run.dir=planned")
    run("task=export", "run=trained", "save=merged_16bit", "hydra.run.dir=exported")
    run("-m", *trained, "seed=1,2", "training.max_steps=1", "save=none", "hydra.sweep.dir=swept")
    run("swept", module="chatbot_sft.compare")
    run("trained", "--prompt", "hello", "--max-new-tokens", "2", module="chatbot_sft.chat")
    evaluate = ["task=evaluate", f"evaluation.golden={golden}", "evaluation.max_new_tokens=4"]
    run(*evaluate, "run=trained", "hydra.run.dir=evaluated")
    address = f"url={chatty}?api_key={PLANTED['a key in the address of a server']}"
    run(*evaluate, address, "evaluation.api_key_variable=SERVER_KEY", "evaluation.retries=0", succeeds=False)
    run("task=verify", "run=trained", address, "evaluation.api_key_variable=SERVER_KEY", succeeds=False)
    # Refusals
    run(*tiny, f"dataset.data_path=https://me:{PLANTED['a data URL']}@host/data.json", succeeds=False)
    run(*tiny, f"model.token={PLANTED['model.token']}", succeeds=False)
    run(*tiny, "dataset._target_=my_loader.Failing", "hydra.run.dir=failed", succeeds=False)
    run("model=local", "model.name=org/of-the-hub", "hydra.run.dir=hub", succeeds=False)
    run(module="chatbot_sft.doctor", succeeds=None)  # it finds that no hub answers

    for process in processes:
        assert not TERMINAL.search(process.text), (process.words, process.text)
    raised = next(process.text for process in processes if "hydra.run.dir=failed" in process.words)
    assert "login failed with password=***" in raised, raised
    texts = {f"what {' '.join(map(str, process.words))} says": process.text.encode() for process in processes}
    texts |= dict(
        texts_in(*(path for path in work.iterdir() if path.is_dir() and path.name != ".git"), cache)
    )
    assert any(PLANTED["a row"].encode() in text for text in texts.values())
    # Rows are what is trained: they are in the cache, which is private, and in what exports are held against.
    of_rows = {"a row": re.compile(r"/cache/|/evidence\.json$|trained_answers\.json$")}
    found = [
        f"{where}: in {name}"
        for name, text in texts.items()
        for where, secret in {**ENVIRONMENT, **PLANTED}.items()
        if secret.encode() in text and not (where in of_rows and of_rows[where].search(name))
    ]
    assert not found, "\n".join(found)
    assert {Path(name).name for name in texts} >= {
        "evaluation.html",
        "leaderboard.csv",
        "report.md",
        "run.log",
    }
