"""The output layer and its cross entropy over trained positions alone: loss and gradient in one pass, a chunk
of positions at a time, so that all logits are never there at once.

The gradient of the loss by the logits is known as soon as these are: softmax minus the label. Liger Kernel
(arXiv 2410.10989) computes it so, in the place of the logits; here the matrix products are PyTorch's and the rest is
one compiled function. That place has one size in all steps: of many sizes the allocator would keep a gigabyte, and
a function of views of many is compiled three times, eight seconds on an H200 with PyTorch 2.11.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch.nn.functional import pad

from chatbot_sft.data.labels import IGNORED

Made = TypeVar("Made")
CHUNK = 1024  # positions: 1024 logits of 128,256 tokens are 0.26 GB in bfloat16


def loss_and_gradient(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    count: torch.Tensor,
    smoothing: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross entropy summed over the positions of `hidden` (positions, width), divided by `count`, and its
    gradient, of the shape of `hidden`.

    `weight` is (vocabulary, width); where it is trained, its gradient is added to `weight.grad`. `targets`
    (positions,) may be IGNORED (they only fill). `smoothing` is transformers' label_smoothing_factor.
    """
    total = torch.zeros((), device=hidden.device)
    gradient = torch.empty_like(hidden)
    chunk = _compiled(cross_entropy, _compiles(hidden))
    with torch.no_grad():
        for part, rows, logits, place in _chunks(hidden, weight):
            total += chunk(*_rows(place, IGNORED, targets[part]), count, smoothing)
            gradient[part] = logits @ weight
            if weight.requires_grad:
                _add_gradient(weight, logits, rows)
    return total, gradient


def cross_entropy(
    logits: torch.Tensor, targets: torch.Tensor, count: torch.Tensor, smoothing: float
) -> torch.Tensor:
    """The loss; its gradient by `logits` (positions, vocabulary) takes their place."""
    z = logits.float()
    normaliser = z.logsumexp(-1, keepdim=True)
    kept = (targets != IGNORED)[:, None]
    wanted = targets.clamp(min=0)[:, None]
    of_target = normaliser - z.gather(1, wanted)
    is_target = torch.arange(z.shape[1], device=z.device)[None] == wanted
    by_logits = (z - normaliser).exp() - is_target.float() * (1 - smoothing)
    if smoothing:
        of_all = normaliser - z.mean(-1, keepdim=True)
        of_target = (1 - smoothing) * of_target + smoothing * of_all
        by_logits = by_logits - smoothing / z.shape[1]
    loss = torch.where(kept, of_target, 0).sum() / count  # a row that only fills may hold anything
    logits.copy_(torch.where(kept, by_logits, 0) / count)
    return loss


# Where what a position weighs is known only after all of them are: two passes.


def log_probabilities(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(positions,) float32: of each of `targets` (positions,), from the states in `hidden` (positions, width)."""
    found = torch.empty(len(hidden), device=hidden.device)
    chunk = _compiled(log_probability, _compiles(hidden))
    with torch.no_grad():
        for part, rows, _, place in _chunks(hidden, weight):
            found[part] = chunk(*_rows(place, 0, targets[part]))[: len(rows)]
    return found


def log_probability(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(positions,) of `logits` (positions, vocabulary)."""
    z = logits.float()
    return z.gather(1, targets[:, None])[:, 0] - z.logsumexp(-1)


def token_scores(hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(positions, 2) float32: of each target its loss in nats, and 1 where no token is likelier."""
    found = torch.empty(len(hidden), 2, device=hidden.device)
    for part, _, logits, _ in _chunks(hidden, weight):
        found[part, 0] = -log_probability(logits, targets[part])
        found[part, 1] = (logits.argmax(-1) == targets[part]).float()
    return found


def gradient(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, by_logp: torch.Tensor
) -> torch.Tensor:
    """That of a loss by `hidden`, of its shape, from `by_logp` (positions,), that by the log-probabilities. Where
    `weight` is trained, its gradient is added to `weight.grad`.
    """
    found = torch.empty_like(hidden)
    chunk = _compiled(_by_logits, _compiles(hidden))
    with torch.no_grad():
        for part, rows, logits, place in _chunks(hidden, weight):
            chunk(*_rows(place, 0, targets[part], by_logp[part]))
            found[part] = logits @ weight
            if weight.requires_grad:
                _add_gradient(weight, logits, rows)
    return found


def _by_logits(logits: torch.Tensor, targets: torch.Tensor, by_logp: torch.Tensor) -> None:
    """One where the target is, less the probabilities, times what the position weighs: in the place of `logits`."""
    z = logits.float()
    is_target = torch.arange(z.shape[1], device=z.device)[None] == targets[:, None]
    logits.copy_((is_target.float() - z.softmax(-1)) * by_logp[:, None])


def _chunks(
    hidden: torch.Tensor, weight: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(part, states, logits, place) of each chunk of positions: the logits until the next, in the first rows of
    `place` (CHUNK, vocabulary).
    """
    place = torch.empty(CHUNK, len(weight), dtype=weight.dtype, device=hidden.device)
    for start in range(0, len(hidden), CHUNK):
        part = slice(start, start + CHUNK)
        rows = hidden[part].to(weight.dtype)
        yield part, rows, torch.mm(rows, weight.t(), out=place[: len(rows)]), place


def _rows(place: torch.Tensor, fill: int, *by_position: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What a function of logits gets: the rows of `place` that are of `by_position`, each (positions,). Where it is
    compiled, all rows, and `fill` for those that only fill.
    """
    size = len(by_position[0])
    if not _compiles(place):
        return place[:size], *by_position
    return place, *(pad(values, (0, len(place) - size), value=fill) for values in by_position)


def _add_gradient(weight: torch.Tensor, by_logits: torch.Tensor, rows: torch.Tensor) -> None:
    """To `weight.grad`, what a chunk of states, `rows`, adds."""
    weight.grad = by_logits.t() @ rows if weight.grad is None else weight.grad.addmm_(by_logits.t(), rows)


def _compiles(tensor: torch.Tensor) -> bool:
    return tensor.is_cuda


@functools.cache
def _compiled(function: Callable[..., Made], compiled: bool) -> Callable[..., Made]:
    return torch.compile(function, dynamic=False) if compiled else function
