"""Whatever the words of a command line are: one line that a person understands, or a configuration that has them."""

from __future__ import annotations

import copy
import itertools
import math
import re

import pytest
from fuzz.words import flags, words
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hydra import initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from chatbot_sft import command_line
from chatbot_sft.config import Config, hydra_glue, sft_arguments
from chatbot_sft.config.hydra_errors import said
