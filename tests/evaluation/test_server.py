"""A server as it may be: down, slow, busy, wrong, half; each is one line, and what was answered is kept."""

import json
import time
from types import SimpleNamespace

import pytest
from conftest import composed, only_error
from faulty_server import FaultyServer
from ports import reserved

from chatbot_sft import UserError
from chatbot_sft.config import Config
from chatbot_sft.evaluation import judge
from chatbot_sft.evaluation.at_once import all_of
from chatbot_sft.evaluation.server import Server
from chatbot_sft.run.directory import Run

QUESTION = [{"role": "user", "content": "When?"}]
LATE = ("slow", "drip")  # faults that a client gives up waiting for


@pytest.fixture
def server(monkeypatch):
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    server = FaultyServer()
    yield server
    server.close()


def client(server, **more):
    return Server(server.url, **{"model": "mai", "retries": 2, "pause": 0.01, **more})


def impatient(server, monkeypatch, waits=()):
    """A client that waits for 0.2 s; for as long as `waits` say in its next tries, each of which begins once the server
    has read the one before, however busy the machine.
    """
    asking, tries, waits = client(server, timeout=0.2), iter(range(1, 9)), iter(waits)

    def between_two_tries(seconds):
        read(server, next(tries))
        asking.timeout = asking.client.timeout = next(waits, asking.timeout)

    clock = SimpleNamespace(sleep=between_two_tries, monotonic=time.monotonic)
    monkeypatch.setattr("chatbot_sft.evaluation.server.time", clock)
    return asking


def read(server, requests):
    """The server has read so many, and no more."""
    limit = time.monotonic() + 120
    while len(server.requests) < requests and time.monotonic() < limit:
        time.sleep(0.01)
    assert len(server.requests) == requests


def test_an_answer(server):
    answer = client(server).answer(QUESTION, 50)
    assert (answer.text, answer.tokens, answer.ended) == ("echo: When?", 2, True)
    assert server.requests == [
        {"model": "mai", "messages": QUESTION, "temperature": 0, "max_tokens": 50, "stream": False}
    ]
    server.usage = False
    assert client(server, retries=0).answer(QUESTION, 50).tokens is None


@pytest.mark.parametrize("fault", ["busy", "half", "events", "hang_up", *LATE])
def test_what_may_pass_is_tried_again(fault, server, monkeypatch):
    server.faults = [fault]
    asking = impatient(server, monkeypatch, [120]) if fault in LATE else client(server)
    assert asking.answer(QUESTION, 50).text == "echo: When?"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "tries", "message"),
    [
        ("busy", 3, "answers 503: loading model, 3 times"),
        ("half", 3, "the reply broke off"),
        ("events", 3, "the reply is no JSON"),
        ("hang_up", 3, "the reply broke off"),
        ("slow", 3, "no whole reply within 0.2 s (evaluation.timeout), 3 times"),
        ("drip", 3, "no whole reply within 0.2 s (evaluation.timeout), 3 times"),
        ("error", 1, "answers 400: context length exceeded"),
        ("error_in_200", 1, "answers with an error: out of memory"),
        ("html", 1, "answers with a web page; does the address end in /v1?"),
        ("nothing", 1, "the reply holds no answer (choices[0].message.content)"),
        (
            "wants_key",
            1,
            "answers 401, it wants a key: set evaluation.api_key_variable=NAME, an environment variable that holds it",
        ),
        ("elsewhere", 1, "it sends on to http://example.com/v1; name that address"),
    ],
)
def test_what_does_not_pass_is_one_line(fault, tries, message, server, monkeypatch):
    server.always = fault
    asking = impatient(server, monkeypatch) if fault in LATE else client(server)
    with pytest.raises(UserError) as caught:
        asking.answer(QUESTION, 50)
    assert str(caught.value).startswith(f"evaluation.url={server.url}: {message}")
    read(server, tries)


def test_nobody_is_there():
    with (
        reserved() as port,
        pytest.raises(
            UserError, match=rf"evaluation.url=http://127.0.0.1:{port}/v1: no server answers .*, 2 times"
        ),
    ):
        Server(f"http://127.0.0.1:{port}/v1/", retries=1, pause=0.01).choose()


def test_the_model_is_one_that_the_server_has(server):
    assert client(server, model=None).choose() == "mai"
    server.models = ["qwen:latest", "llama-3"]
    assert client(server, model="qwen").choose() == "qwen"
    with pytest.raises(
        UserError, match=r"^evaluation.model=lama-3: http.* has no such model; did you mean llama-3\?"
    ):
        client(server, model="lama-3").choose()
    with pytest.raises(UserError, match=r"it has 2 models; name one: evaluation.model=qwen:latest, llama-3"):
        client(server, model=None).choose()
    server.models = None  # not every server has a list
    assert client(server, model="any").choose() == "any"
    with pytest.raises(
        UserError, match=r"it does not say which models it has; name one: evaluation.model=NAME"
    ):
        client(server, model=None).choose()
    server.models = b"<html>It works!"
    with pytest.raises(UserError, match="answers with a web page"):
        client(server).choose()


