"""One small process a node that outlives the ranks: it sees how they end, and that they live.

It is started by a rank (`client`), runs as `python -m torchtrack.sidecar` (`process`), and never imports torch, numpy
or pyarrow. What has to be told to people is told by a process beside
it (`courier`). What its records mean for a run is decided by the reader (`state`).
"""
