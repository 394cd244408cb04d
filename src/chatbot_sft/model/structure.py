"""What a model's modules are at a moment, all but the numbers in their weights: which layers stand where, hooks,
modes, and whatever a library has set on them. Imported after the engine.

An adapter, other layers in place of the base's (`layers`), an attention of ours, compiled calls: all of it is
put into a base by setting attributes of its modules, so all of it is taken out by setting them back. No weight
is copied.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedConfig

CONTAINERS = (dict, OrderedDict, set, list)  # that are changed where they are


class Structure:
    """That of `model` as it is now."""

    def __init__(self, model: torch.nn.Module) -> None:
        modules = list(model.modules())
        self._values = [_Values(vars(part)) for part in (*modules, *_configs(modules))]
        # Libraries switch gradients on and off, and give a weight another dtype.
        self._parameters = [
            (parameter, parameter.requires_grad, parameter.data) for parameter in model.parameters()
        ]

    def restore(self) -> None:
        """Make it so again."""
        for values in self._values:
            values.restore()
        for parameter, trained, data in self._parameters:
            if parameter.dtype != data.dtype or parameter.data_ptr() != data.data_ptr():
                parameter.data = data
            parameter.requires_grad_(trained)


class _Values:
    """An object's attributes. What a container among them holds is put back into that very container: hooks are
    removed by the dictionary that they were put into. Most of a model's ten thousands are empty.
    """

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes, self.before = attributes, dict(attributes)
        containers = [value for value in attributes.values() if type(value) in CONTAINERS]
        self.empty = [container for container in containers if not container]
        self.filled = [(container, container.copy()) for container in containers if container]

    def restore(self) -> None:
        self.attributes.clear()
        self.attributes.update(self.before)
        for container in self.empty:
            container.clear()
        for container, content in self.filled:
            container.clear()
            container.extend(content) if isinstance(container, list) else container.update(content)


def _configs(modules: list[torch.nn.Module]) -> Iterator[Any]:
    """The configurations that they hold, and those within these."""
    kinds = (PreTrainedConfig, GenerationConfig)
    waiting = [value for module in modules for value in vars(module).values() if isinstance(value, kinds)]
    seen: set[int] = set()
    while waiting:
        config = waiting.pop()
        if id(config) not in seen:
            seen.add(id(config))
            waiting += [value for value in vars(config).values() if isinstance(value, kinds)]
            yield config
