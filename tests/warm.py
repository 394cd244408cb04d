"""Python processes without the ten seconds in which each imports torch, transformers and TRL.

`Warm("transformers", folder)` is a process that imports what a run needs; `Warm("none", folder)` what a
command needs that trains nothing. The workers of a test session have one of each: the first that wants it
starts it, it listens in `folder`, and ends with the last of them.
`warm.run(["-m", "chatbot_sft", …], cwd)` is what `subprocess.run([sys.executable, "-m", "chatbot_sft", …],
cwd=cwd)` is, in a process that the warm one forks: with an exit code, a standard output and error, signals
and an end of its own. Nothing of torch is used before the fork. What a library reads as it is imported
(HF_HOME, RANK) it has read already, so a test of such a variable, or of the imports themselves, starts a
process of its own. So does no verification of an export within: it is a fork too (the cold run of test_train.py has
the real one).
"""

import gc
import importlib
import json
import logging
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import strike
from filelock import FileLock

LIGHT = ("chatbot_sft.cli", "chatbot_sft.pipeline")  # none of them imports torch
MODULES = (
    *LIGHT, "chatbot_sft.export", "chatbot_sft.save.saver", "chatbot_sft.inference.hf_model",
    "chatbot_sft.train.guard", "chatbot_sft.train.loop", "trl.trainer.sft_trainer", "peft", "datasets", "matplotlib.figure",
    "matplotlib.backends.backend_agg", "transformers.models.llama.modeling_llama", "transformers.models.llama.tokenization_llama",
)  # fmt: skip


class Warm:
    def __init__(self, engine: str, folder: Path):
        address = folder / f"{engine}.sock"
        with FileLock(f"{address}.lock"):
            try:
                self.control = connected(address)
            except OSError:  # nobody listens, or not any more
                address.unlink(missing_ok=True)
                with socket.socket(socket.AF_UNIX) as listener:
                    listener.bind(str(address))
                    listener.listen()
                    command = [sys.executable, __file__, engine, str(listener.fileno())]
                    self.process = subprocess.Popen(
                        command,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        pass_fds=[listener.fileno()],
                    )
                self.control = connected(address)

    def start(self, arguments, cwd, env=None) -> "Started":
        arguments = [str(argument) for argument in arguments]
        return Started(self.control, arguments, cwd, {**os.environ, **(env or {})})

    def run(self, arguments, cwd, env=None, timeout=600) -> subprocess.CompletedProcess:
        return self.start(arguments, cwd, env).finish(timeout)

    def close(self):
        self.control.close()


def connected(address: Path) -> socket.socket:
    control = socket.socket(socket.AF_UNIX)
    control.connect(str(address))
    return control


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

    def wait_for(self, text: str, seconds: float = 600) -> None:
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


def serve(listener: socket.socket) -> dict:
    """Returns in each forked process, with what is asked of it."""
    waiting, workers = set(), []
    while True:
        for ready in select.select([listener, *workers], [], [])[0]:
            if ready is listener:
                workers.append(listener.accept()[0])
                continue
            word, files, _, _ = socket.recv_fds(ready, 1, 4)
            if not word:
                workers.remove(ready)
                ready.close()
                continue
            waiter = os.fork()
            if waiter == 0:
                for other in (listener, *workers):
                    other.close()
                return asked(*files)
            waiting.add(waiter)
            waiting -= {waiter for waiter in waiting if os.waitpid(waiter, os.WNOHANG)[0]}
            for file in files:
                os.close(file)
        if not workers and closed(listener):
            for waiter in waiting:
                os.waitpid(waiter, 0)
            sys.exit()


def closed(listener: socket.socket) -> bool:
    """Unless somebody has come since the last one left. Who comes holds the lock: nobody comes in between."""
    address = Path(listener.getsockname())
    with FileLock(f"{address}.lock"):
        if select.select([listener], [], [], 0)[0]:
            return False
        address.unlink()
        listener.close()
        return True


def asked(order: int, out: int, err: int, reply: int) -> dict:
    """What is asked, in a child of this process, which waits for it and says how it ended."""
    child = os.fork()
    if child:
        os.write(reply, f"{child}\n".encode())
        os.write(reply, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
        os._exit(0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.dup2(out, 1)
    os.dup2(err, 2)
    asked = json.loads(Path(f"/proc/self/fd/{order}").read_text(encoding="utf-8"))
    for file in (order, out, err, reply):
        os.close(file)
    return asked


def probe_in_a_fork(address: Path) -> None:
    """Of the process that listens there."""
    from chatbot_sft.save.verify import probe

    def run(command, env, **_):
        with connected(address) as control:
            return Started(control, command[1:], Path.cwd(), env).finish()

    probe.subprocess = types.SimpleNamespace(run=run)


def become(arguments: list[str], cwd: str, env: dict[str, str]) -> None:
    """Go on as `python ARGUMENTS` would."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    strike.install()
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
    listener = socket.socket(fileno=int(sys.argv[2]))
    address = Path(listener.getsockname()).with_name("transformers.sock")
    order = serve(listener)
    if sys.argv[1] != "none":
        probe_in_a_fork(address)
    become(**order)
