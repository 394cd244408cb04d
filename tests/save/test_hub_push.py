"""save.push_to_hub against a hub on loopback, through the real huggingface_hub in a process of its own: it
reads its endpoint when it is imported.
"""

import contextlib
import json
import os
import pty
import random
import shlex
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from hub_double import Failure, Repo, fine_grained, serve, user
from ports import reserved

TOKEN = "hf_" + "".join(random.Random(3).choices("abcdefghijklmnopqrstuvwxyz", k=34))
NAME = "bia/chat"
SAVE = {"push_to_hub": True, "hub_model_id": NAME, "hub_private": True, "hub_revision": None}

# Asked on stdin, answers on stdout, one line of JSON each. As in a run: a local model has put the hub
# offline, and everything is logged to run.log.
CLIENT = """
import json, logging, os, sys, time, traceback
from pathlib import Path
from types import SimpleNamespace

from chatbot_sft.errors import UserError
from chatbot_sft.logs import run_log
from chatbot_sft import network
from chatbot_sft.save import hub_push

network.allow_network(False)
from huggingface_hub import constants, get_session

hub_push.CHECK_SECONDS = hub_push.PUSH_SECONDS = float(os.environ.get("SECONDS", 120))
time.sleep = lambda seconds: None  # the library's, between two tries
out = sys.stdout
with run_log(Path("run.log")):
    for line in sys.stdin:
        asked, before = json.loads(line), get_session().timeout
        settings, answer = SimpleNamespace(save=SimpleNamespace(**asked["save"])), {"url": None, "error": None}
        try:
            answer["url"] = hub_push.push(Path(asked["folder"]), settings) if "folder" in asked else hub_push.check(settings)
        except UserError as error:
            answer["error"] = str(error)
            logging.getLogger("chatbot_sft").error("%s", error, exc_info=error)
            answer["traceback"] = "".join(traceback.format_exception(error))
        answer["as before"] = constants.HF_HUB_OFFLINE and os.environ["HF_HUB_OFFLINE"] == "1" and get_session().timeout == before
        print(json.dumps(answer), file=out, flush=True)
"""


class Client:
    def __init__(self, endpoint, folder, stderr=None, **environment):
        folder.mkdir()
        self.folder = folder
        self.environment = {
            **os.environ,
            "HF_ENDPOINT": endpoint,
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(folder / "hf"),
        }
        self.environment |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "HF_HUB_OFFLINE": "", **environment}
        with (folder / "stderr").open("w") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CLIENT],
                cwd=folder,
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr or file,
                text=True,
            )

    def ask(self, folder=None, **save):
        """What came of a push of `folder`, or of the check before it."""
        self.process.stdin.write(
            json.dumps({"save": {**SAVE, **save}, **({"folder": str(folder)} if folder else {})}) + "\n"
        )
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, (self.folder / "stderr").read_text(encoding="utf-8")
        answer = json.loads(line)
        assert TOKEN not in line
        assert "\n" not in (answer["error"] or "")
        assert answer["as before"]
        return answer

    def end(self):
        """Everything that was logged and shown."""
        self.process.communicate(timeout=600)
        return (self.folder / "run.log").read_text(encoding="utf-8") + (self.folder / "stderr").read_text(
            encoding="utf-8"
        )


@pytest.fixture(scope="module")
def served():
    with serve() as hub:
        yield hub


@pytest.fixture(scope="module")
def shared(served, tmp_path_factory):
    client = Client(served.url, tmp_path_factory.mktemp("client") / "run")
    yield client
    client.end()


@pytest.fixture
def hub(served):
    """A hub without repositories, which knows us."""
    for kept in (served.repos, served.failures, served.requests, served.storage):
        kept.clear()
    served.tokens = {TOKEN: user(orgs=[("bia", "write"), ("guests", "read")])}
    return served


@pytest.fixture
def ask(hub, shared):
    return shared.ask


