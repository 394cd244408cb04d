"""Seven model families: what their chat templates write, by hand, and small tokenizers of their kinds.

`tests/templates` has the templates as their model cards do. What each of them writes is written down here a
second time, as pieces of which each is trained or not. The tokenizers (byte-level BPE, SentencePiece-like BPE
with byte fallback) have the families' own control tokens, normalizers, pre-tokenizers and post-processors.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from conftest import EXAMPLE

TEMPLATES = Path(__file__).parent / "templates"
DATE = "26 Jul 2024"
Pieces = list[tuple[str, bool]]  # what a template writes, and whether it is trained


# ---- what the templates write, by hand


def turns(
    messages: list[dict],
    header: Callable[[str], str],
    end: str,
    text: Callable[[str], str] = str,
    after: str = "",
) -> Pieces:
    """A header, the text, an end and what comes after it for each message: the plain kind of template."""
    pieces = []
    for message in messages:
        written = text(message["content"]) + end
        answer = message["role"] == "assistant"
        pieces += [(header(message["role"]), False), (written, answer), *([(after, False)] if after else [])]
    return pieces


def chatml(messages: list[dict]) -> Pieces:
    return turns(messages, lambda role: f"<|im_start|>{role}\n", "<|im_end|>", after="\n")


def phi4(messages: list[dict]) -> Pieces:
    return turns(messages, lambda role: f"<|im_start|>{role}<|im_sep|>", "<|im_end|>")


def phi3(messages: list[dict]) -> Pieces:
    """The conversation ends with the end of text, which the model has to generate as well."""
    *before, (last, trained) = turns(messages, lambda role: f"<|{role}|>\n", "<|end|>\n")
    return [*before, (last + "<|endoftext|>", trained)]


def gemma3(messages: list[dict]) -> Pieces:
    """The system prompt stands in the first user's turn, and is the one text that is not stripped."""
    names = {"user": "user", "assistant": "model"}
    (_, system), rest = (
        (("", messages[0]["content"] + "\n\n"), messages[1:])
        if messages[0]["role"] == "system"
        else (("", ""), messages)
    )
    pieces = turns(rest, lambda role: f"<start_of_turn>{names[role]}\n", "<end_of_turn>\n", str.strip)
    return [
        ("<bos><start_of_turn>user\n" + system + pieces[0][0].removeprefix("<start_of_turn>user\n"), False),
        *pieces[1:],
    ]


def mistral(messages: list[dict]) -> Pieces:
    """The space before an answer is the answer's: the prompt ends with [/INST]. A system prompt is written
    into the last message alone where that is the user's, so never into a whole conversation."""
    pieces: Pieces = [("<s>", False)]
    for message in messages:
        if message["role"] == "user":
            pieces.append((f"[INST] {message['content']}[/INST]", False))
        elif message.get("tool_calls"):
            calls = ", ".join(
                json.dumps({**call["function"], "id": call["id"]}, ensure_ascii=False)
                for call in message["tool_calls"]
            )
            pieces.append((f"[TOOL_CALLS] [{calls}]</s>", True))
        elif message["role"] == "tool":
            pieces.append(
                (
                    (
                        f'[TOOL_RESULTS] {{"content": {message["content"]}, "call_id":'
                        f' "{message["tool_call_id"]}"}}[/TOOL_RESULTS]'
                    ),
                    False,
                )
            )
        elif message["role"] == "assistant":
            pieces.append((f" {message['content'].strip()}</s>", True))
    return pieces


def llama3(messages: list[dict]) -> Pieces:
    system, rest = (
        (messages[0]["content"].strip(), messages[1:]) if messages[0]["role"] == "system" else ("", messages)
    )
    head = "<|start_header_id|>{}<|end_header_id|>\n\n"
    opening = (
        f"<|begin_of_text|>{head.format('system')}Cutting Knowledge Date: December 2023\nToday Date:"
        f" {DATE}\n\n{system}<|eot_id|>"
    )
    pieces: Pieces = [(opening, False)]
    for message in rest:
        if message["role"] == "tool":
            pieces.append(
                (
                    f"{head.format('ipython')}{json.dumps(message['content'], ensure_ascii=False)}<|eot_id|>",
                    False,
                )
            )
        elif message.get("tool_calls"):
            call = message["tool_calls"][0]["function"]
            written = (
                f'{{"name": "{call["name"]}", "parameters":'
                f" {json.dumps(call['arguments'], ensure_ascii=False)}}}<|eot_id|>"
            )
            pieces += [(head.format("assistant"), False), (written, True)]
        else:
            pieces += turns([message], head.format, "<|eot_id|>", str.strip)
    return pieces


