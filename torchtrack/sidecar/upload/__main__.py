"""`python -m torchtrack.sidecar.upload DIR`: serve one sidecar."""

from __future__ import annotations

import sys
from pathlib import Path

from torchtrack.sidecar.upload.process import Uploads

if __name__ == "__main__":
    Uploads(Path(sys.argv[1]), sys.stdin.fileno()).run()
