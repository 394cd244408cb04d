"""The configuration: `schema` (each key once) · `checks` · `reading` (to a Config) · `loader` (without Hydra).

Beside them what they know of others: `sft_arguments` (keys of TRL's SFTConfig), `aliases` (words of other
tools), `precedence` (which of two settings counts), `effects` (settings that do nothing beside others). Hydra
is in `hydra_glue` alone.
"""

from chatbot_sft.config.key import Bound, Key, one_of
from chatbot_sft.config.loader import ConfigLoader
from chatbot_sft.config.reading import known_override, meant, no_such_topic
from chatbot_sft.config.schema import (
    ALL_LINEAR,
    METHODS,
    OVERLAYS,
    PROJECTIONS,
    QUANTIZATIONS,
    SECTIONS,
    BringsConfig,
    Config,
    DatasetConfig,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    PathsConfig,
    SaveConfig,
    SourceConfig,
    SweepConfig,
    TrainingConfig,
    deciding,
    find,
    keys,
    kind_of,
)

__all__ = [
    "ALL_LINEAR",
    "METHODS",
    "OVERLAYS",
    "PROJECTIONS",
    "QUANTIZATIONS",
    "SECTIONS",
    "Bound",
    "BringsConfig",
    "Config",
    "ConfigLoader",
    "DatasetConfig",
    "EvaluationConfig",
    "Key",
    "LoraConfig",
    "ModelConfig",
    "PathsConfig",
    "SaveConfig",
    "SourceConfig",
    "SweepConfig",
    "TrainingConfig",
    "deciding",
    "find",
    "keys",
    "kind_of",
    "known_override",
    "meant",
    "no_such_topic",
    "one_of",
]
