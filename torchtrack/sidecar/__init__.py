"""One small process a node that outlives the ranks: it sees how they end, and that they live.

It is started by a rank (`client`), runs as `python -m torchtrack.sidecar` (`process`), and never imports torch, numpy
or pyarrow. What does is in processes beside it (`helper`): one tells people what they have to be told (`courier`), one
runs the stability rules (`torchtrack.lookout`). What its records mean for a run is decided by the reader (`state`).
"""
