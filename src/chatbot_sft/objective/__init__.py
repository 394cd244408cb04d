"""What a step makes smaller: `objective=sft`, `dpo`, `orpo` or `kto`, a class each, or one of your own.

`Objective` says what such a class is, `Sequences` what it is given. Nothing here imports torch at the top.
"""

from chatbot_sft.objective.base import Objective, objective_of
from chatbot_sft.objective.dpo import DPO
from chatbot_sft.objective.kto import KTO
from chatbot_sft.objective.orpo import ORPO
from chatbot_sft.objective.sequences import Sequences, Totals
from chatbot_sft.objective.sft import SFT

__all__ = ["DPO", "KTO", "ORPO", "SFT", "Objective", "Sequences", "Totals", "objective_of"]
