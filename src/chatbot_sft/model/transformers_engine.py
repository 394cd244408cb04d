"""Plain transformers + PEFT + TRL: the same keys, wherever Unsloth does not import. Importing this module
imports torch, transformers and PEFT.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM

from chatbot_sft import distributed
from chatbot_sft.model import packed_attention
from chatbot_sft.model.joined import adjoin
from chatbot_sft.model.loss import add_fused_head, base_of, cast_adapter, fused_loss, own_loss
from chatbot_sft.model.quantization import nf4

if TYPE_CHECKING:
    from chatbot_sft.config import Config

NAME = "transformers"
_compiled_for: list[Any] = []  # the base and adapter whose layers this process compiled last


def load(source: str, settings: Config, dtype: torch.dtype) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        source,
        revision=settings.model.revision,
        dtype=dtype,
        quantization_config=nf4(dtype) if settings.model.load_in_4bit else None,
        trust_remote_code=settings.model.trust_remote_code,
        use_safetensors=settings.model.use_safetensors,
        # What is sharded later comes from the files to the card a layer at a time.
        device_map={"": distributed.local_rank()}
        if torch.cuda.is_available() and not settings.training.shard
        else None,
    )
    if settings.full_finetuning and checkpointing(settings):
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if torch.cuda.is_available() and not (settings.full_finetuning or settings.training.shard):
        adjoin(model)
    return model


def add_lora(model: Any, settings: Config, arguments: dict[str, Any]) -> Any:
    # Over a 4-bit base too, norms and embeddings stay in the model's dtype: PEFT's
    # prepare_model_for_kbit_training makes them float32, and with them the whole residual stream and the head.
    if checkpointing(settings):
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    torch.manual_seed(settings.seed)
    return get_peft_model(model, LoraConfig(**arguments, task_type="CAUSAL_LM"))


def checkpointing(settings: Config) -> bool:
    """Whether activations are recomputed. "unsloth" saves GPU memory; on a CPU there is none to save."""
    value = settings.lora.use_gradient_checkpointing
    return torch.cuda.is_available() if value == "unsloth" else bool(value)


def for_training(model: Any, checkpointing: bool, random: bool = True) -> None:
    model.train()
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False, "preserve_rng_state": random})
    else:
        model.gradient_checkpointing_disable()


def for_inference(model: Any) -> None:
    model.eval()
    model.config.use_cache = True


def inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """transformers finds the rows of a padding-free batch where the positions begin anew."""
    return {name: values for name, values in batch.items() if name != "packed_seq_lengths"}


def prepare(model: Any) -> None:
    """On a GPU TRL's output layer spares the memory of all logits; its kernel runs nowhere else, and reads
    the weight of a plain layer.
    """
    cast_adapter(model)
    if _fused(model):
        add_fused_head(model)


def compute_dtype(model: Any, wanted: str | None) -> str | None:
    return wanted


def loss(model: Any, inputs: dict[str, Any], trained_tokens: torch.Tensor) -> torch.Tensor:
    # Rows of a padding-free batch are told apart where there is no cache alone.
    inputs = {**inputs, "use_cache": False}
    one_loss = fused_loss if _fused(model) else own_loss
    return one_loss(model, inputs, trained_tokens)


def _fused(model: Any) -> bool:
    return torch.cuda.is_available() and not isinstance(model.get_output_embeddings(), BaseTunerLayer)


def use_scaler(model: Any, scaler: Any) -> None:
    """Its loss needs none."""


def capturable(model: Any) -> bool:
    return False  # its masks are looked at on the host


def packable(model: Any) -> str | None:
    if torch.cuda.is_available() and not packed_attention.has_kernel():
        return f"PyTorch {torch.__version__} has no variable-length attention"
    base = base_of(model)
    text = base.config.get_text_config()
    if not _is_matrix(base.get_output_embeddings()):
        return "the output layer is more than a matrix"
    packed_attention.register()
    base.set_attn_implementation(packed_attention.NAME)
    if text._attn_implementation != packed_attention.NAME:
        return f"{type(base).__name__} has an attention of its own"
    changed = [
        name
        for name in ("attention_dropout", "attn_logit_softcapping", "final_logit_softcapping", "logit_scale")
        if getattr(text, name, None)
    ]
    return f"its config.json has {changed[0]}" if changed else None


def plain_head(model: Any) -> bool:
    """Seen on two tokens: what a family does to its logits besides has many names."""
    head = base_of(model).get_output_embeddings()
    if not _is_matrix(head):
        return False
    two = {"input_ids": torch.tensor([[1, 2]], device=model.device)}
    with torch.no_grad():
        logits, hidden = model(**two, use_cache=False).logits, states(model, two)
        return torch.allclose(
            logits.float(), head(hidden.to(head.weight.dtype)).float(), rtol=0.02, atol=0.02
        )


def _is_matrix(head: Any) -> bool:
    return isinstance(head, torch.nn.Linear) and head.bias is None


def states(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    return base_of(model).get_decoder()(**inputs, use_cache=False).last_hidden_state


def packed_hidden_states(
    model: Any, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seq_lens: torch.Tensor, longest: int
) -> torch.Tensor:
    # A mask of four dimensions is taken as it is by transformers, which then looks at nothing on the host;
    # the attention does not read it.
    unread = input_ids.new_ones(1, 1, 1, 1)
    decoder = base_of(model).get_decoder()
    # With a gradient from the start the first layer is compiled as all the others are, not once more.
    embeddings = decoder.get_input_embeddings()(input_ids)
    if not embeddings.requires_grad:
        embeddings.requires_grad_()
    # Compiled into the layers: with one of a few numbers the next run's data finds them in the cache. The kernel ends
    # with each conversation all the same.
    longest = 1 << (longest - 1).bit_length()
    torch._dynamo.maybe_mark_dynamic(cu_seq_lens, 0)
    with _of_any_length(decoder, embeddings, position_ids):
        return decoder(
            inputs_embeds=embeddings,
            position_ids=position_ids,
            attention_mask=unread,
            use_cache=False,
            cu_seq_lens_q=cu_seq_lens,
            cu_seq_lens_k=cu_seq_lens,
            max_length_q=longest,
            max_length_k=longest,
        ).last_hidden_state


def compile_layers(model: Any) -> None:
    # Beside an adapter of another shape that is compiled it would take 85 s (an H200, PyTorch 2.11): it begins anew,
    # with what the cache has.
    base = base_of(model)
    adapter = list(model.peft_config.values()) if isinstance(model, PeftModel) else None
    form = [base.config.to_dict(), base.dtype, adapter]
    if _compiled_for != form:
        torch.compiler.reset()
        _compiled_for[:] = form
    for layer in base.get_decoder().layers:
        layer.compile()


@contextlib.contextmanager
def _of_any_length(decoder: Any, *tensors: torch.Tensor) -> Iterator[None]:
    """Within it the layers of `decoder` are compiled for any number of tokens: `tensors` and what its other parts
    make of them, (1, tokens, …), are marked so. PyTorch would take the first number as it is, and compile once more
    for the second; with dynamic=True, which is for all sizes of all tensors, it takes seven times as long.
    """

    def tell(_module: Any, _inputs: Any, outputs: Any) -> None:
        for tensor in outputs if isinstance(outputs, tuple) else (outputs,):
            torch._dynamo.maybe_mark_dynamic(tensor, 1)

    tell(None, None, tensors)
    beside = [part for part in decoder.children() if part is not decoder.layers]
    hooks = [part.register_forward_hook(tell) for part in beside]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def hidden_states(model: Any, input_ids: torch.Tensor) -> torch.Tensor:
    raise NotImplementedError("capturable() says no")


def head_loss(
    model: Any, hidden: torch.Tensor, labels: torch.Tensor, trained_tokens: torch.Tensor
) -> torch.Tensor:
    raise NotImplementedError("capturable() says no")


def padding_free(model: Any) -> bool:
    return False


def trainer_class() -> type:
    import transformers
    import trl

    if torch.cuda.is_available():
        return trl.SFTTrainer

    class CpuSFTTrainer(trl.SFTTrainer):
        """TRL's loss is a Triton kernel, for a GPU only; the model's own cross entropy is the same number."""

        def compute_loss(
            self,
            model: Any,
            inputs: dict[str, Any],
            return_outputs: bool = False,
            num_items_in_batch: Any = None,
        ) -> Any:
            return transformers.Trainer.compute_loss(
                self, model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )

    return CpuSFTTrainer
