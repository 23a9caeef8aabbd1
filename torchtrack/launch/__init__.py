"""Recording training that knows nothing of torchtrack: `torchtrack launch -- CMD`, `python -m torchtrack.launch`.

    command.py      both commands: put an environment together and become the program that was asked for
    site/           the folder on PYTHONPATH by which every Python below starts startup.py
    startup.py      waits, in every such process, for the first optimizer
    shims.py        what it then puts around backward, GradScaler.scale and data loaders
    recording.py    from these calls, and the hooks of watch, to a run with rows, phases and watched models
    models.py       which modules own what an optimizer steps, and what they are called
    command_line.py the script's configuration
    frames.py       keeps the pass-throughs out of tracebacks

The script runs as it does without: the same interpreter executes it, with nothing of ours around it.
"""
