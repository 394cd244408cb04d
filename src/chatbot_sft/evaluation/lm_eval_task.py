"""The cases as a task of the lm-evaluation-harness: a YAML file, the cases as JSONL, and utils.py, by which it calls
our checks. `lm_eval --include_path FOLDER --tasks NAME --apply_chat_template` runs it.

A document there is one prompt of text, graded by the text of its answer: cases of several turns, with a system prompt
of their own, or with a check that needs more than the text are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chatbot_sft.errors import UserError
from chatbot_sft.evaluation.answer import Answer
from chatbot_sft.evaluation.cases import Case
from chatbot_sft.evaluation.checks import CHECKS, CannotTell

BEYOND_TEXT = ("max_tokens", "ends", "judge")  # checks that need tokens, the end, or another model
TASK = """\
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{target}}}}"
process_results: !function utils.process_results
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: {most}
metric_list:
  - metric: passed
    aggregation: mean
    higher_is_better: true
metadata:
  version: 1.0
"""
UTILS = """\
# chatbot-sft has to be installed beside lm-eval: these are its checks.
from chatbot_sft.evaluation.lm_eval_task import process_results  # noqa: F401
"""


def write(cases: Sequence[Case], folder: Path, most: int = 256) -> list[str]:
    """The task in a new `folder`, called by its name. Returns a line for each case that is left out.

    Raises:
        UserError: the folder is there, cannot be written, or nothing is left for it.
    """
    why = {case.id: _beyond(case) for case in cases}
    kept = [case for case in cases if not why[case.id]]
    if not kept:
        raise UserError(
            "lm-eval: none of the cases can be expressed there: " + "; ".join(left_out(cases)[:3])
        )
    name = re.sub(r"\W+", "_", folder.name).strip("_") or "golden"
    data = folder.resolve() / "cases.jsonl"
    lines = [json.dumps(_document(case), ensure_ascii=False) for case in kept]
    try:
        folder.mkdir(parents=True)
        (folder / f"{name}.yaml").write_text(
            TASK.format(name=name, data=json.dumps(str(data)), most=most), encoding="utf-8"
        )
        data.write_text("\n".join(lines) + "\n", encoding="utf-8")
        (folder / "utils.py").write_text(UTILS, encoding="utf-8")
    except FileExistsError:
        raise UserError(f"{folder}: is there already; name another folder") from None
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from None
    return left_out(cases)


def left_out(cases: Sequence[Case]) -> list[str]:
    return [f"case {case.id} (row {case.row}): {why}" for case in cases if (why := _beyond(case))]


def _beyond(case: Case) -> str:
    """Why it cannot be expressed; empty where it can."""
    if beyond := [name for name in case.expected if name in BEYOND_TEXT]:
        return f"{', '.join(beyond)} needs more than the text of an answer"
    if len(case.messages) > 1:
        return "it has several turns, or a system prompt of its own; a document there is one question"
    return ""


def _document(case: Case) -> dict[str, Any]:
    """The checks are text in it: a column of theirs would have to be of one type."""
    checks = json.dumps(case.expected, ensure_ascii=False)
    return {
        "id": case.id,
        "question": case.question,
        "target": checks,
        "case_sensitive": case.case_sensitive,
        "tags": case.tags,
    }


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """What lm-eval calls with a document and the answer to it: 1 where all checks hold."""
    answer = Answer(results[0].strip())
    checks = [
        CHECKS[name].read(value, doc["case_sensitive"]) for name, value in json.loads(doc["target"]).items()
    ]
    try:
        return {"passed": float(not any(check.fault(answer) for check in checks))}
    except CannotTell:
        return {"passed": 0.0}
