"""`task=replay`: an earlier run is trained again as its lock says, and ends by comparing."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from chatbot_sft import distributed
from chatbot_sft.config import Config
from chatbot_sft.errors import UserError
from chatbot_sft.model import hardware
from chatbot_sft.replay import changes, places
from chatbot_sft.replay.changes import Change
from chatbot_sft.replay.compared import Compared
from chatbot_sft.replay.comparison import compared
from chatbot_sft.replay.earlier import Earlier
from chatbot_sft.replay.noise import CPU, GPU
from chatbot_sft.report.plain import shown
from chatbot_sft.report.terminal import replay_lines
from chatbot_sft.report.words import amount
from chatbot_sft.run.directory import Run
from chatbot_sft.run.lock import MACHINE, Lock
from chatbot_sft.run.report import Replay, Report
from chatbot_sft.train.resume import Origin, find_origin
from chatbot_sft.trust import SAID_ANEW, said_anew

log = logging.getLogger(__name__)

OF_REPLAY = (
    "task",
    "run",
    "replay",
    "paths",
    "hydra",
    "allow_targets",
)  # what a task=replay command may set, and `places.NAMED`
IDENTICAL, WITHIN, NOT = "identical to the bit", "reproduced within the noise", "not reproduced"  # verdicts


def check_overrides(overrides: Sequence[str]) -> None:
    """Raises UserError where a command line would have the run otherwise than it was."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if (
            key not in (*places.NAMED, *SAID_ANEW)
            and key.partition(".")[0].partition("/")[0] not in OF_REPLAY
        ):
            raise UserError(
                f"{key}: task=replay takes everything from the run but where its files are now"
                f" ({', '.join(places.NAMED)}); leave it out"
            )


@dataclass
class Again:
    """The second training of the run `earlier`, with `settings`; a `resume.Pinned`. `changes` are what is known to be
    different here, `allowed` the classes of them that are no reason to stop.
    """

    earlier: Earlier
    settings: Config
    allowed: list[str]
    changes: list[Change] = field(default_factory=list)

    @classmethod
    def of(cls, here: Config, named: Collection[str]) -> Again:
        """The one that `here` asks for, in the directory of `here`; files that are `named` on the command line are
        those of `here`. Says what is different.

        Raises:
            UserError: there is no such run, it cannot be trained again here, or what decides its result is another.
        """
        where, folder = f"run={here.run}", Path(str(here.run)).expanduser()
        if Path(here.paths.output_dir).resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{where}: the replay would write into that run; leave hydra.run.dir out, or name another folder"
            )
        try:
            earlier = Earlier.find(folder)
        except (AttributeError, KeyError, TypeError) as error:  # its files may be anybody's
            raise UserError(
                f"{where}: its lock or its report is damaged ({type(error).__name__}: {error}); take them from a copy"
            ) from None
        earlier.config["model"].update(said_anew(here, earlier.config))
        if (now := distributed.processes()) != (then := earlier.lock.processes):
            how = f"torchrun --nproc-per-node {then}" if then > 1 else "python, without a launcher"
            raise UserError(
                f"{where}: trained by {amount(then, 'process')}, and here {'is' if now == 1 else 'are'}"
                f" {now}; start the replay with {how}"
            )
        again = cls(earlier, _with(earlier.settings(here), here, named), here.replay.allow)
        log.info("replay: of %s: %s", earlier.run.folder, earlier.described())
        if earlier.lock.provenance is None:
            log.info(
                "replay: its %s is of an earlier version, which did not say with which data files, code, driver and"
                " threads it was trained: those are not compared",
                earlier.run.lock_file.name,
            )
        again._judge(changes.before_the_start(earlier.lock, again.settings, where))
        return again

    @property
    def origin(self) -> Origin:
        """Where it begins: where the run did, on the day of that."""
        day = datetime.fromisoformat(self.earlier.lock.date)
        return replace(find_origin(self.settings), started=day, pinned=self)

    # As `resume.Pinned`

    @property
    def layout(self) -> Mapping[str, Any]:
        return self.earlier.lock.batch_layout

    @property
    def threads(self) -> int | None:
        return self.earlier.lock.threads

    @property
    def steps(self) -> int | None:
        return None if self.earlier.ended else self.earlier.last_step

    def hold(self, now: Lock) -> None:
        known = changes.of_what_is_known(self.earlier.lock, now)
        self._judge([change for change in known if change not in self.changes])
        if not self.changes and now.decides.keys() >= set(MACHINE):  # all is known
            log.info("replay: nothing is different here")

    def _judge(self, found: list[Change]) -> None:
        """Say what was found; refuse where it decides."""
        self.changes += found
        for change in found:
            log.info("replay: different here: %s%s", change, "" if change.decides else " (decides nothing)")
        if why := changes.refusal(found, self.allowed):
            raise UserError(f"run={self.earlier.run.folder}: {why}")

    # At the end

    def end(self, report: Report) -> None:
        """Hold what `report` has of the second training against the first, and record it there.

        Raises:
            UserError: they are not the same.
        """
        if not distributed.is_first():
            return
        earlier, noise = self.earlier, GPU if hardware.gpus() else CPU
        kept = earlier.lock.provenance is not None
        found = compared(earlier.run, Run.of(self.settings), earlier.report, report, noise, kept)
        replay = Replay(
            run=str(earlier.run.folder),
            verdict=_verdict(found),
            reproduced=bool(found) and all(one.reproduced for one in found),
            changes=[asdict(change) for change in self.changes],
            compared=[{**asdict(one), "said": str(one)} for one in found],
        )
        report.record(replay=replay)
        print(shown("\n".join(replay_lines(replay))))
        if not found:
            raise UserError(
                f"run={earlier.run.folder}: not reproduced: it kept no figure to compare with; keep steps.jsonl and"
                " report.json with a run"
            )
        differing = next((one for one in found if not one.reproduced), None)
        if differing is not None:
            others = sorted({change.of for change in self.changes if change.decides})
            allowed = f" (different here, as allowed: {', '.join(others)})" if others else ""
            raise UserError(
                f"run={earlier.run.folder}: not reproduced: {differing.what} {differing}{allowed}; report.md has all"
                " of it"
            )


def _verdict(found: Sequence[Compared]) -> str:
    if not found or not all(one.reproduced for one in found):
        return NOT
    return IDENTICAL if all(one.identical for one in found) else WITHIN


def _with(settings: Config, here: Config, named: Collection[str]) -> Config:
    """`settings` with the files that the command names."""
    config = settings.to_dict()
    for key in places.NAMED:
        if key in named:
            section, _, name = key.partition(".")
            config[section][name] = here[section][name]
    return Config.from_mapping(config)
