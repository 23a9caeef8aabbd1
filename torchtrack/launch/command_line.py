"""The configuration of a script that says nothing of it: what argparse made of the command line, else the words."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from torchtrack import guard
from torchtrack.launch import frames

_WORDS: Final = {"true": True, "false": False, "none": None, "null": None}
_parsed: list[Any] = []
"""What argparse made of the command line, the latest last."""


def listen(parser: Any) -> None:
    """Keep what this class of parser makes of the command line.

    Args:
        parser: argparse.ArgumentParser.
    """
    original = parser.parse_known_args

    @functools.wraps(original)
    def parse_known_args(self: Any, args: Any = None, *rest: Any, **named: Any) -> Any:
        try:
            result = original(self, args, *rest, **named)
        except BaseException as error:
            frames.leave_out(error)
            raise
        guard.attempt("launch", _keep, args, result)
        return result

    parser.parse_known_args = parse_known_args


def _keep(args: Any, result: tuple[Any, list[str]]) -> None:
    if args is None or list(args) == sys.argv[1:]:
        _parsed[:] = [result[0]]  # the namespace itself: scripts add to it before they train


def config() -> dict[str, Any]:
    """The hyper-parameters of this process."""
    if _parsed:
        return {name: value for name, value in vars(_parsed[0]).items() if not callable(value)}
    return parse(sys.argv[1:])


def parse(arguments: Sequence[str]) -> dict[str, Any]:
    """The options in a command line of which nothing is known.

    `--lr 3e-4`, `--lr=3e-4` and `lr=3e-4` are numbers, words or lists of them; `--amp` is true, `--no-amp` false.
    """
    found: dict[str, Any] = {}
    name = ""
    for argument in arguments:
        if argument.startswith("-") and not _is_number(argument):
            name, assigned, value = argument.lstrip("-").replace("-", "_").partition("=")
            if assigned:
                found[name], name = _value(argument.partition("=")[2]), ""
            elif name:
                found[name] = True
        elif name:
            before = found[name]
            value = _value(argument)
            found[name] = value if before is True else [*(before if isinstance(before, list) else [before]), value]
        elif "=" in argument and argument.partition("=")[0].lstrip("+").replace(".", "_").isidentifier():
            key, _, word = argument.lstrip("+").partition("=")
            found[key] = _value(word)
    off = {key for key, value in found.items() if key.startswith("no_") and value is True}
    return {key[3:] if key in off else key: key not in off and value for key, value in found.items()}


def _value(word: str) -> Any:
    if word.lower() in _WORDS:
        return _WORDS[word.lower()]
    if _is_number(word):
        number = float(word)
        return int(word) if word.lstrip("+-").isdigit() else number
    if word[:1] in ("[", "{"):
        decoded = guard.outcome(json.loads, word)
        return word if isinstance(decoded, Exception) else decoded
    return word


def _is_number(word: str) -> bool:
    return not isinstance(guard.outcome(float, word), Exception)
