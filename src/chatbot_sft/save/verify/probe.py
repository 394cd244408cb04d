"""An export, read from disk by its user's library in a process of its own: nothing that training left in
memory helps it, and a crash is a finding.

`python -m chatbot_sft.save.verify.probe EXPORT EVIDENCE_FOLDER OUTPUT [4bit] [pickle]` writes the `Observation` of
EXPORT into the file OUTPUT.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from chatbot_sft.inference import ChatModel
from chatbot_sft.save.verify.compare import Observation, observe
from chatbot_sft.save.verify.evidence import Evidence

log = logging.getLogger("third_party")

# torchrun's, which would make libraries wait for other processes.
OF_SEVERAL = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


class ProbeFailed(Exception):
    """The library does not read the export, or crashes on it; the message says what it said last."""


def probe(
    export: Path, evidence: Evidence, four_bit: bool = False, allow_pickle: bool = False
) -> Observation:
    """What the export in the folder or .gguf file `export` makes of `evidence`; `four_bit`: an adapter's base
    is loaded in 4 bits, as in training; `allow_pickle`: that may be no safetensors.

    Raises:
        ProbeFailed: it cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        questions, output = Path(folder, "evidence.json"), Path(folder, "observation.npz")
        evidence.write(questions)
        command = [
            sys.executable,
            "-m",
            "chatbot_sft.save.verify.probe",
            str(export),
            str(questions),
            str(output),
            *(["4bit"] if four_bit else []),
            *(["pickle"] if allow_pickle else []),
        ]
        alone = {name: value for name, value in os.environ.items() if name not in OF_SEVERAL}
        process = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env={**alone, "HF_HUB_OFFLINE": "1"}
        )
        for line in process.stderr.splitlines():
            log.info("probe of %s: %s", export.name, line)
        if process.returncode < 0:
            raise ProbeFailed(
                f"the library that reads it crashed ({signal.Signals(-process.returncode).name})"
            )
        if process.returncode:
            raise ProbeFailed((process.stderr.strip().splitlines() or ["it cannot be read"])[-1])
        return Observation.read(output)


def main() -> None:
    from chatbot_sft.model.engine import prepare_environment

    prepare_environment()
    export, evidence, output = map(Path, sys.argv[1:4])
    model = _load(export, "4bit" in sys.argv[4:], "pickle" in sys.argv[4:])
    observe(model, Evidence.read(evidence)).write(output)


def _load(export: Path, four_bit: bool, allow_pickle: bool) -> ChatModel:
    if export.suffix == ".gguf":
        from chatbot_sft.inference.gguf_model import GGUFModel

        return GGUFModel.load(export)
    from chatbot_sft.inference.hf_model import HFModel

    return HFModel.load(export, four_bit=four_bit, allow_pickle=allow_pickle)


if __name__ == "__main__":
    main()
