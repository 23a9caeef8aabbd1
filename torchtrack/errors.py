"""Every error a user can meet.

    TorchtrackError
    |-- RunNotFoundError       Api.run(...) or resume="must" named a run that is not there (also a KeyError)
    |-- NoActiveRunError       torchtrack.log(...) and friends before init() or after finish()
    |-- NonFiniteError         a gradient was NaN or infinite and watch was told to raise (also an ArithmeticError)
    |-- JournalError           a journal cannot be read
    |   `-- FormatVersionError it was written by a newer torchtrack than this one
    |-- ServerError            a server does not answer, or not as hoped; the message says what it said
    |-- StoreError             a server's store refused or failed; what it holds can be built anew from the journals
    `-- MissingDependencyError an optional package is needed; the message names the pip command (also an ImportError)

Wrong arguments raise the built-in TypeError and ValueError, at the call, before anything is touched.
"""

from __future__ import annotations


class TorchtrackError(Exception):
    """The root of every error torchtrack raises besides TypeError and ValueError."""


class RunNotFoundError(TorchtrackError, KeyError):
    """No run has this id, uid or path."""

    def __str__(self) -> str:
        return Exception.__str__(self)


class NoActiveRunError(TorchtrackError):
    """A module-level call such as `torchtrack.log` needs a run, and none is active."""


class NonFiniteError(TorchtrackError, ArithmeticError):
    """The gradients of an optimizer step are not finite; no weight has been changed by it. The same on every rank.

    Attributes:
        step: of the run.
        parameter: the first in the order of the backward pass.
        ranks: whose own gradients were not finite before the ranks averaged them; empty where that is not known.
    """

    def __init__(self, step: int, parameter: str, ranks: tuple[int, ...] = ()) -> None:
        super().__init__(step, parameter, ranks)
        self.step, self.parameter, self.ranks = step, parameter, ranks

    def __str__(self) -> str:
        where = f" on rank{'s' * (len(self.ranks) > 1)} {', '.join(map(str, self.ranks))}" if self.ranks else ""
        return (
            f"the gradient of {self.parameter}, the first of the backward pass, is NaN or infinite{where} at step "
            f'{self.step}; no weight was changed (watch(on_nonfinite="raise"))'
        )


class JournalError(TorchtrackError):
    """A journal file cannot be read at all."""


class FormatVersionError(JournalError):
    """A journal was written in a newer format than this version reads."""


class MissingDependencyError(TorchtrackError, ImportError):
    """An optional package is not installed."""


class StoreError(TorchtrackError):
    """A store of the server refused or failed. It is a view: what it holds can be built anew from the journals."""


class ConfigError(TorchtrackError):
    """A value of a configuration that is fixed would have changed."""


class ServerError(TorchtrackError):
    """A server does not answer, or refuses; the message says what it said."""


_OF_WANDB = {
    "AuthenticationError": "ServerError",
    "CommError": "ServerError",
    "Error": "TorchtrackError",
    "UnsupportedError": "TorchtrackError",
    "UsageError": "TorchtrackError",
}
"""What scripts written for wandb catch, so that `except wandb.errors.Error` catches ours."""


def __getattr__(name: str) -> type[TorchtrackError]:
    if name in _OF_WANDB:
        kind: type[TorchtrackError] = globals()[_OF_WANDB[name]]
        return kind
    raise AttributeError(f"module 'torchtrack.errors' has no attribute {name!r}")
