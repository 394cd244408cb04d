"""A cache of somebody else, a damaged one, one that is too large."""

import os

from conftest import write_json

from chatbot_sft.doctor import caches
from chatbot_sft.doctor.finding import State, examined


def test_a_cache_that_others_may_write(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    (folder / "compiled").mkdir(parents=True)
    (folder / "compiled").chmod(0o777)
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(folder))
    _, found = caches.check(uses_hub=False)
    assert (found.state, found.repair) == (State.FAULT, f"chmod -R go-rwx {folder}")
    (folder / "compiled").chmod(0o700)
    os.chown(folder / "compiled", 12345, 12345)
    _, found = caches.check(uses_hub=False)
    assert (found.state, found.what) == (
        State.FAULT,
        f"{folder}/compiled belongs to another user: nothing in it is used",
    )


def test_a_cache_that_is_damaged_or_too_large(monkeypatch, tmp_path):
    entry = tmp_path / "cache" / "data" / "abc"
    entry.mkdir(parents=True, mode=0o700)
    write_json(entry / "checksums.json", {"rows.arrow": {"size": 7}})
    (entry / "rows.arrow").write_text("short")
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CHATBOT_SFT_CACHE_GB", "0.000000001")
    large, damaged = caches.check(uses_hub=False)
    assert (large.state, large.repair) == (State.NOTE, "python -m chatbot_sft.doctor --clear-cache")
    assert (damaged.state, damaged.repair) == (State.NOTE, "python -m chatbot_sft.doctor --clear-cache data")
    assert damaged.what.startswith("1 of data are damaged (abc)")
    monkeypatch.setenv("CHATBOT_SFT_CACHE_GB", "many")
    (found,) = examined("cache", caches.check, False)
    assert (found.state, found.repair) == (State.FAULT, "unset CHATBOT_SFT_CACHE_GB")
