"""How one optimizer step is run: micro-batches, padding, recomputation. The step's gradient is the same in
every layout; time and memory are not.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from chatbot_sft.errors import UserError
from chatbot_sft.run.kinds import fault
from chatbot_sft.train.rows import Row, StepRows, padded, padding_free


@dataclass(frozen=True)
class Layout:
    """One way to run the packs of a step on one device."""

    packs: int  # conversations (packs of them with training.packing) in one micro-batch
    padding_free: bool = False  # one long sequence without padding, in place of a rectangle
    checkpointing: bool = False  # activations are computed again in the backward pass: less memory, more time
    captured: bool = False  # the layers run as CUDA graphs: no launch and no Python between their kernels
    packed: bool = (
        False  # end to end in one of a few sizes, each attending to itself: model/packed_attention.py
    )
    compiled: bool = False  # each layer is compiled before it is captured
    decoded: bool = False  # a 4-bit base is decoded once, into 16 bits that stay

    def describe(self, batch_size: int) -> str:
        """For people: "8 × 1 padded, no checkpointing" for `batch_size` packs a step."""
        form = "packed" if self.packed else "padding-free" if self.padding_free else "padded"
        parts = [
            f"{self.packs} × {math.ceil(batch_size / self.packs)} {form}",
            "checkpointing" if self.checkpointing else "no checkpointing",
            *(name for name in ("compiled", "captured") if getattr(self, name)),
            *(["base decoded"] if self.decoded else []),
        ]
        return ", ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: str = "layout") -> Layout:
        """What `as_dict` made of one; `where` begins what is said of another.

        Raises:
            UserError: a version that has other layouts made it, or it is damaged.
        """
        known = ", ".join(f"{name}={value}" for name, value in values.items())
        try:
            layout = cls(**values)
        except TypeError:
            raise UserError(
                f"{where}: the run was cut into micro-batches by another version of chatbot_sft ({known}), as this"
                " one cannot; go on with that version"
            ) from None
        if fault(layout, cls) or layout.packs < 1:
            raise UserError(f"{where}: no way to cut a run into micro-batches ({known}); take it from a copy")
        return layout

    def groups(self, step: StepRows) -> Iterator[list[Row]]:
        """The conversations of each micro-batch; neighbours in length, because a step's packs are sorted by
        it.
        """
        for start in range(0, len(step.packs), self.packs):
            yield [row for pack in step.packs[start : start + self.packs] for row in pack]

    def batch(self, rows: list[Row], pad_token_id: int) -> dict[str, Any]:
        """The tensors of one micro-batch, on the CPU."""
        return padding_free(rows) if self.padding_free else padded(rows, pad_token_id)


def candidates(
    configured: Layout, batch_size: int, packing: bool, gpu: bool, capturable: bool
) -> list[Layout]:
    """The layouts worth measuring for `batch_size` packs a step, the likeliest first.

    On a GPU that is the largest micro-batch without recomputation: short conversations leave it idle while
    Python launches kernels. On a CPU, where padding is the only loss, it is what is configured, then its
    neighbours, the smaller first, then those without padding, whose attention looks at more.
    """
    sizes = [batch_size]
    while sizes[-1] > 1:
        sizes.append(math.ceil(sizes[-1] / 2))
    # A single conversation has no padding; packed ones are never padded apart.
    forms = [
        (size, form)
        for size in sizes
        for form in (False, True)
        if (form if packing else size > 1 or not form)
    ]
    if not gpu:
        near = sorted(forms, key=lambda form: (form[1], abs(math.log2(form[0] / configured.packs)), form[0]))
        return list(dict.fromkeys([configured, *(Layout(*form) for form in near)]))
    plain = [Layout(*form) for form in forms]
    captured = [Layout(size, captured=True) for size in sizes[:2] if capturable and not packing]
    recomputed = [Layout(*form, checkpointing=True) for form in forms]
    return list(dict.fromkeys([*plain[:2], *captured, *plain[2:], *recomputed, configured]))


def uncaptured(layout: Layout) -> Layout:
    """The same where its layers cannot be captured."""
    return replace(layout, captured=False, compiled=False)


def step_down(layout: Layout, batch_size: int, capture_recomputed: bool = True) -> Layout | None:
    """The next layout after `layout` ran out of memory in a step of `batch_size` packs: smaller micro-batches, then
    recomputation. Packed, all of them are recomputed at once before they are taken one by one, which loses more. None
    at the end.

    `capture_recomputed`: whether layers that are recomputed can be captured.
    """
    if layout.packed:
        if layout.decoded:
            return replace(layout, decoded=False)
        recomputable = capture_recomputed or not layout.captured
        if recomputable and not layout.checkpointing and layout.packs <= 2:
            return replace(layout, checkpointing=True, packs=batch_size)
        if layout.packs > 1:
            return replace(layout, packs=math.ceil(layout.packs / 2))
        return replace(uncaptured(layout), checkpointing=True) if layout.captured else None
    if layout.captured:
        return Layout(layout.packs, layout.padding_free, layout.checkpointing)
    if layout.packs > 1:
        return Layout(
            math.ceil(layout.packs / 2), layout.padding_free and layout.packs > 2, layout.checkpointing
        )
    if not layout.checkpointing:
        return Layout(1, layout.padding_free, checkpointing=True)
    return None


def packed_ladder(batch_size: int, compiled: bool, four_bit: bool) -> list[Layout]:
    """Packed layouts for `batch_size` packs a step, each less hungry than the one before: the first that fits
    is taken.
    """
    whole = Layout(batch_size, packed=True, captured=True, compiled=compiled, decoded=four_bit)
    return _ladder(whole, batch_size)


def uncaptured_ladder(failed: Layout, batch_size: int) -> list[Layout]:
    """What is left of it where `failed` cannot be captured: of recomputed layers, those that are not may be."""
    if failed.checkpointing:
        return _ladder(replace(failed, checkpointing=False), batch_size, capture_recomputed=False)
    return _ladder(uncaptured(failed), batch_size)


def _ladder(layout: Layout, batch_size: int, capture_recomputed: bool = True) -> list[Layout]:
    ladder = [layout]
    while (smaller := step_down(ladder[-1], batch_size, capture_recomputed)) is not None:
        ladder.append(smaller)
    return ladder