@pytest.fixture
def client(tmp_path):
    """`client(endpoint, HF_TOKEN="")` is one of this test alone."""
    made = []

    def start(endpoint, **environment):
        made.append(Client(endpoint, tmp_path / f"run{len(made)}", **environment))
        return made[-1]

    yield start
    for each in made:
        each.end()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A folder as an export is: small and large files, one below another folder, one of no bytes, a card with
    metadata.
    """
    folder = tmp_path_factory.mktemp("exports") / "my model"
    random_bytes = random.Random(1).randbytes
    files = {
        "README.md": b"---\nlicense: apache-2.0\n---\n# Bia\n",
        "config.json": b"{}",
        "tệp.txt": "bia hơi".encode(),
        "empty": b"",
        "model.safetensors": random_bytes(300_000),
        "gguf/Modelfile": b"FROM ./m.gguf\n",
        "gguf/m.gguf": random_bytes(50_000),
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def contents(folder):
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


# ---- before training


def test_a_hub_that_would_take_it_is_asked_two_things_and_keeps_nothing(hub, ask):
    assert ask()["error"] is None
    assert hub.requests == ["whoami", "info"]
    assert not hub.repos
    hub.repos[NAME] = Repo(private=True)
    assert ask()["error"] is None
    hub.repos[NAME].private = False
    assert ask(hub_private=False)["error"] is None


def test_nobody_is_asked_where_nothing_is_pushed(hub, ask):
    assert ask(push_to_hub=False, hub_model_id=None)["error"] is None
    assert hub.requests == []


@pytest.mark.parametrize(
    ("save", "error"),
    [
        (
            {"hub_model_id": None},
            "save.push_to_hub=true: save.hub_model_id is missing; set it to ORGANISATION/NAME or USER/NAME",
        ),
        ({"hub_model_id": "chat"}, "save.hub_model_id=chat: whose? write ORGANISATION/chat or USER/chat"),
        (
            {"hub_model_id": "bia/chat bot"},
            "save.hub_model_id=bia/chat bot: Repo id must use alphanumeric chars",
        ),
        (
            {"hub_model_id": "https://huggingface.co/bia/chat"},
            "save.hub_model_id=https://huggingface.co/bia/chat: Repo id must be in the form",
        ),
        ({"hub_revision": "v 1"}, "save.hub_revision=v 1: not the name of a branch"),
        ({"hub_revision": "refs/pr/1"}, "save.hub_revision=refs/pr/1: not the name of a branch"),
        ({"hub_revision": "v1/"}, "save.hub_revision=v1/: not the name of a branch"),
    ],
)
def test_what_the_configuration_lacks_is_said_without_asking(save, error, hub, ask):
    assert ask(**save)["error"].startswith(error)
    assert hub.requests == []


def test_no_token(hub, client):
    asked = client(hub.url, HF_TOKEN="")
    login = "set HF_TOKEN in the environment, or run: hf auth login"
    assert asked.ask()["error"] == f"save.push_to_hub=true: there is no token for {hub.url}; {login}"
    assert "whoami" not in hub.requests
    (asked.folder / "hf").mkdir(exist_ok=True)
    (asked.folder / "hf" / "token").write_text(TOKEN)  # as `hf auth login` keeps it
    assert asked.ask()["error"] is None


def test_a_user_who_is_offline_stays_so(hub, client, export):
    asked = client(hub.url, HF_HUB_OFFLINE="1")
    assert (
        asked.ask()["error"]
        == "save.push_to_hub=true: HF_HUB_OFFLINE is set; unset it, or set save.push_to_hub=false"
    )
    assert hub.requests == []


def test_a_hub_that_is_not_there_is_found_out_at_once(client):
    with reserved() as port:
        error = client(f"http://127.0.0.1:{port}", SECONDS="3600").ask()["error"]
    assert error.startswith(f"save.hub_model_id={NAME}: no answer from http://127.0.0.1:{port} (")


def test_a_hub_that_says_nothing_is_not_waited_for(hub, client, export):
    asked = client(hub.url, SECONDS="0.3")
    for route, folder in (("whoami", None), ("info", None), ("info", export), ("commit", export)):
        hub.failures = {route: Failure(None)}
        assert f": no answer from {hub.url} (timed out)" in asked.ask(folder)["error"]


@pytest.mark.parametrize("status", [401, 403, 429, 500])
def test_a_hub_that_refuses_is_asked_once(status, hub, ask):
    hub.failures["whoami"] = Failure(status)
    error = ask()["error"]
    assert f"127.0.0.1 answers {status} " in error
    assert ("hf auth login" in error) == (status == 401)
    assert hub.requests == ["whoami"]


@pytest.mark.parametrize(
    ("who", "name", "error"),
    [
        (user("read", [("bia", "admin")]), NAME, "the token of mai may only read"),
        (user("write"), NAME, "mai does not belong to bia"),
        (user("write", [("bia", "read")]), NAME, "mai may only read in bia"),
        (fine_grained(), NAME, "the token of mai lacks the right repo.write for bia"),
        (
            fine_grained(("org", "bia", "repo.content.read")),
            NAME,
            "the token of mai lacks the right repo.write for bia",
        ),
        (
            fine_grained(("user", "mai", "repo.write")),
            NAME,
            "the token of mai lacks the right repo.write for bia",
        ),
        (
            fine_grained(("model", "bia/other", "repo.write")),
            NAME,
            "the token of mai lacks the right repo.write for bia",
        ),
        (user("write", [("Bia", "contributor")]), NAME, None),
        (user("write"), "mai/chat", None),
        (fine_grained(("org", "bia", "repo.content.read", "repo.write")), NAME, None),
        (fine_grained(("model", NAME, "repo.write")), NAME, None),
        ({"type": "app", "name": "pipeline"}, NAME, None),
    ],
)
def test_a_token_that_may_not_write_there_is_found_out(who, name, error, hub, ask):
    hub.tokens[TOKEN] = who
    said = ask(hub_model_id=name)["error"]
    assert (
        said is None
        if error is None
        else said.startswith(f"save.hub_model_id={name}: {error}; take another token")
    )


def test_nothing_becomes_public_because_the_repository_was(hub, ask, export):
    hub.repos[NAME] = Repo(private=False)
    error = (
        f"save.hub_private=true: {NAME} is public already; make it private on the hub, or set"
        " save.hub_private=false"
    )
    assert ask()["error"] == error
    assert ask(export)["error"].startswith(error)
    assert hub.repos[NAME].branches == {"main": {}}


# ---- after saving


def test_every_file_arrives_in_a_private_repository(hub, ask, export):
    assert ask(export)["url"] == f"{hub.url}/{NAME}"
    assert hub.repos[NAME].private
    assert hub.repos[NAME].branches == {"main": contents(export)}
    assert hub.repos[NAME].messages == ["Upload my model"]
    assert hub.requests.count("upload") == hub.requests.count("verify") == 2
    assert "unknown" not in hub.requests[1:]


def test_a_branch_is_made_and_used_again(hub, ask, export):
    for _ in range(2):
        assert (
            ask(export, hub_revision="runs/v1.0", hub_private=False)["url"]
            == f"{hub.url}/{NAME}/tree/runs/v1.0"
        )
    assert not hub.repos[NAME].private
    assert hub.repos[NAME].branches == {"main": {}, "runs/v1.0": contents(export)}
    assert hub.requests.count("upload") == 2  # the second time the hub has them


@pytest.mark.parametrize("route", ["preupload", "batch", "upload", "verify"])
@pytest.mark.parametrize("status", [503, 0])
def test_a_short_trouble_is_sat_out(route, status, hub, ask, export):
    hub.failures[route] = Failure(status, times=1)
    assert ask(export)["error"] is None
    assert hub.repos[NAME].branches == {"main": contents(export)}


BROKEN = "the upload to bia/chat failed"


@pytest.mark.parametrize(
    ("route", "status", "error"),
    [
        (
            "create",
            403,
            "save.hub_model_id=bia/chat: the repository cannot be made: 127.0.0.1 answers 403 Forbidden",
        ),
        ("create", 0, "save.hub_model_id=bia/chat: the repository cannot be made: no answer from"),
        ("info", 500, "save.hub_model_id=bia/chat: the repository cannot be made: 127.0.0.1 answers 500"),
        (
            "branch",
            403,
            "save.hub_revision=v1: the branch of bia/chat cannot be made: 127.0.0.1 answers 403 Forbidden",
        ),
        ("preupload", 401, f"save.push_to_hub=true: {BROKEN}: 127.0.0.1 answers 401 Unauthorized"),
        ("batch", 500, f"save.push_to_hub=true: {BROKEN}: 127.0.0.1 answers 500"),
        ("upload", 500, f"save.push_to_hub=true: {BROKEN}: 127.0.0.1 answers 500"),
        ("upload", 0, f"save.push_to_hub=true: {BROKEN}: no answer from"),
        ("verify", 403, f"save.push_to_hub=true: {BROKEN}: 127.0.0.1 answers 403"),
        (
            "commit",
            403,
            f"save.push_to_hub=true: {BROKEN}: 127.0.0.1 answers 403 Forbidden (told to fail for …)",
        ),
        ("commit", 0, f"save.push_to_hub=true: {BROKEN}: no answer from"),
    ],
)
def test_a_failure_says_what_failed_and_how_to_go_on(route, status, error, hub, ask, export):
    before = contents(export)
    hub.failures[route] = Failure(status)
    said = ask(export, hub_revision="v1")["error"]
    command = shlex.join(["hf", "upload", NAME, str(export), "--private", "--revision", "v1"])
    assert said.startswith(error)
    assert said.endswith(f"; the export in {export} is whole: {command}")
    assert contents(export) == before
    assert hub.requests.count(route) <= 12  # two files, six times each at most


@pytest.mark.slow
@pytest.mark.parametrize(("route", "branch"), [("create", None), ("branch", "v1")])
def test_the_command_of_the_failure_goes_on(route, branch, hub, shared, export):
    hub.failures[route] = Failure(403, times=1)
    command = shared.ask(export, hub_revision=branch)["error"].rpartition(" is whole: ")[2]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        command, shell=True, env={**shared.environment, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert hub.repos[NAME].branches[branch or "main"] == contents(export)
    assert hub.repos[NAME].private


def test_a_model_card_that_the_hub_refuses(hub, ask, export):
    hub.failures["validate"] = Failure(400)
    assert ask(export)["error"].startswith(f"save.push_to_hub=true: {BROKEN}: 127.0.0.1 answers 400")


# ---- Xet, which the real hub offers and this one does not


def test_through_xets_pipeline(hub, client, tmp_path):
    """Small files need no Xet server; that one may not be used is said like any other failure."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    asked = client(hub.url, HF_HUB_DISABLE_XET="0")
    assert asked.ask(folder, hub_revision="v1")["url"] == f"{hub.url}/{NAME}/tree/v1"
    assert hub.repos[NAME].branches["v1"] == {"config.json": b"{}"}
    (folder / "model.safetensors").write_bytes(b"x" * 100_000)
    assert asked.ask(folder)["error"].startswith(f"save.push_to_hub=true: {BROKEN}: ")


