"""The tokenizer of a GGUF file: what llama.cpp has to know to cut text as the trained model's does.

llama.cpp does not read a pre-tokenizer: it knows those of the model families by name. Here the name is found
by what tokenizer.json says, not by what the model is called, so that a tokenizer which llama.cpp does not
know is refused before training instead of cutting text otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.errors import UserError

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # gguf.TokenType
WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CASED = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
)
# (steps before ByteLevel, ByteLevel's own regex, whether a word that is a token is taken whole) → llama.cpp's
# name for it (its src/llama-vocab.cpp)
PRE_TOKENIZERS = {
    ((), True, False): "gpt-2",
    (("digits",), True, False): "smollm",
    ((rf"{WORDS}|\p{{N}}{{1,3}}|{REST}",), False, True): "llama-bpe",
    ((rf"{WORDS}|\p{{N}}{{1,3}}|{REST}",), False, False): "smaug-bpe",
    ((rf"{WORDS}|\p{{N}}|{REST}",), False, False): "qwen2",
    ((rf"{CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",), False, True): "tekken",
}


@dataclass(frozen=True)
class Vocabulary:
    """`model` and `pre` are llama.cpp's names; `tokens`, `types` and `scores` have an entry per token.

    `scores` are SentencePiece's and `merges` byte-level BPE's; of the other kind they are empty.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    merges: list[str]


def read_vocabulary(tokenizer: Mapping[str, Any], name: str) -> Vocabulary:
    """`tokenizer` is the content of a tokenizer.json; `name` that of the model, for the error.

    Raises:
        UserError: llama.cpp has nothing that cuts text like it.
    """
    model = tokenizer["model"]
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    if model["type"] == "BPE" and model.get("byte_fallback"):
        return _sentence_piece(model, added)
    steps = _steps(tokenizer) if model["type"] == "BPE" else None
    pre = None if steps is None else PRE_TOKENIZERS.get(steps)
    if pre is None:
        raise UserError(
            f"save.method=gguf: llama.cpp has no tokenizer like that of model.name={name}"
            f" ({_described(tokenizer)}); use save=merged_16bit"
        )
    texts = {number: token for token, number in model["vocab"].items()}
    texts |= {number: token["content"] for number, token in added.items()}
    kinds = {number: CONTROL if token["special"] else USER_DEFINED for number, token in added.items()}
    tokens, types = _laid_out(texts, kinds)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    return Vocabulary("gpt2", pre, tokens, types, [], merges)


def _sentence_piece(model: Mapping[str, Any], added: Mapping[int, Mapping[str, Any]]) -> Vocabulary:
    """SentencePiece's BPE joins the pair whose union scores highest; tokenizer.json has the same order as a
    list of merges.
    """
    texts = {number: token for token, number in model["vocab"].items()}
    types = {
        number: BYTE
        for number, token in texts.items()
        if token.startswith("<0x") and token.endswith(">") and len(token) == 6
    }
    for number, token in added.items():
        # llama.cpp looks for these in the text as it is given, before spaces are rewritten.
        texts[number] = token["content"] if token["special"] else token["content"].replace("▁", " ")
        types[number] = CONTROL if token["special"] else USER_DEFINED
    types |= {model["vocab"][model["unk_token"]]: UNKNOWN} if model.get("unk_token") in model["vocab"] else {}
    rank: dict[str, int] = {}
    for number, merge in enumerate(model["merges"]):
        rank.setdefault("".join(merge.split(" ") if isinstance(merge, str) else merge), number)
    tokens, laid_out = _laid_out(texts, types)
    scores = [
        -float(rank[token]) if token in rank else -1e6 if kind == NORMAL else 0.0
        for token, kind in zip(tokens, laid_out, strict=True)
    ]
    return Vocabulary("llama", "default", tokens, laid_out, scores, [])


def _laid_out(texts: Mapping[int, str], types: Mapping[int, int]) -> tuple[list[str], list[int]]:
    """Texts and types by number; numbers without a token are named and marked unused."""
    numbers = range(max(texts) + 1)
    tokens = [texts.get(n, f"[PAD{n}]") for n in numbers]
    return tokens, [types.get(n, NORMAL) if n in texts else UNUSED for n in numbers]


def _steps(tokenizer: Mapping[str, Any]) -> tuple[tuple[str, ...], bool, bool] | None:
    """The pre-tokenizer as a key of `PRE_TOKENIZERS`; None where it has a step of another kind."""
    pre = tokenizer["pre_tokenizer"] or {}
    *before, last = pre.get("pretokenizers", [pre])
    steps: list[str] = []
    for step in before:
        if step["type"] == "Digits" and step["individual_digits"]:
            steps.append("digits")
        elif step["type"] == "Split" and step["behavior"] == "Isolated" and "Regex" in step["pattern"]:
            steps.append(step["pattern"]["Regex"])
        else:
            return None
    if last.get("type") != "ByteLevel" or last["add_prefix_space"]:
        return None
    return tuple(steps), last.get("use_regex", True), tokenizer["model"].get("ignore_merges", False)


def _described(tokenizer: Mapping[str, Any]) -> str:
    pre = tokenizer["pre_tokenizer"] or {"type": "none"}
    kinds = [step["type"] for step in pre.get("pretokenizers", [pre])]
    return f"{tokenizer['model']['type']}, pre-tokenizer {' + '.join(kinds)}"


def add_vocabulary(
    writer: GGUFWriter, tokenizer: Any, folder: Path, rows: int, end_of_turn: int | None
) -> None:
    """The tokenizer's part of a GGUF file. `tokenizer` is transformers', `folder` where it was saved, `rows`
    the embeddings' rows.

    `end_of_turn` is the token with which the trained answers end, where that is not the end of sequence.
    """
    content = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = read_vocabulary(content, folder.name)
    spare = range(len(vocabulary.tokens), rows)
    writer.add_tokenizer_model(vocabulary.model)
    writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list([*vocabulary.tokens[:rows], *(f"[PAD{number}]" for number in spare)])
    writer.add_token_types([*vocabulary.types[:rows], *(UNUSED for _ in spare)])
    if vocabulary.scores:
        writer.add_token_scores([*vocabulary.scores[:rows], *(-1e6 for _ in spare)])
        writer.add_add_space_prefix(_prefixes_a_space(tokenizer))
    else:
        writer.add_token_merges(vocabulary.merges)
    for kind in ("bos", "eos", "unk", "pad"):
        number = getattr(tokenizer, f"{kind}_token_id")
        if number is not None:
            getattr(writer, f"add_{kind}_token_id")(number)
    if end_of_turn is not None and end_of_turn != tokenizer.eos_token_id:
        writer.add_eot_token_id(end_of_turn)
    writer.add_add_bos_token(adds_bos(tokenizer))
    writer.add_add_eos_token(False)
    writer.add_chat_template(tokenizer.get_chat_template())


def adds_bos(tokenizer: Any) -> bool:
    """Whether the tokenizer itself puts the beginning of text before a text."""
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id]


def _prefixes_a_space(tokenizer: Any) -> bool:
    """Whether a text behind a control token gets a space before it, as llama.cpp does everywhere or nowhere."""
    control = next(token for token in (tokenizer.bos_token, tokenizer.eos_token) if token)
    ids = tokenizer(f"{control}a", add_special_tokens=False)["input_ids"]
    return tokenizer.convert_ids_to_tokens(ids)[1].startswith("▁")
