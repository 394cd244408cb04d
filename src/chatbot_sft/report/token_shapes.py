"""Tokens and keys that can be told from any other text by their shape: one list for what a run masks in its own
output and for what the data gate finds in conversations.
"""

from __future__ import annotations

import re

_BEGIN, _LINE = r"(?<![A-Za-z0-9_])", r"(?:\s|\\[nr])"
_PEM = r"[A-Z ]*PRIVATE KEY(?: BLOCK)?-----"
# What a text with such a token has in it, word for word → the token. Whatever has none of the first is not
# searched for the second.
SHAPES: tuple[tuple[str, str], ...] = (
    ("hf_", rf"{_BEGIN}hf_[A-Za-z0-9]{{20,}}"),  # Hugging Face
    ("wandb_v", rf"{_BEGIN}wandb_v\d_\w{{20,}}"),
    ("sk-", rf"{_BEGIN}sk-(?=[\w-]*\d)[\w-]{{20,}}"),  # OpenAI, Anthropic and the like
    ("gh", rf"{_BEGIN}gh[pousr]_[A-Za-z0-9]{{20,}}"),
    ("github_pat_", rf"{_BEGIN}github_pat_\w{{20,}}"),
    ("glpat-", rf"{_BEGIN}glpat-[\w-]{{20,}}"),
    ("IA", rf"{_BEGIN}A[KS]IA[0-9A-Z]{{16}}(?![A-Za-z0-9])"),  # AWS
    ("xox", rf"{_BEGIN}xox[abeoprs]-[A-Za-z0-9-]{{10,}}"),  # Slack
    ("xapp-", rf"{_BEGIN}xapp-\d-[A-Za-z0-9-]{{10,}}"),
    ("hooks.slack.com", r"(?<=hooks\.slack\.com/services/)[A-Za-z0-9/]{20,}"),
    ("AIza", rf"{_BEGIN}AIza[\w-]{{35}}"),  # Google
    ("GOCSPX-", rf"{_BEGIN}GOCSPX-[\w-]{{20,}}"),
    ("ya29.", rf"{_BEGIN}ya29\.[\w-]{{20,}}"),
    ("k_", rf"{_BEGIN}[sr]k_(?:live|test)_[A-Za-z0-9]{{16,}}"),  # Stripe
    ("npm_", rf"{_BEGIN}npm_[A-Za-z0-9]{{36}}"),
    ("pypi-", rf"{_BEGIN}pypi-AgE[\w-]{{50,}}"),
    ("SG.", rf"{_BEGIN}SG\.[\w-]{{16,}}\.[\w-]{{16,}}"),  # SendGrid
    (":AA", rf"{_BEGIN}\d{{8,10}}:AA[\w-]{{33}}"),  # Telegram
    ("eyJ", rf"{_BEGIN}eyJ[\w-]{{8,}}\.eyJ[\w-]{{8,}}\.[\w-]{{10,}}"),  # JSON web tokens
    (
        "PRIVATE KEY",
        rf"-----BEGIN {_PEM}(?:\s*[\w-]+: [^\n]*\n)*"
        rf"{_LINE}*[A-Za-z0-9+/=]{{16,}}(?:{_LINE}+[A-Za-z0-9+/=]{{16,}})*"
        rf"(?:{_LINE}*[A-Za-z0-9+/=]*{_LINE}*-----END {_PEM})?",
    ),
)
HINTS = tuple(hint for hint, _ in SHAPES)
TOKENS = "|".join(shape for _, shape in SHAPES)
TOKEN = re.compile(TOKENS)
