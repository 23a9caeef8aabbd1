"""Pictures of the pages, light and dark, for docs/images: of a folder of runs, such as `make demo` leaves.

    python web/pictures.py [torchtrack-runs]

The newest run that ended well is the one that is shown, and the newest that failed, such as web/sick.py trains, as
"finding". Its Overview is left out, since it tells of the machine. Needs `torchtrack[server,test]`, pillow, the built
page, and Chromium.
"""

from __future__ import annotations

import colorsys
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import cast

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from torchtrack import Api
from torchtrack.api import Run

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = {"width": 1360, "height": 850}
COLOURS = 256
HUES = 16
VIVID = 0.4
"""How saturated and bright a colour is, of 1, that has a hue."""
SAME = 4
"""So many looks at a page have to be alike, half a second apart."""
CURVES = "[role=img][aria-label*='ends at']"


REPORT = """No rule found anything that stops this run. Below are its loss, and the gradients of its layers.

## Loss

```panel
metric: {loss}
runs: {runs}
smooth: 5
```

## Gradients

Each layer against its own median over the run: they are largest while it warms up.

```panel
show: layers
runs: {run}
```

| what | then |
|:--|:--|
| learning rate | half as high, with a longer warm-up |
| clipping | stays at 1.0 |
"""


RULES = (
    {"name": "the loss is gone", "severity": "critical", "when": {"kind": "not_finite", "metric": "{loss}"}},
    {"name": "it learns nothing", "when": {"kind": "above", "metric": "{loss}", "value": 4, "for_steps": 50}},
    {"name": "a run has failed", "when": {"kind": "ended"}},
)
"""Alert rules for the picture of Alerts."""


def newest(folder: Path, state: str = "finished") -> Run:
    """The run that is shown."""
    return max((run for run in Api(folder).runs() if run.state == state), key=lambda run: run.created)


def loss_of(run: Run) -> str:
    """The name of its loss, or of its first metric."""
    return next((name for name in run.keys() if re.search(r"(^|[/_])loss$", name)), run.keys()[0])  # noqa: SIM118


def save_rules(page: Page, address: str, run: Run) -> None:
    """Alert rules as somebody might have them."""
    for rule in RULES:
        said = json.dumps({"project": run.project, **rule}).replace("{loss}", loss_of(run))
        page.request.post(f"{address}api/v1/alert-rules", data=json.loads(said))


def write_report(page: Page, address: str, folder: Path) -> str:
    """A report of the run that is shown; its id."""
    run = newest(folder)
    loss = loss_of(run)
    text = REPORT.format(loss=loss, run=run.uid, runs=run.uid)
    report = {"project": run.project, "title": f"First look at {run.name}", "text": text}
    made = page.request.post(f"{address}api/v1/reports", data=report)
    return str(made.json()["id"])


def pages(folder: Path, report: str) -> dict[str, tuple[str, str]]:
    """By name of the picture: the place of the page, and a chart or a text that has to be there first."""
    run = newest(folder)
    every = [one.uid for one in Api(folder).runs(run.project)]
    here, one = f"p/{run.project}", f"p/{run.project}/r/{run.uid}"
    sick = f"p/{run.project}/r/{newest(folder, 'failed').uid}/stability"
    return {
        "finding": (sick, "aside.findings ol button"),
        "projects": ("", "role=link[name='" + run.project + "']"),
        "workspace": (here, CURVES),
        "runs": (f"{here}/runs", "role=rowheader"),
        "compare": (f"{here}/compare?runs={','.join(every[:4])}", "[role=img]"),
        "stability": (f"{one}/stability", "[aria-label^='histogram by step']"),
        "charts": (f"{one}/charts?ranks=band", CURVES),
        "system": (f"{one}/system", CURVES),
        "logs": (f"{one}/logs", "main h1"),
        "alerts": (f"{here}/alerts", "main h1"),
        "settings": ("settings", "role=region[name='who I am']"),
        "report": (f"{here}/reports/{report}", "[aria-label^='layers by step']"),
        "report-editor": (f"{here}/reports/{report}?edit=1", "[aria-label^='layers by step']"),
        "files": (f"{one}/files", "role=table"),
    }


def settle(page: Page) -> None:
    """Wait until nothing on the page changes, and no number is waited for."""
    before, same = b"", 0
    while same < SAME:
        page.wait_for_timeout(500)
        now, waited_for = page.screenshot(), page.get_by_text("…", exact=True).count()
        same, before = (same + 1 if now == before and not waited_for else 0), now


def take(page: Page, path: Path) -> None:
    """A picture of its most frequent colours, which stay what they are: a tenth of the size, and nobody sees it.

    Of each hue some are kept before all others: a green dot is small, and would become a grey one.
    """
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    counted = sorted(picture.getcolors(picture.width * picture.height) or [], reverse=True)
    found = [cast("tuple[int, int, int]", colour) for _, colour in counted]
    kept: list[tuple[int, int, int]] = []
    of_hue: Counter[int] = Counter()
    for red, green, blue in found:
        hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
        if min(saturation, value) > VIVID and of_hue[int(hue * HUES)] < COLOURS // (4 * HUES):
            of_hue[int(hue * HUES)] += 1
            kept.append((red, green, blue))
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in list(dict.fromkeys([*kept, *found]))[:COLOURS] for channel in colour])
    picture.quantize(palette=palette, dither=Image.Dither.NONE).save(path, optimize=True)


def main() -> None:
    """Take them all."""
    folder = Path((sys.argv[1:] or ["torchtrack-runs"])[0])
    program = shutil.which("chromium") or shutil.which("google-chrome")
    command = [sys.executable, "-m", "torchtrack.cli", "ui", str(folder), "--port", "0"]
    typed = tempfile.TemporaryDirectory()
    server = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_DATA_HOME": typed.name}
    )
    said = server.stdout or io.StringIO()
    try:
        url = next(found[0] for line in said if (found := re.search(r"http://\S+", line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", "--no-sandbox"])
            report = ""
            for theme in ("light", "dark"):
                page = browser.new_context(viewport=SIZE, color_scheme=theme).new_page()  # type: ignore[arg-type]
                page.set_default_timeout(120_000)
                page.goto(url)
                page.get_by_role("heading", name="Projects").wait_for()
                address = url.partition("#")[0]
                if not report:
                    save_rules(page, address, newest(folder))
                    report = write_report(page, address, folder)
                for name, (place, shown) in pages(folder, report).items():
                    page.goto(f"{address}#/{place}")
                    page.locator(shown).first.wait_for()
                    if name == "alerts":
                        page.locator("summary").click()
                    settle(page)
                    take(page, IMAGES / f"{name}-{theme}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()
        said.close()
        typed.cleanup()


if __name__ == "__main__":
    main()
