"""Losses, rewards and adapters are those of TRL's own trainers, on the same rows."""

from __future__ import annotations

import random
from types import SimpleNamespace

import pytest
from preferences import BATCH, STEPS, as_dataset, paired, single

from chatbot_sft.objective import DPO
from chatbot_sft.train import batches

WORDS = [
    "the",
    "beer",
    "stays",
    "cold",
    "in",
    "a",
    "deep",
    "cellar",
    "and",
    "old",
    "barrels",
    "give",
    "it",
    "time",
    "to",
    "rest",
    "near",
    "river",
    "stones",
]
# The first alone, and all the others in one run, each with a weight of its own: what one of them has wrong shows.
OTHERS = [name for name in DPO.loss_types if name != "sigmoid"]
CASES = {
    "sigmoid": {"loss_type": ["sigmoid"]},
    "the others": {
        "loss_type": OTHERS,
        "loss_weights": [0.3 + 0.1 * place for place in range(len(OTHERS))],
        "label_smoothing": 0.05,
        "beta": 0.4,
    },
}


def text(draw, most=9):
    return " ".join(draw.choices(WORDS, k=draw.randrange(2, most)))


@pytest.fixture(scope="module")
def texts():
    draw = random.Random(0)
    return [
        {"prompt": f"{text(draw)}?", "chosen": f" {text(draw)}", "rejected": f" {text(draw)}"}
        for _ in range(STEPS * BATCH)
    ]


def arguments(kind, folder, **more):
    return kind(
        output_dir=str(folder), max_steps=STEPS, learning_rate=5e-3, lr_scheduler_type="constant", warmup_steps=0, optim="adamw_torch",
        weight_decay=0.0, max_grad_norm=1.0, per_device_train_batch_size=BATCH, train_sampling_strategy="sequential", bf16=False,
        gradient_checkpointing=False, use_cpu=True, report_to="none", logging_steps=1, save_strategy="no", disable_tqdm=True, **more,
    )  # fmt: skip


def without_kernel(model):
    """TRL's fused output layer is a Triton kernel, for a GPU alone: here its numbers come from logits."""
    import torch

    base = model.get_base_model()
    published = base.forward

    def forward(*inputs, fused_lm_head=False, labels=None, **more):
        if not fused_lm_head:
            return published(*inputs, **more, **({} if labels is None else {"labels": labels}))
        logits = published(*inputs, **more).logits[:, :-1]
        mask, targets = labels[:, 1:] != -100, labels[:, 1:].clamp(min=0)
        logps = logits.log_softmax(-1)
        return SimpleNamespace(
            log_probs=logps.gather(2, targets[..., None])[..., 0] * mask,
            entropy=-(logps.exp() * logps).sum(-1),
            mean_logits=logits.mean(-1),
            is_top1=logits.argmax(-1) == targets,
            loss=torch.zeros(()),
        )

    base.forward = forward


def trained(model):
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def assert_equal(session, trainer, names):
    """Each logged figure of each step, and the adapter after the last one."""
    import torch

    ours, theirs = (
        [entry for entry in state.log_history if "loss" in entry] for state in (session.state, trainer.state)
    )
    assert len(ours) == len(theirs) == STEPS
    for mine, other in zip(ours, theirs, strict=True):
        for name in ("loss", "grad_norm", *names):
            assert mine[name] == pytest.approx(other[name], rel=1e-4, abs=1e-5), (name, mine["step"])
    reference = {name.replace(".default.", "."): value for name, value in trained(trainer.model).items()}
    for name, parameter in trained(session.model).items():
        other = reference[name.replace(".default.", ".")]
        assert torch.allclose(parameter, other, atol=1e-4), name
    moved = [parameter for name, parameter in trained(session.model).items() if "lora_B" in name]
    assert max(parameter.abs().max() for parameter in moved) > 0.02  # there was something to get wrong


REWARDS = (
    "rewards/chosen",
    "rewards/rejected",
    "rewards/margins",
    "rewards/accuracies",
    "logps/chosen",
    "logps/rejected",
)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_dpo_is_trls(case, preferring, texts, tmp_path):
    import trl

    model, tokenizer = preferring()
    trainer = trl.DPOTrainer(
        model,
        args=arguments(trl.DPOConfig, tmp_path, **CASES[case]),
        train_dataset=as_dataset(texts),
        processing_class=tokenizer,
    )
    without_kernel(trainer.model)
    rows = [
        paired(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset
    ]
    trainer.train()
    session = preferring({"name": "dpo", **CASES[case]}, rows)
    session.train()
    assert_equal(session, trainer, REWARDS)


@pytest.mark.slow
def test_orpo_is_trls(preferring, texts, tmp_path):
    """Where the prompt is a mark alone: TRL's learns the prompt too."""
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    model, tokenizer = preferring()
    texts = [{**row, "prompt": ""} for row in texts]
    trainer = ORPOTrainer(
        model,
        args=arguments(ORPOConfig, tmp_path, beta=0.5),
        train_dataset=as_dataset(texts),
        processing_class=tokenizer,
    )
    rows = [
        {
            "input_ids": row["chosen_input_ids"] + row["rejected_input_ids"],
            "labels": row["chosen_labels"] + row["rejected_labels"],
            "parts": [len(row["chosen_input_ids"]), len(row["rejected_input_ids"])],
            "kinds": ["chosen", "rejected"],
        }
        for row in trainer.train_dataset
    ]
    trainer.train()
    session = preferring({"name": "orpo", "beta": 0.5}, rows)
    session.train()
    assert_equal(session, trainer, (*REWARDS, "nll_loss", "log_odds_chosen"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"loss_type": "apo_zero_unpaired"},
        {"beta": 0.4, "desirable_weight": 1.5, "undesirable_weight": 0.5},
    ],
)
def test_kto_is_trls(settings, preferring, texts, tmp_path):
    """With our mismatched answers in place of TRL's, which stand in the same micro-batch."""
    import trl

    model, tokenizer = preferring()
    given = [
        {"prompt": row["prompt"], "completion": row["chosen"], "label": number % BATCH > 0}
        for number, row in enumerate(texts)
    ]
    arguments_of_trl = arguments(trl.KTOConfig, tmp_path, **settings)
    trainer = trl.KTOTrainer(
        model, args=arguments_of_trl, train_dataset=as_dataset(given), processing_class=tokenizer
    )
    without_kernel(trainer.model)
    rows = list(trainer.train_dataset)
    if "KL_completion_ids" in trainer.train_dataset.column_names:
        others = [rows[batches.other(number, len(rows))]["completion_ids"] for number in range(len(rows))]
        assert others != [row["KL_completion_ids"] for row in rows]
        trainer.train_dataset = trainer.train_dataset.remove_columns("KL_completion_ids").add_column(
            "KL_completion_ids", others
        )
    trainer.train()
    session = preferring(
        {"name": "kto", **settings},
        [single(row["prompt_ids"], row["completion_ids"], row["label"]) for row in rows],
    )
    session.train()
    names = [name for name in REWARDS if name != "rewards/accuracies"]
    assert_equal(session, trainer, [*names, "kl"])
    if not settings:
        assert max(entry.get("kl", 0.0) for entry in session.state.log_history) > 0.05
