"""Any keys with any values: no traceback, every key in one of the lists, an overlay that the schema takes."""

from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from chatbot_sft.convert import overlay, told
from chatbot_sft.convert.__main__ import PEERS
from chatbot_sft.convert.conversion import convert, refused
from chatbot_sft.errors import UserError

WORDS = (
    "lora", "qlora", "full", "dpo", "kto", "auto", "cosine", "epoch", "steps", "no", "q_proj", "1e-4", "0.1",
    "data/x.jsonl", "json", "chat_template", "alpaca", "a/b", "${x}", "all", "a,b",
)  # fmt: skip
INNER = (
    "path", "type", "field_messages", "role", "content", "roles", "data_files", "roles_to_train", "train_on_eos",
    "split", "loftq_config", "beta", "pad_token", "additional_special_tokens",
)  # fmt: skip
PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-5, 10**6)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(WORDS)
)
VALUES = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(INNER) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize("peer", PEERS.values(), ids=lambda peer: peer.name)
@settings(max_examples=8, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_keys_with_any_values(peer, data):
    names = st.sampled_from(sorted(peer.rules))
    values = data.draw(st.dictionaries(names | names | st.text(max_size=6), VALUES, max_size=12))
    try:
        made = convert(values, peer, Path("folder/x.yml"))
    except UserError:
        return
    keys = [line.key for line in made.lines]
    assert len(keys) == len(set(keys))
    for key in values:
        assert [found for found in keys if found == key or found.startswith((f"{key}[", f"{key}."))]
    assert not refused(made.settings)
    assert isinstance(yaml.safe_load(overlay.text(made, "command")), dict)
    assert all("\n" not in line for line in told.lines(made))
