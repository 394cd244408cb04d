"""hydra/sweeper=study: Hydra's public Sweeper, in the package where Hydra looks for plugins.

Hydra imports this file at every start, so it imports nothing that a plain run does not need.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class StudySweeper(Sweeper):
    """Hands a sweep to `chatbot_sft.sweep.begin`, which runs its jobs itself."""

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        """`params` are read where the rest of the command line is, in `chatbot_sft.sweep.points`."""
        self.params = params

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context = hydra_context
        self.config = config

    def sweep(self, arguments: list[str]) -> None:
        from chatbot_sft.sweep import begin

        assert self.config is not None and self.hydra_context is not None  # Hydra has called `setup`
        begin.sweep(self.config, self.hydra_context)
