"""Bytes of a file: what it is by its first bytes, decompressed as it is read, as text and as lines.

Nothing here holds a whole file.
"""

from __future__ import annotations

import codecs
import contextlib
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from chatbot_sft import text_files
from chatbot_sft.data.files import hidden, split_of
from chatbot_sft.data_names import kind_by_name
from chatbot_sft.errors import UserError, listed

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

CHUNK = 1 << 20  # bytes read at a time
PARQUET, ARROW_FILE, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
# What a file begins with → (what it is, what to do).
FOREIGN = {
    b"version https://git-lfs.github.com/": (
        "a Git LFS pointer, not the file itself",
        "run `git lfs pull` in its repository",
    ),
    b"/annex/objects/": ("a git-annex pointer, not the file itself", "run `git annex get` in its repository"),
    b"<!doctype html": ("a web page, not data", "download the file itself (on the hub: its download link)"),
    b"<html": ("a web page, not data", "download the file itself (on the hub: its download link)"),
    b"<?xml": ("XML", "save it as JSONL or CSV"),
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", "save the table as CSV (UTF-8)"),
    b"PK\x03\x04": ("a zip file inside another compression", "unpack it"),
    b"7z\xbc\xaf\x27\x1c": ("a 7-Zip archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
    b"%PDF": ("a PDF", "conversations are read from JSON, JSONL, CSV, Parquet and Arrow"),
    b"SQLite format 3": ("an SQLite database", "export the table as CSV"),
    b"Obj\x01": ("an Avro file", "save it as Parquet or JSONL"),
    b"ORC": ("an ORC file", "save it as Parquet or JSONL"),
    b"FEA1": ("a Feather file of version 1", "save it as Parquet, or as Feather of version 2"),
    b"\x80\x04": ("a pickle, which is never opened: it may run code", "save it as JSONL or Parquet"),
    b"\x80\x05": ("a pickle, which is never opened: it may run code", "save it as JSONL or Parquet"),
    b"\x93NUMPY": ("a NumPy array", "conversations are read from JSON, JSONL, CSV, Parquet and Arrow"),
}
OFFICE = {
    "xl/": ("an Excel file", "save the sheet as CSV (UTF-8)"),
    "word/": ("a Word file", "save the conversations as JSONL or CSV"),
}


class ByteStream(Protocol):
    """What a file, a decompressor and a member of a zip file have in common."""

    def read(self, size: int = ..., /) -> bytes: ...
    def seek(self, offset: int, whence: int = ..., /) -> int: ...
    def seekable(self) -> bool: ...


class RowTooLong(Exception):
    """A line that is longer than a row may be."""


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Iterator[tuple[str, ByteStream]]]:
    """(name, bytes) of the file; of a zip file that of each data file in it, one read after the other.

    Raises:
        UserError: it is damaged, or nothing that conversations are read from.
    """
    name = str(file)
    try:
        with file.open("rb") as raw:
            start = raw.read(8)
        if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):  # the second is an empty one
            with zipfile.ZipFile(file) as archive:
                yield _members(name, archive)
        else:
            with _decompressed(file, start) as stream:
                yield iter([(name, stream)])
    except zipfile.BadZipFile as error:
        raise UserError(
            f"{name}: the zip file is damaged or cut short ({error}); copy or compress it again"
        ) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _damaged(name, start, error) from None
    except OSError as error:
        if _compression(start) and error.errno is None:  # bz2 and pyarrow know no type of their own
            raise _damaged(name, start, error) from None
        raise UserError(f"{name}: {error.strerror or error}") from None


def _damaged(name: str, start: bytes, error: Exception) -> UserError:
    return UserError(
        f"{name}: the {_compression(start)} file is damaged or cut short ({error}); copy or compress it again"
    )


def _compression(start: bytes) -> str:
    """The name of the compression that a file begins with, empty where it is none."""
    magic = {
        b"\x1f\x8b": "gzip",
        b"BZh": "bzip2",
        b"\xfd7zXZ": "xz",
        b"\x28\xb5\x2f\xfd": "zstd",
        b"\x04\x22\x4d\x18": "lz4",
    }
    return next((name for first, name in magic.items() if start.startswith(first)), "")


def _decompressed(file: Path, start: bytes) -> contextlib.AbstractContextManager[ByteStream]:
    compression = _compression(start)
    if compression == "gzip":
        return gzip.open(file)
    if compression == "bzip2":
        import bz2

        return bz2.open(file)
    if compression == "xz":
        return _xz(file)
    if compression:
        import pyarrow

        return pyarrow.CompressedInputStream(pyarrow.OSFile(str(file)), compression)
    return file.open("rb")


def _xz(file: Path) -> contextlib.AbstractContextManager[ByteStream]:
    import lzma

    class Reader(lzma.LZMAFile):
        """Says what is wrong as the other decompressors do."""

        def read(self, size: int | None = -1) -> bytes:
            try:
                return super().read(size)
            except lzma.LZMAError as error:
                raise EOFError(str(error)) from None

    return Reader(file)


