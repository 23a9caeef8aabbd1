"""The stability rules beside the training: a process that follows a run's journals and records what the rules find.

It is started by the sidecar of the node that has rank 0 and runs as `python -m torchtrack.lookout DIR`, at the lowest
priority: nothing of it is in a training process. It writes a journal of its own into `nodes/` of the run (one writer a
file), where readers, `watch-run` and the courier of alerts find its events of type "finding".

    journals of the ranks -> api.feed (steps, when they are complete) -> stability.Monitor -> events "finding"
"""
