"""From a file of conversations to (input_ids, labels), ours beside TRL's, in one run: python
benchmarks/data.py [ROWS]

`python benchmarks/data.py --small ROWS` runs ours alone, over ROWS conversations of one short exchange.

Each way runs in a process of its own over the same file, ROWS (50,000) conversations recombined from the
example data with a fixed seed:

ours      the data gate: read, check, render, tokenise, label, write the cache entry, map it as a
`datasets.Dataset` unsloth   TRL's SFTTrainer preparation, then Unsloth's `train_on_responses_only`, as
Unsloth's notebooks do it trl       TRL's SFTTrainer preparation with `assistant_only_loss=True` (the template
gets the `{% generation %}` marks this needs)

Seconds are from the call to the last row, without imports, model and tokenizer loading; peak memory is the
whole process's.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

EXAMPLE = Path(__file__).resolve().parent.parent / "data" / "thinking_teacher_conversations.json"
WAYS = ("ours", "unsloth", "trl")
GENERATION = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{"
    " '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging"
    " Face<|im_end|>\\n' }}{% endif %}{% if message['role'] == 'assistant' %}{{ '<|im_start|>assistant\\n'"
    " }}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\\n' }}{% else %}{{"
    " '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}{% endif %}{%"
    " endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def write_conversations(file: Path, rows: int, small: bool = False) -> None:
    """Conversations of one to four exchanges, drawn from those of the example; the reasoning stands in the
    answers, as `thinking=keep` writes it.

    `small` ones are a question and the beginning of its answer, each its own.
    """
    exchanges, systems = [], []
    for row in json.loads(EXAMPLE.read_text(encoding="utf-8")):
        messages = row["messages"]
        systems.append(messages[0])
        for question, answer in zip(messages[1::2], messages[2::2], strict=True):
            exchanges.append(
                (
                    question,
                    {
                        "role": "assistant",
                        "content": f"<think>\n{answer['thinking']}\n</think>\n\n{answer['content']}",
                    },
                )
            )
    draw = random.Random(3407)
    with file.open("w", encoding="utf-8") as stream:
        for number in range(rows):
            if small:
                question, answer = draw.choice(exchanges)
                messages = [
                    {"role": "user", "content": f"{question['content'][:80]} {number}"},
                    {**answer, "content": answer["content"][-80:]},
                ]
                stream.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")
                continue
            turns = draw.sample(exchanges, draw.choices((1, 2, 3, 4), (162, 60, 16, 6))[0])
            messages = [draw.choice(systems), *(message for turn in turns for message in turn)]
            stream.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def ours(file: Path, folder: str) -> tuple[float, int, int]:
    # Imported before the clock starts, as the others' libraries are.
    from datasets import Dataset  # noqa: F401

    from chatbot_sft import DatasetLoader
    from chatbot_sft.data.template import ChatTokenizer

    os.environ["CHATBOT_SFT_CACHE"] = tempfile.mkdtemp()
    loader = DatasetLoader(
        {"model": {"name": "smollm2"}, "dataset": {"data_path": str(file), "eval_fraction": 0}}
    )
    tokenizer = ChatTokenizer.from_folder(Path(folder), "smollm2", {})
    started = time.perf_counter()
    loader.prepare(tokenizer).training  # noqa: B018 (the rows are opened as they are asked for)
    seconds = time.perf_counter() - started
    return seconds, loader.statistics.tokens, loader.statistics.trainable_tokens


def peers(file: Path, folder: str, way: str) -> tuple[float, int, int]:
    from chatbot_sft.model.engine import prepare_environment

    prepare_environment()
    if way == "unsloth":
        import unsloth  # noqa: F401 (before transformers and trl)
    import torch
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    shape = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
    }
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tokenizer), eos_token_id=2, pad_token_id=0, **shape)
    ).to(torch.float32)
    if way == "trl":
        tokenizer.chat_template = GENERATION
    work = tempfile.mkdtemp()
    arguments = {
        "output_dir": work,
        "max_length": 2048,
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "assistant_only_loss": way == "trl",
    }
    config = SFTConfig(**arguments, dataset_num_proc=2)
    started = time.perf_counter()
    rows = load_dataset("json", data_files=str(file), split="train", cache_dir=work)
    if way == "unsloth":
        rows = rows.map(
            lambda batch: {
                "text": [tokenizer.apply_chat_template(m, tokenize=False) for m in batch["messages"]]
            },
            batched=True,
            num_proc=2,
        )
    trainer = SFTTrainer(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
    if way == "unsloth":
        from unsloth.chat_templates import train_on_responses_only

        markers = {"instruction_part": "<|im_start|>user\n", "response_part": "<|im_start|>assistant\n"}
        trainer = train_on_responses_only(trainer, **markers, num_proc=2)
    seconds = time.perf_counter() - started
    made = trainer.train_dataset
    tokens = trained = 0
    for batch in made.iter(1000):
        tokens += sum(map(len, batch["input_ids"]))
        if "labels" in batch:
            trained += sum(label != -100 for labels in batch["labels"] for label in labels)
        else:
            trained += sum(map(sum, batch["assistant_masks"]))
    return seconds, tokens, trained


def peak_gb() -> float:
    """Peak of this process and of its largest worker, GB."""
    own, child = (
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    return (own + child) * 1024 / 1e9


def main() -> None:
    """Run every way in a process of its own and print the table."""
    small = sys.argv[1:2] == ["--small"]
    if len(sys.argv) > 3:
        way, file, folder = sys.argv[1:]
        result = ours(Path(file), folder) if way == "ours" else peers(Path(file), folder, way)
        print(json.dumps([*result, peak_gb()]))
        return
    rows = int(sys.argv[-1]) if len(sys.argv) > 1 else 50_000
    from chatbot_sft.model import embedded

    folder = str(embedded.folder())
    results = {}
    with tempfile.TemporaryDirectory() as work:
        file = Path(work, "conversations.jsonl")
        write_conversations(file, rows, small)
        print(f"{rows:,} conversations, {file.stat().st_size / 1e6:.0f} MB, {os.cpu_count()} cores")
        for way in WAYS[:1] if small else WAYS:
            environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TMPDIR": work}
            process = subprocess.run(
                [sys.executable, __file__, way, str(file), folder],
                capture_output=True,
                text=True,
                env=environment,
            )
            if process.returncode:
                print(f"{way:<8} failed: {process.stderr.strip().splitlines()[-1]}")
                continue
            results[way] = json.loads(process.stdout.strip().splitlines()[-1])
            seconds, tokens, trained, gigabytes = results[way]
            print(
                f"{way:<8} {seconds:7.1f} s  {rows / seconds:8,.0f} rows/s  {gigabytes:5.2f} GB  {tokens:,}"
                f" tokens, {trained:,} trained"
            )
    if small:
        return
    fastest = min((way for way in results if way != "ours"), key=lambda way: results[way][0])
    print(
        f"ours against {fastest}, the faster of the others: {results[fastest][0] / results['ours'][0]:.1f}"
        " times as fast,",
        end=" ",
    )
    print(f"{results['ours'][3] / results[fastest][3]:.2f} of its memory")


if __name__ == "__main__":
    main()
