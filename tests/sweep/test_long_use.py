"""A sweep of many jobs in one process holds what a sweep of few does: nothing that a job took is left behind."""

import json
import shutil
from pathlib import Path

import pytest
from conftest import conversations, write_json

pytestmark = pytest.mark.slow

CENSUS = Path(__file__).parent.parent / "census.py"
BEGUN = (
    4  # jobs after which everything is imported, compiled and kept that is made once: each rank among them
)
JOBS = 12
# What stands at the end as it did after these jobs. A type is one of Python's objects, a handler one of logging's.
SAME = (
    "tensors", "tensor_bytes", "threads", "descriptors", "temporary", "loggers", "handlers", "filters", "signals",
    "atexit", "gc_callbacks", "modules", "path", "environment", "warnings", "children",
)  # fmt: skip
# Kept of each job on purpose: what became of it, and its report as the leaderboard has it.
OF_A_JOB = 60  # objects
BYTES_OF_A_JOB = 8 * 2**20  # of resident memory: the allocator takes it by the block of 64 MB in these tests


@pytest.fixture(scope="module")
def counts(warm, tiny, tmp_path_factory):
    """What tests/census.py has counted after each of the jobs."""
    folder = tmp_path_factory.mktemp("long")
    shutil.copy(CENSUS, folder)
    (folder / "temporary").mkdir()
    data = write_json(folder / "chats.json", conversations(12))
    command = [
        "-m", "chatbot_sft", "-m", *tiny, f"dataset.data_path={data}", "dataset.eval_fraction=0.2", "training.eval_steps=1",
        "training.save_steps=1", "training.sample_max_new_tokens=1", "save=lora", "lora.r=2,4", "seed=range(0,6)",
        "hydra.sweep.dir=sweep", "+hydra.callbacks.census._target_=census.Census", "+hydra.callbacks.census.file=census.jsonl",
    ]  # fmt: skip
    process = warm.run(command, folder, {"TMPDIR": str(folder / "temporary")})
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in (folder / "census.jsonl").read_text().splitlines()]


def test_what_a_job_took_is_gone_with_it(counts):
    assert len(counts) == JOBS
    for later in counts[BEGUN:]:
        assert {name: later[name] for name in SAME} == {name: counts[BEGUN - 1][name] for name in SAME}, (
            later["job"]
        )


def test_objects_are_as_many_as_reports_of_jobs_ask_for(counts):
    first, last, jobs = counts[BEGUN - 1], counts[-1], JOBS - BEGUN
    more = {name: last["types"][name] - first["types"].get(name, 0) for name in last["types"]}
    more = {name: count for name, count in more.items() if count >= jobs}  # one a job, or more
    assert last["objects"] - first["objects"] < OF_A_JOB * jobs, more
    kept = {
        name for name in more if not name.startswith(("builtins.", "pathlib.", "chatbot_sft.run.report."))
    }
    assert kept <= {"chatbot_sft.jobs.Job", "chatbot_sft.report.leaderboard.job.Data"}, more
    assert more.get("chatbot_sft.run.report.Report", 0) <= jobs, more


def test_resident_memory_grows_by_less_than_the_bound(counts):
    grown = counts[-1]["rss"] - counts[BEGUN - 1]["rss"]
    assert grown < BYTES_OF_A_JOB * (JOBS - BEGUN), [count["rss"] // 2**20 for count in counts]
