"""python -m chatbot_sft.chat url=…: a server answers as it streams, over several turns; what goes wrong is a line."""

from __future__ import annotations

import io

import pytest
from ports import reserved
from rich.console import Console

from chatbot_sft import chat
from chatbot_sft.errors import UserError
from chatbot_sft.served.chat_model import ServedModel, grouped


def talked(monkeypatch, capsys, words, typed=None):
    """(stdout, stderr) of the command."""
    monkeypatch.setattr("sys.argv", ["chat", *words])
    monkeypatch.setattr("sys.stdin", io.StringIO(typed or ""))
    chat.run(chat.parse())
    return capsys.readouterr()


def test_one_answer(stand_in, monkeypatch, capsys):
    server = stand_in("vllm")
    words = [
        f"url={server.url}",
        "model=mai",
        "--prompt",
        "Where are you",
        "--system",
        "Be Mai",
        "--temperature",
        "0.5",
    ]
    said = talked(monkeypatch, capsys, words)
    assert said.out == "We are at the old harbour near the bridge\n"
    assert said.err == ""
    (asked,) = server.requests
    assert asked["messages"] == [
        {"role": "system", "content": "Be Mai"}, {"role": "user", "content": "Where are you"},
    ]  # fmt: skip
    assert (asked["model"], asked["temperature"], asked["stream"], asked["max_tokens"]) == (
        "mai",
        0.5,
        True,
        512,
    )


def test_a_server_that_does_not_stream(stand_in, monkeypatch, capsys):
    server = stand_in("ollama")
    server.streams = False
    said = talked(monkeypatch, capsys, [f"url={server.url}", "--prompt", "Who", "--max-new-tokens", "1"])
    assert (said.out, said.err) == ("We\n", "(cut off: --max-new-tokens, or the server's own limit)\n")


def test_turns(stand_in, monkeypatch, capsys):
    server = stand_in("ollama")
    talked(monkeypatch, capsys, [f"url={server.url}"], "Where are you\nWho\n")
    assert [message["content"] for message in server.requests[1]["messages"]] == [
        "Where are you", "We are at the old harbour near the bridge", "Who",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("fault", "message"),
    [("half", "the reply broke off"), ("error", "answers with an error: out of memory"), ("broken", "the reply is no JSON")],
)  # fmt: skip
def test_what_goes_wrong_in_an_answer_is_a_line_and_the_conversation_goes_on(
    fault, message, stand_in, monkeypatch, capsys
):
    server = stand_in("ollama")
    server.fault = fault
    said = talked(monkeypatch, capsys, [f"url={server.url}"], "Where are you\n")
    assert said.out.splitlines()[0] == "We are"
    assert said.out.splitlines()[1].startswith(f"error: url={server.url}: {message}")
    model = ServedModel.open([f"url={server.url}"])
    talk = chat.Chat([chat.Speaker("mai", model)], Console(), None, 40, 0.0)
    with pytest.raises(UserError):
        talk.ask("Where are you")
    server.fault = None
    talk.ask("Who")
    assert [message["content"] for message in server.requests[-1]["messages"]] == ["Who"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["url=localhost:8000"], "url=localhost:8000: not an address such as http://localhost:8000/v1"),
        (["url=http://me:secret@localhost/v1"], "url: an address alone"),
        (["url={url}", "model=maii"], "model=maii: {url} has no such model; did you mean mai?"),
        (["url={url}", "api_key_variable=NO_SUCH_KEY"], "api_key_variable: the environment has no variable"),
    ],
)
def test_what_is_no_server(words, message, stand_in):
    url = stand_in("vllm").url
    with pytest.raises(UserError) as caught:
        ServedModel.open([word.format(url=url) for word in words])
    assert str(caught.value).startswith(message.format(url=url))


def test_nobody_is_there():
    with (
        reserved() as port,
        pytest.raises(UserError, match=rf"^url=http://127.0.0.1:{port}/v1: no server answers"),
    ):
        ServedModel.open([f"url=http://127.0.0.1:{port}/v1"])


def test_words():
    assert grouped(["a", "url=http://b", "model=c"]) == [["a"], ["url=http://b", "model=c"]]
    with pytest.raises(UserError, match=r"^model=c: is of a server; write url="):
        grouped(["a", "model=c"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["url=http://localhost/v1", "--before"],
            "--before: what a server's model was trained on is not known",
        ),
        (["a", "b", "c"], "c: two models stand side by side; leave one out"),
        (["model=c"], "model=c: is of a server; write url="),
    ],
)
def test_words_that_do_not_fit(words, message, monkeypatch):
    monkeypatch.setattr("sys.argv", ["chat", *words])
    with pytest.raises(SystemExit) as ended:
        chat.parse()
    assert str(ended.value.code).startswith(f"error: {message}")