# ---- what is seen, and what is not


@pytest.mark.slow
def test_progress_bars_are_for_terminals(hub, tmp_path, export):
    hidden = Client(hub.url, tmp_path / "hidden")
    assert hidden.ask(export)["url"]
    assert "model.safetensors" not in hidden.end()
    hub.storage.clear()
    terminal, other_end = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 100))
    shown = Client(hub.url, tmp_path / "shown", stderr=other_end)
    os.close(other_end)
    assert shown.ask(export)["url"]
    assert "model.safetensors" not in shown.end()
    assert "model.safetensors" in everything(terminal)


def everything(terminal):
    """What was written to it; a terminal's end is an error."""
    seen = b""
    with contextlib.suppress(OSError):
        while True:
            seen += os.read(terminal, 1 << 16)
    os.close(terminal)
    return seen.decode()


def test_the_token_is_nowhere(hub, client, export, tmp_path):
    """The hub repeats it in every refusal."""
    asked = client(hub.url)
    asked.ask()
    asked.ask(export)
    for route in ("whoami", "info"):
        hub.failures = {route: Failure(403)}
        assert asked.ask()["error"]
    for route in ("create", "info", "branch", "validate", "preupload", "batch", "verify", "commit"):
        hub.repos.clear()
        hub.storage.clear()
        hub.failures = {route: Failure(403)}
        assert "told to fail for …" in asked.ask(export, hub_revision=f"v-{route}")["traceback"], route
    asked.end()
    written = contents(tmp_path) | contents(export)
    assert any(name.endswith("run.log") and b"told to fail" in content for name, content in written.items())
    assert not [name for name, content in written.items() if TOKEN.encode() in content]
