"""The HDF5 file of a legacy Keras model, read without the HDF5 library: what Keras 2 wrote, and nothing else.

The C library ends the process on some damaged files, and worse is known of it. Legacy Keras has only ever written the
oldest layout of the format: a superblock of version 0, groups as symbol tables, float32 data sets in one piece. That is
little enough to be read in bounds-checked Python, and everything else is refused: links, external and virtual data,
chunks and filters, other types. No data are read before their size is known to be that of the weight that they are for.

Source: HDF5 File Format Specification, version 2.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, NoReturn

import numpy as np

from defended.gloro.legacy.archive import RESAVE
from defended.gloro.legacy.weights import Array, Shape, StoredWeight, StoredWeights

MAX_CONFIG = 2**21
"""Bytes of the text that describes the architecture."""
MAX_PARTS = 200_000
"""Entries, nodes and messages that are looked at."""
MAX_DEPTH = 8

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FLOAT32 = bytes.fromhex("11201f00 04000000 00002000 17080017 7f000000")
_NOWHERE = 2**64 - 1

_DATASPACE, _LINK_INFO, _DATATYPE, _LINK, _EXTERNAL, _LAYOUT = 1, 2, 3, 6, 7, 8
_GROUP_INFO, _FILTERS, _ATTRIBUTE, _CONTINUATION, _SYMBOLS = 10, 11, 12, 16, 17


class _Message(NamedTuple):
    kind: int
    start: int
    size: int


def read_h5(content: bytes) -> tuple[str, StoredWeights]:
    """Return the text of the attribute `model_config`, and the weights below `model_weights`, not yet read.

    Raises:
        ValueError: for a file that is not HDF5, damaged, or holds anything but what legacy Keras writes; it names the
            entry and the reason.
    """
    file = _File(content)
    return file.model_config(), StoredWeights(file.weights())


class _File:
    """A view of the file; every read is checked to lie inside."""

    def __init__(self, content: bytes):
        self._content = content
        self._parts = 0
        self._bytes_left = len(content)
        if content[:8] != _SIGNATURE:
            raise ValueError(f"it is not an HDF5 file. {RESAVE}")
        versions, sizes = self._read(8, 5), self._read(13, 2)
        if versions[:3] != b"\0\0\0" or versions[4] or sizes != b"\x08\x08" or self._number(24):
            raise ValueError(f"it is an HDF5 file of another layout than legacy Keras writes. {RESAVE}")
        self._root = self._messages(self._number(64), "/")

    def model_config(self) -> str:
        """Return the attribute of the root that describes the architecture, at most `MAX_CONFIG` bytes of UTF-8."""
        for message in self._root:
            if message.kind == _ATTRIBUTE:
                name, datatype, shape, start, size = self._attribute(message)
                if name != b"model_config":
                    continue
                if shape != ():
                    break
                return self._text(datatype, start, size)
        raise ValueError(f"its attribute 'model_config', a text that describes the network, is missing. {RESAVE}")

    def weights(self) -> dict[str, dict[tuple[str, ...], StoredWeight]]:
        """Every data set below `model_weights`, by the name of its layer, then by the parts of its own name."""
        found: dict[str, dict[tuple[str, ...], StoredWeight]] = {}
        names = []
        for name, address in self._entries(self._root, ()):
            names.append(name)
            if name == "model_weights":
                self._visit(self._messages(address, name), (name,), found)
            elif name != "optimizer_weights":  # which is there where a model was compiled, and is not looked at
                raise ValueError(f"its entry {name!r} is not expected: only 'model_weights' is. {RESAVE}")
        if "model_weights" not in names:
            raise ValueError(f"its group 'model_weights' is missing. {RESAVE}")
        return found

    def _visit(
        self, group: list[_Message], path: tuple[str, ...], found: dict[str, dict[tuple[str, ...], StoredWeight]]
    ) -> None:
        for name, address in self._entries(group, path):
            place = (*path, name)
            label = "/".join(place)
            messages = self._messages(address, label)
            if any(message.kind == _LAYOUT for message in messages) and len(place) >= 3:
                below = found.setdefault(place[1], {})
                if place[2:] in below:
                    raise ValueError(f"its entry {label!r} is there twice. {RESAVE}")
                below[place[2:]] = self._weight(messages, label)
            else:
                self._visit(messages, place, found)

    # Groups.

    def _entries(self, group: list[_Message], path: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        """Names and addresses of a group's entries."""
        label = "/".join(path) or "/"
        table = None
        for message in group:
            if message.kind == _LINK:
                self._refuse_link(message, label)
            if message.kind == _SYMBOLS:
                table = self._number(message.start), self._number(message.start + 8)
        if any(message.kind in (_LINK, _LINK_INFO, _GROUP_INFO) for message in group):
            raise ValueError(f"its group {label!r} is of a layout that Keras does not write. {RESAVE}")
        if table is None:
            raise ValueError(f"its entry {label!r} is neither a group nor a weight. {RESAVE}")
        tree, heap = table
        if self._read(heap, 4) != b"HEAP":
            raise ValueError(f"its group {label!r} is damaged: it has no names. {RESAVE}")
        names, size = self._number(heap + 24), self._number(heap + 8)
        for node in self._leaves(tree, label, 0):
            if self._read(node, 4) != b"SNOD":
                raise ValueError(f"its group {label!r} is damaged: it has no entries. {RESAVE}")
            for number in range(self._number(node + 6, 2)):
                entry = node + 8 + 40 * number
                self._count(label, len(path))
                name = self._name(names, size, self._number(entry), label)
                if self._number(entry + 16, 4) == 2:
                    raise ValueError(f"its entry {'/'.join((*path, name))!r} is a soft link. {RESAVE}")
                yield name, self._number(entry + 8)

    def _leaves(self, address: int, label: str, depth: int) -> Iterator[int]:
        """Addresses of the symbol nodes below a node of a group's tree."""
        self._count(label, depth)
        if self._read(address, 5) != b"TREE\0":
            raise ValueError(f"its group {label!r} is damaged: it has no tree. {RESAVE}")
        level, used = self._number(address + 5, 1), self._number(address + 6, 2)
        for number in range(used):
            child = self._number(address + 32 + 16 * number)
            if level:
                yield from self._leaves(child, label, depth + 1)
            else:
                self._count(label, depth)
                yield child

    def _name(self, names: int, size: int, offset: int, label: str) -> str:
        text, end, _ = self._read(names + offset, min(size - offset, 1024)).partition(b"\0")
        try:
            name = text.decode()
        except UnicodeDecodeError:
            name = ""
        if not name or not end or "/" in name:
            raise ValueError(f"its group {label!r} is damaged: it has an entry without a name. {RESAVE}")
        return name

    def _refuse_link(self, message: _Message, label: str) -> None:
        """Refuse an entry of a newer kind of group that leads elsewhere."""
        flags, position = self._number(message.start + 1, 1), message.start + 2
        kind = self._number(position, 1) if flags & 8 else 0
        if kind:
            position += 1 + (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
            width = 1 << (flags & 3)
            name = self._read(position + width, min(self._number(position, width), 200)).decode(errors="replace")
            what = {1: "a soft link", 64: "a link into another file"}.get(kind, "a link")
            raise ValueError(f"its entry {f'{label}/{name}'.lstrip('/')!r} is {what}. {RESAVE}")

    # Objects.

    def _messages(self, address: int, label: str) -> list[_Message]:
        """The messages of an object's header, those of its continuations included."""
        self._count(label, 0)
        if self._number(address, 1) != 1:
            raise ValueError(f"its entry {label!r} is damaged, or of a layout that Keras does not write. {RESAVE}")
        expected = self._number(address + 2, 2)
        blocks = [(address + 16, self._number(address + 8, 4))]
        found: list[_Message] = []
        for start, size in blocks:
            end = start + size
            while start + 8 <= end and len(found) < expected:
                self._count(label, 0)
                message = _Message(self._number(start, 2), start + 8, self._number(start + 2, 2))
                if message.start + message.size > end or self._number(start + 4, 1) & 2:
                    raise ValueError(f"its entry {label!r} is damaged, or shares its description. {RESAVE}")
                if message.kind == _CONTINUATION:
                    self._count(label, 0)
                    blocks.append((self._number(message.start), self._number(message.start + 8)))
                found.append(message)
                start = message.start + message.size
        return found

    def _weight(self, messages: list[_Message], label: str) -> StoredWeight:
        def refuse(reason: str) -> NoReturn:
            raise ValueError(f"its weight {label!r} {reason}. {RESAVE}")

        parts = {message.kind: message.start for message in messages}
        if _EXTERNAL in parts:
            refuse("is kept in another file")
        if _FILTERS in parts:
            refuse("is filtered, which Keras does not do")
        if _DATASPACE not in parts or _DATATYPE not in parts:
            refuse("has no shape or no type")
        if self._read(parts[_DATATYPE], len(_FLOAT32)) != _FLOAT32:
            refuse("is not of the type float32")
        shape = self._shape(parts[_DATASPACE])
        if shape is None:
            refuse("is empty")
        layout = parts[_LAYOUT]
        version, kind = self._read(layout, 2)
        if version != 3 or kind not in (0, 1):
            refuse("is in chunks or virtual, which Keras does not do")
        if kind == 0:
            start, size = layout + 4, self._number(layout + 2, 2)
        else:
            start, size = self._number(layout + 2), self._number(layout + 10)
        needed = 4 * math.prod(shape)
        if size != needed or start == _NOWHERE or needed > self._bytes_left:
            refuse(f"is of shape {shape}, for which there are not the data")
        self._bytes_left -= needed

        def read() -> Array:
            return np.frombuffer(self._read(start, size), dtype="<f4").reshape(shape).astype(np.float32)

        return StoredWeight(shape, read)

    def _shape(self, start: int) -> Shape | None:
        """The shape in a dataspace; None where it holds nothing, or is not one."""
        version, rank, _, kind = self._read(start, 4)
        sides = start + (8 if version == 1 else 4)
        if version not in (1, 2) or rank > 8 or (version == 2 and kind == 2):
            return None
        return tuple(self._number(sides + 8 * axis) for axis in range(rank))

    def _attribute(self, message: _Message) -> tuple[bytes, bytes, Shape | None, int, int]:
        """Name, datatype, shape, and place of the data of an attribute."""
        start, end = message.start, message.start + message.size
        version = self._number(start, 1)
        if version not in (1, 2, 3):
            raise ValueError(f"it has an attribute of an unknown layout. {RESAVE}")
        sizes = [self._number(start + offset, 2) for offset in (2, 4, 6)]
        position = start + (9 if version == 3 else 8)
        places = []
        for size in sizes:
            places.append(position)
            position += size + (-size % 8 if version == 1 else 0)
        if position > end:
            raise ValueError(f"it has a damaged attribute. {RESAVE}")
        name = self._read(places[0], sizes[0]).rstrip(b"\0")
        return name, self._read(places[1], sizes[1]), self._shape(places[2]), position, end - position

    def _text(self, datatype: bytes, start: int, size: int) -> str:
        kind = datatype[0] & 15 if len(datatype) >= 8 else None
        if kind == 3:  # a string of fixed length
            length = int.from_bytes(datatype[4:8], "little")
            size = min(length, size)
        elif kind == 9 and datatype[1] & 15 == 1:  # one in the file's heap
            start, size = self._in_heap(self._number(start + 4), self._number(start + 12, 4), self._number(start, 4))
        else:
            raise ValueError(f"its attribute 'model_config' is not a text. {RESAVE}")
        if size > MAX_CONFIG:
            raise ValueError(f"its attribute 'model_config' has more than {MAX_CONFIG} bytes. {RESAVE}")
        try:
            return self._read(start, size).rstrip(b"\0").decode()
        except UnicodeDecodeError:
            raise ValueError(f"its attribute 'model_config' is not UTF-8. {RESAVE}") from None

    def _in_heap(self, collection: int, index: int, length: int) -> tuple[int, int]:
        """Place of an object of the global heap."""
        if self._read(collection, 4) == b"GCOL":
            position, end = collection + 16, collection + self._number(collection + 8)
            for _ in range(MAX_PARTS):
                if position + 16 > end:
                    break
                found, size = self._number(position, 2), self._number(position + 8)
                if found == 0:  # what is free begins here
                    break
                if found == index and length <= size:
                    return position + 16, length
                position += 16 + size + -size % 8
        raise ValueError(f"its attribute 'model_config' is damaged. {RESAVE}")

    # Bytes.

    def _read(self, start: int, size: int) -> bytes:
        if size < 0 or start + size > len(self._content):
            raise ValueError(f"it is truncated or damaged: it refers to what lies beyond its end. {RESAVE}")
        return self._content[start : start + size]

    def _number(self, start: int, size: int = 8) -> int:
        return int.from_bytes(self._read(start, size), "little")

    def _count(self, label: str, depth: int) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS or depth > MAX_DEPTH:
            raise ValueError(f"it has too many parts, or refers to itself, at {label!r}. {RESAVE}")
