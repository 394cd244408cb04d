"""Runs of the pipeline in processes that can be killed, without the ten seconds of imports that each command line takes.

`python forked.py ENGINE` imports what a run needs, then reads [configuration, days] from stdin, JSON, one a line. For each it forks a child that runs
it, with a clock that is `days` off, and writes the child's process id, then its exit code (minus the signal that killed it), a line each. Nothing of
torch is used before the fork.
"""

import datetime
import json
import logging
import os
import sys
import traceback
from pathlib import Path


def main() -> None:
    from chatbot_sft import pipeline
    from chatbot_sft.data import template
    from chatbot_sft.errors import UserError
    from chatbot_sft.model.engine import load_engine
    from chatbot_sft.run import checkpoints

    logging.getLogger().addHandler(logging.NullHandler())  # as in a run, so that no library adds one of its own while it is imported
    load_engine(sys.argv[1])
    import trl.trainer.sft_trainer  # noqa: F401
    from transformers import LlamaForCausalLM  # noqa: F401

    import chatbot_sft.train.loop  # noqa: F401

    for line in sys.stdin:
        config, days = json.loads(line)
        child = os.fork()
        if child == 0:
            status = 1
            log = os.open(Path(config["paths"]["output_dir"]).with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            template.datetime = checkpoints.datetime = clock(days)
            try:
                pipeline.run(config, "COMMAND")
                status = 0
            except SystemExit as error:
                status = error.code
            except UserError:
                status = 2
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def clock(days: int) -> type:
    """`datetime`, `days` ahead."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, *args):
            return super().now(*args) + datetime.timedelta(days)

    return Clock


main()
