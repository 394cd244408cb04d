"""A healthy server of each kind passes; each fault is caught under its own name, as far as that server tells."""

from __future__ import annotations

import dataclasses

import pytest
from stand_in import BOS, END, SAID, SYSTEM, ids, kept, messages_of, rendered

from chatbot_sft import UserError
from chatbot_sft.evaluation.server import Server
from chatbot_sft.save.verify.compare import KL_BOUNDS
from chatbot_sft.save.verify.kept import TrainedAnswers
from chatbot_sft.served.ask import observe
from chatbot_sft.served.finding import Format, format_of
from chatbot_sft.served.judge import judge

KINDS = ["vllm", "llama.cpp", "ollama", "transformers", "bare"]
TOLD = ["vllm", "llama.cpp", "ollama", "transformers"]
Q8 = Format("q8_0", KL_BOUNDS["q8_0"], 1.0)


def judged(server, trained=None, served=Q8, others=()):
    trained = trained or kept()
    asking = Server(server.url, "mai", retries=0)
    return judge(trained, observe(asking, trained, lambda count: None), served, others)


def causes(found):
    return [finding.cause for finding in found.deciding]


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_server_passes(kind, stand_in):
    server = stand_in(kind)
    found = judged(server)
    assert causes(found) == []
    assert found.rows["greedy answers"] == "2/2 alike; 27/27 tokens up to the first that differs"
    assert found.rows["ends by itself"] == "2/2; 2/2 in training"
    how = {"vllm": "token ids", "llama.cpp": "token ids", "ollama": "lengths", "transformers": "lengths"}
    assert found.rows["prompts"] == (f"4/4 with the same {how[kind]}" if kind in how else "not told")
    offered = kind in ("vllm", "llama.cpp")
    assert ("not offered" in found.rows["probabilities"]) is not offered
    assert len(server.requests) == 4 + 1  # each prompt once, and one question without its system prompt
    if kind in how:
        assert "callers have to send it" in found.rows["system prompt"]
        assert SYSTEM in found.findings[0].advice


def test_what_is_asked_for_of_vllm_is_what_it_documents(stand_in):
    server = stand_in("vllm")
    judged(server)
    asked = server.requests[0]
    assert (asked["temperature"], asked["logprobs"], asked["return_token_ids"]) == (0, True, True)
    assert "chat_template_kwargs" not in asked
    assert "/tokenize" not in server.paths  # the reply has said it


def of(change):
    """A template that is `change`d after the right one."""
    return lambda messages: change(rendered(messages))


def without_system(messages):
    return rendered([message for message in messages if message["role"] != "system"])


def other_template(messages):
    return ids(" ".join(f"<s> <{m['role']}> = {m['content']} ;" for m in messages) + " <assistant> =")


def no_template(messages):
    return ids(" ".join(m["content"] for m in messages))


FAULTS = {
    "twice": (of(lambda prompt: [BOS, *prompt]), "Double beginning of text"),
    "no beginning": (of(lambda prompt: prompt[1:]), "The beginning of text is missing"),
    "system": (without_system, "The system prompt is dropped"),
    "opening": (of(lambda prompt: prompt[:-2]), "The opening of the answer is missing"),
    "cut": (of(lambda prompt: prompt[-6:]), "The prompt is cut"),
}