def qwen3(messages: list[dict]) -> Pieces:
    """Thoughts are written after the last question alone, and there in every last answer, be they empty."""
    wrapped = ("<tool_response>", "</tool_response>")
    users = [n for n, message in enumerate(messages) if message["role"] == "user"]
    asked = [
        n
        for n in users
        if not (messages[n]["content"].startswith(wrapped[0]) and messages[n]["content"].endswith(wrapped[1]))
    ]
    question = max(asked, default=len(messages) - 1)
    pieces: Pieces = []
    for number, message in enumerate(messages):
        content = message["content"]
        if message["role"] == "tool":
            pieces.append(
                (f"<|im_start|>user\n<tool_response>\n{content}\n</tool_response><|im_end|>\n", False)
            )
        elif message["role"] != "assistant":
            pieces.append((f"<|im_start|>{message['role']}\n{content}<|im_end|>\n", False))
        else:
            thought = message.get("reasoning_content", "")
            if "reasoning_content" not in message and "</think>" in content:
                thought = content.split("</think>")[0].rstrip("\n").split("<think>")[-1].lstrip("\n")
                content = content.split("</think>")[-1].lstrip("\n")
            if number > question and (number == len(messages) - 1 or thought):
                thought = thought.strip("\n")
                content = f"<think>\n{thought}\n</think>\n\n" + content.lstrip("\n")
            for call in message.get("tool_calls", ()):
                arguments = json.dumps(call["function"]["arguments"], ensure_ascii=False)
                content += (
                    "\n"
                    * bool(content)
                    + f'<tool_call>\n{{"name": "{call["function"]["name"]}", "arguments":'
                    f" {arguments}}}\n</tool_call>"
                )
            pieces += [("<|im_start|>assistant\n", False), (f"{content}<|im_end|>", True), ("\n", False)]
    return pieces


# ---- the families and their tokenizers


@dataclass(frozen=True)
class Family:
    """A template's oracle, its control tokens, and its turn markers as Unsloth's users give them."""

    pieces: Callable[[list[dict]], Pieces]
    user: str
    assistant: str
    end: str
    named: dict[str, str]  # bos_token, eos_token, …
    control: tuple[str, ...]
    words: tuple[str, ...] = ()  # added tokens that are text
    tools: bool = False
    numbers: str = ""  # byte-level families: what the pre-tokenizer takes as one number
    normalizer: dict | None = None
    eats: bool = False  # control tokens take the white space behind them, as Phi-3's do


