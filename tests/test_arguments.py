"""How the command lines end, whatever is read of what they print."""

import os
import shlex
import subprocess
import sys

import pytest

COMMANDS = (
    "chatbot_sft --help",
    "chatbot_sft --cfg job",
    "chatbot_sft.convert --keys axolotl",
    "chatbot_sft.doctor model=llama8b",
)


@pytest.mark.slow  # starts processes
@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_has_read_enough_is_no_error(command, tmp_path):
    """As `| head` may, at once: before the program has written anything."""
    line = f"{shlex.quote(sys.executable)} -m {command} | true; exit ${{PIPESTATUS[0]}}"
    # Unbuffered, all is written when the program ends, and nothing is left for the interpreter's own end.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(
        ["bash", "-c", line], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=600
    )
    assert done.stderr == ""
    assert done.returncode == (1 if "doctor" in command else 0)  # that model is not here
