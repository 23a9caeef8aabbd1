"""What becomes of every name and argument of wandb; docs/wandb-names.md is made of it.

honoured: as there. mapped: what comes nearest here, as the note says. ignored: the three of which nothing was to be
expected; one line says so. There is no other: what is in the table does something.
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
Classes, JoinedTable, box3d: honoured
Config: honoured
Artifact: honoured
log_artifact, link_artifact: mapped: in the folder of runs, and on the server of the run once that has all of its files
use_artifact: mapped: of the folder of runs, else of the server of the run
log_model, link_model: mapped: in the folder of runs, and on the server of the run once that has all of its files
use_model: mapped: of the folder of runs, else of the server of the run
save: mapped: copied into the run's folder, and sent to the server of the run from there
restore: mapped: from the folder of runs, else from the server of the run
log_code: honoured: an artifact of type "code"
Api: mapped: reads the folder of runs; `entity/project/id` gives runs with wandb's methods
login: mapped: keeps a key only for the server in `host=`
Settings: mapped: what has a meaning here becomes an argument of `init`; one line names the rest
setup: mapped: gives settings; nothing has to be set up
require: honoured: "service" and "core" are met, another is an error
ensure_configured: mapped: the settings of files and of the environment are read, and what is wrong with one is raised
teardown, join: mapped: `finish`
attach, _attach: mapped: the active run of this process, or of the one that forked it
mark_preempting: mapped: a mark at the step
pin_config_keys: honoured: first in the configuration on the page of the run
AlertLevel: honoured
Error: mapped: `TorchtrackError`, the root of ours
UsageError: mapped: `TorchtrackError`
CommError: mapped: `ServerError`
errors: mapped: `torchtrack.errors`, where their names stand for ours
util: mapped: generate_id, make_artifact_name_safe, from_human_size, to_human_size
sdk, wandb_sdk, wandb_run, data_types, env: mapped: the classes and functions that scripts and frameworks take there
plot, plots: honoured
plot_table: mapped: wandb's presets are drawn; of charts of your own the rows are shown
visualize: mapped: the rows are shown
termlog, termwarn, termerror: honoured
__version__: mapped: torchtrack's; under `install()` that of wandb whose names are offered
api: mapped: api_key, default_entity and settings()
sweep, agent: mapped: in the folder of runs, for all agents that share it; "bayes" needs optuna
controller: mapped: puts a sweep together and looks on; the agents draw the parameters
sklearn: honoured: the plot_ functions
keras: mapped: WandbMetricsLogger, WandbModelCheckpoint, WandbEvalCallback, WandbCallback
xgboost: mapped: WandbCallback
lightgbm: mapped: wandb_callback, log_summary
tensorboard: mapped: patch and unpatch, as `sync_tensorboard`
profiler: mapped: traces are files of the run
catboost: honoured: WandbCallback, log_summary
sacred: honoured: WandbObserver
gym: mapped: `monitor`: the films of gymnasium's RecordVideo, from version 1.0 on
sagemaker_auth: mapped: address and key of the torchtrack server
EvalTable: mapped: recorded as a table
Graph: mapped: a table of its nodes
tensorflow: honoured: WandbHook, for a MonitoredSession of `tf.compat.v1`
jupyter: mapped: `%%wandb` and `%wandb`, by `%load_ext torchtrack`, show a snapshot of the run, after the cell
ArtifactTTL: mapped: `torchtrack gc` removes what is older than its `ttl` from the folder of runs
## init
project, name, id, notes, tags, config, group, job_type: honoured
dir: mapped: the folder of runs itself; under `install()` the folder around it, unless `TORCHTRACK_DIR` is set
mode: mapped: "online" without a server records here; "shared" is "online"; "dryrun" is "offline"
resume: mapped: without it the same id goes on, nothing is overwritten
reinit: mapped: without it, under `install()` or as `wandb`, the active run is given again
resume_from: mapped: a later attempt from that step on, which takes back what was recorded after it
fork_from: mapped: recorded in the config as `forked_from`; the steps before are not copied
config_exclude_keys, config_include_keys: honoured
allow_val_change: mapped: False fixes the values that are there, as there; without it they may change
save_code: honoured: the script is copied to `files/code`
sync_tensorboard, tensorboard: honoured
settings: mapped: see `Settings`
magic: mapped: as `sync_tensorboard`
monitor_gym: mapped: as `gym.monitor()`: the films of gymnasium's RecordVideo
entity, anonymous, force: ignored
## log
data, step: honoured
commit: mapped: with `step=` it is True by default
## define_metric
name: honoured
step_metric: honoured: along x on the page, as long as nobody chooses otherwise, and in `torchtrack show`
step_sync: mapped: False draws the steps alone that have both; else the last value of the metric along x counts
hidden: mapped: not among the charts of the run
summary: mapped: of several the first; "copy" is "last"
goal: honoured
overwrite: honoured
## watch
models: honoured
log: mapped: "all" by default
log_freq: mapped: optimizer steps
criterion: mapped: its name goes into the config
idx: honoured
log_graph: mapped: as with True: the structure is always recorded
## unwatch
models: honoured
## finish
exit_code, quiet: honoured
## alert
title, text, level, wait_duration: honoured
## save
glob_str, base_path, glob: honoured
policy: mapped: "live" copies at once and at the end; "end" too, and is sent at the end only
## restore
name, replace, root: honoured
run_path: honoured: a run of the folder of runs, else of the server of the run
## login
key: mapped: only with `host=`
host: mapped: a torchtrack server
relogin, prompt: mapped: the key of `host=` is asked for, at a terminal
timeout: mapped: seconds that the server may take for an answer, with `verify`
verify: mapped: asks the server in `host=`
referrer: mapped: a part of the address of the server's page with keys, which is said when a key is asked for
force, anonymous: ignored
## Image
data_or_path, mode, caption, file_type, classes: honoured
boxes, masks: mapped: drawn into the image
grouping: honoured: recorded beside the image; `Api`'s `run.media()` gives it
normalize: honoured
## Audio
data_or_path, sample_rate, caption: honoured
## Video
data_or_path, caption, fps: honoured
format: mapped: of files and file-like objects; frames become a GIF
## Histogram
sequence: honoured
np_histogram: mapped: spread over the fixed buckets; exact where no edge cuts a bin
num_bins: mapped: so many bins beside the fixed buckets, for the sink "wandb" and readers; charts draw the buckets
## Table
columns, data, rows, dataframe: honoured
dtype, optional: honoured
allow_mixed_types: mapped: as with True, unless it is False
log_mode: mapped: as with "MUTABLE", unless it is "IMMUTABLE"; of "INCREMENTAL" all rows each time
## Html
data, data_is_not_path: honoured
inject: mapped: True adds a plain style; without it the file is kept as it is
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
use_as: honoured
storage_region: mapped: kept with the artifact, here and on the server; where its files lie is up to who runs that
digest_algorithm: mapped: a digest of each file, `entry.digest`, which every download is compared with, besides SHA-256
## log_artifact
artifact_or_path, name, type, aliases, tags: honoured
## use_artifact
artifact_or_name, type: honoured
aliases: honoured: those of an artifact that is logged by it
use_as: honoured
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
keys: honoured
## require
requirement, experiment: honoured
## sagemaker_auth
overrides, path: honoured
api_key: mapped: of the torchtrack server
## EvalTable
columns, data, rows, dataframe, dtype, optional, allow_mixed_types, log_mode: honoured
input_columns: mapped: without any, the number of the row is put first
output_columns: mapped: in their order, if `columns` gives none
score_columns: mapped: `means()` gives the mean of each
backend: mapped: one that is unknown is an error; recorded in the table, which lies here
unsupported_media_mode: honoured: all media are unsupported: a cell holds what it is called, or is refused
## Graph
format: honoured: in the JSON of the table
## setup
settings: mapped: they are given back
## teardown
exit_code: honoured
## join
exit_code: honoured
## attach
attach_id, run_id, run: honoured
## termlog
string, repeat, newline: honoured
prefix: mapped: it is "torchtrack:"
## plot_table
vega_spec_name: mapped: the names of wandb's presets
data_table, fields: honoured
string_fields: mapped: the title
split_table: honoured: the rows are a table of their own too, in the section "Custom Chart Tables"
## visualize
id, value: mapped: the table, of which the rows are shown
## sweep
sweep, project, prior_runs: honoured
entity: ignored
## agent
sweep_id, function, count: honoured
entity: ignored
project: mapped: the id alone tells which sweep it is
forward_signals: mapped: as with True
term_timeout, max_consecutive_failed_runs: honoured
## controller
sweep_id_or_config, project: honoured
entity: ignored
## Classes
class_set: honoured
## JoinedTable
table1, table2, join_key: honoured
## box3d
center, size, orientation, color, label, score: honoured
## Api
overrides: mapped: project; there are no entities
timeout: mapped: of a server whose address is given; a folder is read as fast as it can be
api_key: mapped: of a server whose address is given; a folder needs none
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
sweep_id: honoured
sweep_url, get_sweep_url: mapped: None: a sweep is a group of runs, and has no page of its own
project_name: honoured
log, finish, watch, unwatch, define_metric, alert, join: honoured
save, restore: mapped: as of the module
log_code, log_artifact, link_artifact: mapped: as of the module
use_artifact: mapped: of the folder of runs, else of the server of the run
upsert_artifact, finish_artifact: mapped: `log_artifact`: what each process adds is a version of its own
log_model, use_model, link_model: mapped: as of the module
mark_preempting: mapped: a mark at the step
pin_config_keys: honoured
write_logs: honoured
display: mapped: a snapshot of the run; False outside of a notebook
to_html: mapped: a link, or the command that shows the run
status: mapped: what is there and what no server has confirmed, in frames of the journals in the folder of runs
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
        "- *ignored*: accepted, and changes nothing, as one line on rank 0 says: three words of which nothing was to",
        "  be expected.",
        "",
        f"Of {len(every)} names and arguments {counts['honoured']} are honoured, {counts['mapped']} mapped and "
        f"{counts['ignored']} ignored. Not in these tables:",
        "what methods of artifacts, tables and `Api`'s objects take, and the functions of `plot`.",
    ]
    for of in dict.fromkeys(entry.of for entry in every):
        title = "Names of the module" if of == "names" else "Attributes of a run" if of == "Run" else f"`{of}()`"
        lines += ["", f"## {title}", "", "| name | verdict | |", "|---|---|---|"]
        lines += [f"| `{entry.name}` | {entry.verdict} | {entry.note} |" for entry in every if entry.of == of]
    return "\n".join(lines) + "\n"
