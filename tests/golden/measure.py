"""`python measure.py ENGINE FOLDER [OVERRIDE …]` trains every case in FOLDER, each with the overrides added,
and writes FOLDER/measured.json.

Each case runs in a child that is forked once the engine is imported: imports are paid once, and no case sees
what another has left in a library. Nothing of torch is used before the fork. What is measured is what a user
has: the report, the logger's curve, the weights given to the saver.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"
TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS)]

from cases import CASES, COMMON, conversations  # noqa: E402
from ports import reserved  # noqa: E402


def main(engine: str, folder: Path, overrides: list[str]) -> None:
    from chatbot_sft import pipeline
    from chatbot_sft.model.engine import load_engine

    logging.getLogger().addHandler(
        logging.NullHandler()
    )  # as in a run, so that no library adds one of its own while it is imported
    load_engine(engine)
    preload()
    from conftest import composed

    gc.freeze()  # nor does a child collect what it was born with
    (folder / "data.json").write_text(json.dumps(conversations()), encoding="utf-8")
    in_child(folder / "models", lambda: write_models(folder / "models"))
    measured = {}
    for name in CASES:
        data = f"dataset.data_path={folder / 'data.json'}"
        given = [f"model.engine={engine}", "save._target_=fingerprint.Fingerprint", *COMMON, data]
        config = composed(folder / name, *given, *arguments(name, folder), *overrides)
        in_child(folder / name, functools.partial(pipeline.run, config), CASES[name].processes)
        measured[name] = figures(folder / name)
    (folder / "measured.json").write_text(json.dumps(measured), encoding="utf-8")


def preload() -> None:
    """What each child would import again."""
    import datasets  # noqa: F401
    import matplotlib.backends.backend_agg
    import matplotlib.figure  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401


def arguments(name: str, folder: Path) -> list[str]:
    case = CASES[name]
    option = {"embedded": "smollm2", "tiny": "local"}.get(case.model, case.model)
    found = [f"model={option}", *case.overrides]
    if case.model != "embedded":
        found.append(f"model.name={folder / 'models' / case.model}")
    if case.goes_on_from:
        before, step = case.goes_on_from
        found.append(f"training.resume={folder / before / 'checkpoints' / f'checkpoint-{step}'}")
    return found


def write_models(folder: Path) -> None:
    import replicas
    from conftest import random_llama
    from families import FAMILIES, write_folders

    from chatbot_sft.model import embedded

    real = embedded.folder()
    (folder / "tokenizers").mkdir(parents=True)
    whole = json.loads((real / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizers = write_folders(folder / "tokenizers", replicas.small_vocabulary(whole))
    random_llama(folder / "tiny", real, 32)
    for name in {case.model for case in CASES.values()} - {"tiny", "embedded"}:
        replica = replicas.REPLICAS[name]
        replicas.write(replica, tokenizers[replica.family], FAMILIES[replica.family].end, folder / name)


def figures(run: Path) -> dict[str, Any]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    events = EventAccumulator(str(run / "logs" / "tensorboard"))
    events.Reload()
    return {
        "losses": [point["loss"] for point in report["training"]["history"]],
        "gradient_norms": [event.value for event in events.Scalars("train/grad_norm")],
        "weights": json.loads((run / "fingerprint.json").read_text(encoding="utf-8")),
    }


def in_child(folder: Path, work: Callable[[], None], processes: int = 1) -> None:
    """Do `work` in forked processes that find each other as torchrun's do; what they print is in
    `folder`.out.
    """
    log = folder.with_suffix(".out")
    with reserved() as port:
        codes = exit_codes(work, processes, port, log)
    if any(codes):
        sys.exit(f"{folder.name}: exit codes {codes}\n{log.read_text(encoding='utf-8')[-3000:]}")


def exit_codes(work: Callable[[], None], processes: int, port: int, log: Path) -> list[int]:
    children = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            if processes > 1:
                world = {
                    "RANK": rank,
                    "LOCAL_RANK": rank,
                    "WORLD_SIZE": processes,
                    "LOCAL_WORLD_SIZE": processes,
                    "MASTER_PORT": port,
                }
                os.environ.update(
                    {name: str(value) for name, value in world.items()}, MASTER_ADDR="localhost"
                )
            stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(stream, 1)
            os.dup2(stream, 2)
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:])
