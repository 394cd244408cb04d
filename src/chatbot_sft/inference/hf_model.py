"""Models of transformers and PEFT: a folder with a whole model or an adapter, or what was just trained."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot_sft.data.messages import BadRow, Message
from chatbot_sft.errors import UserError
from chatbot_sft.inference import room_for_answer
from chatbot_sft.model import embedded
from chatbot_sft.model.base import moved, named
from chatbot_sft.model.generate import as_text, generate, generate_batch, generation_stops, rendered
from chatbot_sft.model.hub import is_local, readable_errors
from chatbot_sft.model.quantization import nf4
from chatbot_sft.model_files import refuse_pickles
from chatbot_sft.network import allow_network

if TYPE_CHECKING:
    import numpy as np

ADAPTER_CONFIG = "adapter_config.json"


class HFModel:
    """A `model` of transformers or PEFT, in evaluation mode, with its transformers `tokenizer`;
    `template_kwargs` go to the chat template.

    `stop_ids` is what `answer` stops at: what is given, else what the model's generation_config says and no
    more, so that a missing end token shows. A prompt and its answer have room in `context` tokens.
    """

    system_prompt: str | None = None  # what a folder says of it stands in the mark beside the model

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str = "",
        template_kwargs: Mapping[str, Any] | None = None,
        stop_ids: Collection[int] | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.name = name
        self.template_kwargs = dict(template_kwargs or {})
        self.stop_ids = generation_stops(model) if stop_ids is None else frozenset(stop_ids)
        # Not every architecture has a limit of its own.
        self.context = min(
            getattr(model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30,
            tokenizer.model_max_length,
        )

    @classmethod
    def load(
        cls, folder: Path | str, adapter: bool = True, four_bit: bool = False, allow_pickle: bool = False
    ) -> HFModel:
        """The model in `folder`; an adapter on its base, with the adapter's tokenizer, or with
        `adapter=False` that base alone, with its own.

        On a GPU in the dtype it was saved in, on a CPU in float32; a bitsandbytes checkpoint as it is, any
        other with `four_bit` as QLoRA trains it. The network is used only where the base is a hub id.
        `folder` may be a hub id, too. `allow_pickle`: the base may be no safetensors.

        Raises:
            UserError: pickled weights; the model, or the adapter's base, cannot be loaded; it has no chat template.
        """
        base, revision = adapter_base(Path(folder).expanduser())
        weights = base or str(folder)
        source = str(folder) if adapter else weights
        for place in filter(is_local, {source, weights}):
            if not allow_pickle or place != weights:
                refuse_pickles(Path(place).expanduser(), place)
        allow_network(not is_local(weights))
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        if base and adapter:
            from peft import AutoPeftModelForCausalLM as Auto
        else:
            Auto = AutoModelForCausalLM
        gpu = torch.cuda.is_available()
        hub: dict[str, Any] = {"revision": revision, "trust_remote_code": False}
        precision: dict[str, Any] = (
            {"dtype": "auto", "device_map": "auto"} if gpu else {"dtype": torch.float32}
        )
        with _readable_errors(source, weights), contextlib.ExitStack() as stack:
            config = AutoConfig.from_pretrained(_expanded(weights), **hub)
            path = (
                stack.enter_context(_pointing(Path(folder).expanduser(), weights))
                if base and adapter
                else _expanded(source)
            )
            if getattr(config, "quantization_config", None) is not None:
                precision["dtype"] = "auto"
            elif four_bit:
                precision["quantization_config"] = nf4(torch.bfloat16 if gpu else torch.float32)
            weights_alone = {} if allow_pickle else {"use_safetensors": True}
            model = Auto.from_pretrained(path, **precision, **hub, **weights_alone)
            tokenizer = AutoTokenizer.from_pretrained(path, **hub)
        if not tokenizer.chat_template:
            raise UserError(
                f"{source}: its tokenizer has no chat template, so it cannot chat; name an instruct model"
            )
        return cls(model, tokenizer, source)

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """Of `messages` and the beginning of an answer.

        Raises:
            UserError: the chat template refuses them.
        """
        try:
            return rendered(self.tokenizer, messages, self.template_kwargs)
        except BadRow as error:
            raise UserError(f"{self.name}: {error.detail}") from None

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
        most = min(max_new_tokens, room_for_answer(self.name, self.context, prompt_ids))
        streamer = _Streamer(on_token) if on_token else None
        pad = self.tokenizer.pad_token_id
        return generate(self.model, prompt_ids, most, self.stop_ids, pad, temperature, streamer)

    def answers(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> list[list[int]]:
        """Greedy, in one batch; a prompt that leaves less room in the context than that is answered alone.

        Raises:
            UserError: a prompt fills the context.
        """
        room = [room_for_answer(self.name, self.context, prompt) for prompt in prompts]
        together = [prompt for prompt, most in zip(prompts, room, strict=True) if most >= max_new_tokens]
        pad = self.tokenizer.pad_token_id
        said = iter(generate_batch(self.model, together, max_new_tokens, self.stop_ids, pad))
        return [
            next(said) if most >= max_new_tokens else self.answer(prompt, most)
            for prompt, most in zip(prompts, room, strict=True)
        ]

    def text(self, ids: Sequence[int]) -> str:
        """Without special tokens, and without the letter that a cut left half."""
        return as_text(self.tokenizer, ids)

    def logits(self, ids: Sequence[int], positions: Sequence[int]) -> np.ndarray:
        """float32 logits of the tokens after `positions` of `ids`, shape (positions, vocabulary); one forward
        pass, computed for these alone.
        """
        import torch

        wanted = torch.tensor(list(positions), device=self.model.device)
        input_ids = torch.tensor([list(ids)], device=self.model.device)
        with torch.no_grad():
            logits = self.model(input_ids=input_ids, logits_to_keep=wanted, use_cache=False).logits[0]
            if len(logits) > len(wanted):  # Unsloth's own layers compute all of them, whatever is asked
                logits = logits[wanted]
            return logits.float().cpu().numpy()


class _Streamer:
    """What `generate` calls with each new token; the prompt comes first, and is passed over."""

    def __init__(self, on_token: Callable[[int], Any]) -> None:
        self.on_token = on_token
        self.begun = False

    def put(self, value: Any) -> None:
        if self.begun:
            self.on_token(value.item())
        self.begun = True

    def end(self) -> None:
        pass


def adapter_base(folder: Path) -> tuple[str | None, str | None]:
    """(folder or hub id, revision) of the base of the adapter in `folder`; (None, None) without an adapter.

    Raises:
        UserError: a folder that is no longer there.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return None, None
    config = json.loads(file.read_text(encoding="utf-8"))
    base = embedded.found_again(named(config["base_model_name_or_path"]))
    if is_local(base) and not Path(base).expanduser().is_dir():
        now = moved(folder)
        if now:
            return now, None
        raise UserError(
            f"{folder}: the model it was trained on is not at {base} any more; correct"
            f" base_model_name_or_path in its {ADAPTER_CONFIG}"
        )
    return base, config.get("revision")


@contextlib.contextmanager
def _pointing(adapter: Path, base: str) -> Iterator[str]:
    """The folder `adapter`; where its base has moved, one that names `base`, where that is now, and has links
    to the rest.
    """
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    if config["base_model_name_or_path"] == base:
        yield str(adapter)
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in adapter.iterdir():
            if path.name != ADAPTER_CONFIG:
                Path(folder, path.name).symlink_to(path.resolve())
        pointing = json.dumps({**config, "base_model_name_or_path": base})
        Path(folder, ADAPTER_CONFIG).write_text(pointing, encoding="utf-8")
        yield folder


def _expanded(name: str) -> str:
    return str(Path(name).expanduser()) if is_local(name) else name


@contextlib.contextmanager
def _readable_errors(source: str, weights: str) -> Iterator[None]:
    """One line for what transformers says in paragraphs; `weights` may come from the hub."""
    if not is_local(weights):
        with readable_errors(weights):
            yield
        return
    try:
        yield
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: cannot be loaded: {' '.join(str(error).split())}") from error
