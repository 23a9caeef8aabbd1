"""What the commands share: where runs are, which run is meant, and how people read numbers and times."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import unquote

import click

from torchtrack.errors import TorchtrackError

if TYPE_CHECKING:
    from rich.console import Console

    from torchtrack.api import Api, Run
    from torchtrack.server.layout import Layout

ACCENT: Final = "#6b7cf0"
CURVE: Final = "#4d99d1"
OK: Final = "#3fa874"
WARN: Final = "#c98a1b"
CRITICAL: Final = "#e5566b"
STATES: Final = {
    "running": ("●", ACCENT),
    "finished": ("✓", OK),
    "failed": ("✗", CRITICAL),
    "crashed": ("✗", CRITICAL),
    "killed": ("■", WARN),
    "lost": ("?", WARN),
}
"""Sign and colour of a state; always with the word, so that colour alone says nothing."""

_ADDRESS: Final = re.compile(r"(https?://.+?)/(?:#/p/[^/]+/r|runs)/([^/?#]+)")
"""A run on a server: as the page shows it, or plainly."""
_F = TypeVar("_F", bound=Callable[..., Any])


def default_folder() -> Path:
    """Where runs lie if nothing says else."""
    return Path(os.environ.get("TORCHTRACK_DIR") or "torchtrack-runs")


def folder_option(function: _F) -> _F:
    """The option --dir."""
    option = click.option("--dir", "folder", type=click.Path(path_type=Path), help="Folder of the runs.")
    return option(function)


def metrics_options(function: _F) -> _F:
    """The options that say where a server keeps its tables, and for how long."""
    options = (
        click.option(
            "--metrics",
            metavar="DSN",
            envvar="TORCHTRACK_METRICS",
            help="A ClickHouse server for the tables; by default they lie in DATA.",
        ),
        click.option(
            "--metrics-cluster",
            "cluster",
            metavar="NAME",
            envvar="TORCHTRACK_METRICS_CLUSTER",
            help="A cluster that this ClickHouse server knows: the tables lie on all its shards.",
        ),
        click.option(
            "--metrics-replicated",
            "replicated",
            is_flag=True,
            envvar="TORCHTRACK_METRICS_REPLICATED",
            help="Every shard of the cluster keeps them on all its replicas.",
        ),
        click.option(
            "--keep",
            multiple=True,
            metavar="TABLE=DAYS",
            envvar="TORCHTRACK_KEEP",
            help="Remove rows of scalars, tensors, texts or logs from the tables at this age; repeat it.",
        ),
    )
    for option in reversed(options):
        function = option(function)
    return function


def layout_of(metrics: str | None, cluster: str | None, keep: Sequence[str], *, replicated: bool) -> Layout:
    """How tables are kept, by the options.

    Raises:
        click.UsageError: they do not go together.
    """
    from torchtrack.server.layout import Layout

    if cluster and not metrics:
        raise click.UsageError("--metrics-cluster needs --metrics clickhouse://...: a server that knows the cluster")
    days: dict[str, int] = {}
    for each in keep:
        table, _, number = each.partition("=")
        if not number.isdecimal():
            raise click.UsageError(f"--keep {each}: give a table and a number of days, as in --keep scalars=365")
        days[table] = int(number)
    try:
        return Layout(cluster=cluster, replicated=replicated, keep_days=days)
    except ValueError as error:
        raise click.UsageError(str(error)) from None


def timeout_option(name: str, about: str) -> Callable[[_F], _F]:
    """An option that says how many seconds to be patient with a server, as `timeout_s`."""
    return click.option(
        name,
        "timeout_s",
        type=click.FloatRange(0),
        default=120.0,
        show_default=True,
        metavar="SECONDS",
        help=about,
    )


@contextmanager
def friendly() -> Iterator[None]:
    """Turn what a user can cause into a sentence and exit code 1."""
    try:
        yield
    except BrokenPipeError:
        raise SystemExit(0) from None
    except (TorchtrackError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None


@contextmanager
def server_packages() -> Iterator[None]:
    """Around imports of what only `torchtrack[server]` installs."""
    try:
        yield
    except ImportError as error:
        raise click.ClickException(
            f"{error}; install what the server needs: pip install 'torchtrack[server]'"
        ) from None


@contextmanager
def progress(what: str, total: Callable[[], int], column: str, *, quiet: bool = False) -> Iterator[Callable[..., None]]:
    """A line that moves, on a terminal. Gives what takes the arguments of rich's `Progress.update`, without the task.

    Args:
        what: is done.
        total: how much there is to do; asked on a terminal only.
        column: the class in rich.progress that says how much is done.
        quiet: no line on a terminal either.
    """
    from rich import progress
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda **_: None
        return
    shown = getattr(progress, column)()
    columns = (progress.TextColumn("{task.description}"), progress.BarColumn(), shown, progress.TimeRemainingColumn())
    with progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total())
        yield lambda **changes: bar.update(task, **changes)


def open_source(folder: Path | None) -> Api:
    """The runs of a folder."""
    from torchtrack.api import Api

    path = folder or default_folder()
    if not path.exists():
        hint = "give the folder with --dir or TORCHTRACK_DIR" if folder is None else "is it the `dir` of init?"
        raise click.ClickException(f"no runs: there is no {path}; {hint}")
    return Api(path)


def open_run(api: Api, name: str) -> Run:
    """The run somebody typed; "last" is the newest."""
    if name == "last":
        runs = api.runs()
        if runs:
            return runs[0]
    return api.run(name)


def find_run(folder: Path | None, name: str) -> Run:
    """The run somebody typed: of a folder, or by its address on a server, as `run.url` gives it."""
    place = run_address(name)
    if place is None:
        return open_run(open_source(folder), name)
    from torchtrack.api import Api
    from torchtrack.api.remote import Server
    from torchtrack.api.source import Source

    return open_run(Api.of(Source(Server(place[0]).shelf())), place[1])


def run_address(name: str) -> tuple[str, str] | None:
    """The server and the run, if what somebody typed is the address of a run.

    Raises:
        ValueError: it is one to which no key may be sent.
    """
    found = _ADDRESS.match(name)
    if found is None:
        return None
    from torchtrack import credentials

    return credentials.check_url(found[1]), unquote(found[2])


def console() -> Console:
    """Where a command draws. Without a terminal there are no colours, and the width is COLUMNS or 100."""
    from rich.console import Console

    plain = Console()
    if plain.is_terminal:
        return Console(highlight=False, width=min(plain.width, 160))
    width = os.environ.get("COLUMNS", "")
    return Console(highlight=False, width=int(width) if width.isdigit() and int(width) > 0 else 100)


def number(value: Any) -> str:
    """Four significant digits, as short as they go."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) and abs(value) < 10_000_000:
        return str(value)
    value = float(value)
    if not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if -3 <= power < 6:
        return f"{value:.{max(0, 3 - power)}f}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def compact(value: float) -> str:
    """Three significant digits with an exponent: for columns of values that differ by orders of magnitude."""
    if value == 0 or not math.isfinite(value):
        return number(value)
    mantissa, _, exponent = f"{value:.2e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def short(value: Any) -> str:
    """As `number`, without trailing zeros: for settings rather than for columns."""
    text = number(value)
    if isinstance(value, float) and math.isfinite(value):
        mantissa, e, exponent = text.partition("e")
        text = (mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa) + e + exponent
    return text


def span(duration: timedelta) -> str:
    """A duration in its two largest units."""
    seconds = max(0.0, duration.total_seconds())
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    for small, large, size, unit in (("s", "m", 60, 1), ("m", "h", 3600, 60), ("h", "d", 86400, 3600)):
        if seconds < {60: 3600, 3600: 86400, 86400: math.inf}[size]:
            whole, rest = divmod(int(seconds), size)
            return f"{whole} {large} {rest // unit} {small}" if rest // unit else f"{whole} {large}"
    raise AssertionError("the last unit takes all")


def age(moment: datetime) -> str:
    """How long ago, in one unit."""
    seconds = (datetime.now(timezone.utc) - moment).total_seconds()
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "now"


def plural(count: int, noun: str) -> str:
    """`1 rank`, `8 ranks`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def jsonable(value: Any) -> Any:
    """Plain JSON: times as ISO 8601, NaN and infinities as the strings "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    return value
