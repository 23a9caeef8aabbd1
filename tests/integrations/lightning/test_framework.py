"""Which Lightning the classes belong to, and what is said without it; each in a fresh interpreter."""

from __future__ import annotations

import pytest

from tests.integrations.lightning.programs import python

BOTH = "import lightning.pytorch as L, pytorch_lightning as P"
CASES = {
    "lightning": ("import lightning.pytorch as L", "issubclass(T, L.loggers.Logger) and issubclass(C, L.Callback)"),
    "pytorch_lightning": (
        "import pytorch_lightning as P",
        "issubclass(T, P.loggers.Logger) and issubclass(C, P.Callback) and 'lightning' not in sys.modules",
    ),
    "both": (BOTH, "all(issubclass(T, M.loggers.Logger) and issubclass(C, M.Callback) for M in (L, P))"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_classes_belong_to_what_is_imported(case: str) -> None:
    imports, holds = CASES[case]
    done = python(
        "-c",
        f"import sys\n{imports}\nfrom torchtrack_lightning import TorchtrackLogger as T, TorchtrackCallback as C\n"
        f"assert {holds}\nT(), C()",
    )

    assert done.returncode == 0, done.stderr


def test_without_lightning_the_message_names_the_command() -> None:
    done = python(
        "-c",
        "import sys\nsys.modules['lightning'] = sys.modules['pytorch_lightning'] = None\nimport torchtrack_lightning",
    )

    assert "pip install 'torchtrack[lightning]'" in done.stderr.splitlines()[-1]
