"""Files of settings with any fault in them: one line that names the file, or the settings as they are written.

YAML of a --config-dir, a configuration of the seed's ConfigLoader, a file of sweep.points, golden cases. Half of what is changed is
a slip that a person makes (a typo, a tab, a key twice, a list for a mapping), half of it is bytes.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from launcher import Refused, one_line, read_once, started

from chatbot_sft.config import ConfigLoader
from chatbot_sft.errors import UserError
from chatbot_sft.evaluation import cases
from chatbot_sft.resources import conf_dir
from chatbot_sft.sweep import points

SEED = Path(__file__).parents[1] / "seed.yaml"
OVERLAYS = [
    (file.parent.name, file.stem)
    for folder in ("lora", "save", "experiment", "hparams_search", "model")
    for file in sorted((conf_dir() / folder).glob("*.yaml"))
]
CASES = [
    {"messages": [{"role": "user", "content": "Which day?"}], "contains": "Tuesday", "id": 1},
    {"prompt": "Is it?", "regex": "yes|no", "tags": ["a", "b"], "case_sensitive": True},
    {"messages": [{"role": "user", "content": "JSON?"}], "json_schema": {"type": "object"}},
]
JOBS = "- {lora.r: 8, seed: 1}\n- lora: {r: 16}\n  seed: 2\n- {training.learning_rate: 1e-4, model.revision: abc}\n"
SLIPS = [
    ("\n", "\n\t"), (": ", ":"), (": ", " "), (":", "::"), ("\n  ", "\n "), ("\n", "\r\n"), ("\n", "\x00\n"), ("  ", "\t"), ('"', ""), ("'", ""), ("\n", ""),
    ("[", ""), ("]", ""), ("{", ""), (": ", ": &a "), (": ", ": *a "), (": ", ": !!python/object/apply:os.system "), (": ", ": !!binary "), (": ", ": ["),
    (": ", ": {"), (": ", ": {a: 1} #"), (": ", ": [1] #"), (": ", ": null #"), (": ", ": yes #"), (": ", ": ${nothing} #"), (": ", ": ${oc.env:NO} #"),
    (": ", ": ??? #"), (": ", ": .nan #"), (": ", ": -1 #"), (": ", ": 1e999 #"), (": ", ": 2026-11-30 #"), (": ", ": 'a: b' #"), (": ", ": \x1b[31m #"),
    (": ", ": \u202e #"), ("a", "@"), ("_", "-"), ("e", ""), ("r", "rr"), ("\n", "\n<<: {a: 1}\n"), ("\n", "\n---\n"), ("\n", "\n...\n"), ("\n", "\n%YAML 9\n"),
    ("\n", "\n? a\n"), ("\n", "\n- a\n"), ("\n", "\n_target_: os.system\n"), ("\n", "\ndefaults: [x]\n"), ("\n", "\n1: 2\n"), ("\n", "\nnull: 2\n"), ("\n", "\nlora: 3\n"),
]  # fmt: skip
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
TIMES = settings.default.max_examples
LOOSE = {"max_examples": 2 * TIMES, "suppress_health_check": list(HealthCheck)}


@pytest.fixture(scope="module", autouse=True)
def files_are_read_once():
    with read_once():
        yield


@st.composite
def changed(draw, text: str) -> bytes:
    """`text` with a slip or two in it, in some encoding."""
    for _ in range(draw(st.integers(1, 2))):
        old, new = draw(st.sampled_from(SLIPS))
        places = [at for at in range(len(text)) if text.startswith(old, at)]
        if places:
            at = draw(st.sampled_from(places))
            text = text[:at] + new + text[at + len(old) :]
    way = draw(st.integers(0, 19))
    if way == 0:
        return draw(
            st.sampled_from(
                [BOMB + text, "[" * 2000 + text, text + "{a: " * 500, "", "\n", "#", "a", "- " * 900]
            ).map(str)
        ).encode()
    if way == 1:
        return text.encode(
            draw(st.sampled_from(["utf-16", "utf-8-sig", "utf-32", "cp1252", "utf-16-le"])), errors="replace"
        )
    data = text.encode()
    if way == 2:
        at = draw(st.integers(0, len(data)))
        return data[:at] + draw(st.binary(min_size=1, max_size=4)) + data[at:]
    return data[: draw(st.integers(0, len(data)))] if way == 3 else data


@pytest.mark.slow
@settings(**LOOSE)
@given(st.sampled_from(OVERLAYS), st.data())
def test_an_option_of_the_users_own(tmp_path_factory, option, data):
    group, name = option
    folder = tmp_path_factory.getbasetemp() / "mine"
    (folder / group).mkdir(parents=True, exist_ok=True)
    file = folder / group / "my.yaml"
    file.write_bytes(data.draw(changed((conf_dir() / group / f"{name}.yaml").read_text(encoding="utf-8"))))
    with contextlib.suppress(Refused):
        started(["--config-dir", str(folder), f"{group}=my"])


@pytest.mark.slow
@settings(**LOOSE)
@given(changed(SEED.read_text(encoding="utf-8")))
def test_a_configuration_of_the_seed(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "seed.yaml"
    file.write_bytes(content)
    try:
        read = ConfigLoader.load_config(file, file.parent)
    except UserError as error:
        one_line(error)
        return
    # Nothing of it was passed over: every key that YAML reads is in what was read.
    for section, values in (yaml.safe_load(content) or {}).items():
        assert set(values or {}) <= set(read[section]), section


@pytest.mark.slow
@settings(**LOOSE)
@given(changed(JOBS))
def test_a_list_of_jobs(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "jobs.yaml"
    file.write_bytes(content)
    try:
        space = points.space([], file=str(file))
    except UserError as error:
        assert "jobs.yaml" in one_line(error)
        return
    assert len(list(space.points())) == len(yaml.safe_load(content))


@pytest.mark.slow
@settings(**LOOSE)
@given(changed("".join(json.dumps(case) + "\n" for case in CASES)))
def test_golden_cases(tmp_path_factory, content):
    file = tmp_path_factory.getbasetemp() / "golden.jsonl"
    file.write_bytes(content)
    try:
        read = cases.read(file)
    except UserError as error:
        assert "golden.jsonl" in one_line(error)
        return
    assert 1 <= len(read) <= len(CASES) + 1
