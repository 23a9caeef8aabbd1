"""`torchtrack ui`: look at runs in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import click

from torchtrack.cli import common


@click.command()
@click.argument("folder", metavar="[DIR]", required=False, type=click.Path(path_type=Path, file_okay=False))
@click.option("--host", default="127.0.0.1", show_default=True, help="Where it listens.")
@click.option("--port", type=click.IntRange(0, 65535), default=7421, show_default=True, help="0 takes a free one.")
@click.option("--allow-host", "hosts", multiple=True, metavar="NAME", help="A name under which it is asked; repeat it.")
@click.option("--no-token", is_flag=True, help="Let in everyone on this machine. Refused where others can connect.")
@click.option("--open", "opens", is_flag=True, help="Open it in the browser of this machine.")
def ui(folder: Path | None, host: str, port: int, hosts: tuple[str, ...], no_token: bool, opens: bool) -> None:
    """Look at the runs of DIR in a browser, while they train and afterwards.

    Prints an address that carries the token: open that. DIR is only read; the index lies in your cache folder and can
    be deleted at any time, what you type on the page in ~/.local/share/torchtrack. A second `ui` on the same folder
    gives the address of the first.

    On another machine: ssh -L 7421:127.0.0.1:7421 MACHINE, then open the address here.
    """
    with common.friendly():
        folder = folder or common.default_folder()
        if not folder.is_dir():
            raise click.ClickException(f"no runs: there is no {folder}; give the folder, or set TORCHTRACK_DIR")
        with common.server_packages():
            from torchtrack.server.engine import Engine, beginning, take_hold
            from torchtrack.server.shown import ADDRESS, catalog_url, index_folder
        data = index_folder(folder)
        told = data / ADDRESS
        try:
            hold = take_hold(data)
        except BlockingIOError:
            _tell(folder, json.loads(told.read_text())["url"], opens=opens)
            return

        def say(address: str, key: str | None) -> None:
            url = f"{address}/#token={key}" if key else f"{address}/"
            told.write_text(json.dumps({"url": url}))
            told.chmod(0o600)
            _tell(folder, url, opens=opens)

        typed = catalog_url(folder)
        engine = Engine(folder, data / "index", catalog=typed)
        try:
            with common.server_packages(), beginning():
                engine.start()  # before the imports: it takes its time, and a core of its own
                from torchtrack.server.app import Config
                from torchtrack.server.serve import serve
            config = Config(data=data, shown=folder, catalog=typed, host=host, hosts=hosts, token=not no_token)
            serve(config, port, say, (hold, engine))
        finally:
            engine.close()
            hold.close()


def _tell(folder: Path, url: str, *, opens: bool) -> None:
    click.echo(f"torchtrack: the runs of {folder} are at\n\n  {url}\n")
    if opens:
        click.launch(url)
