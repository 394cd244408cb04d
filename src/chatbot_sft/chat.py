"""`python -m chatbot_sft.chat PATH`: talk with a run, an export, a GGUF file or a server, or with two of them."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from chatbot_sft.arguments import Parser, ended
from chatbot_sft.data.messages import Message
from chatbot_sft.errors import UserError, did_you_mean
from chatbot_sft.inference.opening import find
from chatbot_sft.logs import quiet
from chatbot_sft.model.engine import prepare_environment
from chatbot_sft.report.plain import plain, plain_line, shown, shown_line
from chatbot_sft.report.words import amount
from chatbot_sft.served.chat_model import ServedModel, grouped, is_word

if TYPE_CHECKING:
    from chatbot_sft.inference import ChatModel
    from chatbot_sft.inference.opening import ModelOnDisk

COMMANDS = {
    "/reset": "forget the conversation; the system message stays",
    "/system TEXT": "put TEXT before the conversation as its system message; without TEXT there is none",
    "/save FILE": "add the conversation to FILE, a JSON list that dataset.data_path reads",
    "/help": "this list",
    "/quit": "end, as exit, quit and Ctrl-D do; Ctrl-C stops an answer",
}


def main() -> None:
    """Chat, or answer `--prompt`. What goes wrong is a line on stderr, with HYDRA_FULL_ERROR=1 a traceback."""
    arguments = parse()
    with ended():
        run(arguments)


def parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m chatbot_sft.chat",
        description="Talk with a model in the terminal, or with two side by side.",
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="+",
        help="a run directory, an export, a checkpoint or a .gguf file; smollm2: the embedded model; url=http://HOST:PORT/v1"
        " [model=NAME] [api_key_variable=NAME]: a server; a second one stands beside it",
    )
    parser.add_argument("--prompt", metavar="TEXT", help="print the answer to TEXT and nothing else")
    system = parser.add_mutually_exclusive_group()
    system.add_argument(
        "--system", metavar="TEXT", help="the system message; without it, the one the model was trained with"
    )
    system.add_argument(
        "--no-system",
        dest="system",
        action="store_const",
        const="",
        help="no system message, as --system '' says too",
    )
    parser.add_argument(
        "--max-new-tokens",
        metavar="N",
        type=positive_int,
        default=512,
        help="longest answer, in tokens (%(default)s)",
    )
    parser.add_argument(
        "--temperature",
        metavar="T",
        type=not_negative,
        default=0.0,
        help="0 (default): always the likeliest token",
    )
    parser.add_argument(
        "--before", action="store_true", help="first the model that PATH was trained on, beside it"
    )
    arguments = parser.parse_args()
    try:
        arguments.paths = grouped(arguments.paths)
    except UserError as error:
        parser.error(str(error))
    if len(arguments.paths) > 2:
        parser.error(f"{arguments.paths[2][0]}: two models stand side by side; leave one out")
    if arguments.before and len(arguments.paths) > 1:
        parser.error("--before: takes one PATH, and its base is the other; leave the second out")
    if arguments.before and is_word(arguments.paths[0][0]):
        parser.error("--before: what a server's model was trained on is not known; name the run")
    if arguments.prompt is not None and not arguments.prompt.strip():
        parser.error("--prompt: empty; write the question")
    return arguments


def positive_int(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text}: not a whole number above 0")
    return int(text)


def not_negative(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}: not a number from 0 on")
    return value


def run(arguments: argparse.Namespace) -> None:
    console = Console(file=sys.stdout, highlight=False)  # this stdout, whatever `quiet` puts in its place
    terminal = sys.stdin.isatty() and sys.stdout.isatty() and arguments.prompt is None
    prepare_environment()
    with console.status("loading") if terminal else contextlib.nullcontext():
        speakers = open_speakers(arguments)
    chat = Chat(speakers, console, arguments.system, arguments.max_new_tokens, arguments.temperature)
    told = chat.told_system()
    if told and not terminal:
        print(told, file=sys.stderr)
    if arguments.prompt is not None:
        chat.answer_once(arguments.prompt)
        return
    if terminal:
        for speaker in speakers:
            of_context = (
                ""
                if isinstance(speaker.model, ServedModel)
                else f", {speaker.model.context:,} tokens of context"
            )
            chat.note(f"{speaker.title}: {speaker.model.name}{of_context}")
        if told:
            chat.note(told)
        chat.note("/help lists the commands; exit, quit or Ctrl-D ends")
    chat.converse()


@dataclass
class Speaker:
    """A model and its own side of the conversation: questions and answers by turns."""

    title: str
    model: ChatModel | ServedModel
    turns: list[Message] = field(default_factory=list)
    trained_system: str = ""  # the system prompt of its training data
    # The system messages that its answers were given under, each once.
    openings: list[list[Message]] = field(default_factory=list)


def open_speakers(arguments: argparse.Namespace) -> list[Speaker]:
    # All of them are found before the first is loaded.
    found = [ServedModel.open(words) if is_word(words[0]) else find(words[0]) for words in arguments.paths]
    with quiet():
        if arguments.before and not isinstance(found[0], ServedModel):
            before, after = found[0].open_base(), found[0].open()
            system = trained_system(found[0], after)  # for both: they are asked the same
            return [
                Speaker("before", before, trained_system=system),
                Speaker("after", after, trained_system=system),
            ]
        return [speaker(words[0], one) for words, one in zip(arguments.paths, found, strict=True)]


def speaker(title: str, found: ModelOnDisk | ServedModel) -> Speaker:
    if isinstance(found, ServedModel):
        return Speaker(found.server.url, found)
    model = found.open()
    return Speaker(title, model, trained_system=trained_system(found, model))


def trained_system(file: ModelOnDisk, model: ChatModel) -> str:
    """The system prompt of the training data: what a GGUF file itself says, else what stands beside it."""
    return model.system_prompt or file.system_prompt or ""


class Chat:
    """The conversation of one person with one or two models, on `console`."""

    def __init__(
        self,
        speakers: list[Speaker],
        console: Console,
        system: str | None,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        self.speakers = speakers
        self.console = console
        self.system = system
        self.max_new_tokens = max_new_tokens
        self.temperature = temperature

    def opening(self, speaker: Speaker) -> list[Message]:
        """The system message: what the person said, else what that model was trained with."""
        system = speaker.trained_system if self.system is None else self.system
        return [{"role": "system", "content": system}] if system else []

    def told_system(self) -> str:
        """One line on a system message that nobody typed; nothing without one."""
        used = dict.fromkeys(
            speaker.trained_system
            for speaker in self.speakers
            if self.system is None and speaker.trained_system
        )
        return "; ".join(
            f"system prompt of the training data: {plain_line(system)[:200]} (--no-system leaves it out)"
            for system in used
        )

    def note(self, text: str) -> None:
        self.console.print(Text(shown(text), style="dim"), soft_wrap=True)

    def answer_once(self, question: str) -> None:
        """Print what each model answers; of several each under its name."""
        for number, speaker in enumerate(self.speakers):
            if len(self.speakers) > 1:
                print("\n" * bool(number) + shown_line(speaker.title))
            _, prompt = fitting(speaker.model, self.opening(speaker), [user(question)], self.max_new_tokens)
            _, ending = self.printed(speaker.model, prompt)
            if ending:
                title = f"{shown_line(speaker.title)}: " if len(self.speakers) > 1 else ""
                print(f"({title}{ending})", file=sys.stderr)

    def converse(self) -> None:
        """Until Ctrl-D, exit or quit."""
        for line in typed_lines():
            try:
                if not self.obey(line):
                    return
            except UserError as error:
                self.console.print(Text(f"error: {shown_line(str(error))}", style="red"), soft_wrap=True)

    def obey(self, line: str) -> bool:
        """Do what a typed line says. False: it was the last.

        Raises:
            UserError: it cannot be done; nothing has changed then.
        """
        command, _, rest = line.strip().partition(" ")
        match command:
            case "":
                pass
            case "/quit" | "/exit" | "quit" | "exit" if not rest:
                return False
            case "/help":
                self.note("\n".join(f"{name:<14}{help_text}" for name, help_text in COMMANDS.items()))
            case "/reset":
                for speaker in self.speakers:
                    speaker.turns, speaker.openings = [], []
                self.note("forgotten")
            case "/system":
                self.system = rest.strip()
                self.note(f"system message: {self.system or 'none'}")
            case "/save":
                self.save(rest.strip())
            case _ if re.fullmatch(r"/[a-z]+", command):
                names = [name.split()[0] for name in COMMANDS]
                raise UserError(f"{command}: no such command{did_you_mean(command, names)}; /help lists them")
            case _:
                self.ask(line.strip())
        return True

    def ask(self, question: str) -> None:
        """One turn with every model.

        Raises:
            UserError: a template refuses it, or it is too long for a context.
        """
        asked = [
            fitting(
                speaker.model, self.opening(speaker), [*speaker.turns, user(question)], self.max_new_tokens
            )
            for speaker in self.speakers
        ]
        for speaker, (turns, _) in zip(self.speakers, asked, strict=True):
            dropped = len(speaker.turns) + 1 - len(turns)
            if dropped:
                self.note(
                    f"{speaker.title}: the context of {speaker.model.context:,} tokens is full; the oldest"
                    f" {amount(dropped, 'message')} {'was' if dropped == 1 else 'were'} dropped"
                )
        several = len(self.speakers) > 1
        prompts = [prompt for _, prompt in asked]
        answers = self.in_columns(prompts) if several else [self.printed(self.speakers[0].model, prompts[0])]
        for speaker, (turns, _), (answer, ending) in zip(self.speakers, asked, answers, strict=True):
            if answer:
                speaker.turns = [*turns, {"role": "assistant", "content": answer}]
                opening = self.opening(speaker)
                speaker.openings += [opening] if opening not in speaker.openings else []
            silence = "" if answer else "nothing was said, so the question is forgotten"
            remarks = "; ".join(filter(None, (ending, silence)))
            if remarks:
                self.note(f"({speaker.title}: {remarks})" if several else f"({remarks})")
        print()

    def answer(
        self, model: ChatModel | ServedModel, prompt: Sequence[Any], show: Callable[[str], None]
    ) -> tuple[str, str]:
        """(answer, what ended it, unless the model itself); `show` is told the text as it grows."""
        if isinstance(model, ServedModel):
            with unseen_keys():
                return model.say(prompt, self.max_new_tokens, self.temperature, show)
        said: list[int] = []

        def hear(token: int) -> None:
            said.append(token)
            show(model.text(said))

        try:
            with quiet(), unseen_keys():
                model.answer(prompt, self.max_new_tokens, self.temperature, hear)
        except KeyboardInterrupt:
            return model.text(said), "stopped"
        if said and said[-1] in model.stop_ids:
            return model.text(said), ""
        limit = (
            "--max-new-tokens"
            if len(said) == self.max_new_tokens
            else f"the context of {model.context:,} tokens is full"
        )
        return model.text(said), f"cut off after {amount(len(said), 'token')}: {limit}"

    def printed(self, model: ChatModel | ServedModel, prompt: Sequence[Any]) -> tuple[str, str]:
        """`answer`, on lines of its own."""
        try:
            return self.answer(model, prompt, Printer(sys.stdout))
        finally:
            print()

    def in_columns(self, prompts: Sequence[Sequence[Any]]) -> list[tuple[str, str]]:
        """`answer` of each model, one after the other, in columns side by side."""
        columns = Columns([speaker.title for speaker in self.speakers])
        answers = []
        with Live(
            columns, console=self.console, refresh_per_second=8, redirect_stdout=False, redirect_stderr=False
        ):
            for column, (speaker, prompt) in enumerate(zip(self.speakers, prompts, strict=True)):
                answers.append(self.answer(speaker.model, prompt, functools.partial(columns.show, column)))
            columns.finished = True
        if not self.console.is_terminal:
            print()  # Live ends its last line on a terminal alone
        return answers

    def save(self, name: str) -> None:
        """Add every conversation that has an answer, with its system message, to the file `name`.

        Raises:
            UserError: no name, nothing to save, a system message that changed on the way, or a file that does
                not take it.
        """
        if not name:
            raise UserError("/save FILE: name a file")
        talked = [speaker for speaker in self.speakers if speaker.turns]
        if not talked:
            raise UserError("/save: there is no answer yet")
        if any(len(speaker.openings) > 1 for speaker in talked):
            raise UserError(
                "/save: the system message changed between these answers, and a row has one; /reset begins"
                " one that can be saved"
            )
        rows = [{"messages": [*speaker.openings[0], *speaker.turns]} for speaker in talked]
        total = append_rows(Path(name).expanduser(), rows)
        self.note(f"saved: {name} now has {amount(total, 'conversation')}")


def user(text: str) -> Message:
    """A question; bytes that were no UTF-8 when they were typed become question marks."""
    return {"role": "user", "content": text.encode(errors="replace").decode()}


def fitting(
    model: ChatModel | ServedModel, opening: list[Message], turns: list[Message], max_new_tokens: int
) -> tuple[list[Message], list[Any]]:
    """(turns, their prompt's token ids, or its messages for a server): the newest of `turns` that leave room in
    the model's context for an answer, the last at least.

    An answer may have `max_new_tokens`, but no more than half of the context.

    Raises:
        UserError: the chat template refuses them.
    """
    room = model.context - min(max_new_tokens, model.context // 2)
    while True:
        ids = model.prompt_ids([*opening, *turns])
        if len(ids) <= room or len(turns) == 1:
            return turns, ids
        turns = turns[2:]


def typed_lines() -> Iterator[str]:
    """Lines from a terminal or a pipe, until Ctrl-D; Ctrl-C throws a line away."""
    terminal = sys.stdin.isatty()
    if terminal:
        import readline  # noqa: F401 (lets input() edit and remember)
    while True:
        try:
            yield input("> " if terminal else "")
        except EOFError:
            if terminal:
                print()
            return
        except KeyboardInterrupt:
            print()


@contextlib.contextmanager
def unseen_keys() -> Iterator[None]:
    """What is typed meanwhile waits for the next `input`, and does not stand in the middle of an answer."""
    if not sys.stdin.isatty():
        yield
        return
    import termios

    keyboard = sys.stdin.fileno()
    before = termios.tcgetattr(keyboard)
    silent = before.copy()
    silent[3] &= ~termios.ECHO
    termios.tcsetattr(keyboard, termios.TCSANOW, silent)
    try:
        yield
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, before)


def append_rows(file: Path, rows: Sequence[Mapping[str, list[Message]]]) -> int:
    """Add `rows` to the JSON list in `file`, or begin one; in one step. Returns how many rows there are.

    Raises:
        UserError: the file holds something else, or cannot be read or written.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        before = json.loads(file.read_text(encoding="utf-8-sig")) if file.exists() else []
        if not isinstance(before, list):
            raise ValueError
        text = json.dumps([*before, *rows], indent=2, ensure_ascii=False) + "\n"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)
    except ValueError:
        raise UserError(f"{file}: not a JSON list, so nothing was added to it; name another file") from None
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    return len(before) + len(rows)


@dataclass
class Printer:
    """Writes a text that grows: each time what is new of it."""

    out: TextIO
    shown: str = ""

    def __call__(self, text: str) -> None:
        text = text.removesuffix("\r")  # a line feed may follow
        print(plain(text[len(self.shown) :]), end="", flush=True, file=self.out)
        self.shown = text


class Columns:
    """Texts that grow, side by side under their titles; until they are `finished`, as much of their ends as
    the terminal has lines for.
    """

    def __init__(self, titles: Sequence[str]) -> None:
        self.titles = titles
        self.texts = [""] * len(titles)
        self.finished = False

    def show(self, column: int, text: str) -> None:
        self.texts[column] = plain(text)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        table = Table(box=box.MINIMAL, show_edge=False, expand=True)
        for title in self.titles:
            table.add_column(Text(shown_line(title), style="bold"), ratio=1, overflow="fold")
        width = options.max_width // len(self.titles) - 3  # a border and a space on both sides
        lines = [Text(text).wrap(console, width) for text in self.texts]
        first = 0 if self.finished else -(console.height - 4)
        table.add_row(*(Text("\n").join(column[first:]) for column in lines))
        yield table


if __name__ == "__main__":
    main()
