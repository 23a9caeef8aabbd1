"""`wandb.Settings`: what of it means something here becomes an argument of `init`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from torchtrack.compat.said import once
from torchtrack.fields import Fields

_SAME: Final = {
    "project": "project",
    "entity": "entity",
    "run_id": "id",
    "run_name": "name",
    "run_group": "group",
    "run_job_type": "job_type",
    "run_notes": "notes",
    "run_tags": "tags",
    "root_dir": "dir",
    "mode": "mode",
    "reinit": "reinit",
    "resume": "resume",
    "resume_from": "resume_from",
    "fork_from": "fork_from",
    "save_code": "save_code",
    "sync_tensorboard": "sync_tensorboard",
    "anonymous": "anonymous",
    "allow_val_change": "allow_val_change",
}
_STATS_OFF: Final = ("_disable_stats", "x_disable_stats")
_STATS_EVERY: Final = ("_stats_sampling_interval", "x_stats_sampling_interval")
_CONSOLES: Final = {"off": False, "wrap": True, "wrap_raw": True, "wrap_emu": True, "redirect": True}


class Config(Fields):
    """A mapping whose keys are attributes too: that of a run is `run.config`; this is one of its own."""

    def __init__(self) -> None:
        super().__init__({}, lambda _: None)


class Settings(Mapping[str, Any]):
    """Any settings, as a mapping whose keys are attributes too."""

    def __init__(self, **values: Any) -> None:
        self.__dict__.update(values)

    def __getitem__(self, key: str) -> Any:
        return self.__dict__[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __len__(self) -> int:
        return len(self.__dict__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None  # as there: every setting has a value

    def update(self, *settings: Mapping[str, Any], **values: Any) -> None:
        """Set several."""
        for each in settings:
            self.__dict__.update(each)
        self.__dict__.update(values)


def arguments(settings: Any) -> dict[str, Any]:
    """The arguments of `init` that these settings stand for; names the rest in one line."""
    held = dict(settings) if isinstance(settings, Mapping) else dict(vars(settings))
    result = {_SAME[name]: held.pop(name) for name in list(held) if name in _SAME}
    for name in _STATS_EVERY:
        if (seconds := held.pop(name, None)) is not None:
            result["system_interval"] = float(seconds)
    for name in _STATS_OFF:
        if held.pop(name, None):
            result["system_interval"] = 0.0
    if (console := _CONSOLES.get(str(held.pop("console", "")))) is not None:
        result["console"] = console
    if held:
        once(f"settings with no meaning here: {', '.join(sorted(held))}")
    return {name: value for name, value in result.items() if value is not None}
