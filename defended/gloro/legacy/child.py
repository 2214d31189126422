"""Reads a `.gloronet` file as a program of its own: the file on its standard input, what it holds on its output.

The file is distrusted: it may crash the HDF5 library, make a reader loop, or fill the memory. Then only
this process ends, which has limits. It writes no file, follows no link, and imports nothing of `defended`.

A `.gloronet` file is a tar, gzipped or not, of one folder with two files, `NAME/config.json` and `NAME/f.h5`. What is
written about it is a line of JSON, then the weights that the line lists: float32, little-endian, without gaps.
Functions refuse a file by `SystemExit`, which no library raises, with what is wrong; the parent adds the remedy.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import math
import os
import sys
import tarfile
from typing import Any

if sys.platform != "win32":
    import resource

MAX_RATIO, RATIO_FROM = 50, 2**26
"""What unpacks to more than `RATIO_FROM` bytes may be at most `MAX_RATIO` times as large as the file."""
MAX_SETTINGS = 2**16
"""Bytes of `config.json`."""
MAX_CONFIG = 2**21
"""Bytes of the text that describes the architecture."""
MAX_PARTS = 200_000
"""Groups and weights that are looked at."""
MAX_DEPTH = 8

MEMBERS = ("config.json", "f.h5")


def limit(memory: int, seconds: int) -> None:
    """Limit this process to bytes of memory and seconds of the processor, and let it write no files, cores included."""
    if sys.platform != "win32":
        for kind, most in (("CORE", 0), ("FSIZE", 0), ("CPU", seconds), ("AS", memory)):
            with contextlib.suppress(ValueError, OSError):  # which a system raises that has a stricter limit already
                resource.setrlimit(getattr(resource, f"RLIMIT_{kind}"), (most, most))


def unpacked(data: bytes, most: int) -> bytes:
    """Return the tar in `data`, gzipped or not, of at most `most` bytes."""
    if not data.startswith(b"\x1f\x8b"):
        return data
    with gzip.open(io.BytesIO(data)) as stream:
        tar = stream.read(most + 1)  # verifies the checksum at the end
    if len(tar) > most:
        raise SystemExit(f"its {len(data)} bytes unpack to more than {most}: a decompression bomb, not weights")
    return tar


def members(tar: bytes) -> tuple[str, bytes, bytes]:
    """Return the folder in a tar and the contents of its two files; anything else in it is refused."""
    found: dict[str, bytes] = {}
    # As a stream, which never goes back: no header makes it loop.
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r|", errors="strict") as archive:
        for member in archive:
            name = member.name + "/" * member.isdir()
            folder = next(iter(found), name).partition("/")[0]
            most = len(tar) - member.offset_data
            if name not in {f"{folder}/{rest}" for rest in ("", *MEMBERS)} or folder in ("", ".", ".."):
                reason = "is not expected: only 'config.json' and 'f.h5' in one folder are"
            elif name in found:
                reason = "appears twice"
            elif not (member.isreg() or member.isdir()) or member.issparse():
                reason = f"is a link, a device, sparse or the like (type {member.type!r}): only ordinary files are read"
            elif not 0 <= member.size <= most:
                reason = f"is truncated or damaged: {member.size} bytes are announced and {most} are there"
            elif name.endswith(MEMBERS[0]) and member.size > MAX_SETTINGS:
                reason = f"is too large: {member.size} bytes, where at most {MAX_SETTINGS} are expected"
            else:
                found[name] = tar[member.offset_data : member.offset_data + member.size]
                continue
            raise SystemExit(f"member {name!r} {reason}")
        end = archive.offset
    if end == len(tar) or tar[end:].strip(b"\0"):
        raise SystemExit(f"its tar archive is truncated or damaged at byte {end}, or data are behind its end")
    folder = next(iter(found), "NAME").partition("/")[0]
    for name in MEMBERS:
        if f"{folder}/{name}" not in found:
            raise SystemExit(f"member {f'{folder}/{name}'!r} is missing")
    return folder, found[f"{folder}/{MEMBERS[0]}"], found[f"{folder}/{MEMBERS[1]}"]


def read_h5(content: bytes) -> tuple[str, list[tuple[list[str], Any]]]:
    """Return the attribute `model_config` of a legacy Keras file, and its weights by the parts of their names."""
    import h5py  # not before it is needed: archives that are refused do not wait for it

    if not content.startswith(b"\x89HDF\r\n\x1a\n\0\0\0"):
        raise SystemExit("it is not an HDF5 file of the layout that legacy Keras writes")
    weights: list[tuple[list[str], Any]] = []
    parts, room = 0, len(content)

    def visit(group: Any, path: list[str]) -> None:
        nonlocal parts
        for name in group:
            place = [*path, name]
            label = "/".join(place)
            parts += 1
            if parts > MAX_PARTS or len(path) > MAX_DEPTH:
                raise SystemExit(f"it has too many parts, or refers to itself, at {label!r}")
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink) or "/" in name:
                raise SystemExit(f"its entry {label!r} is a link to elsewhere ({type(link).__name__})")
            if label == "optimizer_weights":  # which is there where a model was compiled, and is not looked at
                continue
            entry = group[name]
            if isinstance(entry, h5py.Group) and place[0] == "model_weights":
                visit(entry, place)
            elif isinstance(entry, h5py.Dataset) and len(place) > 2:
                weights.append((place[1:], weight(entry, label)))
            else:
                raise SystemExit(f"its entry {label!r} is not expected: only weights in 'model_weights' are")

    def weight(entry: Any, label: str) -> Any:
        nonlocal room
        made = entry.id.get_create_plist()
        if made.get_external_count() or made.get_layout() not in (h5py.h5d.COMPACT, h5py.h5d.CONTIGUOUS):
            reason = "is in chunks, filtered, virtual or kept in another file, which Keras does not do"
        elif not entry.id.get_type().equal(h5py.h5t.IEEE_F32LE):
            reason = "is not of the type float32"
        elif entry.shape is None or not 4 * math.prod(entry.shape) == entry.id.get_storage_size() <= room:
            reason = f"is of shape {entry.shape}, for which there are not the data"
        else:
            room -= entry.id.get_storage_size()
            return entry[()]
        raise SystemExit(f"its weight {label!r} {reason}")

    with h5py.File(io.BytesIO(content), "r") as file:
        text = file.attrs.get("model_config")
        text = text.decode() if isinstance(text, bytes) else text
        if not isinstance(text, str) or len(text.encode()) > MAX_CONFIG:
            raise SystemExit(f"its attribute 'model_config' is missing, or is not a text of up to {MAX_CONFIG} bytes")
        visit(file, [])
    return text, weights


def read(data: bytes, most: int) -> tuple[list[Any], list[Any]]:
    """Return the line of JSON for a file that may unpack to `most` bytes, and its weights.

    The line has a folder, the settings (a character for each byte), the text that describes the architecture, path and
    shape of each weight; and what is wrong, or null.
    """
    member = ""
    try:
        folder, config, content = members(unpacked(data, most))
        member = f"member {f'{folder}/f.h5'!r}: "
        architecture, weights = read_h5(content)
    except SystemExit as error:
        reason = f"{member}{error}"
    except Exception as error:  # whatever the libraries make of damage
        reason = f"{member}it is of another format, or truncated or damaged: {error}"
    else:
        shapes = [[path, value.shape] for path, value in weights]
        return [folder, config.decode("latin-1"), architecture, shapes, None], [value for _, value in weights]
    return ["", "", "", [], reason[:2000]], []


def main(most: str, seconds: str, *places: str) -> None:
    """Read standard input and write standard output; `places` are those of the parent's libraries."""
    sys.path += places
    data = sys.stdin.buffer.read()
    size = min(int(most), max(RATIO_FROM, MAX_RATIO * len(data)))
    # The file, what it unpacks to twice while it grows, its members, the weights; and the libraries.
    limit(2**30 + len(data) + 4 * size, int(seconds))
    line, values = read(data, size)
    sys.stdout.buffer.write(json.dumps(line).encode() + b"\n")
    for value in values:
        sys.stdout.buffer.write(value.tobytes())
    sys.stdout.buffer.flush()
    os._exit(0)  # without the HDF5 library's own end, which damage may crash


if __name__ == "__main__":
    main(*sys.argv[1:])
