"""ModelSaver: what was trained, as folders and files that other libraries load.

Unless `save.verify` is false, each is held against the trained model before it appears.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatbot_sft.cache import build_folder
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError, is_write_error, reason
from chatbot_sft.logs import quiet
from chatbot_sft.model.base import description
from chatbot_sft.model.sharding import sharded
from chatbot_sft.places import check_export, gguf_companions, left_by, read_mark, targets, write_mark
from chatbot_sft.run.directory import Run
from chatbot_sft.run.report import Export, Report, SaveResult
from chatbot_sft.save import hub_push
from chatbot_sft.save.adapter import write_adapter
from chatbot_sft.save.card import CARD, write_card
from chatbot_sft.save.gguf.export import MODELFILE, check_gguf, file_names, write_gguf_files
from chatbot_sft.save.merged import write_merged_4bit, write_merged_16bit
from chatbot_sft.save.trained import Trained
from chatbot_sft.save.verify.compare import Verification, compare
from chatbot_sft.save.verify.evidence import Evidence
from chatbot_sft.save.verify.probe import ProbeFailed, probe

log = logging.getLogger(__name__)

WRITERS: dict[str, Callable[[Trained, Path], None]] = {
    "lora": write_adapter,
    "merged_16bit": write_merged_16bit,
    "merged_4bit": write_merged_4bit,
    "gguf": write_gguf_files,
}


class ModelSaver:
    """Writes `model` and `tokenizer` as `config.save` says.

    An export appears whole, and verified where that is asked for, or not at all.

    `evidence` is what exports are held against (without it nothing is verified), `report` the run's report so
    far, for the model card. `result` fills as exports are finished, so that it says what there is whatever
    happens to the next.
    """

    def __init__(
        self,
        config: Mapping[str, Any] | Config,
        model: Any = None,
        tokenizer: Any = None,
        evidence: Evidence | None = None,
        report: Report | None = None,
    ) -> None:
        self.settings = Config.from_mapping(config)
        self.model = model
        self.tokenizer = tokenizer
        self.evidence = evidence or Evidence([], [], 0, [])
        self.report = report
        self.result = SaveResult(", ".join(self.settings.save.methods) or "none")

    def check(self) -> None:
        """Before training: can this be saved, here and in these formats?

        Raises:
            UserError: a place that is taken, a format that this model or this machine does not allow, a hub
                that would not take it.
        """
        save = self.settings.save
        for target in targets(self.settings).values():
            check_export(self.settings, target)
        if "gguf" in save.methods:
            check_gguf(self.settings)
        if save.push_to_hub:
            hub_push.check(self.settings)

    def save(self, save_config: Mapping[str, Any] | None = None) -> SaveResult:
        """Save, with `save_config` (keys of the `save` section) over the configuration's own.

        Raises:
            UserError: an unknown method or key, a place that is taken, a write that failed, an export that is
                not the trained model, a failed upload. Exports that were finished before stay.
        """
        if save_config:
            settings = self.settings.to_dict()
            settings["save"].update(save_config)
            return type(self)(
                Config.from_mapping(settings), self.model, self.tokenizer, self.evidence, self.report
            ).save()
        trained = self._trained()
        self.check()
        save, result = self.settings.save, self.result
        wanted = targets(self.settings)
        for method, target in wanted.items():
            export = self._kept(trained, method, target) or self._export(trained, method, target)
            result.add(export, save.save_path, len(wanted) > 1)
        if save.push_to_hub:
            result.pushed = hub_push.push(Path(save.save_path), self.settings)
            log.info("pushed: %s", result.pushed)
        return result

    def accompany(self) -> None:
        """In every process but the first: take part in what `save` asks the trained model there."""
        self._trained()

    def _trained(self) -> Trained:
        """What exports are made from. A sharded model is asked at once, as long as all processes are here."""
        trained = Trained(self.settings, self.model, self.tokenizer, self.evidence, self.report)
        save = self.settings.save
        verifies = save.methods and save.verify and self.evidence.rows
        if verifies and self.model is not None and sharded(self.model):
            _ = trained.reference
        return trained

    def _kept(self, trained: Trained, method: str, target: Path) -> Export | None:
        """The export that is there already, whole, from the same weights by the same settings."""
        mark = read_mark(target) if left_by(self.settings, target) else None
        if (
            mark is None
            or mark["made_from"] != self._made_from(trained, method)
            or not _has(target, mark["export"]["files"])
        ):
            return None
        log.info("saved: %s in %s, before", method, target)
        return Export(**mark["export"])

    def _made_from(self, trained: Trained, method: str) -> dict[str, Any]:
        save = self.settings.save
        quantizations = save.quantizations if method == "gguf" else None
        return {
            "weights": trained.fingerprint,
            "method": method,
            "verify": save.verify,
            "quantizations": quantizations,
        }

    def _export(self, trained: Trained, method: str, target: Path) -> Export:
        """Write, verify where asked, and describe one export in a temporary folder; that, or its file,
        becomes `target`.
        """
        export = Export(method, str(target))

        def build(folder: Path) -> None:
            trained.seconds = {}
            with trained.timed(method):
                WRITERS[method](trained, folder)
            export.seconds = trained.seconds
            if method != "lora":
                export.base = trained.weights.base
            export.files = _sizes(folder)
            if self.settings.save.verify and self.evidence.rows:
                self._verify(trained, export, folder)
            write_card(trained, export, folder)
            export.files = _sizes(folder)
            mark = {
                "made_from": self._made_from(trained, method),
                "base": description(self.settings, target),
                "export": asdict(export),
                "system_prompt": trained.system_prompt,
            }
            write_mark(folder, mark)

        try:
            with quiet():
                if _is_file(target):
                    target.parent.mkdir(parents=True, exist_ok=True)
                    export.files = _publish_file(target, build)
                else:
                    build_folder(target, build, replace=True)
        except Exception as error:
            if isinstance(error, UserError) or not is_write_error(error):
                raise
            raise UserError(
                f"save.save_path={target}: cannot be written ({reason(error)}); nothing is"
                f" left there, the last checkpoint is in {self.settings.training.output_dir}"
            ) from error
        log.info(
            "saved: %s in %s (%.0f MB%s)",
            method,
            target,
            sum(export.weights.values()) / 1e6,
            ", verified" if export.verified else "",
        )
        return export

    def _verify(self, trained: Trained, export: Export, folder: Path) -> None:
        """Reload each part of the export from disk and hold it against the trained model.

        Raises:
            UserError: it is not the trained model, or cannot be read. The adapter is kept, unless that is
                what failed.
        """
        parts = {export.method: folder}
        if export.method == "gguf":
            parts = {kind: folder / name for kind, name in file_names(self.settings).items()}
        four_bit = export.method == "lora" and self.settings.model.load_in_4bit
        _ = trained.reference
        run = Run.of(self.settings)
        if trained.answers and run.evidence_file.is_file():  # a trainer in Python has no run directory
            trained.answers.write(run.trained_answers_file)
        for kind, part in parts.items():
            started = time.perf_counter()
            try:
                verification = compare(
                    trained.reference,
                    probe(part, trained.reference.evidence, four_bit, self.settings.model.allow_pickle),
                    kind,
                )
            except ProbeFailed as error:
                raise UserError(self._failure(trained, export, kind, [str(error)])) from error
            export.checks[kind] = {
                **verification.as_dict(),
                "seconds": round(time.perf_counter() - started, 3),
            }
            log.info("verified: %s: %s", kind, _told(verification))
            if verification.failures:
                raise UserError(self._failure(trained, export, kind, verification.failures))
        export.verified = True

    def _failure(self, trained: Trained, export: Export, kind: str, failures: list[str]) -> str:
        """What to tell a person. Where no verified adapter is saved yet, it is put beside the export's own
        place.
        """
        self.result.verified = export.verified = False
        self.result.exports.append(export)
        kept = f"the last checkpoint is in {self.settings.training.output_dir}"
        saved = next(
            (done.path for done in self.result.exports if done.method == "lora" and done.verified), None
        )
        if saved:
            kept = f"the adapter is in {saved}"
        elif export.method != "lora" and not self.settings.full_finetuning:
            adapter = self._beside(trained)
            kept = f"the adapter is in {adapter}"
        return (
            f"save.method={export.method}: the {kind} export is not the trained model: {'; '.join(failures)}."
            f" It was not kept; {kept}. Try another format with task=export"
            f" run={self.settings.paths.output_dir}, or take it as it is with save.verify=false"
        )

    def _beside(self, trained: Trained) -> Path:
        """The adapter, in a folder beside the place of an export that failed: the one an earlier failure of
        this run left, or a new one.
        """
        first = Path(f"{self.settings.save.save_path.removesuffix('.gguf')}-adapter")
        places = [first, *(first.with_name(f"{first.name}.{number}") for number in range(2, 1000))]
        place = next(place for place in places if not place.exists() or left_by(self.settings, place))

        def build(folder: Path) -> None:
            write_adapter(trained, folder)
            export = Export("lora", str(place), _sizes(folder))
            mark = {
                "made_from": self._made_from(trained, "lora"),
                "base": description(self.settings, place),
                "export": asdict(export),
            }
            write_mark(folder, mark)

        return build_folder(place, build, replace=True)


def _told(made: Verification) -> str:
    share = "" if made.trained_share is None else f", {made.trained_share:.0%} of what training changed"
    return (
        f"prompts {made.prompts}, KL {made.kl:.2g} nats{share}, greedy tokens {made.greedy}, answers that"
        f" end {made.ended}"
    )


def _is_file(target: Path) -> bool:
    """Whether `save.save_path` names one GGUF file in place of a folder."""
    return target.suffix == ".gguf"


def _publish_file(target: Path, build: Callable[[Path], None]) -> dict[str, int]:
    """The GGUF file that `build` writes becomes `target`; what belongs to it gets its name, model.Modelfile
    and model.md. Returns their sizes.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as work:
        build(Path(work))
        beside = gguf_companions(target)
        names = {
            MODELFILE: beside[0].name,
            CARD: beside[1].name,
            target.name: target.name,
        }  # the file itself last
        for name, new in names.items():
            Path(work, name).replace(target.with_name(new))
    return {new: target.with_name(new).stat().st_size for new in names.values()}


def _has(folder: Path, files: Mapping[str, int]) -> bool:
    """Whether every one of `files` is in `folder`, as long as it was."""
    there = _sizes(folder)
    return all(there.get(name) == size for name, size in files.items())


def _sizes(folder: Path) -> dict[str, int]:
    return {
        str(file.relative_to(folder)): file.stat().st_size
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
