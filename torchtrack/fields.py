"""The two mappings of a run that people write to: its config and its summary."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

from torchtrack.environment import config_dict
from torchtrack.errors import ConfigError

logger = logging.getLogger("torchtrack")


class Fields(MutableMapping[str, Any]):
    """A mapping whose keys are attributes too, and that tells what was written to it.

    Args:
        values: the first content; not told.
        changed: called with every update.
    """

    def __init__(self, values: Mapping[str, Any], changed: Callable[[dict[str, Any]], None]) -> None:
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(self, "_changed", changed)
        object.__setattr__(self, "_fixed", False)

    def fix(self) -> None:
        """From now on a key that is there keeps its value, unless `update(allow_val_change=True)` changes it."""
        object.__setattr__(self, "_fixed", True)

    def update(self, *values: Any, allow_val_change: bool | None = None, **more: Any) -> None:
        """Set several keys, from a dict, a Namespace, a dataclass or a mapping; anything else only earns a warning.

        Args:
            values: at most one of these.
            allow_val_change: True: also where values are fixed; False: only keys that are not there yet, and those
                that stay as they are.
            more: further keys.

        Raises:
            ConfigError: a value that is fixed would change.
        """
        try:
            fresh = {**(config_dict(values[0]) if values and values[0] is not None else {}), **more}
        except TypeError as error:
            logger.warning("torchtrack did not take the update: %s", error)
            fresh = more
        self._check(fresh, fixed=self._fixed if allow_val_change is None else not allow_val_change)
        self._values.update(fresh)
        if fresh:
            self._changed(fresh)

    def _check(self, fresh: Mapping[str, Any], *, fixed: bool) -> None:
        changed = [key for key, value in fresh.items() if key in self._values and self._values[key] != value]
        if fixed and changed:
            raise ConfigError(
                f"{changed[0]!r} is {self._values[changed[0]]!r} and does not become {fresh[changed[0]]!r}: values are "
                "fixed by allow_val_change=False; update({...}, allow_val_change=True) changes them"
            )

    def setdefaults(self, values: Any) -> None:
        """Set the keys that are not there yet, from what `update` takes."""
        fresh = dict(values) if isinstance(values, Mapping) else config_dict(values)
        self.update({key: value for key, value in fresh.items() if key not in self._values})

    def as_dict(self) -> dict[str, Any]:
        """A copy as a plain dict."""
        return dict(self._values)

    def __getitem__(self, key: str) -> Any:
        return self._values[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._check({key: value}, fixed=self._fixed)
        self._values[key] = value
        self._changed({key: value})

    def __delitem__(self, key: str) -> None:
        logger.warning("torchtrack: %r is not deleted: what was recorded stays; set another value instead", key)

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(
                f"no {name!r} here; there are: {', '.join(map(str, self._values)) or 'no keys yet'}"
            ) from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        return dict, (self.as_dict(),)  # a copy, or what a checkpoint holds, is a plain dict

    def __repr__(self) -> str:
        return repr(self._values)
