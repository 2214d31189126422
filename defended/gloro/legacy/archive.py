"""The archive of a `.gloronet` file, read in memory and distrusted: nothing is extracted, nothing is written.

A `.gloronet` file is a gzipped tar of one folder with two files, `NAME/config.json` and `NAME/f.h5`; anything else is
refused. The tar is parsed here and not by `tarfile`: few kinds of header are needed, and `tarfile` follows headers that
loop, recurse or claim sparse gigabytes before its caller sees a member.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

MAX_FILE = 2**30
"""Bytes of the file, and of what it unpacks to."""
MAX_RATIO, RATIO_FROM = 50, 2**26
"""What unpacks to more than `RATIO_FROM` bytes may be at most `MAX_RATIO` times as large as the file."""
MAX_CONFIG = 2**16
MAX_HEADERS = 16
MAX_EXTENSION = 2**14

MEMBERS = ("config.json", "f.h5")
RESAVE = "Save the model again with gloro's `GloroNet.save`, and load files from sources that you trust."

_BLOCK = 512
_KINDS = {
    b"1": "a hard link", b"2": "a symbolic link", b"3": "a character device", b"4": "a block device", b"6": "a FIFO",
    b"7": "a contiguous file", b"S": "a sparse file", b"K": "a long link name", b"g": "a global header",
}  # fmt: skip
_HARMLESS = {"path", "mtime", "atime", "ctime", "uid", "gid", "uname", "gname", "comment"}


class Archive(NamedTuple):
    """The two members of a `.gloronet` file, and the folder that they lie in."""

    folder: str
    config: dict[str, Any]
    weights: bytes


class _Header(NamedTuple):
    name: str
    kind: bytes
    size: int
    start: int


def read_archive(path: str | os.PathLike[str]) -> Archive:
    """Read `NAME/config.json` and `NAME/f.h5` from a gzipped or plain tar.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming the member, the reason and the remedy, for anything but those two members and their folder.
    """
    data = _unpacked(_read(Path(path)))
    found: dict[str, bytes] = {}
    folder = None
    for header in _members(data):
        root, _, rest = _checked_name(header.name).partition("/")
        if folder not in (None, root):
            raise ValueError(f"member {header.name!r} lies outside of the folder {folder!r} of the others. {RESAVE}")
        folder = root
        if header.kind == b"5" and not rest:
            continue
        if header.kind == b"5" or rest not in MEMBERS:
            raise ValueError(f"member {header.name!r} is not expected: only {_expected(root)} are. {RESAVE}")
        if rest in found:
            raise ValueError(f"member {header.name!r} appears twice. {RESAVE}")
        if rest == "config.json" and header.size > MAX_CONFIG:
            raise ValueError(
                f"member {header.name!r} is too large: {header.size} bytes, where at most {MAX_CONFIG} are expected. "
                f"{RESAVE}"
            )
        found[rest] = data[header.start : header.start + header.size]
    folder = folder or "NAME"
    for name in MEMBERS:
        if name not in found:
            raise ValueError(f"member {f'{folder}/{name}'!r} is missing. {RESAVE}")
    return Archive(folder, parsed_object(found["config.json"], f"member {f'{folder}/config.json'!r}"), found["f.h5"])


def parsed_object(text: bytes | str, what: str) -> dict[str, Any]:
    """The JSON object in `text`; `what` names it in errors. NaN, infinities and repeated keys are refused."""

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is not a number of JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a key is repeated")
        return dict(pairs)

    try:
        parsed = json.loads(text, parse_constant=constant, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not JSON: {str(error)[:200]}. {RESAVE}") from None
    if not isinstance(parsed, dict):
        raise ValueError(f"{what} must hold a JSON object. Received: {type(parsed).__name__}. {RESAVE}")
    return parsed


def _read(path: Path) -> bytes:
    if not path.exists():
        raise FileNotFoundError(f"There is no file {str(path)!r}. Name a `.gloronet` file that gloro saved.")
    if not path.is_file():
        raise ValueError("it is not a regular file. Name a `.gloronet` file that gloro saved.")
    with path.open("rb") as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise ValueError(f"it is too large: more than {MAX_FILE} bytes. Rebuild the network and set its weights.")
    return data


def _unpacked(data: bytes) -> bytes:
    if not data.startswith(b"\x1f\x8b"):
        return data
    most = min(MAX_FILE, max(RATIO_FROM, MAX_RATIO * len(data)))
    stream = zlib.decompressobj(wbits=31)  # gzip, whose checksum is verified at its end
    try:
        unpacked = stream.decompress(data, most + 1)
    except zlib.error as error:
        raise ValueError(f"its gzip stream is damaged: {error}. {RESAVE}") from None
    if len(unpacked) > most:
        raise ValueError(
            f"its {len(data)} bytes of gzip unpack to more than {most}, which weights do not: a decompression bomb. "
            f"{RESAVE}"
        )
    if not stream.eof:
        raise ValueError(f"its gzip stream is truncated. Copy the file again. {RESAVE}")
    if stream.unused_data:
        raise ValueError(f"its gzip stream is followed by {len(stream.unused_data)} more bytes. {RESAVE}")
    return unpacked


def _members(data: bytes) -> Iterator[_Header]:
    """The members of a tar in their order, each checked to lie within `data`."""
    position = 0
    long_name: str | None = None
    for _ in range(MAX_HEADERS):
        header = _parsed_header(data, position)
        if header is None:
            if data.count(b"\0", position) != len(data) - position:
                raise ValueError(f"there are data behind the end of its tar archive. {RESAVE}")
            return
        name = header.name if long_name is None else long_name
        if header.kind not in (b"0", b"\0", b"5", b"x", b"L"):
            kind = _KINDS.get(header.kind, f"of the unknown type {header.kind!r}")
            raise ValueError(f"member {name!r} is {kind}: only ordinary files are read. {RESAVE}")
        if header.kind == b"5" and header.size:
            raise ValueError(f"member {name!r} is a folder with {header.size} bytes of content. {RESAVE}")
        end = header.start + header.size
        if end > len(data):
            raise ValueError(
                f"member {name!r} is truncated: {header.size} bytes are announced and "
                f"{max(len(data) - header.start, 0)} are there. Copy the file again. {RESAVE}"
            )
        if header.kind in (b"x", b"L"):
            if header.size > MAX_EXTENSION:
                raise ValueError(f"member {name!r} has an extended header of {header.size} bytes. {RESAVE}")
            content = data[header.start : end]
            text = _extended_name(content, name) if header.kind == b"x" else _text(content.rstrip(b"\0"))
            long_name = text or long_name
        else:
            yield header._replace(name=name)
            long_name = None
        position = end + -end % _BLOCK
    raise ValueError(f"it has more than {MAX_HEADERS} members, where two files in one folder are expected. {RESAVE}")


def _parsed_header(data: bytes, position: int) -> _Header | None:
    """The header at `position`, or None at the block of zeros that ends an archive."""
    block = data[position : position + _BLOCK]
    if len(block) < _BLOCK:
        if position:
            raise ValueError(f"its tar archive is truncated: it has no end. Copy the file again. {RESAVE}")
        raise ValueError(f"it is not a tar archive. {RESAVE}")
    if not any(block):
        return None
    checksum = sum(block) - sum(block[148:156]) + 8 * ord(" ")
    if _octal(block[148:156]) != checksum:
        what = f"the header at byte {position} is damaged" if position else "it is not a tar archive"
        raise ValueError(f"{what}. {RESAVE}")
    name = _text(block[:100].partition(b"\0")[0])
    if block[257:263] == b"ustar\0" and (prefix := block[345:500].partition(b"\0")[0]):
        name = f"{_text(prefix)}/{name}"
    size = _octal(block[124:136])
    if size is None:
        raise ValueError(f"member {name!r} has a size that is not an octal number. {RESAVE}")
    return _Header(name, block[156:157], size, position + _BLOCK)


def _octal(field: bytes) -> int | None:
    digits = field.strip(b" \0")
    return int(digits or b"0", 8) if re.fullmatch(rb"[0-7]*", digits) else None


def _text(name: bytes) -> str:
    try:
        return name.decode()
    except UnicodeDecodeError:
        raise ValueError(f"member {name!r} has a name that is not UTF-8. {RESAVE}") from None


def _extended_name(content: bytes, name: str) -> str | None:
    """The path in a POSIX extended header, lines of `LENGTH KEY=VALUE`; times and owners are ignored."""
    path = None
    while content:
        length, _, _ = content.partition(b" ")
        size = int(length) if re.fullmatch(rb"[1-9]\d{0,5}", length) else 0
        record = content[len(length) + 1 : size]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n" or size > len(content):
            raise ValueError(f"member {name!r} has a malformed extended header. {RESAVE}")
        if _text(key) not in _HARMLESS:
            raise ValueError(f"member {name!r} has the extended attribute {_text(key)[:60]!r}. {RESAVE}")
        if key == b"path":
            path = _text(value)
        content = content[size:]
    return path


def _checked_name(name: str) -> str:
    parts = name.removesuffix("/").split("/")
    if name.startswith("/"):
        raise ValueError(f"member {name!r} has an absolute path. {RESAVE}")
    if not all(parts) or {".", ".."} & set(parts) or "\\" in name or "\0" in name:
        raise ValueError(f"member {name!r} has a path that leaves its folder, or has parts without a name. {RESAVE}")
    return "/".join(parts)


def _expected(folder: str) -> str:
    return " and ".join(repr(f"{folder}/{name}") for name in MEMBERS)