@pytest.mark.parametrize("kind", ["vllm", "ollama", "transformers"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_becomes_of_the_prompt_is_named(fault, kind, stand_in):
    server = stand_in(kind)
    server.render, cause = FAULTS[fault]
    server.say = server.base  # another prompt has another answer: no finding of its own
    found = judged(server)
    assert causes(found) == [cause]
    assert "greedy answers" in found.open


@pytest.mark.parametrize(
    ("render", "kind", "cause"),
    [
        (other_template, "vllm", "Another chat template, or none"),
        (other_template, "ollama", "Another chat template, or none"),
        (no_template, "llama.cpp", "No chat template"),
        (no_template, "vllm", "No chat template"),
        (of(lambda prompt: [n + 500 for n in prompt]), "vllm", "Another tokenizer"),
    ],
)
def test_another_template_or_tokenizer(render, kind, cause, stand_in):
    server = stand_in(kind)
    server.render = render
    found = judged(server)
    assert causes(found) == [cause]
    assert found.findings[0].line.startswith("prompts: prompt 1 ")


def test_a_count_that_is_not_that_of_the_ids_counts(stand_in):
    """A proxy behind /tokenize that adds a beginning to what is answered alone."""
    server = stand_in("llama.cpp")
    complete = server.completed

    def completed(body):
        status, reply = complete(body)
        reply["usage"]["prompt_tokens"] += 1
        return status, reply

    server.completed = completed
    assert causes(judged(server)) == ["Double beginning of text"]


def test_without_a_beginning_in_training_one_is_added(stand_in):
    server = stand_in("ollama")
    trained = kept()
    prompts = [
        dataclasses.replace(prompt, ids=prompt.ids[1:], without_system=None) for prompt in trained.prompts
    ]
    found = judged(server, dataclasses.replace(trained, prompts=prompts))
    assert causes(found) == ["A beginning of text that training had not"]


def test_a_server_that_has_the_system_prompt_itself(stand_in):
    server = stand_in("ollama")
    with_default = [{"role": "system", "content": SYSTEM}]
    server.render = lambda m: rendered(m if m[0]["role"] == "system" else [*with_default, *m])
    found = judged(server)
    assert (causes(found), found.rows["system prompt"]) == ([], "the server puts it in by itself")


# Answers


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_in_place_of_the_adapter(kind, stand_in):
    server = stand_in(kind)
    server.say = server.base
    found = judged(server, others=["mai-lora"])
    assert causes(found)[0] == "The base model answers, without the adapter"
    assert "(it also has mai-lora)" in found.deciding[0].advice
    assert set(causes(found)) <= {"The base model answers, without the adapter", "The same"}
    assert "answer 1 differs at token 2 ('open' → ' cannot know')" in found.deciding[0].what


@pytest.mark.parametrize("kind", ["vllm", "ollama"])
def test_another_model(kind, stand_in):
    server = stand_in(kind)
    server.say = lambda body: "Something else"
    assert causes(judged(server))[0] == "Another model, or another adapter"


@pytest.mark.parametrize("kind", ["vllm", "ollama", "transformers"])
@pytest.mark.parametrize(
    ("margin", "expected"), [(0.9, []), (3.0, ["Another quantisation, or fewer bits than that"])]
)
def test_a_difference_counts_where_the_trained_model_was_sure(margin, expected, kind, stand_in):
    server = stand_in(kind)
    server.say = lambda body: server.trained(body).replace("nine", "maybe")
    assert causes(judged(server, kept(margin=margin))) == expected


def test_a_penalty_of_the_servers_own(stand_in):
    for kind in ("vllm", "transformers"):
        server = stand_in(kind)
        server.say = lambda body, server=server: (
            server.trained(body)
            if "frequency_penalty" in body
            else server.trained(body).replace("at", "maybe")
        )
        assert causes(judged(server)) == ["A repetition penalty of the server's own"]


def test_a_server_that_samples(stand_in):
    server = stand_in("ollama")
    said = iter("abcdefghijklmnop")
    server.say = lambda body: f"We {next(said)}"
    assert causes(judged(server)) == ["The server samples"]


def test_thinking_that_the_server_takes_out_of_the_text(stand_in):
    server = stand_in("vllm")
    trained = kept()
    first = trained.answers[0]
    pieces = ["<think>\n", *first.pieces[1:8], "\n</think>\n\n", *first.pieces[9:]]
    answers = [dataclasses.replace(first, pieces=pieces), trained.answers[1]]
    complete = server.completed

    def completed(body):
        status, reply = complete(body)
        message = reply["choices"][0]["message"]
        if message["content"].startswith("We open"):
            message["reasoning_content"], message["content"] = "".join(pieces[1:8]), "".join(pieces[9:])
        return status, reply

    server.completed = completed
    assert causes(judged(server, dataclasses.replace(trained, answers=answers))) == []


# Ends


def goes_on(server, behind):
    server.say = lambda body: server.trained(body) + behind
    return server


@pytest.mark.parametrize("kind", KINDS)
def test_an_end_token_that_is_written(kind, stand_in):
    found = judged(goes_on(stand_in(kind), " <end> <user> and so on"))
    assert causes(found) == ["The end token is written, not obeyed"]
    assert "send stop=['<end>']" in found.deciding[0].advice


@pytest.mark.parametrize("kind", ["ollama", "transformers", "bare"])
def test_an_answer_that_goes_on(kind, stand_in):
    found = judged(goes_on(stand_in(kind), " and on" * 40))
    assert causes(found) == ["The server does not stop at '<end>'"]


def test_an_end_that_the_trained_model_was_not_sure_of(stand_in):
    assert causes(judged(goes_on(stand_in("ollama"), " indeed"), kept(margin=0.5))) == []


def test_an_answer_that_was_cut_in_training_does_not_have_to_end(stand_in):
    trained = dataclasses.replace(kept(ended=False), max_new_tokens=9)
    answers = [
        dataclasses.replace(answer, ids=answer.ids[:9], pieces=answer.pieces[:9])
        for answer in trained.answers
    ]
    found = judged(stand_in("ollama"), dataclasses.replace(trained, answers=answers))
    assert causes(found) == []


def test_a_server_that_caps_answers(stand_in):
    server = stand_in("ollama")
    complete = server.completed
    server.completed = lambda body: complete({**body, "max_tokens": min(5, body["max_tokens"])})
    found = judged(server)
    assert causes(found) == ["A limit of the server's"]
    assert "answer 1 is cut after 5 tokens, 40 were asked for" in found.deciding[0].what


# Probabilities, dates, formats


@pytest.mark.parametrize("kind", ["vllm", "llama.cpp"])
@pytest.mark.parametrize(
    ("logprobs", "expected"),
    [
        ((-0.003, -5.9), []),
        ((-0.2, -1.8), ["Another quantisation, or fewer bits than that"]),
        ((-7.0, -0.2), ["The base model answers, without the adapter"]),
    ],
)
def test_probabilities_are_held_to_the_formats_bound(logprobs, expected, kind, stand_in):
    server = stand_in(kind)
    server.logprobs = logprobs
    assert causes(judged(server)) == expected


def test_a_date_in_the_template_is_none_of_the_servers_faults(stand_in):
    server = stand_in("ollama")
    trained = kept(date_string="26 Jul 2026")
    server.render = lambda messages: [*rendered(messages)[:-1], *ids("x"), rendered(messages)[-1]]
    server.say = server.base
    found = judged(server, trained)
    assert causes(found) == []
    assert "26 Jul 2026" in found.findings[0].what
    server = stand_in("vllm")
    judged(server, trained)
    assert server.requests[0]["chat_template_kwargs"] == {"date_string": "26 Jul 2026"}


def test_as_what_it_is_served():
    checks = {"q4_k_m": {"noise": 4.2}, "f16": {}}
    assert format_of(None, ["mai"], checks, False) == Format("q4_k_m", 0.4, 4.2)
    assert format_of(None, ["mai", "/models/Mai-Q8_0.gguf"], checks, False).kind == "q8_0"
    assert format_of(None, ["out/merged_16bit"], checks, False) == Format("merged_16bit", 0.02, 0.5)
    assert format_of("f16", ["mai-q8_0"], checks, False).kind == "f16"
    assert format_of(None, ["mai"], {}, False).kind == "merged_16bit"
    assert format_of(None, ["mai"], {}, True) == Format("merged_16bit", 0.02 + 0.4, 3.5)
    assert format_of(None, ["mai-bf16"], {}, False).kind == "bf16"  # not f16


def test_what_was_kept_is_read_again(tmp_path):
    trained = kept()
    trained.write(tmp_path / "kept.json")
    assert TrainedAnswers.read(tmp_path / "kept.json") == trained
    assert trained.answers[0].text == SAID[0]
    assert trained.answers[0].ids[-1] == END
    assert trained.prompts[0].messages == messages_of("When do you open today")


def test_a_server_that_refuses_everything_is_one_line(stand_in):
    server = stand_in("vllm")
    server.completed = lambda body: (400, {"error": {"message": "no"}})
    with pytest.raises(UserError, match=r"answers 400: no$"):
        judged(server)
