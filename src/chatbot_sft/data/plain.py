"""What of a message is language for people: without thinking and code."""

from __future__ import annotations

import re

from chatbot_sft.data.messages import INLINE_THOUGHT, Message

CODE = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|<[^<>\n]{1,80}>", re.DOTALL)


def spoken(message: Message) -> str:
    """Its text without the thinking that it begins with."""
    return (
        INLINE_THOUGHT.sub("", message["content"], count=1)
        if "<think>" in message["content"]
        else message["content"]
    )


def without_code(text: str) -> str:
    """`text` without code, addresses and tags."""
    return CODE.sub(" ", text)
