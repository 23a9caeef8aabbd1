"""What becomes of every name and argument of wandb; docs/wandb-names.md is made of it.

honoured: as there. mapped: what comes nearest here, as the note says. no effect: accepted, and changes nothing; one
line says so and why where something was asked for that does not happen. ignored: the four of which nothing was to be
expected; one line says so. missing: not offered, an AttributeError as for any unknown name.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple


class Entry(NamedTuple):
    """One line of the table."""

    of: str
    name: str
    verdict: str
    note: str


_TABLE: Final = """
## names
init, log, finish, alert, unwatch: honoured
run, config: honoured
summary: mapped: what was set; what follows from logged values is in `Api`
watch: mapped: counts optimizer steps, not backward passes; exact histograms, over all ranks
define_metric: honoured
Run: mapped: the class of `torchtrack.init`'s runs
Image, Audio: honoured
Table: mapped: cells that are media hold their caption
Histogram: mapped: counted exactly, in fixed buckets
Video: mapped: arrays become a GIF
Html: mapped: kept as a file
Object3D: mapped: kept as a file or as JSON
Molecule: mapped: kept as a file
Plotly: honoured
Classes: honoured
Artifact: mapped: kept on this machine, not sent to a server
log_artifact, use_artifact, link_artifact: mapped: kept on this machine, not sent to a server
log_model, use_model, link_model: mapped: kept on this machine, not sent to a server
save: mapped: copied into the run's folder, not sent to a server
restore: mapped: from the folder of a run on this machine
log_code: mapped: an artifact on this machine
Api: mapped: reads the folder of runs; `entity/project/id` gives runs with wandb's methods
login: mapped: keeps a key only for the server in `host=`
Settings: mapped: what has a meaning here becomes an argument of `init`; one line names the rest
setup: mapped: gives settings; nothing has to be set up
require: no effect: there is nothing to be switched on
ensure_configured: no effect: nothing has to be set up
teardown, join: mapped: `finish`
attach, _attach: mapped: the active run of this process, or of the one that forked it
mark_preempting: mapped: a mark at the step
pin_config_keys: no effect: recorded as an event; the page does not show it
AlertLevel: honoured
Error: mapped: `TorchtrackError`, the root of ours
UsageError: mapped: `TorchtrackError`
CommError: mapped: `ServerError`
errors: mapped: `torchtrack.errors`, where their names stand for ours
util: mapped: generate_id, make_artifact_name_safe, from_human_size, to_human_size
sdk, wandb_sdk, wandb_run, data_types, env: mapped: the classes and functions that scripts and frameworks take there
plot, plots: mapped: the table behind the chart; the chart is not drawn
plot_table, visualize: mapped: the table behind the chart; the chart is not drawn
termlog, termwarn, termerror: honoured
__version__: mapped: torchtrack's; under `install()` that of wandb whose names are offered
api: mapped: api_key, default_entity and settings()
sweep, agent, controller: missing
sklearn, keras, xgboost, lightgbm, catboost, sacred, gym, tensorflow, tensorboard, jupyter, sagemaker_auth: missing
EvalTable, JoinedTable, Graph, ArtifactTTL, box3d, profiler, Config: missing
## init
project, name, id, notes, tags, config, group, job_type: honoured
dir: mapped: the folder of runs itself; under `install()` the folder around it, unless `TORCHTRACK_DIR` is set
mode: mapped: "online" without a server records here; "shared" is "online"; "dryrun" is "offline"
resume: mapped: without it the same id goes on, nothing is overwritten
reinit: mapped: without it, under `install()` or as `wandb`, the active run is given again
resume_from: mapped: a later attempt from that step on, which hides the steps after it
fork_from: mapped: recorded in the config as `forked_from`; the steps before are not copied
config_exclude_keys, config_include_keys: honoured
allow_val_change: no effect: as with True: values may always change
save_code: honoured: the script is copied to `files/code`
sync_tensorboard, tensorboard: honoured
settings: mapped: see `Settings`
magic: no effect: nothing is guessed
entity, monitor_gym, anonymous, force: ignored
## log
data, step: honoured
commit: mapped: with `step=` it is True by default
sync: missing
## define_metric
name, step_metric: honoured
step_sync: no effect: recorded; a metric is drawn against the value at the same step
hidden: no effect: recorded; the page shows it nevertheless
summary: mapped: of several the first; "copy" is "last"
goal: honoured
overwrite: no effect: as with True: the last definition wins
## watch
models: honoured
log: mapped: "all" by default
log_freq: mapped: optimizer steps
criterion: no effect: the structure of the model is recorded without it
idx: no effect: every model gets a prefix of its own
log_graph: mapped: as with True: the structure is always recorded
## unwatch
models: honoured
## finish
exit_code, quiet: honoured
## alert
title, text, level, wait_duration: honoured
## save
glob_str, base_path, glob: honoured
policy: mapped: "live" copies at once and at the end, as "end" does
## restore
name, replace, root: honoured
run_path: mapped: a run on this machine
## login
key: mapped: only with `host=`
host: mapped: a torchtrack server
relogin, prompt, timeout: no effect: nobody is asked for a key
verify: no effect: a key is tried when a run is sent
referrer: no effect: nobody is told
force, anonymous: ignored
## Image
data_or_path, mode, caption, file_type, classes: honoured
boxes, masks: mapped: drawn into the image
grouping: no effect: images in one list are one group
normalize: honoured
## Audio
data_or_path, sample_rate, caption: honoured
## Video
data_or_path, caption, fps: honoured
format: mapped: of files and file-like objects; frames become a GIF
## Histogram
sequence: honoured
np_histogram: mapped: spread over the fixed buckets; exact where no edge cuts a bin
num_bins: no effect: the buckets are fixed
## Table
columns, data, rows, dataframe: honoured
dtype: no effect: cells keep the types they have
optional: no effect: as with True: any cell may be None
allow_mixed_types: no effect: as with True: a column may hold several types
log_mode: no effect: as with "MUTABLE": a table is recorded as it is whenever it is logged
## Html
data, data_is_not_path: honoured
inject: no effect: as with False: the file is kept as it is
## Object3D
data_or_path, caption: honoured
kwargs: mapped: file_type; a line says of others that they have no effect
## Molecule
data_or_path, caption: honoured
kwargs: mapped: file_type; a line says of others that they have no effect
## Plotly
val: honoured
## Artifact
name, type, description, metadata, incremental: honoured
use_as: no effect: what a run used is recorded without it
storage_region: no effect: artifacts lie on this machine
digest_algorithm: no effect: it is SHA-256
## log_artifact
artifact_or_path, name, type, aliases, tags: honoured
## use_artifact
artifact_or_name, type: honoured
aliases: honoured: those of an artifact that is logged by it
use_as: no effect: what a run used is recorded without it
## link_artifact
artifact, target_path, aliases: honoured
## log_model
path, name, aliases: honoured
## use_model
name: honoured
## link_model
path, registered_model_name, name, aliases: honoured
## log_code
root, name, include_fn, exclude_fn: honoured
## pin_config_keys
keys: no effect: recorded as an event; the page does not show it
## require
requirement, experiment: no effect: there is nothing to be switched on
## setup
settings: mapped: they are given back
## teardown
exit_code: honoured
## join
exit_code: honoured
## attach
attach_id, run_id, run: honoured
## termlog
string, repeat: honoured
newline, prefix: no effect: a line is a line and begins with "torchtrack:"
## plot_table
vega_spec_name, data_table, fields, string_fields: mapped: the table; the rest stands in its caption
split_table: no effect: the table is recorded once
## visualize
id, value: mapped: the table; the id stands in its caption
## Classes
class_set: honoured
## Api
overrides: mapped: project; there are no entities
timeout: no effect: a folder is read, or a server within times of its own
api_key: no effect: a server's key is that of `torchtrack login` or TORCHTRACK_API_KEY
## Run
config, id, name, notes, tags, group, job_type, project, step, resumed, disabled, start_time: honoured
settings: mapped: torchtrack's, with names of its own
summary: mapped: what was set
dir, sync_dir: mapped: the folder of the run
entity: mapped: what `init` was given
path: mapped: `project/id`
url, get_url: mapped: None without a server
project_url, get_project_url: mapped: the server
offline, starting_step: honoured
config_static: mapped: the config
sweep_id, sweep_url, get_sweep_url: mapped: None: there are no sweeps
project_name: honoured
log, finish, watch, unwatch, define_metric, alert, join: honoured
save, restore, log_code: mapped: on this machine
log_artifact, use_artifact, link_artifact: mapped: on this machine
upsert_artifact, finish_artifact: mapped: `log_artifact`: what each process adds is a version of its own
log_model, use_model, link_model: mapped: on this machine
mark_preempting: mapped: a mark at the step
pin_config_keys: no effect: recorded as an event; the page does not show it
write_logs: honoured
display: mapped: False, as outside of a notebook
to_html: mapped: a link, or the command that shows the run
status: missing
"""


def entries() -> Iterator[Entry]:
    """Every line of the table."""
    of = ""
    for line in _TABLE.strip().splitlines():
        if line.startswith("## "):
            of = line[3:]
            continue
        names, _, rest = line.partition(": ")
        verdict, _, note = rest.partition(": ")
        for name in names.split(", "):
            yield Entry(of, name, verdict, note)


def note_of(of: str, name: str) -> str:
    """Why it is so with a name or an argument; empty where the table says nothing."""
    return next((entry.note for entry in entries() if (entry.of, entry.name) == (of, name)), "")


def page() -> str:
    """docs/wandb-names.md."""
    every = list(entries())
    counts = Counter(entry.verdict for entry in every)
    lines = [
        "# wandb's names here",
        "",
        "Made of `torchtrack/compat/coverage.py`; a test compares them. How to move a script is in",
        "[its guide](guides/from-wandb.md), why it is so in [ADR 15](adr/0015-wandb-names.md).",
        "",
        "- *honoured*: it does what it does there.",
        "- *mapped*: it does what comes nearest here, as the note says.",
        "- *no effect*: accepted, and changes nothing. Where it asks for something that does not happen, one line on",
        "  rank 0 says so, and why.",
        "- *ignored*: the same, for the four arguments of which nothing was to be expected.",
        "- *missing*: not offered: an AttributeError, or a TypeError for an argument.",
        "",
        f"Of {len(every)} names and arguments {counts['honoured']} are honoured, {counts['mapped']} mapped, "
        f"{counts['no effect']} have no effect, {counts['ignored']} are ignored, {counts['missing']} missing. Not in",
        "these tables: what methods of artifacts, tables and `Api`'s objects take, and the functions of `plot`.",
    ]
    for of in dict.fromkeys(entry.of for entry in every):
        title = "Names of the module" if of == "names" else "Attributes of a run" if of == "Run" else f"`{of}()`"
        lines += ["", f"## {title}", "", "| name | verdict | |", "|---|---|---|"]
        lines += [f"| `{entry.name}` | {entry.verdict} | {entry.note} |" for entry in every if entry.of == of]
    return "\n".join(lines) + "\n"
