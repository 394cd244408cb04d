"""The Modelfile as Ollama reads it: a small Go program follows its parser's rules, executes the template with
Go's own text/template on what Ollama hands it, and the prompt has to be the Jinja template's, letter by
letter."""

import itertools
import json
import os
import shutil
import subprocess
from dataclasses import dataclass

import pytest
from families import FAMILIES, TEMPLATES
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from chatbot_sft.data.template import ChatTemplate, ChatTokenizer
from chatbot_sft.save.gguf.ollama import Place, derive, go_string, modelfile, quoted

# A Modelfile's value ends with the first line that closes its quotes, white space behind them or not; runes
# that strconv.IsPrint refuses are dropped. `.System` is all system messages, neighbours of one role are one
# message, and the file's SYSTEM comes first where the user gives none.
OLLAMA = r"""
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"
	"text/template"
)

type Message struct{ Role, Content string }

type Case struct {
	Modelfile string
	Messages  []Message
}

type Answer struct {
	From, System, Prompt, Error string
	Stops                       []string
}

func unquoted(value string) (string, bool) {
	for _, quotes := range []string{"\"\"\"", "\""} {
		if strings.HasPrefix(value, quotes) {
			n := len(quotes)
			if len(value) >= 2*n && strings.HasSuffix(value, quotes) {
				return value[n : len(value)-n], true
			}
			return "", false
		}
	}
	return value, true
}

func commands(file string) map[string][]string {
	found := map[string][]string{}
	runes := []rune(file + "\n")
	for at := 0; at < len(runes); {
		word := func() string {
			begin := at
			for runes[at] != ' ' {
				at++
			}
			at++
			return string(runes[begin : at-1])
		}
		if strings.ContainsRune(" \t\r\n", runes[at]) {
			at++
			continue
		}
		if runes[at] == '#' {
			for runes[at] != '\n' && runes[at] != '\r' {
				at++
			}
			continue
		}
		name := word()
		if name == "PARAMETER" {
			name = word()
		}
		value, closed := "", false
		for ; at < len(runes); at++ {
			if runes[at] == '\n' || runes[at] == '\r' {
				var whole string
				if whole, closed = unquoted(strings.TrimSpace(value)); closed {
					found[name] = append(found[name], whole)
					break
				}
			}
			if strings.ContainsRune("\t\r\n", runes[at]) || strconv.IsPrint(runes[at]) {
				value += string(runes[at])
			}
		}
		if !closed {
			panic("unclosed " + name)
		}
	}
	return found
}

func collated(messages []Message) (string, []*Message) {
	var system []string
	var all []*Message
	for i := range messages {
		if messages[i].Role == "system" {
			system = append(system, messages[i].Content)
		}
		if n := len(all); n > 0 && all[n-1].Role == messages[i].Role {
			all[n-1].Content += "\n\n" + messages[i].Content
		} else {
			all = append(all, &messages[i])
		}
	}
	return strings.Join(system, "\n\n"), all
}

func answer(asked Case) (said Answer) {
	defer func() {
		if problem := recover(); problem != nil {
			said.Error = fmt.Sprint(problem)
		}
	}()
	found := commands(asked.Modelfile)
	said.From, said.Stops = strings.Join(found["FROM"], " "), found["stop"]
	messages := asked.Messages
	if len(found["SYSTEM"]) > 0 {
		said.System = found["SYSTEM"][0]
		if messages[0].Role != "system" {
			messages = append([]Message{{"system", said.System}}, messages...)
		}
	}
	if len(found["TEMPLATE"]) > 0 {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(found["TEMPLATE"][0]))
		system, all := collated(messages)
		var prompt strings.Builder
		if err := parsed.Execute(&prompt, map[string]any{"System": system, "Messages": all, "Response": ""}); err != nil {
			panic(err)
		}
		said.Prompt = prompt.String()
	}
	return
}

func main() {
	in, out := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var asked Case
		if err := json.Unmarshal(line, &asked); err != nil {
			panic(err)
		}
		out.Encode(answer(asked))
	}
}
"""


