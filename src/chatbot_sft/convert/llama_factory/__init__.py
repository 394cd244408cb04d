"""LLaMA-Factory's keys, and what becomes of each.

Read in hiyouga/LLaMA-Factory at ff6d4d1 (2026-08-18, version 0.9.6.dev0): names and defaults in
src/llamafactory/hparams/, data in src/llamafactory/data/ and data/README.md. Its training arguments are those of
transformers (5.17 was read; it takes up to 5.8).
"""

from __future__ import annotations

from chatbot_sft.convert.llama_factory.around import MACHINE, REPORTS
from chatbot_sft.convert.llama_factory.data import DATA, OBJECTIVE
from chatbot_sft.convert.llama_factory.model import ADAPTER, MODEL
from chatbot_sft.convert.llama_factory.training import TRAINING
from chatbot_sft.convert.peer import Peer

LLAMA_FACTORY = Peer(
    name="llama-factory",
    title="LLaMA-Factory",
    version="0.9.6.dev0",
    model="model_name_or_path",
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
