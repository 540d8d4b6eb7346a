"""Filter files, option files, plugin files and names: whatever they hold, they are read or refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["bids_app"]):
    from harness import fuzz

    from bids_app.bids.entities import check_name, join_name, natural_key, split_name
    from bids_app.cli.config_file import read_config_file
    from bids_app.errors import NeurostormError
    from bids_app.settings.values import named_paths, read_filters, strip_resolution
    from bids_app.workflow.engine import read_plugin_file
    from bids_app.workflow.method import node_name

SEEDS = [
    b'{"bold": {"task": "rest", "run": [1, null], "session": "*"}, "t1w": {}}',
    b'[options]\nmem = "8GB"\nnprocs = 2\ntask_id = ["rest"]\n',
    b"plugin: SLURM\nplugin_args: {sbatch_args: --mem=8G}\n",
    b"sub-01_ses-a_task-rest_run-1_bold.nii.gz",
    b"fmriprep=/data/x",
]


def read(data: bytes, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(data)
    for call in (lambda path: read_filters(str(path)), read_config_file, read_plugin_file):
        with suppress(NeurostormError):
            call(path)
    text = data.decode("utf-8", "replace")
    name = text.replace("/", "").replace("\0", "")
    entities, suffix, extension = split_name(name)
    join_name(entities, suffix, extension)
    natural_key(text)
    assert node_name(name).replace("_", "a").isalnum() or not name
    with suppress(NeurostormError):
        check_name(folder / "sub-01" / "func" / (name or "x"), folder)
    for parse in (lambda: named_paths([text.replace("\0", "")]), lambda: strip_resolution(text)):
        with suppress(NeurostormError):
            parse()


if __name__ == "__main__":
    fuzz(read, SEEDS)
