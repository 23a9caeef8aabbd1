"""What is read from a command line of which nothing is known, and what is kept of one that argparse reads."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from torchtrack.launch import command_line


@pytest.fixture
def parser(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[argparse.ArgumentParser]]:
    class Parser(argparse.ArgumentParser):
        """One that is listened to, and no other."""

    monkeypatch.setattr(sys, "argv", ["train.py", "--lr", "0.5"])
    command_line.listen(Parser)
    yield Parser
    command_line._parsed.clear()


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("--lr 3e-4 --steps 10 --name a1", {"lr": 3e-4, "steps": 10, "name": "a1"}),
        ("--lr=3e-4 -b 8 data/train", {"lr": 3e-4, "b": [8, "data/train"]}),
        ("--weight-decay -0.1 --shift=-3", {"weight_decay": -0.1, "shift": -3}),
        ("--amp --no-compile --no-of-layers 3", {"amp": True, "compile": False, "no_of_layers": 3}),
        ("--layers 1 2 3 --flag false --seed none", {"layers": [1, 2, 3], "flag": False, "seed": None}),
        ("optimizer.lr=0.1 +model=big a/b=c", {"optimizer.lr": 0.1, "model": "big"}),
        ('--betas [0.9,0.95] --odd [x --empty= -- "" -', {"betas": [0.9, 0.95], "odd": "[x", "empty": ""}),
    ],
)
def test_options_are_numbers_words_and_lists(words: str, found: dict[str, Any]) -> None:
    assert command_line.parse(words.split()) == found


def test_what_argparse_reads_is_the_configuration(parser: type[argparse.ArgumentParser]) -> None:
    made = parser()
    made.add_argument("--lr", type=float)
    made.add_argument("--steps", type=int, default=3)
    made.set_defaults(run=print)
    arguments = made.parse_args()
    arguments.steps = 7  # scripts go on with it
    parser().parse_args([])  # of something else

    assert command_line.config() == {"lr": 0.5, "steps": 7}


def test_without_argparse_it_is_the_words(parser: type[argparse.ArgumentParser]) -> None:
    assert command_line.config() == {"lr": 0.5}
