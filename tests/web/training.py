"""Small runs with everything that the page shows; prints their uids in the order of `Served`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import torchtrack

STEPS = 60
SICK_AT = 45


def by_epoch(step: int) -> dict[str, float]:
    """Values that belong to epochs of ten steps, the number of which is logged when each begins."""
    return {
        "by/epoch": 1.0 / (1 + step),
        "by/hidden": 1.0,
        **({"by/epoch_number": step // 10} if step % 10 == 0 else {}),
    }


def train(folder: str, name: str, lr: float, *, sick: bool) -> str:
    """One run: a spike in a long metric, gradients of two layers, and a NaN in one of them if it is to be sick."""
    torch.manual_seed(0)
    last = nn.Linear(16, 1)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), last)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    run: Any = torchtrack.init(  # of which wandb's names are not in the types
        project="page",
        name=name,
        dir=folder,
        config={"lr": lr, "seed": 0},
        system_interval=0.0,
        sidecar=False,
        console=True,
    )
    run.define_metric("by/epoch", step_metric="by/epoch_number")
    run.define_metric("by/hidden", hidden=True)
    run.pin_config_keys(["seed"])
    run.watch(model, log_freq=1)
    sys.stderr.write(f"{name} begins\n")
    for step in range(STEPS):
        inputs = torch.randn(32, 8)
        loss = (model(inputs) - inputs.sum(1, keepdim=True)).pow(2).mean()
        loss.backward()
        if sick and step >= SICK_AT:
            assert last.weight.grad is not None
            last.weight.grad.fill_(float("nan"))
        optimizer.step()
        optimizer.zero_grad()
        run.log({"loss": loss, **(by_epoch(step) if step < 30 else {})})
    for step in range(STEPS, 20_000):
        run.log({"long/metric": 100.0 if step == 12_345 else 1.0 + step % 7, "tokens": 512.0 * step}, step=step)
    if sick:
        run.alert("<b>reward fell</b>", "below 0.1", level="warning")
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


HOSTILE = (
    "<img src=x onerror=alert(1)>",
    '"><script>alert(2)</script>',
    "';alert(3)//",
    "javascript:alert(4)",
    "<svg/onload=alert(5)>",
    "{{constructor.constructor('alert(6)')()}}",
    "&lt;b&gt;\u202e\u0000x".replace("\u0000", "\x01"),
)
"""Texts that run in a page which takes them for markup."""


def hostile(folder: str) -> str:
    """A run of which every text that a user can set is hostile, and long."""
    text = " ".join(HOSTILE)
    run = torchtrack.init(
        project="hostile <img src=x onerror=alert(0)>",
        name=text[:250],
        group=HOSTILE[0],
        job_type=HOSTILE[1],
        tags=list(HOSTILE[:5]),
        notes=text,
        config={HOSTILE[0]: HOSTILE[1], "nested": {HOSTILE[4]: text}},
        dir=folder,
        system_interval=0.0,
        sidecar=False,
        console=True,
    )
    sys.stderr.write(f"{text}\n")
    for step in range(3):
        run.log({HOSTILE[0]: step, f"loss/{HOSTILE[4]}": step, "word": text})
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


def wide(folder: str) -> str:
    """A run of 10,000 metrics."""
    run = torchtrack.init(project="wide", name="many-metrics", dir=folder, system_interval=0.0, sidecar=False)
    for step in range(2):
        run.log({f"part{i % 20}/metric{i}": float(i + step) for i in range(10_000)})
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


def plotly_figure() -> Any:
    """What plotly's figures are to `log`."""
    traces = [{"type": "bar", "name": "counts", "x": ["cat", "dog"], "y": [1, 2]}, {"mode": "lines", "y": [1, 2, 3]}]
    text = json.dumps({"data": traces, "layout": {"title": {"text": "How many"}}})
    return type("Figure", (), {"__module__": "plotly.graph_objs", "to_json": staticmethod(lambda: text)})()


def gallery(folder: str, name: str, every: int) -> str:
    """A run that logs one of everything that is no number: pictures at every so many steps, the rest at the end."""
    generator = np.random.default_rng(every)
    run = torchtrack.init(project="gallery", name=name, dir=folder, system_interval=0.0, sidecar=False)
    for step in range(0, 41, every):
        pictures = [generator.random((16, 16, 3)).astype("float32") for _ in range(2)]
        run.log({"samples": [torchtrack.Image(each, caption=f"{name} at {step}") for each in pictures]}, step=step)
        run.log({"said": f"{name} says {step}", "loss": 1.0 / (1 + step)}, step=step)
    rows = [[i, f"word {i % 7}", float(generator.random())] for i in range(500)]
    wave = np.sin(np.arange(4000) / 4).astype("float32")
    run.log(
        {
            "speech": torchtrack.Audio(wave, sample_rate=8000, caption="a tone"),
            "report": torchtrack.Html("<h1>Report</h1><p>All is well.</p>"),
            "scripted": torchtrack.Html("<h1>Drawn</h1><script>document.body.append('scripts ran')</script>"),
            "curve": torchtrack.plot.roc_curve(
                [0, 1, 1, 0], np.array([[0.7, 0.3], [0.4, 0.6], [0.6, 0.4], [0.5, 0.5]])
            ),
            "confusion": torchtrack.plot.confusion_matrix(
                y_true=[0, 1, 1], preds=[0, 1, 0], class_names=["cat", "dog"]
            ),
            "predictions": torchtrack.Table(columns=["id", "word", "score"], data=rows),
            "elsewhere": plotly_figure(),
        },
        step=40,
    )
    text = Path(folder, "notes.txt")
    text.write_text("what I saved\n")
    torchtrack.save(str(text))
    artifact = torchtrack.Artifact("weights", "model")
    artifact.add_file(str(text))
    torchtrack.log_artifact(artifact)
    text.unlink()
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


def hostile_gallery(folder: str) -> str:
    """A run whose captions, tables, texts, HTML and file names are hostile."""
    run = torchtrack.init(project="hostile-gallery", name="hostile", dir=folder, system_interval=0.0, sidecar=False)
    text = " ".join(HOSTILE)
    for number, payload in enumerate(HOSTILE):
        saved = Path(folder, payload.replace("/", "_"))
        saved.write_text(payload)
        torchtrack.save(str(saved))
        saved.unlink()
        run.log({payload: torchtrack.Image(np.zeros((4, 4), "uint8"), caption=payload)}, step=number)
    markup = f"<script>parent.document.title = 'pwned'; alert(8)</script>{text}<img src=x onerror=alert(9)>"
    run.log({"page": torchtrack.Html(markup), "words": text}, step=9)
    run.log({"table": torchtrack.Table(columns=list(HOSTILE), data=[list(HOSTILE)])}, step=9)
    uid = str(run.uid)
    run.finish(quiet=True)
    return uid


if __name__ == "__main__":
    folder = sys.argv[1]
    uids = (
        train(folder, "healthy-one", 0.01, sick=False),
        train(folder, "sick-one", 0.1, sick=True),
        hostile(folder),
        wide(folder),
        gallery(folder, "often", 5),
        gallery(folder, "seldom", 20),
        hostile_gallery(folder),
    )
    sys.stdout.write(" ".join(uids))
