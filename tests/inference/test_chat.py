"""`python -m chatbot_sft.chat` as a person has it: real processes, typed turns on a pseudo-terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time

import pytest
from conftest import EXAMPLE, only_error
from rich.console import Console
from test_inference import QUESTION, write_gguf

from chatbot_sft.chat import Chat, Columns, Speaker, append_rows, fitting, open_speakers, parse, user
from chatbot_sft.data.messages import to_messages
from chatbot_sft.data.sources import read_rows
from chatbot_sft.errors import UserError
from chatbot_sft.inference.gguf_model import SYSTEM_PROMPT, GGUFModel
from chatbot_sft.inference.opening import find
from chatbot_sft.model import embedded

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, "-m", "chatbot_sft.chat"]
PARIS = "What is the capital of France?"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture(scope="module")
def gguf():
    return str(embedded.gguf_path())


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A model that opens at once, of 256 tokens of context; what it says is nonsense."""
    return str(write_gguf(tmp_path_factory.mktemp("chat") / "small.gguf", **{"llama.context_length": 256}))


def chat(*arguments, typed="", **environment) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], input=typed, env=env, capture_output=True, text=True, timeout=600
    )


class Terminal:
    """A chat on a pseudo-terminal of 24 lines and 100 columns."""

    def __init__(self, *arguments) -> None:
        self.screen, theirs = os.openpty()
        termios.tcsetwinsize(theirs, (24, 100))
        env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {
            "TERM": "xterm-256color"
        }
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], preexec_fn=lambda: os.login_tty(theirs), env=env
        )
        os.close(theirs)
        self.waiting = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.screen)

    def type(self, text: str) -> None:
        os.write(self.screen, text.encode())

    def until(self, pattern: str, timeout: float = 300) -> str:
        """What appears up to the end of `pattern`, without escape sequences."""
        end = time.monotonic() + timeout
        while True:
            text = ESCAPES.sub("", self.waiting.decode(errors="ignore")).replace("\r", "")
            found = re.search(pattern, text)
            if found:
                self.waiting = text[found.end() :].encode()
                return text[: found.end()]
            ready, _, _ = select.select([self.screen], [], [], max(0, end - time.monotonic()))
            assert ready, f"no {pattern!r} in {text!r}"
            try:
                self.waiting += os.read(self.screen, 65536)
            except OSError:
                raise AssertionError(f"it ended without {pattern!r}: {text!r}") from None

    def ended(self) -> int:
        return self.process.wait(300)


# ---- one answer


def test_help_imports_neither_torch_nor_a_model_library():
    process = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--help"],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert process.returncode == 0
    assert "--before" in process.stdout
    assert "chatbot_sft.chat" in process.stdout and "rich.console" in process.stderr
    assert not re.search(r"\b(torch|transformers|cyllama|huggingface_hub)\b", process.stderr)


def test_prompt_prints_the_answer_and_nothing_else(smollm2):
    process = chat(smollm2, "--prompt", PARIS)
    assert (process.returncode, process.stdout, process.stderr) == (
        0,
        "The capital of France is Paris.\n",
        "",
    )


def test_two_models_answer_each_under_its_name(gguf, small):
    process = chat(gguf, small, "--prompt", PARIS, "--max-new-tokens", 6)
    expected = [GGUFModel.load(file) for file in (gguf, small)]
    texts = [model.text(model.answer(model.prompt_ids(QUESTION), 6)) for model in expected]
    assert (process.returncode, process.stdout) == (0, f"{gguf}\n{texts[0]}\n\n{small}\n{texts[1]}\n")
    assert f"({small}: cut off after 6 tokens: --max-new-tokens)\n" in process.stderr


def test_the_system_message_and_the_temperature_reach_the_model(gguf):
    model = GGUFModel.load(gguf)
    asked = [{"role": "system", "content": "Answer in one word."}, *QUESTION]
    greedy = chat(gguf, "--prompt", PARIS, "--system", "Answer in one word.", "--max-new-tokens", 8)
    assert greedy.stdout == model.text(model.answer(model.prompt_ids(asked), 8)) + "\n"
    warm = {chat(gguf, "--prompt", PARIS, "--temperature", 2, "--max-new-tokens", 8).stdout for _ in range(3)}
    assert len(warm) > 1


