"""The journal: what a run recorded, one append-only file a rank, verified frame by frame. Imports no pyarrow."""

from torchtrack.journal.check import Report, check
from torchtrack.journal.frame import Kind
from torchtrack.journal.gathered import Archive, find_archives
from torchtrack.journal.reader import Damage, Frame, Stream, find_streams
from torchtrack.journal.writer import Writer

__all__ = ["Archive", "Damage", "Frame", "Kind", "Report", "Stream", "Writer", "check", "find_archives", "find_streams"]
