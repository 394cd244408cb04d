"""Python processes without the ten seconds in which each imports torch, transformers and TRL.

`Warm("transformers")` starts a process that imports what a run needs; `Warm("none")` what a command needs
that trains nothing.
`warm.run(["-m", "chatbot_sft", …], cwd)` is what `subprocess.run([sys.executable, "-m", "chatbot_sft", …],
cwd=cwd)` is, in a process that the warm one forks: with an exit code, a standard output and error, signals
and an end of its own. Nothing of torch is used before the fork. What a library reads as it is imported
(HF_HOME, RANK) it has read already, so a test of such a variable, or of the imports themselves, starts a
process of its own.
"""

import gc
import importlib
import json
import logging
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

LIGHT = ("chatbot_sft.cli", "chatbot_sft.pipeline")  # none of them imports torch
MODULES = (
    *LIGHT, "chatbot_sft.export", "chatbot_sft.save.saver", "chatbot_sft.inference.hf_model",
    "chatbot_sft.train.guard", "chatbot_sft.train.loop", "trl.trainer.sft_trainer", "peft", "datasets", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "transformers.models.llama.modeling_llama", "transformers.models.llama.tokenization_llama",
)  # fmt: skip


class Warm:
    def __init__(self, engine: str):
        self.control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, __file__, engine, str(theirs.fileno())]
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, pass_fds=[theirs.fileno()]
            )

    def start(self, arguments, cwd, env=None) -> "Started":
        return Started(
            self.control, [str(argument) for argument in arguments], cwd, {**os.environ, **(env or {})}
        )

    def run(self, arguments, cwd, env=None, timeout=600) -> subprocess.CompletedProcess:
        return self.start(arguments, cwd, env).finish(timeout)

    def close(self):
        self.control.close()
        self.process.wait(timeout=60)


class Started:
    """A process that was forked for one command."""

    def __init__(self, control, arguments, cwd, env):
        self.arguments = arguments
        self.out, self.err = (tempfile.TemporaryFile("w+", encoding="utf-8") for _ in range(2))  # noqa: SIM115
        self.reply, theirs = socket.socketpair()
        self.answers = self.reply.makefile("r")
        with theirs, tempfile.TemporaryFile("w+", encoding="utf-8") as order:
            json.dump({"arguments": arguments, "cwd": str(cwd), "env": env}, order)
            order.flush()
            socket.send_fds(control, [b"!"], [file.fileno() for file in (order, self.out, self.err, theirs)])
        self.pid = int(self.answers.readline())

    def said(self) -> str:
        """Its standard error so far."""
        size = os.fstat(self.err.fileno()).st_size
        return os.pread(self.err.fileno(), size, 0).decode("utf-8", "replace")

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until it has said so."""
        limit = time.monotonic() + seconds
        while text not in self.said():
            assert time.monotonic() < limit, self.said()
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def finish(self, timeout: float = 600) -> subprocess.CompletedProcess:
        self.reply.settimeout(timeout)
        try:
            code = int(self.answers.readline())
        except TimeoutError:
            os.kill(self.pid, signal.SIGKILL)
            raise subprocess.TimeoutExpired(self.arguments, timeout, stderr=self.said()) from None
        said = []
        for file in (self.out, self.err):
            with file:
                file.seek(0)
                said.append(file.read())
        self.answers.close()
        self.reply.close()
        return subprocess.CompletedProcess(self.arguments, code, *said)


def prepare(engine: str) -> None:
    from chatbot_sft.model.engine import load_engine

    handler = (
        logging.NullHandler()
    )  # as in a run, so that no library adds one of its own while it is imported
    logging.getLogger().addHandler(handler)
    if engine != "none":
        load_engine(engine)
    for module in LIGHT if engine == "none" else MODULES:
        importlib.import_module(module)
    logging.getLogger().removeHandler(handler)
    load_engine.cache_clear()  # each run prepares its environment
    gc.collect()
    gc.freeze()  # no child collects what it was born with: it would copy every page of it


def serve(control: socket.socket) -> dict:
    """Returns in each forked process, with what is asked of it."""
    waiting = set()
    while True:
        word, files, _, _ = socket.recv_fds(control, 1, 4)
        if not word:
            for waiter in waiting:
                os.waitpid(waiter, 0)
            sys.exit()
        waiter = os.fork()
        if waiter == 0:
            break
        waiting.add(waiter)
        waiting -= {waiter for waiter in waiting if os.waitpid(waiter, os.WNOHANG)[0]}
        for file in files:
            os.close(file)
    order, out, err, reply = files
    control.close()
    child = os.fork()
    if child:  # waits, and says how it ended
        os.write(reply, f"{child}\n".encode())
        os.write(reply, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(out, 1)
    os.dup2(err, 2)
    asked = json.loads(Path(f"/proc/self/fd/{order}").read_text(encoding="utf-8"))
    for file in files:
        os.close(file)
    return asked


def become(arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Go on as `python ARGUMENTS` would."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    kind, *rest = arguments
    if kind == "-m":
        sys.path[0], sys.argv = cwd, rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif kind == "-c":
        sys.path[0], sys.argv = "", ["-c", *rest[1:]]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    else:
        sys.path[0], sys.argv = str(Path(kind).parent), arguments
        runpy.run_path(kind, run_name="__main__")


if __name__ == "__main__":
    prepare(sys.argv[1])
    become(**serve(socket.socket(fileno=int(sys.argv[2]))))
