"""What is trained for the golden figures: name → model, overrides of the command line. Data, nothing else."""

from __future__ import annotations

from dataclasses import dataclass

# For every case: float32, two steps of 2 × 2 conversations and what is left of an epoch, nothing that takes
# time beside the training.
COMMON = (
    "model.load_in_4bit=false",
    "model.dtype=float32",
    "model.max_seq_length=256",
    "lora.r=4",
    "dataset.eval_fraction=0",
    "training.per_device_train_batch_size=2",
    "training.gradient_accumulation_steps=2",
    "training.batch_layout=as_configured",
    "training.max_steps=4",
    "training.warmup_steps=1",
    "training.learning_rate=2e-2",
    # a gradient of nearly 0 moves its weight by nearly nothing, not by the sign of its last bit
    "training.adam_epsilon=1e-4",
    "training.save_strategy=no",
    "training.sample_max_new_tokens=0",
    "training.report_to=tensorboard",  # where the gradient norms are read
    "save=none",
)


@dataclass(frozen=True)
class Case:
    """`model` is an option of conf/model, trained as its replica; "embedded" and "tiny" are what they are
    called elsewhere in the tests.
    """

    model: str
    overrides: tuple[str, ...] = ()
    processes: int = 1
    goes_on_from: tuple[str, int] | None = None  # a case, and the step of its checkpoint


def method(*overrides: str, **more) -> Case:
    """On the architecture of the embedded model."""
    return Case("smollm2", overrides, **more)


RAGGED = (
    "dataset.max_rows=9",
    "training.max_steps=null",
    "training.num_train_epochs=2",
)  # steps of 4, 4 and 1 conversations
DROPOUT = ("lora.lora_dropout=0.3", "seed=7")
CHECKPOINTS = ("training.save_strategy=steps", "training.save_steps=2", "training.save_total_limit=null")
SHORT = (
    "model.max_seq_length=64",
    "training.per_device_train_batch_size=1",
    "training.max_steps=2",
    "training.warmup_steps=0",
    "training.learning_rate=2e-3",
)

CASES = {
    "lora": method(),
    "full": method("lora=none", "lora.r=0", "training.learning_rate=2e-3"),
    "dropout": method(*DROPOUT),
    "packing": method("training.packing=true", "model.max_seq_length=150"),
    "padding_free": method(
        "training.packing=true", "model.max_seq_length=75"
    ),  # no two conversations fit into a sequence
    "ragged_epochs": method(*RAGGED),
    "new_tokens": method('model.new_tokens=["<|note|>"]'),
    "dora": method("lora=dora"),
    "weight_decay": method("training.weight_decay=5"),
    "label_smoothing": method("training.label_smoothing_factor=0.2"),
    "clipping": method("training.max_grad_norm=0.05", "training.adam_epsilon=1", "training.learning_rate=20"),
    "uninterrupted": method(*RAGGED, *DROPOUT, *CHECKPOINTS),
    "resumed": method(*RAGGED, *DROPOUT, *CHECKPOINTS, goes_on_from=("uninterrupted", 2)),
    "two_processes": method(*RAGGED, "training.gradient_accumulation_steps=1", processes=2),
    "embedded": Case("embedded", SHORT),
    "tiny": Case("tiny"),
    "llama1b": Case(
        "llama1b", ('dataset.chat_template_kwargs={date_string: "26 Jul 2024"}',)
    ),  # its template writes the date of the day
    "qwen3_4b": Case("qwen3_4b"),
    "gemma3_4b": Case("gemma3_4b"),
    "mistral7b": Case("mistral7b"),
    "phi4_mini": Case("phi4_mini"),
}

TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they"
    " which one you were"
)


def conversations() -> list[dict]:
    """Twelve, each shorter than the one before: packs of one are in the order of the file then."""
    words, rows = TEXT.split(), []
    for number in range(12):
        answer = [words[(7 * number + 5 * n + n * n) % len(words)] for n in range(46 - 2 * number)]
        answer[number % 5 + 1] = "<|note|>"
        asked = f"{words[number]} {words[2 * number]}?"
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": asked},
                    {"role": "assistant", "content": " ".join(answer)},
                ]
            }
        )
    return rows
