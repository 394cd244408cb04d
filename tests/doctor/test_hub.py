"""Tokens and gated models, told without the network."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from chatbot_sft.config import Config
from chatbot_sft.doctor import hub
from chatbot_sft.doctor.finding import State


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ('"hf_abcdefghijklmnopqrstuvwxyz"', "it stands in quotes"),
        ("hf_abcdefghij klmnopqrstuvwxyz", "there is a space in it"),
        ("your_token_here", "it does not begin with hf_"),
        ("hf_short", "it has 8 characters"),
        ("hf_abcdefghijklmnopqrstuvwxyzé", "it has other letters"),
    ],
)
def test_a_token_that_is_none(monkeypatch, token, why):
    monkeypatch.setenv("HF_TOKEN", token)
    pushed = Config.from_mapping({"save": {"push_to_hub": True, "hub_model_id": "me/it"}})
    found = next(one for one in hub.hub(pushed, online=False) if one.name == "token")
    assert (found.state, found.repair) == (State.FAULT, "unset HF_TOKEN && hf auth login")
    assert found.what.startswith(f"HF_TOKEN holds no token of the hub: {why}")
    assert token.strip('"') not in found.what


def test_a_gated_model_without_a_token(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "USER_SAYS_OFFLINE", False)
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("the network is not used"))
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    settings = Config.from_mapping({"model": {"name": "meta-llama/Llama-3.2-1B-Instruct"}})
    (found,) = hub.model(settings)
    assert (found.state, found.repair) == (State.FAULT, "hf auth login")
    assert "gated on the hub, and there is no token" in found.what
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijklmnopqrstuvwxyz")
    (found,) = hub.model(settings)
    assert (found.state, found.repair) == (State.NOTE, "hf download meta-llama/Llama-3.2-1B-Instruct")
    assert [one.state for one in hub.hub(settings, online=False)] == [State.OK, State.OK]


ANSWERS = {  # path → (status, X-Error-Code); a token that is known gets on
    "/org/open-1B/resolve/main/config.json": (200, ""),
    "/org/gated-1B/resolve/main/config.json": (403, "GatedRepo"),
    "/org/none-1B/resolve/main/config.json": (404, "RepoNotFound"),
    "/org/broken-1B/resolve/main/config.json": (500, ""),
}


@pytest.fixture
def answering(monkeypatch):
    """A hub on loopback, and what it was asked."""
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append((self.command, self.path, self.headers.get("Authorization")))
            status, code = ANSWERS.get(self.path, (200, ""))
            if self.path == "/api/whoami-v2" and "known" not in self.headers["Authorization"]:
                status = 401
            self.send_response(status)
            for name, value in {"X-Error-Code": code, "ETag": '"1"', "X-Repo-Commit": "a" * 40}.items():
                self.send_header(name, value)
            body = b'{"name": "mai"}'
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    from huggingface_hub import constants

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "USER_SAYS_OFFLINE", False)
    monkeypatch.setattr(hub, "SECONDS", 300)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("name", "token", "state", "said"),
    [
        ("org/open-1B", "", State.OK, "the hub answers, and org/open-1B can be had"),
        (
            "org/gated-1B",
            "hf_knownknownknownknown",
            State.FAULT,
            "is gated, and the token's owner has not been given access",
        ),
        ("org/none-1B", "", State.FAULT, "the hub has no org/none-1B, or it is private"),
        ("org/broken-1B", "", State.FAULT, "the hub answers with an error (500)"),
        ("smollm2", "hf_knownknownknownknown", State.OK, "the hub answers, and knows the token"),
        ("smollm2", "hf_otherotherotherother", State.FAULT, "the hub does not know the token"),
        ("smollm2", "", State.OK, "the hub answers"),
    ],
)
def test_what_the_hub_says_to_one_request(answering, monkeypatch, name, token, state, said):
    monkeypatch.setenv("HF_TOKEN", token)
    monkeypatch.setenv("HF_HOME", "/nowhere")
    found = list(hub.hub(Config.from_mapping({"model": {"name": name, "load_in_4bit": False}}), online=True))
    assert (found[-1].name, found[-1].state) == ("online", state)
    assert said in found[-1].what
    assert bool(found[-1].repair) == (state is State.FAULT)
    assert len({path for _, path, _ in answering}) == 1
    assert {sent for *_, sent in answering} == {f"Bearer {token}" if token else None}
    assert not any(token and token in one.what for one in found)


def test_the_hub_is_not_asked_unless_the_user_says_so(answering, monkeypatch):
    settings = Config.from_mapping({"model": {"name": "org/open-1B"}})
    list(hub.hub(settings, online=False))
    monkeypatch.setattr(hub, "USER_SAYS_OFFLINE", True)
    *_, found = hub.hub(settings, online=True)
    assert (found.state, found.what) == (State.NOTE, "nothing was asked: HF_HUB_OFFLINE is set")
    assert answering == []
    pushed = Config.from_mapping({"save": {"push_to_hub": True, "hub_model_id": "me/it"}})
    found = next(hub.hub(pushed, online=False))
    assert (found.state, found.repair) == (State.FAULT, "unset HF_HUB_OFFLINE")