def test_a_gguf_file_alone_is_asked_as_it_was_trained(tmp_path, monkeypatch):
    """Its own metadata say so, whatever export it was copied beside."""
    file = write_gguf(tmp_path / "bot.gguf", 1, **{SYSTEM_PROMPT: "You are in Ashford."})
    (tmp_path / "export.json").write_text(json.dumps({"system_prompt": "another model's"}))

    def opening(*words):
        monkeypatch.setattr(sys, "argv", ["chat", str(file), *words])
        arguments = parse()
        (speaker,) = open_speakers(arguments)
        return Chat([speaker], Console(), arguments.system, 4, 0.0).opening(speaker)

    assert opening() == [{"role": "system", "content": "You are in Ashford."}]
    assert opening("--no-system") == []


def test_a_run_before_and_after(launch, warm, tiny, tmp_path):
    """A run as it saved its adapter, its base beside it, and what is left when the export is gone."""
    data = f"dataset.data_path={EXAMPLE}"  # with a system prompt
    made = launch(*tiny, data, "dataset.max_rows=12", "save=lora", "save.verify=false", "hydra.run.dir=run")
    assert made.returncode == 0, made.stderr
    run = tmp_path / "run"
    assert (find(run).kind, find(run).path) == ("adapter", run / "model")
    process = warm.run([*COMMAND[1:], run, "--before", "--prompt", "hi", "--max-new-tokens", 4], tmp_path)
    assert process.returncode == 0
    assert process.stderr.startswith("system prompt of the training data: Bạn là Mai, ")
    assert re.fullmatch(r"before\n.*\n\nafter\n.*\n", process.stdout, re.DOTALL)
    shutil.rmtree(run / "model")
    assert (find(run).kind, find(run).path) == ("adapter", run / "checkpoints" / "checkpoint-2")
    model = find(run).open()
    assert len(model.answer(model.prompt_ids(QUESTION), 3)) == 3
    assert not hasattr(find(run).open_base().model, "peft_config")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((), "the following arguments are required: PATH"),
        (("nothing/here",), "nothing/here: no such folder or file"),
        (("empty",), "neither a model"),
        (("text.gguf",), "text.gguf: cannot be loaded: does not look like a valid GGUF"),
        (("text.gguf", "--prompt", " "), "--prompt: empty"),
        (("text.gguf", "--temperature", "-1"), "-1: not a number from 0 on"),
        (("text.gguf", "--temperature", "warm"), "warm: not a number from 0 on"),
        (("text.gguf", "--max-new-tokens", "0"), "0: not a whole number above 0"),
        (("text.gguf", "--system", "x", "--no-system"), "--no-system: not allowed with argument --system"),
        (("text.gguf", "other", "--before"), "--before: takes one PATH"),
        (("text.gguf", "--before"), "what it was trained on is not written in it"),
        (("text.gguf", "--loud"), "--loud"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.gguf").write_text("no model, but a text of more than 24 letters")
    process = chat(*arguments)
    assert expected in only_error(process)
    assert process.stdout == ""


def test_a_prompt_that_does_not_fit_is_one_line_and_its_traceback_can_be_had(small):
    assert "leave no room for an answer; prompt and answer together may have 256" in only_error(
        chat(small, "--prompt", "word " * 300)
    )
    process = chat(small, "--prompt", "word " * 300, HYDRA_FULL_ERROR="1")
    assert process.returncode == 1
    assert "Traceback" in process.stderr


# ---- a conversation


def test_typed_turns(gguf, tmp_path):
    """Two turns, the second with the first before it; each is what the model says to that history."""
    model = GGUFModel.load(gguf)
    turns = []
    for question in (PARIS, "Còn của Việt Nam? 🍺"):
        turns.append(user(question))
        answer = model.text(model.answer(model.prompt_ids(turns), 12))
        turns.append({"role": "assistant", "content": answer})
    with Terminal(gguf, "--max-new-tokens", 12) as terminal:
        assert (
            f"{gguf}: {gguf}, 4,096 tokens of context\n/help lists the commands; exit, quit or Ctrl-D ends\n"
            in terminal.until("\n> ")
        )
        for question, answer in zip(turns[::2], turns[1::2], strict=True):
            terminal.type(question["content"] + "\n")
            shown = terminal.until(r"\n> ")
            assert (
                shown == f"{question['content']}\n{answer['content']}\n(cut off after 12 tokens:"
                " --max-new-tokens)\n\n> "
            )
        terminal.type(f"/save {tmp_path / 'talk.json'}\n")
        terminal.until("now has 1 conversation\n> ")
        terminal.type("\x04")
        assert terminal.ended() == 0
    assert json.loads((tmp_path / "talk.json").read_text(encoding="utf-8")) == [{"messages": turns}]


def test_an_answer_streams_and_control_c_stops_it_alone(gguf, tmp_path):
    with Terminal(gguf, "--max-new-tokens", 4000) as terminal:
        terminal.until("> ")
        terminal.type("Tell me a very long story.\n")
        begun = terminal.until(r"story\.\n(\S+ ){3}")  # while it goes on
        terminal.type("typed ahead\n")
        terminal.until(r"(\S+\s+){3}")
        terminal.process.send_signal(signal.SIGINT)
        rest = terminal.until(r"\(stopped\)\n\n> ")
        assert "typed ahead" not in begun + rest
        terminal.until(r"typed ahead\n(\S+ ){3}")  # it has become the next question
        terminal.type("\x03")
        terminal.until(r"\(stopped\)\n\n> ")
        terminal.type("nothing")
        terminal.until("nothing")
        for _ in range(10):  # one that comes just as readline takes the terminal over is lost
            terminal.type("\x03")
            with contextlib.suppress(AssertionError):
                terminal.until("\n> ", timeout=5)
                break
        else:
            pytest.fail("Ctrl-C does not bring the prompt back")
        terminal.type(f"/save {tmp_path / 'talk.json'}\n")
        terminal.until("now has 1 conversation")
        terminal.type("/quit\n")
        assert terminal.ended() == 0
    (row,) = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [turn["content"] for turn in row["messages"][::2]] == ["Tell me a very long story.", "typed ahead"]


def test_two_models_stand_side_by_side(gguf, small, tmp_path):
    with Terminal(gguf, small, "--max-new-tokens", 8) as terminal:
        terminal.until("\n> ")
        terminal.type("Hello\n")
        shown = terminal.until(r"\n> ")
        assert re.search(r"─{40,}┼─{40,} *\n", shown)
        assert (
            f"({gguf}: cut off after 8 tokens: --max-new-tokens)\n({small}: cut off after 8 tokens:"
            " --max-new-tokens)\n" in shown
        )
        terminal.type(f"/save {tmp_path / 'talk.json'}\n")
        terminal.until("now has 2 conversations")
    first, second = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert first["messages"][0] == second["messages"][0] == user("Hello")
    assert first["messages"][1] != second["messages"][1]
    left, right = (row["messages"][1]["content"].split()[0] for row in (first, second))
    assert re.search(rf"{re.escape(left)}.*│.*{re.escape(right)}", shown)


def test_turns_from_a_pipe(small, tmp_path):
    """Commands work there too; nothing but answers and remarks is written, and an error does not end it."""
    saved = tmp_path / "rows.json"
    lines = [
        "/save x.json",
        "Hello",
        "",
        "/system Bạn là Mai.",
        f"/save {saved}",
        "/reset",
        "Hi",
        f"/save {saved}",
        "/sav",
        "/usr/bin?",
        "/help",
        "/system",
    ]
    process = chat(small, "--max-new-tokens", 3, typed="\n".join(lines))
    assert (process.returncode, process.stderr) == (0, "")
    model = GGUFModel.load(small)
    hello, hi, path = (
        model.text(model.answer(model.prompt_ids(messages), 3))
        for messages in (
            [user("Hello")],
            [{"role": "system", "content": "Bạn là Mai."}, user("Hi")],
            [{"role": "system", "content": "Bạn là Mai."}, user("/usr/bin?")],
        )
    )
    remarks = process.stdout
    for expected in (
        "error: /save: there is no answer yet\n",
        f"{hello}\n(cut off after 3 tokens: --max-new-tokens)\n\nsystem message: Bạn là Mai.\n",
        "now has 1 conversation\nforgotten\n",
        f"{hi}\n",
        "now has 2 conversations\n",
        "error: /sav: no such command; did you mean /save?; /help lists them\n",
        "/system TEXT  put TEXT",
        "system message: none\n",
    ):
        assert expected in remarks, expected
    assert path in remarks and "> " not in remarks
    rows = [
        to_messages(row.values["messages"], "keep", None) for row in read_rows(str(saved))
    ]  # as the trainer reads them
    opening = {"role": "system", "content": "Bạn là Mai."}
    assert rows == [
        [user("Hello"), {"role": "assistant", "content": hello}],  # /system came after that answer
        [opening, user("Hi"), {"role": "assistant", "content": hi}],
    ]


class Answering:
    """A model that says what it is given to say, and never ends by itself."""

    name, context, stop_ids = "m", 1000, frozenset()

    def prompt_ids(self, messages):
        return [1]

    def text(self, ids):
        return "a" * len(ids)

    def answer(self, prompt, limit, temperature, hear):
        for _ in range(limit):
            hear(7)


def test_a_conversation_is_saved_with_the_system_message_that_it_was_held_under(tmp_path, capsys):
    talk = Chat([Speaker("m", Answering())], Console(), None, 2, 0.0)
    file = tmp_path / "rows.json"
    for line in (
        "Hi",
        "/system Be Mai.",
        f"/save {file}",
        "/reset",
        "Hi",
        f"/save {file}",
        "/system Be Bob.",
        "Hi",
    ):
        assert talk.obey(line)
    assert [row["messages"][0]["content"] for row in json.loads(file.read_text())] == ["Hi", "Be Mai."]
    with pytest.raises(
        UserError, match=r"^/save: the system message changed between these answers, .*; /reset begins one"
    ):
        talk.obey(f"/save {file}")
    assert len(json.loads(file.read_text())) == 2


def test_one_answer_that_is_cut_off_says_so_beside_it(capsys):
    Chat([Speaker("m", Answering())], Console(), None, 2, 0.0).answer_once("Hi")
    assert capsys.readouterr() == ("aa\n", "(cut off after 2 tokens: --max-new-tokens)\n")


def test_side_by_side_in_a_pipe_a_note_has_a_line_of_its_own(capsys):
    speakers = [Speaker(title, Answering()) for title in ("before", "after")]
    Chat(speakers, Console(file=sys.stdout, width=80), None, 3, 0.0).ask("hello")
    lines = capsys.readouterr().out.splitlines()
    notes = [line for line in lines if "cut off" in line]
    assert [note[:29] for note in notes] == ["(before: cut off after 3 toke", "(after: cut off after 3 token"]


@pytest.mark.parametrize(
    ("line", "asked"),
    [("exit", False), ("quit ", False), ("/exit", False), ("/quit", False), ("exit the room?", True)],
)
def test_a_word_that_leaves(line, asked, monkeypatch):
    chat, questions = Chat([], Console(), None, 3, 0.0), []
    monkeypatch.setattr(chat, "ask", questions.append)
    assert chat.obey(line) is asked
    assert questions == ([line] if asked else [])


def test_a_full_context_drops_the_oldest_turns_and_says_so(small):
    question = "one two three four five six seven eight nine ten " * 6
    process = chat(
        small,
        "--max-new-tokens",
        8,
        "--system",
        "Be short.",
        typed="\n".join([question] * 4 + ["word " * 300, "Hello"]),
    )
    assert (process.returncode, process.stderr) == (0, "")
    full = f"{small}: the context of 256 tokens is full; the oldest 2 messages were dropped\n"
    assert process.stdout.count(full) == 2
    assert process.stdout.count("error: ") == 1
    assert "leave no room for an answer" in process.stdout
    assert process.stdout.rstrip().endswith("(cut off after 8 tokens: --max-new-tokens)")


def test_what_is_dropped(small):
    model = GGUFModel.load(small)
    system = [{"role": "system", "content": "Be short."}]
    turns = [
        turn
        for n in range(9)
        for turn in (user(f"question number {n}"), {"role": "assistant", "content": f"answer number {n}"})
    ][:-1]
    kept, ids = fitting(model, system, turns, 100)
    assert kept == turns[-len(kept) :]
    assert kept[0]["role"] == "user" and 1 < len(kept) < len(turns)
    assert ids == model.prompt_ids([*system, *kept]) and len(ids) <= 156
    assert len(model.prompt_ids([*system, *turns[-len(kept) - 2 :]])) > 156
    assert fitting(model, system, turns, 100_000) == fitting(
        model, system, turns, 128
    )  # half of the context is the prompt's
    assert fitting(model, system, [user("word " * 300)], 8)[0] == [user("word " * 300)]


def test_a_template_that_refuses_leaves_the_conversation_as_it_was(tmp_path):
    template = (
        "{% if messages[-1].content == 'no' %}{{ raise_exception('not this') }}{% endif %}{% for m in"
        " messages %}{{ m.content }} {% endfor %}"
    )
    file = write_gguf(tmp_path / "refuses.gguf", **{"tokenizer.chat_template": template})
    saved = tmp_path / "rows.json"
    process = chat(file, "--max-new-tokens", 8, typed=f"yes\nno\nagain\n/save {saved}\n")
    assert process.stdout.count("error: ") == 1
    assert (
        f"error: {file}: the chat template refuses it: not this; begin another conversation\n"
        in process.stdout
    )
    (row,) = json.loads(saved.read_text(encoding="utf-8"))
    assert [turn["content"] for turn in row["messages"][::2]] == ["yes", "again"]


def test_rows_are_added_in_one_step_or_not_at_all(tmp_path):
    row = {"messages": [user("câu hỏi"), {"role": "assistant", "content": "trả lời"}]}
    file = tmp_path / "rows.json"
    assert append_rows(file, [row]) == 1
    assert append_rows(file, [row, row]) == 3
    assert json.loads(file.read_text(encoding="utf-8")) == [row] * 3
    assert "câu hỏi" in file.read_text(encoding="utf-8")
    file.write_text(json.dumps([row]), encoding="utf-8-sig")  # as a Windows editor saves it
    assert append_rows(file, [row]) == 2
    for content in ('{"messages": []}', "no JSON", '{"a": 1}\n{"a": 2}\n'):
        other = tmp_path / "other.json"
        other.write_text(content)
        with pytest.raises(UserError, match="not a JSON list, so nothing was added"):
            append_rows(other, [row])
        assert other.read_text() == content
    with pytest.raises(UserError, match=r"missing/rows\.json: No such file or directory"):
        append_rows(tmp_path / "missing" / "rows.json", [row])
    with pytest.raises(UserError, match="Is a directory"):
        append_rows(tmp_path, [row])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.json", "rows.json"]


def test_saved_rows_can_be_trained_on(launch, tmp_path):
    append_rows(
        tmp_path / "rows.json",
        [
            {"messages": [user(f"question {n}"), {"role": "assistant", "content": f"answer {n}"}]}
            for n in range(4)
        ],
    )
    process = launch("task=check", "dataset.data_path=rows.json")
    assert process.returncode == 0, process.stderr
    assert re.search(r"conversations +4: 3 trained, 1 held out", process.stdout)


def test_columns_show_the_ends_of_long_answers_until_they_are_finished():
    def shown(columns: Columns) -> list[str]:
        console = Console(file=io.StringIO(), width=41, height=10)
        console.print(columns)
        return [line.rstrip() for line in console.file.getvalue().splitlines()]

    columns = Columns(["left", "right [b]"])
    columns.show(0, "\n".join(f"line {n}" for n in range(30)))
    columns.show(1, "a text of more than one column's width [/b]")
    growing = shown(columns)
    assert growing[0].split("│")[1].strip() == "right [b]"
    assert [line.split("│")[0].strip() for line in growing[2:]] == [f"line {n}" for n in range(24, 30)]
    assert "[/b]" in "".join(growing)
    columns.finished = True
    assert [line.split("│")[0].strip() for line in shown(columns)[2:]] == [f"line {n}" for n in range(30)]
