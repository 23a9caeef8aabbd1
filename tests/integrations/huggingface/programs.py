"""Programs that use Hugging Face libraries, in an interpreter of their own that finds this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.rules.source import ROOT

PATHS = os.pathsep.join([str(ROOT), str(ROOT / "integrations" / "huggingface")])


def python(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with these words; how it ended."""
    environment = {**os.environ, "PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=150
    )