def _members(name: str, archive: zipfile.ZipFile) -> Iterator[tuple[str, ByteStream]]:
    files = [info for info in archive.infolist() if not info.is_dir()]
    for folder, (label, advice) in OFFICE.items():
        if any(info.filename.startswith(folder) for info in files):
            raise UserError(f"{name}: {label}; {advice}")
    data = [
        info
        for info in files
        if kind_by_name(Path(info.filename)) and not any(hidden(part) for part in Path(info.filename).parts)
    ]
    if not data:
        names = listed(info.filename for info in files) or "nothing"
        raise UserError(f"{name}: a zip file without data files; it has {names}")
    held_out = [info.filename for info in data if split_of(Path(info.filename)) != "train"]
    if len(data) > 1 and held_out:
        raise UserError(
            f"{name}: some of it is held out by its name ({listed(held_out)}); unpack it and name the folder"
        )
    for info in data:
        if info.flag_bits & 1:
            raise UserError(f"{name}: {info.filename} in it has a password; unpack it")
        try:
            with archive.open(info) as stream:
                yield f"{name}/{info.filename}", stream
        except NotImplementedError as error:
            raise UserError(
                f"{name}: {info.filename} in it cannot be unpacked here ({error}); unpack it"
            ) from None


def kind(name: str, stream: ByteStream) -> tuple[str, ByteStream]:
    """(`json`, `csv`, `parquet` or `arrow`, the stream from its beginning): by how it begins, or by its name.

    Raises:
        UserError: it begins as something does that is not read.
    """
    start = stream.read(512)
    if start.startswith((PARQUET, ARROW_FILE, ARROW_STREAM)):
        if not stream.seekable():
            raise UserError(
                f"{name}: Parquet and Arrow files are read from any place of theirs; decompress it"
            )
        stream.seek(0)
        return "parquet" if start.startswith(PARQUET) else "arrow", stream
    stream = _from_the_beginning(stream, start)
    known = start.lstrip()[:64].lower() if start.lstrip().startswith(b"<") else start
    for begin, (label, advice) in FOREIGN.items():
        if known.startswith(begin):
            raise UserError(f"{name}: {label}; {advice}")
    if start[257:262] == b"ustar":
        raise UserError(f"{name}: a tar archive; unpack it and name the folder")
    if compression := _compression(start):
        raise UserError(f"{name}: compressed twice ({compression} inside); decompress it once")
    by_name = kind_by_name(Path(name)) or "json"
    if by_name in ("parquet", "arrow"):
        sort = "a Parquet" if by_name == "parquet" else "an Arrow"
        raise UserError(f"{name}: not {sort} file, whatever its name says")
    return by_name, stream


def _from_the_beginning(stream: ByteStream, start: bytes) -> ByteStream:
    if stream.seekable():
        stream.seek(0)
        return stream
    return io.BufferedReader(_Joined(start, stream.read))


class _Joined(io.RawIOBase):
    """A stream that cannot seek, with what was read of it put back."""

    def __init__(self, start: bytes, read: Callable[[int], bytes]) -> None:
        self._start = start
        self._read = read

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        room = memoryview(buffer).cast("B")
        piece = self._start[: len(room)] or self._read(len(room))
        self._start = self._start[len(piece) :]
        room[: len(piece)] = piece
        return len(piece)


def text(name: str, stream: ByteStream) -> Iterator[str]:
    """The file as pieces of text, without a byte order mark."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    position = 0
    while chunk := stream.read(CHUNK):
        if position == 0 and text_files.looks_like_utf16(chunk):
            raise UserError(text_files.not_utf8(name, chunk, 0))
        pending = len(decoder.getstate()[0])
        yield _decode(name, decoder, chunk, position - pending)
        position += len(chunk)
    yield _decode(name, decoder, b"", position - len(decoder.getstate()[0]), final=True)


def _decode(
    name: str, decoder: codecs.IncrementalDecoder, chunk: bytes, offset: int, final: bool = False
) -> str:
    try:
        return decoder.decode(chunk, final)
    except UnicodeDecodeError as error:
        raise UserError(
            text_files.not_utf8(name, b"" if offset else error.object, offset + error.start)
        ) from None


def lines(pieces: Iterator[str], longest: int) -> Iterator[str]:
    """Lines with their ends; only \\n ends a line, as in JSONL (a conversation may contain the other kinds).

    Raises:
        RowTooLong: a line of more than `longest` characters.
    """
    parts: list[str] = []
    size = 0
    for piece in pieces:
        first, *rest = piece.split("\n")
        parts.append(first)
        size += len(first)
        for line in rest:
            if size > longest:
                raise RowTooLong
            yield "".join(parts) + "\n"
            parts, size = [line], len(line)
        if size > longest:
            raise RowTooLong
    if last := "".join(parts):
        yield last
