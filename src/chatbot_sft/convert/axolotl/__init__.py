"""Axolotl's keys, and what becomes of each.

Read in axolotl-ai-cloud/axolotl at 067b021 (2026-07-24, version 0.18.0): names and defaults in
src/axolotl/utils/schemas/, what they come to in src/axolotl/core/builders/, what a dataset's type reads in
src/axolotl/prompt_strategies/. Keys of plugins are in src/axolotl/integrations/*/args.py.
"""

from __future__ import annotations

from chatbot_sft.convert.axolotl.around import MACHINE, REPORTS
from chatbot_sft.convert.axolotl.data import DATA, OBJECTIVE
from chatbot_sft.convert.axolotl.model import ADAPTER, MODEL
from chatbot_sft.convert.axolotl.training import TRAINING
from chatbot_sft.convert.peer import Peer

AXOLOTL = Peer(
    name="axolotl",
    title="Axolotl",
    version="0.18.0",
    model="base_model",
    parts={
        "model": MODEL,
        "adapter": ADAPTER,
        "data": DATA,
        "objective": OBJECTIVE,
        "training": TRAINING,
        "machine": MACHINE,
        "reports and exports": REPORTS,
    },
)
