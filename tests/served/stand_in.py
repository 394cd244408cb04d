"""A toy model behind the replies of vLLM, llama.cpp, Ollama and transformers serve, with faults to plant.

A token is a word. The template writes <s> before all, <system>, <user> or <assistant> before a message and <end>
behind it. Replies have the fields that each server's own documentation and sources name.
"""

from __future__ import annotations

import json

from answering import Answering, Handler

from chatbot_sft.save.verify.kept import Prompt, TrainedAnswer, TrainedAnswers

WORDS = ["<s>", "<end>", "<system>", "<user>", "<assistant>"]
BOS, END = 0, 1
SYSTEM = "You are Mai"
QUESTIONS = ["When do you open today", "Where are you", "Who", "Do you have a beer garden for us"]
SAID = [
    "We open at nine and close at ten each day of the week but for Monday",
    "We are at the old harbour near the bridge",
]
BASE_SAID = ["We cannot know that", "As a model I am nowhere"]
CHATML = "another template"


def ids(text: str) -> list[int]:
    found = []
    for word in text.split():
        if word not in WORDS:
            WORDS.append(word)
        found.append(WORDS.index(word))
    return found


def rendered(messages, opening=True) -> list[int]:
    text = "<s> " + " ".join(f"<{m['role']}> {m['content']} <end>" for m in messages)
    return ids(f"{text} <assistant> :" if opening else text)


def messages_of(question: str) -> list[dict]:
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}]


def kept(margin=6.0, ended=True, **more) -> TrainedAnswers:
    """What the toy model said: sure by `margin` of every token."""
    prompts = [
        Prompt(m, rendered(m), rendered(m[1:]), rendered(m, opening=False))
        for m in map(messages_of, QUESTIONS)
    ]
    answers = [_answer(said, base, margin, ended) for said, base in zip(SAID, BASE_SAID, strict=True)]
    return TrainedAnswers(
        **{
            "prompts": prompts, "answers": answers, "max_new_tokens": 40, "ends": [END], "control": [0, 1, 2, 3, 4], "bos": BOS,
            "system_prompt": SYSTEM, "date_string": None, "over_4_bits": False, "tokens": dict(enumerate(WORDS)), **more,
        }
    )  # fmt: skip


def _answer(said, base, margin, ended):
    tokens = [*ids(said), END] if ended else ids(said)
    of_base = (ids(base) + tokens)[: len(tokens)]
    pieces = [f" {WORDS[n]}" if place else WORDS[n] for place, n in enumerate(tokens)]
    if ended:
        pieces[-1] = ""
    others = [ids("maybe")[0]] * len(tokens)
    return TrainedAnswer(
        tokens, pieces, ended, [margin] * len(tokens), [[n, o] for n, o in zip(tokens, others, strict=True)],
        [[-0.0025, -6.0]] * len(tokens), [[-7.0, -0.2]] * len(tokens), of_base,
    )  # fmt: skip


