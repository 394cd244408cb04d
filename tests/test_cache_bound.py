"""How large a cache may become, with real processes: what goes, what stays, what is never touched."""

import os
import signal
import subprocess
import sys
import time

import pytest

from chatbot_sft import cache, cache_bound
from chatbot_sft.errors import UserError

MB = 1 << 20
KEEP = """
import logging, sys, time
from chatbot_sft.cache import cached
logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stdout)
for name in sys.argv[2:]:
    part, _, name = name.partition("/")
    folder, reused = cached(part, name, lambda folder: (folder / "rows").write_bytes(bytes(1 << 20)), "rows")
    print(name, "reused" if reused else "made", flush=True)
held = (folder / "rows").open("rb")
time.sleep(float(sys.argv[1]))
sys.stdin.read()
print("read", len(held.read()), flush=True)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("CHATBOT_SFT_CACHE", str(folder))
    return folder


def start(*names, seconds=0.0, gb=None, stdin=subprocess.DEVNULL):
    """A process that keeps entries of 1 MB and lives on for `seconds`, and until its `stdin` ends."""
    env = os.environ if gb is None else {**os.environ, "CHATBOT_SFT_CACHE_GB": str(gb)}
    return subprocess.Popen(
        [sys.executable, "-c", KEEP, str(seconds), *names],
        env=env, stdin=stdin, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def keep(*names, gb=None):
    output, _ = start(*names, gb=gb).communicate(timeout=600)
    return output


def there(folder):
    return sorted(entry.name for entry in cache_bound.entries(folder, cache.PARTS))


def aged(path, seconds):
    when = time.time() - seconds
    os.utime(path, (when, when))


@pytest.mark.slow
def test_what_was_used_longest_ago_goes_and_what_a_process_uses_stays(own):
    keep("data/old", "data/older", "findings/recent")
    for name, seconds in (("data/older", 300), ("data/old", 200), ("findings/recent", 100)):
        aged(own / name, seconds)
    user = start("data/older", stdin=subprocess.PIPE)  # uses the oldest
    try:
        assert user.stdout.readline() == "older reused\n"
        aged(own / "data/older", 300)
        said = keep("data/new", gb=0.0035)  # three of 1.05 MB
        assert there(own) == ["data/new", "data/older", "findings/recent"]
        assert said.splitlines()[0] == (
            "cache: 1 entries not used for longest are deleted, 0.00 GB, to stay below CHATBOT_SFT_CACHE_GB=0.0035"
        )
        # Everything is too much, and goes, but for what is in use; the process reads it to its end.
        said = keep("data/newer", gb=0)
        assert there(own) == ["data/newer", "data/older"]
        assert "all of it in use" in said
        assert cache_bound.clear(own, "data")[1] == 1  # the doctor leaves it, too
        assert there(own) == ["data/older"]
    finally:
        user.send_signal(signal.SIGKILL)
        user.wait()
    # A process that was killed uses nothing.
    said = keep("data/last", gb=0.0015)
    assert there(own) == ["data/last"]
    assert not list((own / ".users").iterdir()) or len(list((own / ".users").iterdir())) == 1


@pytest.mark.slow
def test_many_processes_that_keep_and_delete_at_once_find_whole_entries(own):
    """Each has room for one entry and makes three: whoever is told of one can read it to the end."""
    names = [f"data/{number}" for number in range(3)]
    processes = [start(*names, *reversed(names), seconds=0.2, gb=0.0011) for _ in range(4)]
    for process in processes:
        output, _ = process.communicate(timeout=600)
        assert process.returncode == 0
        assert output.endswith(f"read {MB}\n"), output
    assert not [path.name for path in own.rglob("*") if cache_bound.GONE in path.name]


def test_what_killed_builds_left_goes_and_nothing_else(own):
    def build(folder):
        (folder / "rows").write_bytes(b"1")

    cache.cached("data", "one", build, "rows")
    stale = own / "data" / ".two.abcd1234"
    stale.mkdir()
    (stale / "rows").write_bytes(b"half")
    running = own / "data" / ".three.abcd1234"
    running.mkdir()
    half = own / "models" / f".four{cache_bound.GONE}1234"
    half.mkdir(parents=True)
    others = own / "photos" / ".five.abcd1234"
    others.mkdir(parents=True)
    from filelock import FileLock

    with FileLock(own / "data" / ".three.lock"):  # its builder
        cache.cached("data", "six", build, "rows")
    assert not stale.exists()
    assert not half.exists()
    assert running.exists()
    assert others.exists()
    assert there(own) == ["data/one", "data/six"]


def test_what_is_compiled_counts_as_one_and_small_answers_stay(own, monkeypatch):
    for name in (
        "compiled/ab/kernel.py",
        "unsloth_compiled/code.py",
        "layouts/a.json",
        "verdicts/b.json",
        "photos/c.jpg",
    ):
        (own / name).parent.mkdir(parents=True)
        (own / name).write_bytes(bytes(1000))
    for part in ("compiled", "unsloth_compiled"):
        aged(own / part, 100)
    assert [entry.name for entry in cache_bound.entries(own, cache.PARTS)][:2] == [
        "compiled",
        "unsloth_compiled",
    ]
    monkeypatch.setenv("CHATBOT_SFT_CACHE_GB", "0")
    cache.part_folder("compiled")  # this process compiles
    cache_bound.trim(own, cache.PARTS)
    assert there(own) == ["compiled", "layouts/a.json", "verdicts/b.json"]
    assert (own / "photos" / "c.jpg").exists()


def test_a_cache_that_is_small_enough_is_left_alone(own):
    cache.cached("data", "one", lambda folder: (folder / "rows").write_bytes(b"1"), "rows")
    before = sorted(own.rglob("*"))
    cache_bound.trim(own, cache.PARTS)
    assert sorted(own.rglob("*")) == before


@pytest.mark.parametrize("value", ["many", "-1", "nan", "inf"])
def test_a_size_that_is_none_is_refused_at_once(own, monkeypatch, value):
    monkeypatch.setenv("CHATBOT_SFT_CACHE_GB", value)
    with pytest.raises(UserError, match=f"CHATBOT_SFT_CACHE_GB={value}: expected a number of GB"):
        cache.cached("data", "one", lambda folder: None, "rows")


def test_a_link_in_a_part_is_not_followed(own, tmp_path, monkeypatch):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_bytes(bytes(100))
    (own / "data").mkdir(parents=True)
    (own / "data" / "link").symlink_to(tmp_path / "precious")
    monkeypatch.setenv("CHATBOT_SFT_CACHE_GB", "0")
    cache_bound.trim(own, cache.PARTS)
    assert there(own) == []
    assert (tmp_path / "precious" / "file").exists()
