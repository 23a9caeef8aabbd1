"""What ranks put into the store: a line of JSON, texts that are equal on many ranks, and numbers as they lie in memory.

A text that several ranks send is compressed and parsed once. Numbers are never spelled out: with a thousand tensors on
thousands of ranks that would take seconds of Python.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

Ints = np.ndarray[Any, np.dtype[np.int64]]


def compressed(content: Any) -> bytes:
    """A text of a message."""
    return zlib.compress(json.dumps(content).encode())


def pack(head: Sequence[Any], texts: Sequence[bytes], numbers: Ints) -> bytes:
    """A message of what differs from rank to rank, `compressed` texts, and a table of numbers."""
    table = zlib.compress(numbers.astype("<i8").tobytes(), 1)
    line = json.dumps([*head, len(numbers), [len(text) for text in texts]]).encode()
    return b"".join((line, b"\n", *texts, table))


def unpack(data: bytes, seen: dict[bytes, Any]) -> tuple[list[Any], list[Any], Ints]:
    """The head of a message, its texts parsed, and its numbers.

    Args:
        data: the message.
        seen: parsed texts by their bytes. Equal texts of messages that share it become one object.
    """
    line, _, rest = data.partition(b"\n")
    *head, rows, lengths = json.loads(line)
    texts = []
    for length in lengths:
        text, rest = rest[:length], rest[length:]
        if text not in seen:
            seen[text] = json.loads(zlib.decompress(text))
        texts.append(seen[text])
    return head, texts, np.frombuffer(zlib.decompress(rest), "<i8").reshape(rows, -1)