def test_a_key_comes_from_the_environment_and_is_not_said(server, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12345678")
    asking = client(server, variable="MY_API_KEY")
    server.always = "wants_key"
    with pytest.raises(UserError, match="its key is refused") as caught:
        asking.answer(QUESTION, 5)
    assert server.headers[-1]["Authorization"] == "Bearer abcdefgh12345678"
    assert "abcdefgh" not in str(caught.value) + repr(asking)
    assert "Authorization" not in client(server).client.headers
    with pytest.raises(
        UserError, match=r"evaluation.api_key_variable: the environment has no variable of that name"
    ):
        client(server, variable="NO_SUCH_KEY")


def test_the_first_error_stops_the_rest():
    done = []

    def work(number):
        if number == 3:
            raise UserError("no")
        done.append(number)
        return 2 * number

    assert all_of(work, [0, 1, 2], 2) == [0, 2, 4]
    assert all_of(work, [], 2) == []
    with pytest.raises(UserError, match="no"):
        all_of(work, range(3, 100), 1)
    assert done == [0, 1, 2]


# The judge


@pytest.mark.parametrize(
    ("reply", "passed"),
    [
        ('{"reason": "kind", "verdict": "pass"}', True),
        ('<think>{"verdict": "fail"}</think>Here: ```json\n{"verdict": "PASS"}```', True),
        ('{"verdict": "fail", "reason": "rude"}', False),
        ("I think it is fine!", None),
        ('{"verdict": "perhaps"}', None),
        ('{"verdict": ', None),
        ("[1]", None),
        ("", None),
    ],
)
def test_verdicts(reply, passed):
    assert judge.verdict_in(reply.rpartition("</think>")[2]).passed is passed


def test_a_verdict_is_asked_for_once_and_nonsense_again(server):
    asking = client(server)
    server.answer = lambda messages: '{"reason": "kind", "verdict": "pass"}'
    for _ in range(2):
        assert judge.judged(asking, "is kind", QUESTION, "Dear guest").passed is True
    assert len(server.requests) == 1
    server.answer = lambda messages: "Bananas."
    for _ in range(2):
        assert judge.judged(asking, "is kind", QUESTION, "Go away").passed is None
    assert len(server.requests) == 3
    given = json.loads(server.requests[-1]["messages"][1]["content"])
    assert given == {"conversation": QUESTION, "answer": "Go away", "rubric": "is kind"}


# The whole command


def a_golden_file(folder, count=6, **more):
    rows = [
        {"messages": [{"role": "user", "content": f"question {number}"}], "contains": f"question {number}", "tags": ["odd" if number % 2 else "even"], **more}
        for number in range(count)
    ]  # fmt: skip
    file = folder / "golden.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def evaluate(folder, *overrides):
    from chatbot_sft import pipeline

    config = composed(
        folder / "run", "task=evaluate", f"evaluation.golden={folder / 'golden.jsonl'}", *overrides
    )
    report = pipeline.run(Config.from_mapping(config))
    return report, json.loads(Run(folder / "run").evaluation_file.read_text())


def test_an_evaluation_of_a_server(server, tmp_path, capsys):
    a_golden_file(tmp_path)
    server.answer = lambda messages: (
        "no idea" if messages[-1]["content"] == "question 3" else messages[-1]["content"]
    )
    report, found = evaluate(tmp_path, f"evaluation.url={server.url}", "evaluation.system_prompt=Be brief.")
    assert (report.status, report.evaluation.passed, report.evaluation.before) == ("completed", 5 / 6, None)
    assert found["cases"][3]["answers"]["model"] == {
        "text": "no idea", "tokens": 2, "ended": True, "passed": False, "faults": {"contains": "lacks “question 3”"},
        "unjudged": {}, "judge": None,
    }  # fmt: skip
    assert server.requests[0]["messages"][0] == {"role": "system", "content": "Be brief."}
    said = capsys.readouterr().out.splitlines()
    assert said[:4] == [
        "tag   cases     model",
        "even      3  3 (100%)",
        "odd       3   2 (67%)",
        "all       6   5 (83%)",
    ]
    page = (tmp_path / "run" / "evaluation.html").read_text()
    assert "5 of 6" not in page and "83% of 6 cases passed" in page


def test_too_few_that_pass_are_an_error_and_everything_is_written(server, tmp_path):
    a_golden_file(tmp_path)
    server.answer = lambda messages: "question 1"
    with pytest.raises(
        UserError,
        match=r"^evaluation.minimum=0.9: 1 of 6 cases passed \(16.7%\); the page shows those that did not$",
    ):
        evaluate(tmp_path, f"evaluation.url={server.url}", "evaluation.minimum=0.9")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert (report["status"], report["evaluation"]["passed"]) == ("failed", 1 / 6)
    assert (tmp_path / "run" / "evaluation.html").exists()


def test_what_was_answered_is_kept_and_a_second_start_goes_on(server, tmp_path):
    a_golden_file(tmp_path)
    at_once = ["evaluation.batch_size=1", "evaluation.retries=0", f"evaluation.url={server.url}"]
    server.faults, server.always = [None] * 3, "busy"
    with pytest.raises(
        UserError, match=r"row 4: .*answers 503.*; 3 of 6 answers kept; hydra.run.dir=.* goes on"
    ):
        evaluate(tmp_path, *at_once)
    asked, server.always = len(server.requests), None
    with (tmp_path / "run" / "answers.jsonl").open("a") as file:
        file.write('{"key": "cut')  # killed as it wrote
    report, _ = evaluate(tmp_path, *at_once)
    assert report.evaluation.passed == 1
    assert len(server.requests) - asked == 3
    evaluate(tmp_path, *at_once)  # finished before: asked anew
    assert len(server.requests) - asked == 9


def test_a_judge_that_talks_nonsense_leaves_cases_unjudged(server, tmp_path, capsys):
    a_golden_file(tmp_path, 4, judge="is polite")

    def answer(messages):
        if messages[0]["role"] != "system":
            return messages[-1]["content"]
        graded = json.loads(messages[-1]["content"])["answer"]
        return (
            "Bananas."
            if "1" in graded
            else json.dumps({"verdict": "fail" if "2" in graded else "pass", "reason": "so"})
        )

    server.answer = answer
    report, found = evaluate(tmp_path, f"evaluation.url={server.url}", f"evaluation.judge_url={server.url}")
    assert [case["answers"]["model"]["passed"] for case in found["cases"]] == [True, None, False, True]
    assert (report.evaluation.passed, report.evaluation.unjudged) == (0.5, 1)
    assert (
        "1 case not judged, counted as not passed (judge: the judge's reply is neither pass nor fail)"
        in capsys.readouterr().out
    )


def test_no_judge_is_asked_unless_one_is_named(server, tmp_path, capsys):
    a_golden_file(tmp_path, 2, judge={"rubric": "is polite"})
    server.answer = lambda messages: messages[-1]["content"]
    report, _ = evaluate(tmp_path, f"evaluation.url={server.url}")
    assert (report.evaluation.unjudged, server.paths["/v1/chat/completions"]) == (2, 2)
    assert (
        "2 cases not judged, counted as not passed (judge: evaluation.judge_url is not set)"
        in capsys.readouterr().out
    )


def test_the_key_is_in_no_file(server, tmp_path, monkeypatch):
    monkeypatch.setenv("MY_API_KEY", "abcdefgh12345678")
    a_golden_file(tmp_path, 2)
    server.answer = lambda messages: "your key is abcdefgh12345678"
    evaluate(tmp_path, f"evaluation.url={server.url}", "evaluation.api_key_variable=MY_API_KEY")
    assert server.headers[-1]["Authorization"] == "Bearer abcdefgh12345678"
    files = [file for file in (tmp_path / "run").rglob("*") if file.is_file()]
    assert {"evaluation.json", "evaluation.html", "answers.jsonl", "report.json"} <= {
        file.name for file in files
    }
    assert not [file for file in files if b"abcdefgh12345678" in file.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.golden=none.jsonl"], "evaluation.golden=none.jsonl: no such file"),
        (
            ["evaluation.golden=golden.jsonl", "training.max_steps=3"],
            "training.max_steps: task=evaluate trains nothing",
        ),
        (
            [
                "evaluation.golden=golden.jsonl",
                "evaluation.judge_url=http://localhost/v1",
                "evaluation.judge_api_key_variable=NO_SUCH_KEY",
            ],
            "evaluation.judge_api_key_variable: the environment has no variable",
        ),
    ],
)
def test_a_bad_start_leaves_no_directory(overrides, message, launch, tmp_path):
    a_golden_file(tmp_path)
    assert only_error(launch("task=evaluate", "run=smollm2", *overrides)).startswith(message)
    assert not (tmp_path / "outputs").exists()
