"""The sources that a configuration means: which are trained on, which are held out, and what is in them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace

from chatbot_sft.config import Config, SourceConfig
from chatbot_sft.data.files import TRAIN, data_files, find, remarks
from chatbot_sft.data.sources import Row, read_hub, read_rows
from chatbot_sft.data_names import is_hub_id
from chatbot_sft.run.fingerprint import sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """`training` is the mixture, in its order; a row of over `max_row_mb` is refused as it is read."""

    training: list[SourceConfig]
    held_out: list[SourceConfig]
    max_row_mb: float

    @classmethod
    def of(cls, settings: Config) -> Corpus:
        """Looks into folders for their splits; reads no file.

        Raises:
            UserError: a file or folder that is not there.
        """
        dataset = settings.dataset
        training = _training(dataset.mixture)
        if dataset.eval_data_path is None:
            held_out = _held_out_of(training)
        else:
            held_out = [_to_evaluate(dataset.source(SourceConfig(dataset.eval_data_path)))]
        return cls(training, held_out, dataset.max_row_mb)

    @property
    def sources(self) -> list[SourceConfig]:
        """Those that are trained on, then those that are held out."""
        return [*self.training, *self.held_out]

    def check_files(self) -> None:
        """Raises UserError where a file is not there; reads nothing."""
        for source in self.sources:
            if not is_hub_id(source.data_path):
                data_files(source.data_path, source.split or TRAIN)

    def note_files(self) -> None:
        """Say which files of the folders are not trained on."""
        for source in self.training:
            if not is_hub_id(source.data_path):
                evaluated = any(other.data_path == source.data_path for other in self.held_out)
                for remark in remarks(
                    source.data_path, find(source.data_path), source.split or TRAIN, evaluated
                ):
                    log.info("data: %s", remark)

    def rows(self, source: SourceConfig) -> Iterator[Row]:
        """As a stream.

        Raises:
            UserError: it cannot be read.
        """
        if is_hub_id(source.data_path):
            return read_hub(
                source.data_path, source.config_name, source.split or TRAIN, source.revision, self.max_row_mb
            )[0]
        return read_rows(source.data_path, source.split or TRAIN, self.max_row_mb)


def content(source: SourceConfig) -> list[str]:
    """What is in it, as hashes."""
    if is_hub_id(source.data_path):
        return [read_hub(source.data_path, source.config_name, source.split or TRAIN, source.revision)[1]]
    hashes = []
    for file in data_files(source.data_path, source.split or TRAIN):
        hashes.append(f"{file}:{sha256(file)}")
    return hashes


def _training(mixture: list[SourceConfig]) -> list[SourceConfig]:
    """Beside hub ids, `dataset.split` is theirs: the files and folders that have no such split are read as
    they are without it.
    """
    local = [source for source in mixture if not is_hub_id(source.data_path)]
    if len(local) == len(mixture):
        return mixture
    return [
        (
            replace(source, split=TRAIN)
            if source in local and source.split not in find(source.data_path).splits
            else source
        )
        for source in mixture
    ]


def _held_out_of(training: list[SourceConfig]) -> list[SourceConfig]:
    """What the training folders have under the name of a held-out split."""
    return [
        replace(source, split=split)
        for source in training
        if source.split == TRAIN
        and not is_hub_id(source.data_path)
        and (split := find(source.data_path).held_out)
    ]


def _to_evaluate(source: SourceConfig) -> SourceConfig:
    """`dataset.eval_data_path`: of a folder the split that is there to evaluate on."""
    if is_hub_id(source.data_path):
        return source
    return replace(source, split=find(source.data_path).to_evaluate)
