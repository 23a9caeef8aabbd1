"""What is imported when, and what is said without a framework; each in a fresh interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.huggingface.programs import python
from tests.integrations.plain import only_run

CLASSES = {"TorchtrackCallback": "transformers", "TorchtrackTracker": "accelerate"}


def test_importing_the_adapter_imports_no_framework() -> None:
    done = python(
        "-c", "import sys, torchtrack_huggingface\nassert not {'transformers', 'accelerate'} & set(sys.modules)"
    )

    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("name", "framework"), CLASSES.items())
def test_without_the_framework_the_message_names_the_command(name: str, framework: str) -> None:
    done = python("-c", f"import sys\nsys.modules['{framework}'] = None\nfrom torchtrack_huggingface import {name}")

    assert "pip install 'torchtrack[huggingface]'" in done.stderr.splitlines()[-1]


def test_a_framework_alone_is_registered(tmp_path: Path) -> None:
    done = python(
        "-c",
        "import sys\nsys.modules['transformers'] = None\n"
        "import torchtrack_huggingface as t\nt.register()\nt.register()\n"
        "from accelerate import Accelerator\n"
        "accelerator = Accelerator(cpu=True, log_with='torchtrack')\n"
        "accelerator.init_trackers('by name', config={'lr': 0.1})\n"
        "accelerator.log({'loss': 2.0}, step=3)\n"
        "accelerator.end_training()",
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "runs")
    assert (run.state, run.project, run.config) == ("finished", "by name", {"lr": 0.1})
    assert run.history("loss").drop(["time"]).to_pylist() == [{"step": 3, "loss": 2.0}]


def test_accelerate_hands_tensors_on_as_they_are(tmp_path: Path) -> None:
    done = python(
        "-c",
        "import torch\n"
        "from accelerate import Accelerator\n"
        "from torchtrack.testing.syncguard import SyncGuard\n"
        "from torch._subclasses import FakeTensorMode\n"
        "from torchtrack_huggingface import TorchtrackTracker\n"
        "accelerator = Accelerator(cpu=True, log_with=TorchtrackTracker())\n"
        "accelerator.init_trackers('p')\n"
        "with FakeTensorMode():\n"
        "    loss = torch.empty((), device='lazy:0')\n"
        "    with SyncGuard() as guard:\n"
        "        accelerator.log({'loss': loss}, step=0)\n"
        "assert not guard.violations, guard.violations\n",
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr


def test_wrong_arguments_are_named() -> None:
    done = python(
        "-c",
        "from torchtrack_huggingface import TorchtrackCallback as C, TorchtrackTracker as T\n"
        "for call in (lambda: C(projekt='x'), lambda: C(watch={'frequency': 1}), lambda: T(projekt='x')):\n"
        "    try: call()\n"
        "    except TypeError as error: print(error)",
    )

    said = done.stdout.splitlines()
    assert [line.split(":")[0] for line in said] == [
        "TorchtrackCallback() takes the arguments of torchtrack.init()",
        "TorchtrackCallback(watch=) takes arguments of Run.watch()",
        "TorchtrackTracker() takes the arguments of torchtrack.init()",
    ]
    assert "'projekt'" in said[0]
    assert "'frequency'" in said[1]
