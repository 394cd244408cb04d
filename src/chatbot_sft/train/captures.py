"""What runs on one base share, one after the other or in turns: CUDA graphs, and the place where these find an
adapter. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

if TYPE_CHECKING:
    from chatbot_sft.train.graphs import CapturedLayers


class Captures:
    """Graphs over one base, by all that decides what they compute: they outlive the run that captured them.

    A graph knows addresses alone, so that runs whose adapters have one form put them into one place. What stands
    there is of the step that is under way.
    """

    def __init__(self, runs: float = 1.0) -> None:
        """`runs`: how many whole runs what is compiled for one form serves, about."""
        self.runs = runs
        # Whether conversations end to end were found to be what padded ones are, on this base.
        self.packs = False
        self._places: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()
        self._layers: dict[Hashable, CapturedLayers] = {}

    def place(self, form: Hashable, make: Callable[[], Any]) -> Any:
        """That of adapters of one form, as long as a run or a graph has it."""
        place = self._places.get(form)
        if place is None:
            place = self._places[form] = make()
        return place

    def layers(self, key: Hashable, make: Callable[[], CapturedLayers]) -> CapturedLayers:
        """Those that a run before has captured under `key`, or new ones."""
        if there := self._layers.get(key):
            return there.hand_over()
        self._layers[key] = make()
        return self._layers[key]

    def let_go(self, layers: CapturedLayers | None) -> None:
        """No later run gets `layers`."""
        self._layers = {key: other for key, other in self._layers.items() if other is not layers}

    def let_go_others(self, layers: CapturedLayers | None) -> bool:
        """No later run gets any but `layers`; whether there were others. Those that no run has leave their memory."""
        kept = {key: other for key, other in self._layers.items() if other is layers}
        others = len(kept) < len(self._layers)
        self._layers = kept
        return others
