"""Near-duplicates among many rows: how long, how much memory, how many of the planted ones: python
benchmarks/near_duplicates.py [ROWS]

ROWS (100,000) conversations of one exchange, their sentences drawn from the example data with a fixed seed, so
that all of them have much in common; a tenth are held out. Among them are planted, each in 2% of the rows: the
same typed again (case, punctuation, white space), one word changed, a sentence added; and in 1% the same
question with another answer, and the same answer to another question, which are no near-duplicates.

The first table is `near.find` alone. The second is the whole gate over a file of the same rows (task=check without
its table), with everything of data/content.py off, on, and on again, from the cache.
"""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from chatbot_sft.data import near
from chatbot_sft.data.near import Said
from chatbot_sft.data.shingles import in_common, normalised, shingles

EXAMPLE = Path(__file__).resolve().parent.parent / "data" / "thinking_teacher_conversations.json"
OFF = ("on_near_duplicate", "on_contamination", "on_contradiction", "on_language_mismatch", "on_refusal")


def sentences() -> list[str]:
    rows = json.loads(EXAMPLE.read_text(encoding="utf-8"))
    texts = (message["content"] for row in rows for message in row["messages"] if message["role"] != "system")
    return [part.strip() for text in texts for part in text.split(". ") if len(part) > 20]


def conversations(count: int) -> tuple[list[tuple[str, str]], dict[int, tuple[int, str]]]:
    """(question, answer) of each row, and row → (the one that it was made of, how)."""
    draw, said = random.Random(3407), sentences()
    ways = {
        "typed again": 0.02,
        "a word changed": 0.02,
        "a sentence added": 0.02,
        "another answer": 0.01,
        "another question": 0.01,
    }
    made: list[tuple[str, str]] = []
    planted: dict[int, tuple[int, str]] = {}
    for row in range(count):
        way = draw.choices([None, *ways], [1 - sum(ways.values()), *ways.values()])[0] if row > 100 else None
        if way is None:
            question = ". ".join(draw.sample(said, draw.randint(1, 3)))
            made.append((question, ". ".join(draw.sample(said, draw.randint(3, 12)))))
            continue
        origin = draw.randrange(row)
        question, answer = made[origin]
        words = answer.split()
        if way == "typed again":
            question, answer = question.upper(), f" {answer.replace('.', ' !')} "
        elif way == "a word changed":
            words[draw.randrange(len(words))] = "somewhere"
            answer = " ".join(words)
        elif way == "a sentence added":
            answer = f"{answer}. {draw.choice(said)}"
        elif way == "another answer":
            answer = ". ".join(draw.sample(said, draw.randint(3, 12)))
        else:
            question = ". ".join(draw.sample(said, draw.randint(1, 3)))
        made.append((question, answer))
        planted[row] = origin, way
    return made, planted


def alike(one: tuple[str, str], other: tuple[str, str]) -> bool:
    """By hand: what `near` is to find."""
    whole, answers = (
        in_common(*(np.unique(shingles(normalised(text))) for text in texts))
        for texts in ((" ".join(one), " ".join(other)), (one[1], other[1]))
    )
    return whole >= 0.8 and answers >= near.ANSWERS


def peak_gb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def compare(rows: list[tuple[str, str]], planted: dict[int, tuple[int, str]]) -> None:
    import datasketch  # noqa: F401 (imported before the clock starts)

    before, held = peak_gb(), len(rows) - len(rows) // 10
    wall, cpu = time.perf_counter(), time.process_time()
    found = near.find(
        range(held), range(held, len(rows)), lambda row: Said(" ".join(rows[row]), rows[row][1]), 0.8
    )
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    print(
        f"{wall:.1f} s ({cpu:.1f} s of one core), {peak_gb():.2f} GB, {before:.2f} of it the rows themselves"
    )
    reported = found.inside.keys() | {other for _, other in found.across}
    for way in dict.fromkeys(way for _, way in planted.values()):
        of_it = [row for row, (first, kind) in planted.items() if kind == way and first < held]
        true = [row for row in of_it if alike(rows[row], rows[planted[row][0]])]
        hit = sum(row in reported for row in true)
        print(f"{way:<18} {len(of_it):6,} planted, {len(true):6,} alike, {hit:6,} of these found")
    wrong = sum(
        not alike(rows[row], rows[first])
        for row, first in found.inside.items()
        if planted.get(row, (first,))[0] != first
    )
    others = [row for row in found.inside if row not in planted]
    print(
        f"reported without being planted: {len(others):,}; of all reported not alike their first: {wrong:,}"
    )


def gate(rows: list[tuple[str, str]]) -> None:
    from chatbot_sft import DatasetLoader
    from chatbot_sft.data.template import ChatTokenizer
    from chatbot_sft.model import embedded

    tokenizer = ChatTokenizer.from_folder(embedded.folder(), "smollm2", {})
    with tempfile.TemporaryDirectory() as work:
        file = Path(work, "rows.jsonl")
        with file.open("w", encoding="utf-8") as stream:
            for question, answer in rows:
                turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                stream.write(json.dumps({"messages": turns}, ensure_ascii=False) + "\n")
        os.environ["CHATBOT_SFT_CACHE"] = work
        for name, policies in (("off", dict.fromkeys(OFF, "off")), ("on", {}), ("on, from the cache", {})):
            started, cpu = time.perf_counter(), time.process_time()
            loader = DatasetLoader(
                {"model": {"name": "smollm2"}, "dataset": {"data_path": str(file), **policies}}
            )
            prepared = loader.prepare(tokenizer)
            found = {kind: tally["count"] for kind, tally in prepared.statistics.found.items()}
            took = f"{time.perf_counter() - started:6.1f} s ({time.process_time() - cpu:.1f} s of one core)"
            print(f"{name:<20} {took} {peak_gb():.2f} GB  {found}")


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    rows, planted = conversations(count)
    length = sum(len(question) + len(answer) for question, answer in rows) / len(rows)
    print(
        f"{count:,} conversations of {length:,.0f} characters, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    )
    compare(rows, planted)
    gate(rows)


if __name__ == "__main__":
    main()
