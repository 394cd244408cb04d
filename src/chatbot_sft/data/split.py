"""Which of the tokenised rows are trained on and which are held out, so that nothing held out is trained on."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot_sft.data.gate import LISTED, Findings
from chatbot_sft.data.store import numbers

if TYPE_CHECKING:
    import numpy as np
    import pyarrow


DUPLICATE = "exact duplicate"
TRAINED_ELSEWHERE, HELD_OUT_ELSEWHERE = "not held out: trained on", "not trained: held out"


@dataclass
class Split:
    """Indices into the table, in the order of the files.

    `once` has each training row once, `training` as often as the mixture uses it.
    """

    training: np.ndarray
    once: np.ndarray
    held_out: np.ndarray
    duplicates: int
    leaked: int
    notes: Findings

    def without(self, table: pyarrow.Table, rows: np.ndarray) -> Split:
        """The same without these training rows."""
        import numpy as np

        once = self.once[~np.isin(self.once, rows)]
        repeated = len(once) - len(np.unique(numbers(table, "identity")[once]))
        training = self.training[~np.isin(self.training, rows)]
        return replace(self, training=training, once=once, duplicates=repeated)


def split(
    table: pyarrow.Table,
    eval_fraction: float,
    given: bool,
    keep_bad: bool,
    seed: int,
    keep_leaks: bool = False,
) -> Split:
    """Hold out `eval_fraction` of the rows or, where some were `given` for that, those not trained on.

    With `keep_leaks` those `given` are held out all the same: what says the same is taken out of training.
    """
    import numpy as np

    uses, identity, dialogue = (numbers(table, name) for name in ("uses", "identity", "dialogue"))
    bad, marked = (numbers(table, name).astype(bool) for name in ("bad", "held_out"))
    usable = np.ones(len(bad), bool) if keep_bad else ~bad
    notes, leaked = Findings(), 0
    if given:
        once, held_out = np.flatnonzero(usable & ~marked), np.flatnonzero(usable & marked)
        if keep_leaks:
            leaks = np.isin(dialogue[once], dialogue[held_out])
            note_repeats(notes, HELD_OUT_ELSEWHERE, table, dialogue, held_out, once[leaks])
            once = once[~leaks]
        leaks = np.isin(dialogue[held_out], dialogue[once])
        leaked = int(leaks.sum())
        same = "the same prompt as" if "parts" in table.column_names else "the same as"
        note_repeats(notes, TRAINED_ELSEWHERE, table, dialogue, once, held_out[leaks], same)
        held_out = held_out[~leaks]
    else:
        once, held_out = _drawn(np.flatnonzero(usable), dialogue, eval_fraction, seed)
    _, first = np.unique(identity[once], return_index=True)
    repeated = np.delete(once, first)
    note_repeats(notes, DUPLICATE, table, identity, once[np.sort(first)], repeated)
    return Split(np.repeat(once, uses[once]), once, held_out, len(repeated), leaked, notes)


def _drawn(rows: np.ndarray, dialogue: np.ndarray, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training, held out): `share` of `rows` drawn with the seed; rows that say the same stay on one side."""
    import numpy as np

    if not share or not len(rows):
        return rows, rows[:0]
    _, group, sizes = np.unique(dialogue[rows], return_inverse=True, return_counts=True)
    order = list(dict.fromkeys(group.tolist()))  # in the order of the file, whatever the hashes are
    random.Random(seed).shuffle(order)
    wanted, chosen = max(1, round(len(rows) * share)), np.zeros(len(sizes), bool)
    for number in order:
        if sizes[number] <= wanted:
            chosen[number] = True
            wanted -= sizes[number]
    apart = chosen[group]
    return rows[~apart], rows[apart]


def note_repeats(
    notes: Findings,
    kind: str,
    table: pyarrow.Table,
    hashes: np.ndarray,
    originals: np.ndarray,
    repeats: np.ndarray,
    says: str = "the same as",
    hashes_of_originals: np.ndarray | None = None,
) -> None:
    """Name the first of `repeats`, each with the one of `originals` that has its hash; count all."""
    import numpy as np

    if not len(repeats):
        return
    named, known = repeats[:LISTED], hashes if hashes_of_originals is None else hashes_of_originals
    origin = {int(known[index]): index for index in originals[np.isin(known[originals], hashes[named])][::-1]}

    def where(index: int) -> tuple[str, int]:
        return table.column("file")[int(index)].as_py(), table.column("row")[int(index)].as_py()

    for index in named:
        file, row = where(origin[int(hashes[index])])
        notes.add(kind, *where(index), f"{says} row {row} of {Path(file).name}")
    notes.kinds[kind]["count"] = len(repeats)
