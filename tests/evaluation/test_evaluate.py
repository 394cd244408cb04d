"""task=evaluate on models: beside the base, beside an earlier run, an adapter, a batch like one alone."""

import json

import pytest
from conftest import EXAMPLE, only_error


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    rows = [
        {"messages": [{"role": "user", "content": "x " * number + "question"}], "not_contains": "zebra", "max_tokens": 12, "tags": ["all of them"]}
        for number in range(5)
    ]  # fmt: skip
    rows.append(
        {"messages": [{"role": "user", "content": "Hi"}], "exact": "never said", "id": "never", "ends": True}
    )
    file = tmp_path_factory.mktemp("golden") / "golden.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def test_a_run_beside_its_base_and_an_earlier_run(launch, tiny, golden, tmp_path):
    run, evaluation = tmp_path / "sweep" / "0", tmp_path / "evaluation"
    asking = [f"evaluation.golden={golden}", "training.golden_steps=1", "evaluation.max_new_tokens=6"]
    tiny = [*tiny, f"dataset.data_path={EXAMPLE}", "dataset.max_rows=12"]  # with a system prompt
    swept = ["lora.r=16,2", "sweep.metric=evaluation.passed", f"hydra.sweep.dir={run.parent}"]
    trained = launch("-m", *tiny, "save=lora", *asking, *swept)
    assert trained.returncode == 0, trained.stderr
    report = json.loads((run / "report.json").read_text())
    assert report["evaluation"]["steps"] == [{"step": step, "passed": 5 / 6} for step in (0, 1, 2)]
    assert (report["evaluation"]["before"], report["evaluation"]["passed"]) == (5 / 6, 5 / 6)
    assert "evaluation.passed" in trained.stdout and "0.8333" in trained.stdout  # the sweep's table
    study = json.loads((run.parent / "sweep.json").read_text())
    assert (study["metric"], study["direction"]) == ("evaluation.passed", "maximise")
    assert "| passed at step | 0: 83.3%, 1: 83.3%, 2: 83.3% |" in (run / "report.md").read_text()
    unasked = launch(*tiny, "save=none", f"hydra.run.dir={tmp_path / 'unasked'}")
    assert unasked.returncode == 0, unasked.stderr
    other = json.loads((tmp_path / "unasked" / "report.json").read_text())
    assert other["training"]["history"] == report["training"]["history"]  # as if nothing had been asked
    command = [
        "task=evaluate", f"run={run}", f"evaluation.golden={golden}", "evaluation.max_new_tokens=6", "evaluation.batch_size=3",
    ]  # fmt: skip
    process = launch(*command, f"evaluation.against={run}", f"hydra.run.dir={evaluation}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.splitlines()[:4] == [
        "tag          cases    before   earlier     after  turned right  turned wrong",
        "all of them      5  5 (100%)  5 (100%)  5 (100%)             0             0",
        "(no tag)         1    0 (0%)    0 (0%)    0 (0%)             0             0",
        "all              6   5 (83%)   5 (83%)   5 (83%)             0             0",
    ]
    found = json.loads((evaluation / "evaluation.json").read_text())
    assert [model["title"] for model in found["models"]] == ["before", "earlier", "after"]
    assert {model["system_prompt"] for model in found["models"]} == {
        "Bạn là Mai, trợ lý của Bia Hạc Trắng."
    }  # as trained
    for case in found["cases"]:  # the run against itself: greedy answers are the same
        assert case["answers"]["earlier"] == case["answers"]["after"]
    assert len((evaluation / "answers.jsonl").read_text().splitlines()) == 12  # the same model, asked once
    failed = launch(*command, "evaluation.minimum=0.9", f"hydra.run.dir={tmp_path / 'gate'}")
    assert (
        only_error(failed)
        == "evaluation.minimum=0.9: 5 of 6 cases passed (83.3%); the page shows those that did not"
    )
    again = json.loads((tmp_path / "gate" / "evaluation.json").read_text())
    assert [case["answers"]["after"] for case in again["cases"]] == [
        case["answers"]["after"] for case in found["cases"]
    ]
    into_the_run = launch(*command, f"hydra.run.dir={run}")
    assert only_error(into_the_run).endswith("is there; name a folder of its own")


def test_answers_in_a_batch_are_those_of_one_alone(tiny_llama):
    """In float32, where nothing is as likely as the likeliest token."""
    from chatbot_sft.inference.hf_model import HFModel

    model = HFModel.load(tiny_llama)
    prompts = [
        model.prompt_ids([{"role": "user", "content": "beer " * number + "?"}]) for number in (1, 30, 7)
    ]
    alone = [model.answer(prompt, 8) for prompt in prompts]
    assert model.answers(prompts, 8) == alone
    model.stop_ids = frozenset({alone[0][2]})  # one ends before the others
    assert model.answers(prompts, 8) == [model.answer(prompt, 8) for prompt in prompts]
    model.context = len(prompts[1]) + 3  # one has less room
    assert model.answers(prompts, 8) == [model.answer(prompt, 8) for prompt in prompts]
