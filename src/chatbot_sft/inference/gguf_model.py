"""GGUF files in llama.cpp, through cyllama."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.messages import BadRow, Message
from chatbot_sft.data.template import ChatTemplate
from chatbot_sft.errors import UserError
from chatbot_sft.extras import install
from chatbot_sft.inference import room_for_answer

if TYPE_CHECKING:
    import numpy as np

BATCH = 512  # tokens llama.cpp computes at a time
LOG_ERROR = 4  # ggml.h: GGML_LOG_LEVEL_ERROR
SYSTEM_PROMPT = (
    "chatbot_sft.system_prompt"  # a key of our own in a file's metadata, which llama.cpp passes by
)
ANY_SEED = 0xFFFFFFFF  # llama.h: LLAMA_DEFAULT_SEED, another one each time


class GGUFModel:
    """A llama.cpp `model`, as `load` makes it. A prompt and its answer have room in `context` tokens.

    `stop_ids` is every token that llama.cpp itself ends an answer at, `system_prompt` what most of the
    training data began with, where the file says so. What a prompt has in common with what was computed last
    is not computed again.
    """

    def __init__(self, model: Any, context: int, name: str = "") -> None:
        from cyllama.llama import llama_cpp

        self.name = name
        self.context = min(context, model.n_ctx_train)
        self.system_prompt = _metadata(model, SYSTEM_PROMPT)
        self._model = model  # the vocabulary is a part of it
        self._vocabulary = model.get_vocab()
        self.stop_ids = frozenset(
            token for token in range(self._vocabulary.n_vocab) if self._vocabulary.is_eog(token)
        )
        parameters = llama_cpp.LlamaContextParams()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = self.context, BATCH, BATCH
        parameters.n_threads = parameters.n_threads_batch = _threads()
        self._context = llama_cpp.LlamaContext(model, parameters)
        self._batch = llama_cpp.LlamaBatch(n_tokens=BATCH, embd=0, n_seq_max=1)
        self._computed: list[int] = []  # tokens whose keys and values llama.cpp holds

    @classmethod
    def load(cls, file: Path | str, context: int = 4096) -> GGUFModel:
        """The model in a GGUF file, with at most `context` tokens.

        Raises:
            UserError: cyllama is not installed; there is no such file, it is no GGUF file, or llama.cpp
                refuses it; it has no chat template.
        """
        try:
            from cyllama.llama import llama_cpp
        except ImportError:
            raise UserError(f"{file}: GGUF files run in llama.cpp; `{install('gguf')}` brings it") from None

        class Model(llama_cpp.LlamaModel):
            # cyllama 0.2 asks for it when it hands out logits.
            n_vocab = property(lambda self: self.get_vocab().n_vocab)

        errors: list[str] = []
        llama_cpp.disable_logging()
        llama_cpp.ggml_backend_load_all()
        llama_cpp.set_log_callback(lambda level, text: errors.append(text) if level == LOG_ERROR else None)
        try:
            model = Model(str(Path(file).expanduser()), llama_cpp.LlamaModelParams())
        except (OSError, ValueError) as error:
            reason = errors[0].rpartition("model: ")[2] if errors else str(error)
            reason = " ".join(reason.replace(f"{file} ", "").split())
            raise UserError(f"{file}: cannot be loaded: {reason}; copy or export it again") from None
        finally:
            # no callback into Python any more: llama.cpp has something to say even when Python ends
            llama_cpp.disable_logging()
        if not model.get_default_chat_template():
            raise UserError(f"{file}: it has no chat template, so it cannot chat")
        return cls(model, context, str(file))

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Of `messages` and the beginning of an answer, as llama.cpp's server makes them.

        Raises:
            UserError: the chat template refuses them.
        """
        vocabulary = self._vocabulary
        ends = (vocabulary.token_bos(), vocabulary.token_eos())
        bos, eos = (vocabulary.token_to_piece(token, special=True) if token >= 0 else "" for token in ends)
        template = ChatTemplate(self._model.get_default_chat_template(), {"bos_token": bos, "eos_token": eos})
        try:
            text = template.render(messages, add_generation_prompt=True)
        except BadRow as error:
            raise UserError(f"{self.name}: {error.detail}; begin another conversation") from None
        # The vocabulary adds its own, where it does.
        if vocabulary.get_add_bos():
            text = text.removeprefix(bos)
        if vocabulary.get_add_eos():
            text = text.removesuffix(eos)
        return list(vocabulary.tokenize(text, add_special=True, parse_special=True))

    def answer(
        self,
        prompt_ids: Sequence[int],
        max_new_tokens: int,
        temperature: float = 0.0,
        on_token: Callable[[int], Any] | None = None,
    ) -> list[int]:
        """The ids of an answer, its stop token included; it ends with the context at the latest.

        Raises:
            UserError: the prompt fills the context.
        """
        room = room_for_answer(self.name, self.context, prompt_ids)
        sampler = _sampler(temperature)
        answer: list[int] = []
        new = self._rewound(prompt_ids)
        for _ in range(min(max_new_tokens, room)):
            self._compute(new)
            token = sampler.sample(self._context, -1)
            answer.append(token)
            if on_token:
                on_token(token)
            if token in self.stop_ids:
                break
            new = [token]
        return answer

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """One after the other: with the same beginning, that is computed once."""
        return [self.answer(prompt, max_new_tokens) for prompt in prompts]

    def text(self, ids: Sequence[int]) -> str:
        """Without special tokens, and without the letter that a cut left half."""
        return self._vocabulary.detokenize(list(ids)).rstrip("\ufffd").strip()

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """float32 logits of the tokens after `positions` of `ids`, (positions, vocabulary), computed afresh.

        Raises:
            UserError: more tokens than the context has.
        """
        import numpy as np

        room_for_answer(self.name, self.context + 1, ids)
        self._context.kv_cache_clear()
        self._computed.clear()
        logits = np.empty((len(positions), self._vocabulary.n_vocab), np.float32)
        for start in range(0, len(ids), BATCH):
            part = range(start, min(start + BATCH, len(ids)))
            self._batch.clear()
            for position in part:
                self._batch.add(ids[position], position, [0], position in positions)
            self._context.decode(self._batch)
            for row, position in enumerate(positions):
                if position in part:
                    logits[row] = self._context.get_logits_ith(position - start)
        return logits

    def _rewound(self, ids: Sequence[int]) -> list[int]:
        """What of `ids` is still to be computed, the last one at least; llama.cpp forgets all it holds beyond
        what stands before that.
        """
        pairs = zip(self._computed, ids[:-1], strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        if not self._context.memory_seq_rm(0, common, -1):  # a recurrent model cannot forget a part
            self._context.kv_cache_clear()
            common = 0
        del self._computed[common:]
        return list(ids[common:])

    def _compute(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), BATCH):
            part = ids[start : start + BATCH]
            self._batch.set_batch(part, len(self._computed), False)
            self._context.decode(self._batch)
            self._computed += part  # after it: Ctrl-C may come in between, and too few only costs time


def _metadata(model: Any, key: str) -> str | None:
    """The text of `key` in the metadata of the file that llama.cpp has read; None where it is not there."""
    try:
        return model.meta_val_str(key)
    except ValueError:
        return None


def _threads() -> int:
    """OMP_NUM_THREADS where it is set, as for torch: llama.cpp's threads wait for each other awake, and
    suffer where cores are shared.
    """
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(threads) if threads.isdigit() else len(os.sched_getaffinity(0))


def _sampler(temperature: float) -> Any:
    from cyllama.llama import llama_cpp

    sampler = llama_cpp.LlamaSampler(llama_cpp.LlamaSamplerChainParams())
    if temperature > 0:
        sampler.add_temp(temperature)
        sampler.add_dist(ANY_SEED)
    else:
        sampler.add_greedy()
    return sampler