@pytest.fixture(scope="module")
def ollama(tmp_path_factory):
    """`ollama(modelfile, messages)` is what Ollama makes of them: From, System, Stops and the Prompt."""
    if not shutil.which("go"):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)("no go on PATH")
    folder = tmp_path_factory.mktemp("ollama")
    (folder / "main.go").write_text(OLLAMA, encoding="utf-8")
    environment = {
        **os.environ,
        "GO111MODULE": "off",
        "GOTOOLCHAIN": "local",
        "GOPROXY": "off",
        "GOFLAGS": "",
    }
    subprocess.run(["go", "build", "-o", "ollama", "main.go"], cwd=folder, env=environment, check=True)
    process = subprocess.Popen([folder / "ollama"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(file, messages=()):
        asked = {
            "Modelfile": file,
            "Messages": [{"Role": each["role"], "Content": each["content"]} for each in messages],
        }
        process.stdin.write(json.dumps(asked).encode() + b"\n")
        process.stdin.flush()
        said = json.loads(process.stdout.readline())
        assert not said["Error"], (said["Error"], file)
        return said

    yield ask
    process.stdin.close()
    assert process.wait(10) == 0
    process.stdout.close()


# ---- templates


def family(name, **kwargs):
    found = FAMILIES[name]
    return ChatTemplate(
        (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8"), found.named, kwargs, found.control
    )


def chatml_with(default):
    """As Qwen 2.5's and SmolLM2's: a system turn of the template's own where the user has none."""
    turn = (
        "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n' + default + '<|im_end|>\n' }}{%"
        " endif %}"
    )
    chatml = family("chatml")
    return ChatTemplate(turn + chatml.source, chatml.tokens, {"default": default}, chatml.control)


LLAMA2 = """{% set told = '' %}{% if messages[0]['role'] == 'system' %}
{%- set told = '<<SYS>>\n' + messages[0]['content'] + '\n<</SYS>>\n\n' %}{% set messages = messages[1:] %}{% endif %}
{%- for message in messages %}{% if message['role'] == 'user' %}
{{- bos_token + '[INST] ' + (told if loop.first else '') + message['content'] + ' [/INST]' }}
{%- else %}{{ ' ' + message['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"""
SENTENCE = {"bos_token": "<s>", "eos_token": "</s>"}
REFUSED = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
)
DEAF = (
    "{% for message in messages if message['role'] != 'system' %}<{{ message['role'] }}>{{ message['content']"
    " }}{% endfor %}<assistant>"
)
NASTY = 'Say "hi" and """bye"""\n{{ .System }} {{- end -}} \\n \t👩‍👩‍👧 }}'


@dataclass(frozen=True)
class Case:
    template: ChatTemplate
    place: Place | None = Place.TURN
    begin: str | None = None  # what llama.cpp writes by itself


CASES = {
    "chatml": Case(family("chatml")),
    "llama3": Case(family("llama3"), begin="<|begin_of_text|>"),
    "llama3, dated": Case(family("llama3", date_string="26 Jul 2024")),
    "qwen3": Case(family("qwen3")),
    "qwen3, not thinking": Case(family("qwen3", enable_thinking=False)),
    "gemma3": Case(family("gemma3"), Place.FIRST, "<bos>"),
    "mistral": Case(family("mistral"), Place.LAST, "<s>"),
    "phi3": Case(family("phi3")),
    "phi4": Case(family("phi4")),
    "default system prompt": Case(
        chatml_with("You are a helpful AI assistant named SmolLM, trained by Hugging Face")
    ),
    "nasty default system prompt": Case(chatml_with(NASTY)),
    "llama2": Case(ChatTemplate(LLAMA2, SENTENCE, {}, ("<s>", "</s>")), Place.FIRST, "<s>"),
    "gemma2 refuses system messages": Case(
        ChatTemplate(REFUSED + family("gemma3").source, family("gemma3").tokens), None, "<bos>"
    ),
    "system messages left out": Case(ChatTemplate(DEAF), None),
}
assert set(FAMILIES) < set(CASES)
QUESTIONS = ["Chào em, còn bia không?", 'a "b" {{ .Content }} """', "third\n\nquestion 👩‍👩‍👧"]
ANSWERS = ["Dạ còn ạ.", "{{ end }}\n\n\\n", "x"]


def talk(questions, system=None):
    """A conversation that ends with the last of so many questions."""
    turns = [
        [("user", question), ("assistant", answer)]
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True)
    ]
    said = [("system", system)] * bool(system) + list(itertools.chain(*turns[:questions]))[:-1]
    return [{"role": role, "content": content} for role, content in said]


def prompt_of(case, messages, begin=None):
    text = case.template.render(messages, add_generation_prompt=True)
    assert text.startswith(begin or "")
    return text.removeprefix(begin or "")


@pytest.mark.parametrize("name", CASES)
def test_go_writes_what_jinja_writes(name, ollama):
    case = CASES[name]
    made = modelfile(["m-Q8_0.gguf", "m-Q4_K_M.gguf"], case.template, ["<|stop|>", "</s>"], None, case.begin)
    assert made.complete
    assert getattr(derive(case.template).system, "place", None) == case.place
    for questions, system in itertools.product((1, 2, 3), (None, "Kurz & gut.\nBitte.")):
        said = ollama(made.text, talk(questions, system))
        assert said["Prompt"] == prompt_of(case, talk(questions, system if case.place else None), case.begin)
    assert said["From"] == "./m-Q8_0.gguf"
    assert said["Stops"] == ["<|stop|>", "</s>"]
    assert "# FROM ./m-Q4_K_M.gguf\n" in made.text


def test_the_embedded_models_own_template(smollm2, ollama):
    template = ChatTokenizer.from_folder(smollm2, "smollm2", {}).template
    made = modelfile(["m.gguf"], template, [], None)
    assert made.complete
    said = [ollama(made.text, messages)["Prompt"] for messages in (talk(2), talk(2, "Kurz."))]
    assert said == [
        template.render(messages, add_generation_prompt=True) for messages in (talk(2), talk(2, "Kurz."))
    ]
    assert "named SmolLM" in said[0]
    assert "named SmolLM" not in said[1]


@pytest.mark.parametrize("name", ["chatml", "llama3", "gemma3", "mistral", "default system prompt"])
def test_the_system_prompt_is_there_until_the_user_has_another(name, ollama):
    case = CASES[name]
    made = modelfile(["m.gguf"], case.template, [], "Du bist Mai.\nSei kurz.", case.begin)
    assert made.complete
    for users, used in ((None, "Du bist Mai.\nSei kurz."), ("Mine.", "Mine.")):
        said = ollama(made.text, talk(2, users))
        assert said["System"] == "Du bist Mai.\nSei kurz."
        assert said["Prompt"] == prompt_of(case, talk(2, used), case.begin)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.begin])
