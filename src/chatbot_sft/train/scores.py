"""How likely the trained tokens of conversations are to a model as it is, without gradients. Imported after the
engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from chatbot_sft.data.labels import IGNORED
from chatbot_sft.model.head import token_scores as scores_of_states
from chatbot_sft.train.rows import Row, packed, padded, sequences

if TYPE_CHECKING:
    from chatbot_sft.train.step import Step

CHUNK = 1024  # positions whose logits exist at one time


def packs(step: Step) -> bool:
    """Whether conversations are scored end to end, as the layout of `step` trains them: in one pass of the layers
    for all of a batch, without padding. Where an objective compares with what the reference made of them, they stay
    as they were for it.
    """
    return step.layout.packed and not step.sharded and step.objective.means_tokens


def score_batch(step: Step, rows: list[Row], least: int = 0) -> torch.Tensor:
    """(sequences, 3) of float64: of each sequence of `rows` the summed loss in nats, the tokens predicted right, and
    the trained. Of a sharded model in `least` passes at least: those are of all processes.
    """
    return packed_scores(step, rows) if packs(step) else padded_scores(step, rows, least)


def packed_scores(step: Step, rows: list[Row]) -> torch.Tensor:
    """As `score_batch`, with the conversations end to end."""
    parts = sequences(rows)
    lengths = [len(part) for part in parts]
    batch = packed(parts, step.pad, sum(lengths), len(parts), max(lengths))
    batch = {name: tensor.to(step.args.device) for name, tensor in batch.items()}
    positions, targets = batch.pop("positions"), batch.pop("targets")
    with torch.no_grad():
        with step.autocast():
            hidden = step.engine.packed_hidden_states(step.model, **batch, longest=max(lengths))
        weight = step.model.get_output_embeddings().weight
        found = scores_of_states(hidden[0, positions], weight, targets)
    of_sequence = torch.searchsorted(batch["cu_seq_lens"][1:], positions, right=True)
    scores = torch.zeros(len(parts), 3, dtype=torch.float64, device=found.device)
    ones = torch.ones_like(found[:, :1])
    return scores.index_add_(0, of_sequence, torch.cat([found, ones], dim=1).double())


def padded_scores(step: Step, rows: list[Row], least: int = 0) -> torch.Tensor:
    """As `score_batch`, with the conversations beside each other."""
    inputs = {name: values.to(step.args.device) for name, values in padded(rows, step.pad).items()}
    with torch.no_grad(), step.autocast():
        return token_scores(step.model, inputs, least)


def token_scores(model: Any, inputs: dict[str, torch.Tensor], least: int = 0) -> torch.Tensor:
    """As `score_batch`, of a padded batch.

    Logits are computed at trained positions alone, `CHUNK` at a time: a hook hands the output layer the
    hidden states to use, so whatever a model does to its logits afterwards (softcapping, scaling) is done by
    its own forward, in either engine. Further chunks go through a forward of two tokens: one token alone
    takes Unsloth's decoding path, which has no output layer to hook. At `least` so many passes are made: those
    of a sharded model are of all processes.
    """
    targets = inputs["labels"][:, 1:]
    trained = targets != IGNORED
    rows, targets = trained.nonzero()[:, 0], targets[trained]
    scores = torch.zeros(len(trained), 3, dtype=torch.float64, device=targets.device)
    hidden: torch.Tensor | None = None

    def swap(_: Any, arguments: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        nonlocal hidden
        if hidden is None:
            hidden = arguments[0][:, :-1][trained.to(arguments[0].device)]
        return (hidden[None, start : start + CHUNK], *arguments[1:])

    hook = model.get_output_embeddings().register_forward_pre_hook(swap)
    try:
        for start in range(0, max(len(targets), least * CHUNK), CHUNK):
            if hidden is None:
                forward = {name: value for name, value in inputs.items() if name != "labels"}
            else:
                forward = {"input_ids": inputs["input_ids"][:1, :2]}
            logits = model(**forward, use_cache=False).logits[0]
            target = targets[start : start + CHUNK].to(logits.device)
            loss = cross_entropy(logits.float(), target, reduction="none")
            right = logits.argmax(-1) == target
            score = torch.stack(
                [loss.double(), right.double(), torch.ones_like(loss, dtype=torch.float64)], dim=1
            )
            scores.index_add_(0, rows[start : start + CHUNK], score.to(scores.device))
    finally:
        hook.remove()
    return scores