class StandIn(Answering):
    """`kind` is vllm, llama.cpp, ollama, transformers or bare (which tells nothing but the answer)."""

    def __init__(self, kind: str):
        self.kind = kind
        self.models = ["mai"]
        self.render = rendered  # messages → ids, as the server has them
        self.say = lambda asked: self.trained(asked)  # the body of a request → text
        self.finish = "stop"
        self.logprobs = (-0.003, -5.9)  # of the likeliest, and of the second
        self.requests, self.paths = [], []
        self.streams, self.fault = True, None  # half, error, broken: of a stream
        outer = self

        class Asked(Handler):
            def do_GET(self):
                outer.paths.append(self.path)
                if self.path == "/v1/models":
                    self.reply(200, {"data": [{"id": name} for name in outer.models]})
                elif self.path == "/props" and outer.kind == "llama.cpp":
                    self.reply(200, {"model_path": "/models/mai-Q8_0.gguf", "chat_template": "…"})
                else:
                    self.reply(404, {"error": {"message": "File Not Found"}})

            def do_POST(self):
                body = self.body()
                outer.paths.append(self.path)
                status, reply = outer.answered(self.path, body)
                if body.get("stream") and outer.streams and status == 200:
                    self.events(reply)
                else:
                    self.reply(status, reply)

            def events(self, reply):
                """As the OpenAI API streams: a delta a word, the reason of the end, a last line."""
                choice = reply["choices"][0]
                words = choice["message"]["content"].split(" ")
                parts = [
                    {"delta": {"content": word if not place else f" {word}"}, "finish_reason": None}
                    for place, word in enumerate(words)
                ]
                lines = [json.dumps({"choices": [part]}) for part in parts]
                lines.append(
                    json.dumps({"choices": [{"delta": {}, "finish_reason": choice["finish_reason"]}]})
                )
                if outer.fault == "half":
                    lines = lines[:2]
                elif outer.fault == "error":
                    lines[2:] = [json.dumps({"error": {"message": "out of memory"}})]
                elif outer.fault == "broken":
                    lines[2:] = ['{"choices": [']
                else:
                    lines += [json.dumps({"choices": [], "usage": reply.get("usage")}), "[DONE]"]
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream; charset=utf-8")
                self.send_header("Connection", "close")
                self.end_headers()
                self.wfile.write("".join(f"data: {line}\n\n" for line in lines).encode())
                self.close_connection = True

        super().__init__(Asked)

    def trained(self, body) -> str:
        question = body["messages"][-1]["content"]
        return dict(zip(QUESTIONS, SAID, strict=False)).get(question, "We do")

    def base(self, body) -> str:
        question = body["messages"][-1]["content"]
        return dict(zip(QUESTIONS, BASE_SAID, strict=False)).get(question, "I do")

    def answered(self, path, body):
        match path, self.kind:
            case "/tokenize", "vllm":
                return 200, {"count": 1, "max_model_len": 4096, "tokens": self.render(body["messages"])}
            case "/apply-template", "llama.cpp":
                return 200, {"prompt": " ".join(WORDS[n] for n in self.render(body["messages"])[1:])}
            case "/tokenize", "llama.cpp":  # the vocabulary adds <s>
                return 200, {"tokens": [BOS, *ids(body["content"])] if "content" in body else []}
            case "/v1/chat/completions", _:
                return self.completed(body)
        return 404, {"detail": "Not Found"}

    def completed(self, body):
        known = {"model", "messages", "temperature", "max_tokens", "stream", "logprobs", "top_logprobs"}
        if self.kind == "transformers" and (unknown := body.keys() - known - {"frequency_penalty"}):
            return 422, {"detail": f"Unexpected fields in the request: {unknown}"}
        self.requests.append(body)
        prompt, words = self.render(body["messages"]), self.say(body).split()
        cut = words[: body["max_tokens"]]
        ended = len(cut) == len(words) and len(words) < body["max_tokens"]
        message = {"role": "assistant", "content": " ".join(cut)}
        choice = {"index": 0, "message": message, "finish_reason": self.finish if ended else "length"}
        reply = {"object": "chat.completion", "model": body["model"], "choices": [choice]}
        tokens = [*ids(" ".join(cut)), *([END] if ended and self.finish == "stop" else [])]
        if self.kind != "bare":
            reply["usage"] = {"prompt_tokens": len(prompt), "completion_tokens": len(tokens)}
        if self.kind == "ollama":
            reply["system_fingerprint"] = "fp_ollama"
        if self.kind == "vllm" and body.get("return_token_ids"):
            reply["prompt_token_ids"], choice["token_ids"] = prompt, tokens
        if self.kind in ("vllm", "llama.cpp") and body.get("logprobs"):
            choice["logprobs"] = {"content": [self._place(n) for n in tokens]}
        return 200, reply

    def _place(self, token):
        first, second = self.logprobs
        top = [self._token(token, first), self._token(ids("maybe")[0], second)]
        return {**top[0], "top_logprobs": top}

    def _token(self, token, logprob):
        if self.kind == "vllm":
            return {"token": f"token_id:{token}", "logprob": logprob, "bytes": None}
        return {"id": token, "token": f" {WORDS[token]}", "bytes": [], "logprob": logprob}
