"""What is imported when, and what is said without a framework; each in a fresh interpreter."""

from __future__ import annotations

import pytest

from tests.integrations.huggingface.programs import python

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


def test_a_framework_alone_is_registered() -> None:
    done = python(
        "-c",
        "import sys\nsys.modules['transformers'] = None\n"
        "import torchtrack_huggingface as t\nt.register()\nt.register()\n"
        "from accelerate.tracking import LOGGER_TYPE_TO_CLASS as known\n"
        "assert known['torchtrack'] is t.TorchtrackTracker",
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
