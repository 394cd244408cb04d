"""Text files that a person gives: UTF-8 is read, with or without a byte order mark; anything else is named."""

from __future__ import annotations

from pathlib import Path

from chatbot_sft.errors import UserError

MARK = "\ufeff"  # what Windows editors put before UTF-8
UTF16 = (b"\xff\xfe", b"\xfe\xff")


def read(file: Path) -> str:
    """The text of `file`, without a byte order mark.

    Raises:
        UserError: it is not UTF-8; an OSError passes through.
    """
    return decoded(file.read_bytes(), str(file)).removeprefix(MARK)


def decoded(data: bytes, where: str) -> str:
    """UTF-8 `data` as text; `where` begins the error.

    Raises:
        UserError: it is not UTF-8.
    """
    if looks_like_utf16(data):
        raise UserError(not_utf8(where, data, 0))
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(not_utf8(where, data, error.start)) from None


def check_options(folder: Path) -> None:
    """The YAML files below a --config-dir, before Hydra reads them.

    Raises:
        UserError: one is not UTF-8, or has a byte order mark before `# @package`, which Hydra then does not
            see.
    """
    for file in sorted(folder.rglob("*.yaml")):
        text = decoded(file.read_bytes(), str(file))
        if text.startswith(MARK) and "@package" in text.partition("\n")[0]:
            raise UserError(
                f"{file}: a byte order mark stands before its `# @package` line; save the file as UTF-8"
                " without one (BOM)"
            )


def looks_like_utf16(start: bytes) -> bool:
    """By its mark; without one, plain letters have a zero byte each, which would pass for UTF-8."""
    return start.startswith(UTF16) or b"\0" in start[:4]


def not_utf8(where: str, start: bytes, byte: int) -> str:
    """The text for a file that begins with `start` and is no UTF-8 from `byte` on."""
    hint = "; it looks like UTF-16" if looks_like_utf16(start) else ""
    return f"{where}: not UTF-8 text (byte {byte}){hint}; save the file as UTF-8"
