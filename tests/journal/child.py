"""A process that writes a journal until it is done or killed. Row n is always the same bytes: see `row`.

It publishes in a mapped file how many frames `append` has said are on file, which no way to die can take back.
"""

from __future__ import annotations

import argparse
import mmap
import random
import resource
from pathlib import Path

from torchtrack.journal import Kind, Writer


def row(number: int) -> bytes:
    """The payload of row n."""
    return random.Random(number).randbytes(20 + number % 300)


def main() -> None:
    """Write the rows, seal, and print what the writer counted."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--segment-bytes", type=int, default=4096)
    parser.add_argument("--largest-file", type=int)
    options = parser.parse_args()
    if options.largest_file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.largest_file, options.largest_file))
    published = options.folder / "published"
    published.write_bytes(bytes(8))
    with published.open("r+b") as file, mmap.mmap(file.fileno(), 8) as shared:
        writer = Writer(
            options.folder / "run" / "000",
            "0-00000000000000aa",
            0xAA,
            {"rank": 0},
            sync_interval_s=0.002,
            segment_bytes=options.segment_bytes,
        )
        for number in range(options.rows):
            writer.append(Kind.DATA, row(number), table=1, rows=1)
            shared[:8] = (writer.committed + 1).to_bytes(8, "little")
        writer.seal("finish")
        writer.close()
    print(dict(writer.errors), writer.dropped_rows)  # noqa: T201  # what the test reads


if __name__ == "__main__":
    main()