def test_a_beginning_of_text_is_written_where_the_tokenizer_does_not(name, ollama):
    case = CASES[name]
    assert ollama(modelfile(["m.gguf"], case.template, [], None).text, talk(2))["Prompt"] == prompt_of(
        case, talk(2)
    )


def test_an_unfinished_answer_is_gone_on_with(ollama):
    for name, header in (("chatml", "<|im_end|>\n<|im_start|>assistant\n"), ("mistral", "[/INST] ")):
        said = ollama(
            modelfile(["m.gguf"], CASES[name].template, [], None).text,
            [*talk(1), {"role": "assistant", "content": "It is"}],
        )
        assert said["Prompt"].endswith(QUESTIONS[0] + header + "It is")


def test_a_conversation_may_begin_with_the_assistant(ollama):
    messages = [{"role": "assistant", "content": "Hello!"}, *talk(1)]
    assert ollama(modelfile(["m.gguf"], CASES["chatml"].template, [], None).text, messages)[
        "Prompt"
    ] == prompt_of(CASES["chatml"], messages)


def test_todays_date_is_written_down_and_said_to_be(ollama):
    todays, fixed = (
        modelfile(["m.gguf"], CASES[name].template, [], None) for name in ("llama3", "llama3, dated")
    )
    assert "# The date in the template is that of this export" in todays.text
    assert "# The date" not in fixed.text
    assert "Today Date: 26 Jul 2024" in ollama(fixed.text, talk(1))["Prompt"]


# ---- what cannot be written

NUMBERED = (
    "{% for message in messages %}[{{ loop.index }}] {{ message['role'] }}: {{ message['content'] }}\n{%"
    " endfor %}assistant:"
)
LATE = DEAF.replace(
    "<assistant>",
    "{% if messages[0]['role'] == 'system' %}<system>{{ messages[0]['content'] }}{% endif %}<assistant>",
)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (NUMBERED, "of other pieces than those of its placeholders"),
        (
            LATE,
            (
                "the chat template writes the system message neither before the first question nor before the"
                " last"
            ),
        ),
        (
            "{{ messages[-1]['content'] }}",
            "the chat template leaves texts out, or writes them in another order",
        ),
        ("{{ raise_exception('only tools') }}", "the chat template refuses it: only tools"),
    ],
)
def test_a_template_without_counterpart_is_left_out_and_the_caller_told(source, reason, ollama):
    made = modelfile(["m.gguf"], ChatTemplate(source), ["</s>"], "Sei kurz.")
    assert not made.complete
    assert reason in made.problem
    assert f"# {made.problem}\n" in made.text
    assert "\nTEMPLATE" not in made.text
    said = ollama(made.text, talk(1))
    assert (said["From"], said["System"], said["Stops"]) == ("./m.gguf", "Sei kurz.", ["</s>"])


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.place is None])
def test_a_system_prompt_that_the_template_would_not_take_is_no_silent_loss(name, ollama):
    made = modelfile(["m.gguf"], CASES[name].template, [], "Sei kurz.")
    assert made.problem == "no SYSTEM: the chat template takes no system message"
    assert f"# {made.problem}\n" in made.text
    assert "\nSYSTEM" not in made.text
    assert ollama(made.text, talk(2))["Prompt"] == prompt_of(CASES[name], talk(2))


