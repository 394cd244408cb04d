"""Python runs this as it starts, where this folder is on PYTHONPATH: strike.cold puts it there."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent))
import strike

sys.path.pop()
strike.install()
