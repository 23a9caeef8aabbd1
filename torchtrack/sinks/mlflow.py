"""A run in MLflow. It has no histograms: of each it gets mean, standard deviation, norm, least and largest value.

Texts, media and tables are artifacts of the run: `texts/<name>/<step>.txt`, `media/<name>/<step>.png` and so on.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from torchtrack.errors import MissingDependencyError
from torchtrack.histogram import Histogram
from torchtrack.mime import ending_of
from torchtrack.sinks.feed import Forwarded, Medium
from torchtrack.sinks.sink import About, Sink, table_of

_UID: Final = "torchtrack.uid"
_BATCH: Final = 1000
_PARAMS: Final = 100
_MAX_PARAM: Final = 6000
_PATH: Final = re.compile(r"[^\w\-. /]|\.\.")
_NAME: Final = re.compile(r"[^\w\-. :/]")
_STATES: Final = {"finished": "FINISHED", "killed": "KILLED"}


class MlflowSink(Sink):
    """A run of MLflow, found again by the tag `torchtrack.uid`; steps that a restart repeats are there twice.

    Args:
        about: the run.
        where: the tracking URI; by default MLFLOW_TRACKING_URI, else a database in `sinks` of the folder of runs.
    """

    def __init__(self, about: About, where: str | None) -> None:
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric, Param
        except ImportError:
            raise MissingDependencyError("the sink mlflow needs mlflow: pip install 'torchtrack[mlflow]'") from None
        self._folder = about.folder.absolute()
        about = replace(about, folder=self._folder)
        about.folder.mkdir(parents=True, exist_ok=True)
        uri = where or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{about.folder / 'mlflow.db'}"
        self._client: Any = MlflowClient(tracking_uri=uri)
        self._metric: Any = Metric
        experiment = self._client.get_experiment_by_name(about.project)
        own = None if where or os.environ.get("MLFLOW_TRACKING_URI") else (about.folder / "mlflow-artifacts").as_uri()
        number = experiment.experiment_id if experiment else self._client.create_experiment(about.project, own)
        there = self._client.search_runs([number], f"tags.`{_UID}` = '{about.uid}'", max_results=1)
        tags = {_UID: about.uid, **({"mlflow.note.content": about.notes} if about.notes else {})}
        tags.update((_NAME.sub("_", f"tag.{tag}"), "true") for tag in about.tags)
        run = there[0] if there else self._client.create_run(number, tags=tags, run_name=about.name)
        self._id = run.info.run_id
        if not there:
            params = [Param(_NAME.sub("_", n), v[:_MAX_PARAM]) for n, v in _flat(about.config)]
            for at in range(0, len(params), _PARAMS):
                self._client.log_batch(self._id, params=params[at : at + _PARAMS])

    def write(self, steps: Sequence[Forwarded]) -> None:
        """As few calls as MLflow allows."""
        rows = [
            self._metric(_NAME.sub("_", name), value, int(step.time_s * 1000), step.step)
            for step in steps
            for name, value in (*step.scalars.items(), *_moments(step.histograms))
        ]
        for at in range(0, len(rows), _BATCH):
            self._client.log_batch(self._id, metrics=rows[at : at + _BATCH])
        for step in steps:
            for name, text in step.texts.items():
                self._client.log_text(self._id, text, f"texts/{_PATH.sub('_', name)}/{step.step}.txt")
            for name, media in step.media.items():
                for number, medium in enumerate(media):
                    self._medium(f"{step.step}{f'-{number}' if len(media) > 1 else ''}", name, medium)

    def _medium(self, place: str, name: str, medium: Medium) -> None:
        """Keep it, if its file is there."""
        inside, table = _PATH.sub("_", name), table_of(medium)
        if table is not None:  # as MLflow's own tables
            columns, data = table
            self._client.log_dict(self._id, {"columns": columns, "data": data}, f"tables/{inside}/{place}.json")
        elif medium.path.is_file():
            with tempfile.TemporaryDirectory(dir=self._folder) as folder:
                named = Path(folder) / f"{place}{ending_of(medium.mime)}"
                shutil.copyfile(medium.path, named)
                self._client.log_artifact(self._id, str(named), f"media/{inside}")

    def close(self, state: str, summary: Mapping[str, Any]) -> None:  # noqa: ARG002  # it makes one of its own
        """End the run as it ended."""
        self._client.set_terminated(self._id, status=_STATES.get(state, "FAILED"))


def _moments(histograms: Mapping[str, Histogram]) -> Iterator[tuple[str, float]]:
    for name, each in histograms.items():
        if each.finite:
            yield f"{name}/mean", each.mean
            yield f"{name}/std", each.std
            yield f"{name}/norm", each.norm
            yield f"{name}/min", each.min
            yield f"{name}/max", each.max


def _flat(config: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in config.items():
        name = f"{above}{key}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, str(value)