HEADERS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
SPACES = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
INST = (
    "<unk>",
    "<s>",
    "</s>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
)
PHI3 = ("<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
IM = {"user": "<|im_start|>user\n", "assistant": "<|im_start|>assistant\n", "end": "<|im_end|>"}
FAMILIES = {
    "chatml": Family(
        chatml, **IM, control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        named={"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    ),
    "llama3": Family(
        llama3, "<|start_header_id|>user<|end_header_id|>\n\n", "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>",
        named={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "pad_token": "<|finetune_right_pad_id|>"},
        control=HEADERS, tools=True, numbers=r"\p{N}{1,3}",
    ),
    "qwen3": Family(
        qwen3, **IM, control=("<|endoftext|>", "<|im_start|>", "<|im_end|>"), named={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        words=("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"), tools=True, numbers=r"\p{N}",
        normalizer={"type": "NFC"},
    ),
    "phi4": Family(
        phi4, "<|im_start|>user<|im_sep|>", "<|im_start|>assistant<|im_sep|>", "<|im_end|>",
        named={"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
        control=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>"), numbers=r"\p{N}{1,3}",
    ),
    "gemma3": Family(
        gemma3, "<start_of_turn>user\n", "<start_of_turn>model\n", "<end_of_turn>",
        named={"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"},
        control=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"), words=("\n\n", "\n\n\n", "▁▁", "▁▁▁"), normalizer=SPACES,
    ),
    "mistral": Family(
        mistral, "[INST]", "[/INST]", "</s>", named={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}, control=INST, tools=True,
    ),
    "phi3": Family(
        phi3, "<|user|>\n", "<|assistant|>\n", "<|end|>",
        named={"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}, control=PHI3, eats=True,
        normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, SPACES]},
    ),
}  # fmt: skip


def write_folders(base: Path, bytes_: dict) -> dict[str, Path]:
    """The families' tokenizer folders below `base`; the byte-level ones over the vocabulary of the
    tokenizer.json `bytes_`.
    """
    pieces, found = sentence_pieces(), {}
    for name, family in FAMILIES.items():
        made = (
            byte_level(bytes_, family) if "unk_token" not in family.named else sentence_piece(pieces, family)
        )
        found[name] = base / name
        found[name].mkdir()
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "clean_up_tokenization_spaces": False,
            "model_max_length": 8192,
            **family.named,
        }
        template = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
        for file, text in (
            ("tokenizer.json", json.dumps(made)),
            ("tokenizer_config.json", json.dumps(config)),
            ("chat_template.jinja", template),
        ):
            (found[name] / file).write_text(text, encoding="utf-8")
    return found


def byte_level(base: dict, family: Family) -> dict:
    """The embedded model's vocabulary under the family's pre-tokenizer."""
    made = {**base, "normalizer": family.normalizer}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    if family.numbers:
        words = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
        pattern = rf"{words}|{family.numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
        split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        made |= {
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "post_processor": level,
        }
    return with_tokens(made, family)


def sentence_pieces() -> dict:
    """A BPE of the example data in SentencePiece's manner, too small for every letter: the others become
    bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=2000, limit_alphabet=100, special_tokens=["<unk>", *bytes_], show_progress=False
    )
    tokenizer.train_from_iterator(
        [
            message["content"]
            for row in json.loads(EXAMPLE.read_text(encoding="utf-8"))
            for message in row["messages"]
        ],
        trainer,
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    made = json.loads(tokenizer.to_str())
    made["added_tokens"] = []
    return made


def sentence_piece(base: dict, family: Family) -> dict:
    made = {**base, "normalizer": family.normalizer, "pre_tokenizer": None}
    if family.normalizer is None:
        made["pre_tokenizer"] = {
            "type": "Metaspace",
            "replacement": "▁",
            "prepend_scheme": "first",
            "split": False,
        }
    if family.normalizer != SPACES:
        strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
        made["decoder"] = {"type": "Sequence", "decoders": [*base["decoder"]["decoders"], strip]}
    return with_tokens(made, family)


def with_tokens(made: dict, family: Family) -> dict:
    """Added tokens: those the vocabulary has keep their numbers; a beginning of text that only
    `add_special_tokens` would write.
    """
    numbers = dict(made["model"]["vocab"])
    for token in (*family.control, *family.words):
        numbers.setdefault(token, len(numbers))
    flags = {"single_word": False, "lstrip": False, "normalized": False}
    control = [
        {
            "id": numbers[t],
            "content": t,
            "rstrip": family.eats and t.startswith("<|"),
            "special": True,
            **flags,
        }
        for t in family.control
    ]
    words = [
        {"id": numbers[t], "content": t, "rstrip": False, "special": False, **flags} for t in family.words
    ]
    made = {**made, "added_tokens": sorted(control + words, key=lambda token: token["id"])}
    if bos := family.named.get("bos_token"):
        single, pair = (
            [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": name, "type_id": 0}}]
            for name in "AB"
        )
        known = {bos: {"id": bos, "ids": [numbers[bos]], "tokens": [bos]}}
        begin = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, *pair],
            "special_tokens": known,
        }
        before = [made["post_processor"]] if made.get("post_processor") else []
        made["post_processor"] = {"type": "Sequence", "processors": [*before, begin]}
    return made
