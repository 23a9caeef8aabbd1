"""`torchtrack import`: the history that other trackers have kept, as runs of torchtrack."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from torchtrack.cli import common
from torchtrack.importers import KINDS

if TYPE_CHECKING:
    from torchtrack.importers import Losses, Result, SourceRun


@click.command("import")
@click.argument("sources", nargs=-1, required=True, metavar="SOURCE...", type=click.Path(path_type=Path))
@common.folder_option
@click.option("--kind", type=click.Choice(KINDS), help="What the sources are, where they are several things.")
@click.option("--project", help="The project the runs are listed in, instead of their own.")
@click.option("--list", "only_list", is_flag=True, help="Say what would be imported, and import nothing.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of sentences.")
def import_(
    sources: tuple[Path, ...],
    folder: Path | None,
    kind: str | None,
    project: str | None,
    only_list: bool,
    as_json: bool,
) -> None:
    """Bring the history that other trackers have kept: each SOURCE is a file or folder as they left it.

    \b
    TensorBoard  a folder with event files, or one of them   torchtrack import runs/
    wandb        its folder, or one run's folder or file     torchtrack import wandb/
    MLflow       mlruns/, or the SQLite database             torchtrack import mlruns/ mlflow.db
    Neptune      what neptune-exporter wrote                 torchtrack import exports/data
    trackio      its folder, or a project's database         torchtrack import ~/.cache/huggingface/trackio

    What a source is is seen from its files. Sources are only read. Runs keep their times, names, tags, notes and
    configuration. Do it as often as you like: a run is there once, what is new in its source is added, and an import
    that was broken off goes on where it was.

    At the end it says what has no place in torchtrack and what could not be read. The exit code is 0 if all could be
    read, 1 if something could not, 2 if the command was wrong.
    """  # noqa: D301  # click takes \b for a paragraph that is not wrapped
    from torchtrack.importers import Losses

    place = folder or common.default_folder()
    losses = Losses()
    with common.friendly():
        runs = _runs(sources, kind, project, losses)
        results = [] if only_list else _import(place, runs, quiet=as_json)
    for result in results:
        losses.add(result.losses)
    said = _report(place, runs, results, losses)
    click.echo(json.dumps(said, indent=2) if as_json else _in_words(said, only_list=only_list))
    if losses.damages:
        raise SystemExit(1)


def _runs(sources: Sequence[Path], kind: str | None, project: str | None, losses: Losses) -> list[SourceRun]:
    from torchtrack.importers import find

    runs: dict[tuple[str, str], SourceRun] = {}
    for source in sources:
        found = find(source, kind, project)
        losses.add(found.losses)
        runs.update(((run.kind, run.key), run) for run in found.runs)
    return list(runs.values())


def _import(place: Path, runs: Sequence[SourceRun], *, quiet: bool) -> list[Result]:
    from torchtrack.importers import import_run

    results = []
    with common.progress(
        "importing", lambda: max(1, sum(run.size for run in runs)), "TaskProgressColumn", quiet=quiet
    ) as show:
        done = 0
        for run in runs:
            show(description=run.about.name, completed=done)
            results.append(import_run(place, run, lambda part, before=done: show(completed=before + part)))  # type: ignore[misc]
            done += run.size
            show(completed=done)
    return results


def _report(place: Path, runs: Sequence[SourceRun], results: Sequence[Result], losses: Losses) -> dict[str, Any]:
    from torchtrack.importers.target import uid_of

    done = {result.uid: result for result in results}
    listed = []
    for run in runs:
        uid = uid_of(run.kind, run.key)
        about = {"uid": uid, "project": run.about.project, "id": run.about.id, "name": run.about.name}
        rows = {"rows": done[uid].rows, "known": done[uid].known} if uid in done else {}
        listed.append({**about, "kind": run.kind, **rows})
    return {
        "dir": str(place),
        "runs": listed,
        "not_taken_over": dict(losses.formats),
        "could_not_be_read": dict(losses.damages),
    }


def _in_words(said: dict[str, Any], *, only_list: bool) -> str:
    lines = []
    for run in said["runs"]:
        what = run["kind"]
        if "rows" in run:
            news = common.plural(run["rows"], "row")
            what = (f"{news} added" if run["rows"] else "nothing new") if run["known"] else news
        lines.append(f"  {run['uid']}  {run['project']}/{run['name']}: {what}")
    count = common.plural(len(said["runs"]), "run")
    lines.insert(0, f"{count} would be imported:" if only_list else f"{count} in {said['dir']}:")
    for title, key in (("not taken over:", "not_taken_over"), ("could not be read:", "could_not_be_read")):
        if said[key]:
            lines += [title, *(f"  {number:,} x {what}" for what, number in sorted(said[key].items()))]
    return "\n".join(lines)
