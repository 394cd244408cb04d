"""A small OpenAI-compatible server on this machine, with faults to plant."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter

from answering import Answering, Handler


class FaultyServer(Answering):
    """`url` is its address. `answer(messages)` makes the text; `faults` are taken one by one before that, each a
    name below; `always` is the fault of every request for an answer. `requests` are the bodies, `headers` of each.
    """

    def __init__(self):
        self.answer = lambda messages: f"echo: {messages[-1]['content']}"
        self.faults, self.always, self.models = [], None, ["mai"]
        self.requests, self.headers, self.paths = [], [], Counter()
        self.usage = True
        self.over = threading.Event()  # nobody waits for a late answer any more
        self._lock = threading.Lock()
        outer = self

        class Asked(Handler):
            def do_GET(self):
                outer.paths[self.path] += 1
                outer.headers.append(dict(self.headers))
                if outer.models is None:
                    self.reply(404, b"")
                elif isinstance(outer.models, bytes):
                    self.reply(200, outer.models, "text/html")
                else:
                    self.reply(200, {"object": "list", "data": [{"id": name} for name in outer.models]})

            def do_POST(self):
                body = self.body()
                with outer._lock:
                    outer.paths[self.path] += 1
                    outer.requests.append(body)
                    outer.headers.append(dict(self.headers))
                    fault = outer.faults.pop(0) if outer.faults else outer.always
                if fault:
                    with contextlib.suppress(OSError):
                        getattr(self, fault)()
                    return
                text = outer.answer(body["messages"])
                usage = {"completion_tokens": len(text.split())}
                choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                self.reply(200, {"choices": [choice], **({"usage": usage} if outer.usage else {})})

            # faults

            def busy(self):
                self.reply(503, {"error": {"message": "loading model"}}, **{"Retry-After": "0"})

            def error(self):
                self.reply(400, {"error": {"message": "context length exceeded"}})

            def wants_key(self):
                self.reply(401, {"error": {"message": "no key"}})

            def error_in_200(self):
                self.reply(200, {"error": "out of memory"})

            def html(self):
                self.reply(200, b"<!doctype html><h1>It works!</h1>", "text/html")

            def nothing(self):
                self.reply(200, {"choices": []})

            def half(self):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                self.wfile.write(b'{"choices": [{"message"')
                self.wfile.flush()
                self.close_connection = True

            def events(self):
                self.reply(200, b'data: {"choices": [{"delta": {"content": "ni', "text/event-stream")

            def slow(self):
                outer.over.wait(600)

            def drip(self):
                self.send_response(200)
                self.send_header("Content-Length", "1000")
                self.end_headers()
                while not outer.over.wait(0.05):
                    self.wfile.write(b" ")
                    self.wfile.flush()

            def hang_up(self):
                self.close_connection = True

            def elsewhere(self):
                self.reply(302, b"", Location="http://example.com/v1")

        super().__init__(Asked)

    def close(self):
        self.over.set()
        super().close()
