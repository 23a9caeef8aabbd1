"""Pictures of the pages, light and dark, for docs/images: of a folder of runs, such as `make demo` leaves.

    python web/pictures.py [torchtrack-runs]

The newest run is the one that is shown; its Overview is left out, since it tells of the machine. Needs
`torchtrack[server,test]`, pillow, the built page, and Chromium.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from torchtrack import Api

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
SIZE = {"width": 1360, "height": 850}
COLOURS = 256
CURVES = "[role=img][aria-label*='ends at']"


def pages(folder: Path) -> dict[str, tuple[str, str]]:
    """By name of the picture: the place of the page, and a chart or a text that has to be there first."""
    run = max(Api(folder).runs(), key=lambda run: run.created)
    every = [one.uid for one in Api(folder).runs(run.project)]
    here, one = f"p/{run.project}", f"p/{run.project}/r/{run.uid}"
    return {
        "projects": ("", "role=link[name='" + run.project + "']"),
        "workspace": (here, CURVES),
        "runs": (f"{here}/runs", "role=rowheader"),
        "compare": (f"{here}/compare?runs={','.join(every[:4])}", CURVES),
        "stability": (f"{one}/stability", "[aria-label^='histogram by step']"),
        "charts": (f"{one}/charts?ranks=band", CURVES),
        "system": (f"{one}/system", CURVES),
        "logs": (f"{one}/logs", "main h1"),
    }


def take(page: Page, path: Path) -> None:
    """A picture of few colours: a tenth of the size, and nobody sees the difference."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE)
    picture.save(path, optimize=True)


def main() -> None:
    """Take them all."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "torchtrack-runs")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    command = [sys.executable, "-m", "torchtrack.cli", "ui", str(folder), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    said = server.stdout or io.StringIO()
    try:
        url = next(found[0] for line in said if (found := re.search(r"http://\S+", line)))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=program, args=["--disable-gpu", "--no-sandbox"])
            for theme in ("light", "dark"):
                page = browser.new_context(viewport=SIZE, color_scheme=theme).new_page()  # type: ignore[arg-type]
                page.set_default_timeout(120_000)
                page.goto(url)
                page.get_by_role("heading", name="Projects").wait_for()
                for name, (place, shown) in pages(folder).items():
                    page.goto(f"{url.partition('#')[0]}#/{place}")
                    page.locator(shown).first.wait_for()
                    page.wait_for_load_state("networkidle") if not place else page.wait_for_timeout(1500)
                    take(page, IMAGES / f"{name}-{theme}.png")
            browser.close()
    finally:
        server.terminate()
        server.wait()
        said.close()


if __name__ == "__main__":
    main()