def test_without_a_template_a_system_prompt_may_be_one_that_no_modelfile_holds(ollama):
    made = modelfile(["m.gguf"], ChatTemplate(NUMBERED), ['a"""\nb'], 'a"""\nb')
    assert "no SYSTEM" in made.problem
    assert 'no PARAMETER stop for \'a"""\\nb\'' in made.problem
    said = ollama(made.text, talk(1))
    assert (said["System"], said["Stops"]) == ("", None)


def test_no_repetition_is_punished():
    """Ollama's default of 1.1 would give other answers than those that were trained, at temperature 0 too."""
    made = modelfile(["m.gguf"], ChatTemplate(NUMBERED), ["</s>"], None)
    assert made.text.endswith('PARAMETER stop "</s>"\nPARAMETER repeat_penalty 1\n')


# ---- any texts

TRIPLE = '"""'
LINES = [
    "a",
    " ",
    "\n",
    "\r",
    "\t",
    '"',
    '""',
    TRIPLE,
    f"{TRIPLE}\n",
    f"{TRIPLE} \t\n",
    "\\",
    "{{",
    "}}",
    "{{-",
    "#",
    "SYSTEM x",
    "\nFROM z\n",
]
RARE = [
    "👩‍👩‍👧",
    "\u00a0",
    "\u200b",
    "\x00",
    "\x7f",
    "\ue000",
    "\ufeff",
    "\u2028",
    "▁",
    "｜",
    "ạ",
    "ế",
    "🙂",
]
TEXTS = st.lists(
    st.sampled_from(LINES + RARE) | st.characters(max_codepoint=0x2FF), min_size=1, max_size=8
).map("".join)
many = settings(max_examples=300, suppress_health_check=list(HealthCheck))


@many
@given(system=TEXTS, question=TEXTS)
@example(system=TRIPLE, question="x")
@example(system='""', question="x")
@example(system='"', question="x")
@example(system=f"a{TRIPLE}\nb", question="x")
@example(system=f"\n{TRIPLE}", question="x")
@example(system=f"a{TRIPLE} ", question="x")
@example(system="\nFROM z\n", question="x")
@example(system=" a ", question="x")
def test_any_system_prompt_reaches_the_model_as_it_is(ollama, system, question):
    messages = [{"role": "user", "content": question}]
    made = modelfile(["m.gguf"], CASES["chatml"].template, ["<|im_end|>"], system)
    assert made.complete
    said = ollama(made.text, messages)
    assert said["Prompt"] == prompt_of(CASES["chatml"], [{"role": "system", "content": system}, *messages])
    assert (said["From"], said["Stops"]) == ("./m.gguf", ["<|im_end|>"])


@many
@given(text=TEXTS)
def test_a_quoted_value_is_read_as_it_was(ollama, text):
    value = quoted(text)
    if value is None:
        assert TRIPLE in text or not all(
            character.isprintable() or character in "\n\r\t" for character in text
        )
    else:
        assert ollama(f"PARAMETER stop {value}\nFROM ./m.gguf\n") == ollama("FROM ./m.gguf\n") | {
            "Stops": [text]
        }


@many
@given(text=TEXTS)
def test_a_go_string_is_its_text_in_one_line_without_triple_quotes(ollama, text):
    written = go_string(text)
    assert written.isprintable()
    assert TRIPLE not in written.replace('\\"', "")
    file = f"FROM ./m.gguf\nTEMPLATE {TRIPLE}{{{{ {written} }}}}{TRIPLE}\n"
    assert ollama(file, talk(1))["Prompt"] == text
