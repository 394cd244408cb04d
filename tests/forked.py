"""`forked.py CONFIGURATION DAYS` runs the pipeline with a clock that is DAYS off, in a process that warm.py
forks: its exit code says how it ended.

What it says is added to the file beside its run directory whose name ends in .out.
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
    from chatbot_sft.train import resume

    logging.getLogger().addHandler(logging.NullHandler())
    config, days = json.loads(sys.argv[1]), int(sys.argv[2])
    log = os.open(
        Path(config["paths"]["output_dir"]).with_suffix(".out"), os.O_WRONLY | os.O_CREAT | os.O_APPEND
    )
    os.dup2(log, 1)
    os.dup2(log, 2)
    template.datetime = resume.datetime = clock(days)
    status = 1
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


def clock(days: int) -> type:
    """`datetime`, `days` ahead."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, *args):
            return super().now(*args) + datetime.timedelta(days)

    return Clock


main()
