"""The command `torchtrack`. Each command imports what it needs when it runs, so that help is there at once."""

from __future__ import annotations

import click

from torchtrack.cli.blackbox import blackbox
from torchtrack.cli.diff import diff
from torchtrack.cli.export import export
from torchtrack.cli.findings import findings
from torchtrack.cli.forward import forward
from torchtrack.cli.fsck import fsck
from torchtrack.cli.gc import gc
from torchtrack.cli.import_ import import_
from torchtrack.cli.keys import keys
from torchtrack.cli.launch import launch
from torchtrack.cli.list import ls
from torchtrack.cli.login import login
from torchtrack.cli.reindex import reindex
from torchtrack.cli.report import report
from torchtrack.cli.server import server
from torchtrack.cli.show import show
from torchtrack.cli.status import status
from torchtrack.cli.sweep import agent, sweep
from torchtrack.cli.sync import sync
from torchtrack.cli.ui import ui
from torchtrack.cli.users import audit, users
from torchtrack.cli.watch_run import watch_run
from torchtrack.version import __version__


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="torchtrack")
def main() -> None:
    """Distributed-training logging: all ranks of a job are one run.

    Runs are read from --dir, else from TORCHTRACK_DIR, else from ./torchtrack-runs. RUN is project/id, an id, a uid or
    its beginning, a name, or "last" for the newest run.
    """


_RUNS = (
    ls,
    show,
    findings,
    blackbox,
    diff,
    watch_run,
    export,
    report,
    import_,
    forward,
    fsck,
    launch,
    sweep,
    agent,
    ui,
)
_SERVERS = (server, login, sync, status, reindex, gc)
_TEAMS = (keys, users, audit)
for _command in (*_RUNS, *_SERVERS, *_TEAMS):
    main.add_command(_command)
