"""Whatever the words of a command line are: one line that a person understands, or a configuration that has them.

9,000 examples of the grammar (no word gets past it that Hydra then reads as something else) and 300 of whole commands, up to
where a run begins; `--hypothesis-profile=explore` takes ten times as many, and new ones each time.
"""

from __future__ import annotations

import math

import pytest
from command_lines import words
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launcher import Refused, one_line, read_once, started
from omegaconf import DictConfig, ListConfig, OmegaConf

from chatbot_sft import command_line, refused_overrides
from chatbot_sft.config import hydra_glue, kind_of
from chatbot_sft.errors import UserError

TIMES = settings.default.max_examples  # 100; 1,000 where new ones are looked for
PARSER = OverridesParser.create()
LOOSE = {"max_examples": 3 * TIMES, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module", autouse=True)
def files_are_read_once():
    with read_once():
        yield


@pytest.mark.slow
@settings(**{**LOOSE, "max_examples": 90 * TIMES})
@given(words)
def test_a_word_is_refused_in_a_line_or_hydra_reads_what_is_written(word):
    try:
        accepted = command_line.check([word, "-m"])
        opened = command_line.all_opened(accepted.overrides, accepted)
    except UserError as error:
        one_line(error)
        return
    if accepted.help or not accepted.overrides:
        return
    parsed = PARSER.parse_override(word)
    read = parsed if opened == [word] else PARSER.parse_override(*opened)
    assert read.key_or_group == parsed.key_or_group
    assert (read.key_or_group and read.package is None) or "/" in read.key_or_group
    if not parsed.is_sweep_override() and not kind_of(parsed.key_or_group).startswith("str"):
        assert same(parsed.value(), read.value())


@pytest.mark.slow
@settings(**LOOSE)
@given(st.lists(words, min_size=1, max_size=2), st.sampled_from([[], [], [], ["-m"]]))
def test_a_command_is_refused_in_a_line_or_its_configuration_has_every_word(typed, flags):
    try:
        config = started([*typed, *flags])
    except Refused:
        return
    if config is None or flags:
        return
    overrides = {}
    for word in typed:
        if word != "--":
            parsed = PARSER.parse_override(word)
            overrides[parsed.key_or_group] = parsed
    own_class = any("_target_" in key for key in overrides)
    checked = hydra_glue.check(config)
    for key, parsed in overrides.items():
        if parsed.is_delete() or key.partition(".")[0] == "hydra" or "/" in key:
            continue
        value = parsed.value()
        if refused_overrides.is_group(key):
            assert config.hydra.runtime.choices[key] == value or value is None
            continue
        assert refused_overrides.is_ours(key) or own_class, f"{key} is no key"
        if "${" in str(value):
            continue
        assert same(value, at(config, key)), f"{parsed.input_line}: {at(config, key)!r}"
        assert key.partition(".")[0] in checked.to_dict()


def at(config: DictConfig, key: str):
    """The value under a dotted key, as plain Python."""
    found = config
    for name in key.split("."):
        found = found._get_node(name) if isinstance(found, DictConfig) else found
    if isinstance(found, (DictConfig, ListConfig)):
        return OmegaConf.to_container(found, resolve=False)
    return found._value()


def same(written, read) -> bool:
    """Whether `read` is what was `written`: text for a key of text, a number for one of numbers."""
    if isinstance(written, (list, tuple)):
        return isinstance(read, list) and len(written) == len(read) and all(map(same, written, read))
    if isinstance(written, dict):
        return (
            isinstance(read, dict)
            and {str(key) for key in written} == {str(key) for key in read}
            and all(same(value, read.get(key, read.get(str(key)))) for key, value in written.items())
        )
    if isinstance(written, float) and isinstance(read, float) and math.isnan(written):
        return math.isnan(read)
    if str(written) == str(read) or written == read:
        return True
    try:
        return float(written) == float(read)
    except (TypeError, ValueError):
        return (
            str(read).strip("'\"").lower() == str(written).lower()
        )  # yes and no stay text for a key of text
