"""Copies journals to a server, frame by frame, and believes only what the server says it has.

`engine` decides what is sent next and does one request at a time; `tail` reads one stream; `pace` says when,
`transport` how; `media` and `contents` send the files that rows name before them, `left` those that no row names;
`progress` keeps what is known to have arrived. `process` runs it beside the sidecar, `torchtrack sync` in a terminal.
No part of it imports torch or numpy, and Arrow only where something is compressed or rows name files.
"""
