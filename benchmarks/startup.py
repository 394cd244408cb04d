"""How long `python -m chatbot_sft --cfg job` takes beside a bare Hydra hello-world: python
benchmarks/startup.py [RUNS]

The two run in turn; the ratio is taken pair by pair, so that a machine that gets slower slows both.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HELLO = """
import hydra
@hydra.main(version_base="1.3", config_path="conf", config_name="config")
def main(config): print(config.message)
main()
"""


def seconds(command: list[str], cwd: str) -> float:
    """Wall time of one run of `command`."""
    started = time.perf_counter()
    subprocess.run(command, cwd=cwd, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print medians and the median of the ratios."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "conf").mkdir()
        Path(folder, "conf", "config.yaml").write_text("message: hello\n")
        Path(folder, "hello.py").write_text(HELLO)
        ours, bare = (
            [sys.executable, "-m", "chatbot_sft", "--cfg", "job"],
            [sys.executable, "hello.py", "--cfg", "job"],
        )
        seconds(ours, folder), seconds(bare, folder)
        pairs = [(seconds(ours, folder), seconds(bare, folder)) for _ in range(runs)]
    print(f"chatbot_sft --cfg job   {statistics.median(a for a, _ in pairs):.3f} s")
    print(f"bare Hydra --cfg job    {statistics.median(b for _, b in pairs):.3f} s")
    print(f"ratio, median of {runs} pairs  {statistics.median(a / b for a, b in pairs):.2f}")


if __name__ == "__main__":
    main()
