"""Sinks beside a training process: one that works, one that hangs and one that raises, all at once."""

from __future__ import annotations

from pathlib import Path

from tests.runs import only_run, script, until


def test_sinks_that_hang_or_raise_never_reach_the_training(tmp_path: Path) -> None:
    done = script(
        """
        import threading
        from pathlib import Path
        import torchtrack

        BAD = "tests.sinks.samples:Hanging,tests.sinks.samples:Raising"
        run = torchtrack.init(dir=DIR, sinks=f"tensorboard,{BAD}", system_interval=0, live_findings=False)
        for step in range(5):
            run.log({"loss": float(step), "h": torchtrack.Histogram.of([1.0, 2.0])})
        run.finish()
        print("trained", run._recorder.dropped_rows, sorted(thread.name for thread in threading.enumerate()))
        """,
        tmp_path,
        environ={"TORCHTRACK_SIDECAR": "1"},
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("trained 0 ['MainThread']")
    assert only_run(tmp_path).history("loss")["loss"].to_pylist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    sinks = tmp_path / "runs" / "sinks"
    until(lambda: (sinks / "hangs").exists() and (sinks / "raises").exists(), 40)
    until(lambda: b"loss" in b"".join(p.read_bytes() for p in sinks.rglob("*tfevents*")), 40)
