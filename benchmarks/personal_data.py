"""How long the search for personal data takes: 100,000 conversations made of the quick start's, a tenth of them with
planted values, half with numbers that only look like some.

    python benchmarks/personal_data.py [rows]
"""

from __future__ import annotations

import json
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HERE / "tests" / "data"))

from personal_lines import lines  # noqa: E402

from chatbot_sft.data.messages import Conversation  # noqa: E402
from chatbot_sft.data.personal.detector import Detector  # noqa: E402
from chatbot_sft.data.personal.rows import Look  # noqa: E402


def conversations(count: int) -> list[Conversation]:
    """In turn short English ones and long Vietnamese ones."""
    draw = random.Random(1)
    short = (HERE / "data" / "white_crane.jsonl").read_text(encoding="utf-8").splitlines()
    long = (HERE / "data" / "thinking_teacher_conversations.json").read_text(encoding="utf-8")
    sources = [[json.loads(line) for line in short], json.loads(long)]
    planted = [line.text for line in lines() if line.values]
    others = [line.text for line in lines() if not line.values]
    made = []
    for number in range(count):
        messages = [{**message} for message in draw.choice(sources[number % 2])["messages"]]
        if draw.random() < 0.1:
            messages[0]["content"] += f" {draw.choice(planted)}"
        if draw.random() < 0.5:
            messages[-1]["content"] += f" {draw.choice(others)}"
        made.append(Conversation("made", number, messages, [True] * len(messages)))
    return made


def main() -> None:
    rows = conversations(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
    characters = sum(
        len(value) for row in rows for message in row.messages or () for value in message.values()
    )
    for policy in ("note", "redact"):
        look = Look(Detector(), policy, columns=False)
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in look.at(iter(rows)):
            pass
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(
            f"{policy}: {len(rows):,} rows, {characters / 1e6:.0f} million characters: {wall:.1f} s ({cpu:.1f} s of a"
            f" processor), {look.rows:,} rows with findings"
        )


if __name__ == "__main__":
    main()
