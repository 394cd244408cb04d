"""Whatever the words of a command line are: one line that a person understands, or a configuration that has them."""

from __future__ import annotations



