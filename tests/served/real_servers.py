"""Servers that run here: transformers serve (the serving extra), llama.cpp's own where it is installed, the Python
one in cyllama; and a proxy in front of one, with faults to plant.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from answering import Answering, Handler
from ports import reserved

SERVING = Path(sys.prefix) / "serving"  # what transformers serve needs, beside the environment


@contextlib.contextmanager
def started(command, cwd, env=None):
    """A server that `command` starts, with a port at its end: a function that waits until it is healthy, and says its
    address.
    """
    with reserved() as port, (cwd / f"server-{port}.log").open("w+") as log:
        process = subprocess.Popen(
            [*command, "--port", str(port)],
            cwd=cwd, env={**os.environ, **(env or {})}, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield functools.partial(ready, process, port, Path(log.name))
        finally:
            process.terminate()
            process.wait(300)


def ready(process, port, log):
    latest = time.monotonic() + 600
    while not healthy(port):
        assert process.poll() is None and time.monotonic() < latest, log.read_text()
        time.sleep(0.2)
    return f"http://127.0.0.1:{port}/v1"


def healthy(port) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def transformers_serve(cwd):
    """Of any model that a request names by its folder."""
    command = [
        Path(sys.executable).with_name("transformers"),
        "serve",
        "--host",
        "127.0.0.1",
        "--device",
        "cpu",
    ]
    path = os.pathsep.join(filter(None, [str(SERVING), os.environ.get("PYTHONPATH")]))
    return started(command, cwd, {"PYTHONPATH": path, "HF_HOME": str(cwd / "hf")})


def llama_server(file, cwd, *flags):
    command = [
        shutil.which("llama-server"),
        "-m",
        file,
        "--host",
        "127.0.0.1",
        "-t",
        "1",
        "-c",
        "512",
        *flags,
    ]
    return started(command, cwd)


class Proxy(Answering):
    """In front of the server at `behind`, asked for `model`; `fault` is one of the methods below, or None."""

    def __init__(self, behind: str, model: str, base: str):
        self.behind, self.model, self.base, self.fault = behind, model, base, None
        outer = self

        class Asked(Handler):
            def do_GET(self):
                self.reply(200, {"data": [{"id": "mai"}]} if self.path == "/v1/models" else {})

            def do_POST(self):
                body = self.body()
                if self.path != "/v1/chat/completions":
                    self.reply(404, {})
                    return
                plain = {
                    name: body[name] for name in ("messages", "temperature", "max_tokens", "frequency_penalty") if name in body
                }  # fmt: skip
                self.reply(200, getattr(outer, outer.fault or "healthy")({"model": outer.model, **plain}))

        super().__init__(Asked)

    def asked(self, path, body):
        request = urllib.request.Request(
            f"{self.behind}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=600) as reply:
            return json.loads(reply.read())

    def healthy(self, body):
        return self.asked("chat/completions", body)

    # faults

    def drops_the_system_prompt(self, body):
        kept = [message for message in body["messages"] if message["role"] != "system"]
        return self.healthy({**body, "messages": kept})

    def adds_a_beginning(self, body):
        return self.rendered(body, "<|im_start|>" + self.chatml(body))

    def swaps_the_template(self, body):
        text = "".join(f"### {m['role'].title()}:\n{m['content']}\n\n" for m in body["messages"])
        return self.rendered(body, f"{text}### Assistant:\n")

    def leaves_the_end(self, body):
        reply = self.healthy(body)
        reply["choices"][0]["message"]["content"] += "<|im_end|>\n<|im_start|>user"
        return reply

    def answers_with_the_base(self, body):
        return self.healthy({**body, "model": self.base})

    def chatml(self, body):
        text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in body["messages"])
        return f"{text}<|im_start|>assistant\n"

    def rendered(self, body, prompt):
        """As a gateway has it that renders by itself."""
        wanted = {name: body[name] for name in ("model", "temperature", "max_tokens")}
        reply = self.asked("completions", {**wanted, "prompt": prompt})
        choice = reply["choices"][0]
        message = {"role": "assistant", "content": choice["text"]}
        return {**reply, "choices": [{"message": message, "finish_reason": choice["finish_reason"]}]}
