"""Small, complete derivatives of a participant, as written by the app."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from bids_app.bids.description import describe_outputs
from bids_app.bids.writer import atomic_path, output_path, write_json, write_text, write_tsv
from bids_app.outputs.boilerplate import Sentence, write_methods
from bids_app.reports.figures.brains import plot_flicker, plot_outlines
from bids_app.reports.figures.charts import plot_carpet, plot_embeddings, plot_predictions
from bids_app.reports.figures.model_grid import GridView, plot_model_grid
from bids_app.reports.viewer import RegionData, write_anatomy_data, write_region_data, write_run_data

LABELS = ("rest", "left hand", "right hand", "visual")
GRID_AFFINE = np.array([[-2.0, 0, 0, 96], [0, 2, 0, -114], [0, 0, 2, -78], [0, 0, 0, 1]])


def head(shape=(40, 48, 36), voxel_mm=4.0):
    """Simulate a two-shell head, brighter on the left, and its brain mask."""
    affine = np.diag([voxel_mm, voxel_mm, voxel_mm, 1.0])
    affine[:3, 3] = -voxel_mm * (np.array(shape) - 1) / 2
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    radius = np.sqrt((x / 0.8) ** 2 + (y / 0.9) ** 2 + (z / 0.8) ** 2)
    data = 400.0 * (radius < 1) + 500 * (radius < 0.85) - 200 * (radius < 0.3) + 200 * ((radius < 0.8) & (x < 0))
    image = nib.Nifti1Image(data.astype(np.float32), affine)
    return image, nib.Nifti1Image((radius < 0.85).astype(np.uint8), affine)


def clip_table(n_clips):
    clips = np.arange(n_clips)
    return {"clip": ["mean", *clips], "onset": [0.0, *(16.0 * clips)], "duration": [16.0 * n_clips, *[16.0] * n_clips]}


def predictions_table(n_clips=9, seed=0):
    p = np.random.default_rng(seed).dirichlet([1, 6, 0.6, 0.4], n_clips)
    p = np.concatenate([p.mean(axis=0, keepdims=True), p])
    columns = {"label": [LABELS[i] for i in p.argmax(axis=1)]} | {f"p_{name}": p[:, i] for i, name in enumerate(LABELS)}
    return pd.DataFrame(clip_table(n_clips) | columns)


def embeddings_table(n_clips=9, n_dims=24):
    tables = []
    for i, name in enumerate(("global", "voxel")):
        values = np.random.default_rng(i).normal(size=(n_clips, n_dims)) + 2
        values = np.concatenate([values.mean(axis=0, keepdims=True), values])
        columns = {f"e{d:04d}": values[:, d] for d in range(n_dims)}
        tables.append(pd.DataFrame({"normalisation": name} | clip_table(n_clips) | columns))
    return pd.concat(tables, ignore_index=True)


def confounds_table(n_vols=60):
    rng = np.random.default_rng(0)
    fd = np.abs(rng.normal(0.12, 0.05, n_vols))
    fd[[0, 20]] = np.nan, 0.9
    return pd.DataFrame({"framewise_displacement": fd, "std_dvars": rng.normal(1, 0.1, n_vols)})


def write_image(image, path):
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def write_run(out, run, anatomy):
    image, mask = head()
    stem = "_".join(f"{k}-{v}" for k, v in run.items())

    def path(suffix, extension, **extra):
        return output_path(out, run, suffix, extension, **extra)

    def figure(desc):
        return path("bold", ".svg", datatype="figures", desc=desc)

    sources = ["bids:raw:sub-01/func/x_bold.nii.gz"]
    write_image(mask, path("mask", ".nii.gz", desc="brain"))
    write_json(path("mask", ".json", desc="brain"), {"Type": "Brain", "RawSources": sources, "Sources": sources})
    write_image(image, path("boldref", ".nii.gz", desc="hmc"))
    write_json(path("boldref", ".json", desc="hmc"), {"Sources": sources})
    write_text(
        path("xfm", ".txt", from_="orig", to="boldref", mode="image", desc="hmc"), "#Insight Transform File V1.0\n"
    )
    write_text(
        path("xfm", ".txt", from_="boldref", to="T1w", mode="image", desc="coreg"), "#Insight Transform File V1.0\n"
    )
    write_tsv(path("timeseries", ".tsv", desc="confounds"), confounds_table())
    write_json(path("timeseries", ".json", desc="confounds"), {"framewise_displacement": {"Units": "mm"}})
    space = {"space": "MNI152NLin6Asym", "res": "2"}
    series = nib.Nifti1Image(np.zeros((4, 4, 4, 5), np.float32), np.diag([2.0, 2, 2, 1]))
    series.header.set_zooms((2, 2, 2, 2.0))
    series.header.set_xyzt_units("mm", "sec")
    write_image(series, path("bold", ".nii.gz", desc="preproc", **space))
    resolution = {"Resolution": "2 mm isotropic, the model's template"}
    content = {"RepetitionTime": 2.0, "TaskName": "rest", "SkullStripped": False, "Sources": sources}
    write_json(path("bold", ".json", desc="preproc", **space), content | resolution)
    write_image(mask, path("mask", ".nii.gz", desc="brain", **space))
    write_json(path("mask", ".json", desc="brain", **space), {"Type": "Brain", "Sources": sources} | resolution)
    write_tsv(path("embeddings", ".tsv", desc="demo"), embeddings_table())
    facts = {"Model": "demo", "WeightsSHA256": "0123abcd", "Demonstration": True, "Device": "cpu"}
    write_json(path("embeddings", ".json", desc="demo"), facts)
    write_tsv(path("predictions", ".tsv", desc="demostate"), predictions_table())
    card = {"Demonstration": True, "Target": "state", "IntendedUse": "demonstration", "Cohort": {"name": "simulated"}}
    write_json(path("predictions", ".json", desc="demostate"), card)
    quality = {
        "coreg_dice": 0.97,
        "coverage": 0.93,
        "fd_mean": 0.12,
        "tsnr": 61.5,
        "odd_one": None,
        "size_t": 60,
        "spacing_tr": 2.0,
    }
    quality |= {f"norm_{name}": 0.98 for name in ("correlation", "coverage", "dice", "scale_min", "scale_max")}
    quality |= {f"coreg_{name}": 0.5 for name in ("similarity", "stands_out", "brain_seen")}
    quality |= {
        "brain_ml": 1500,
        "norm_brain_ml": 1500,
        "fd_max": 0.9,
        "dvars_nstd": 20.1,
        "dvars_std": 1.7,
        "epi_mask_dice": 0.96,
    }
    quality |= {"fd_perc": 1.6, "n_motion_outliers": 1, "csf_voxels": 500, "white_matter_voxels": 7000}
    metrics = {
        "quality": quality,
        "route": "t1w",
        "template": "MNI152NLin2009aSym",
        "warnings": ["The field of view cuts the cerebellum."],
        "notes": ["Of 3 echoes, echo 2 was taken: TE 30 ms is nearest to 30 ms."],
    }
    write_json(path("metrics", ".json", desc="quality"), metrics)

    plot_flicker(image, image, figure("coreg"), outline=mask, names=("T1w", "BOLD"), title=stem)
    plot_flicker(image, image, figure("norm"), outline=mask, names=("template", "BOLD"), title=stem)
    plot_outlines(image, {"brain mask": mask}, figure("mask"), title=stem)
    values = np.random.default_rng(0).normal(1000, 10, (60, 300))
    plot_carpet(values, 2.0, confounds_table(), figure("carpet"), title=stem)
    views = [GridView("Mean of the run", model_grid()[0])]
    plot_model_grid(views, GRID_AFFINE, figure("grid"), mask=model_grid()[1], title=stem)
    plot_predictions(predictions_table(), figure("demostatepredictions"), title=stem)
    plot_embeddings(embeddings_table(), figure("embeddings"), title=stem)
    write_viewer_files(out, run)


EFFECT_MM = (-40.0, -20.0, 50.0)
"""Centre of the simulated contribution: left, in the upper half."""
REGIONS = ("left <b>hand</b> area", "right hand area", "outside")


def write_viewer_files(out, run, adapter="demostate"):
    """Write the data of a run for the viewer, with a contribution around `EFFECT_MM` and less of the other side."""
    mean, mask = model_grid()
    indices = np.indices(mean.shape).reshape(3, -1).T
    points = (indices @ GRID_AFFINE[:3, :3].T + GRID_AFFINE[:3, 3]).reshape(*mean.shape, 3)
    labels = np.zeros(mean.shape, int)
    for label, side in ((1, 1), (2, -1)):
        centre = np.array(EFFECT_MM) * [side, 1, 1]
        labels[((points - centre) ** 2).sum(axis=3) < 14**2] = label
    image = np.choose(labels, [0, 1.5, -0.02])
    waves = np.sin(np.arange(60) / 5)
    series = np.stack([waves, 0.5 * waves, np.full(60, np.nan)])
    numbers = np.array([1.5, -0.02, np.nan])
    regions = RegionData(labels, REGIONS, numbers, np.abs(numbers) / 10, numbers / 10, series, "% of the mean", 2.0)

    def path(desc):
        return output_path(out, run, "bold", ".js", datatype="figures", desc=desc)

    write_run_data(path("viewer"), mean, mask, GRID_AFFINE, anatomy="sub-01_desc-viewer_T1w.js")
    write_region_data(path(f"{adapter}viewer"), image, GRID_AFFINE, regions, "log-odds", "left <i>hand</i>", "spheres")


def model_grid():
    image, mask = head((96, 96, 96), 2.0)
    return image.get_fdata()[::-1], mask.get_fdata()[::-1] > 0


def write_anatomy(out):
    image, mask = head()
    entities = {"sub": "01"}
    write_image(image, output_path(out, entities, "T1w", ".nii.gz", datatype="anat", desc="preproc"))
    write_json(output_path(out, entities, "T1w", ".json", datatype="anat", desc="preproc"), {"SkullStripped": False})
    write_image(mask, output_path(out, entities, "mask", ".nii.gz", datatype="anat", desc="brain"))
    write_json(output_path(out, entities, "mask", ".json", datatype="anat", desc="brain"), {"Type": "Brain"})
    t1w = output_path(out, entities, "T1w", ".js", datatype="figures", desc="viewer")
    write_anatomy_data(t1w, model_grid()[0], GRID_AFFINE)
    for one, other in (("T1w", "MNI152NLin6Asym"), ("MNI152NLin6Asym", "T1w")):
        write_text(output_path(out, entities, "xfm", ".h5", datatype="anat", from_=one, to=other, mode="image"), "h5")
    for desc in ("mask", "norm"):
        figure = output_path(out, entities, "T1w", ".svg", datatype="figures", desc=desc)
        plot_flicker(image, image, figure, outline=mask, names=("template", "T1w"), title="sub-01")


def write_log(out, stems, failed):
    folder = out / "sub-01" / "log" / "20260101-120000_0d5e"
    runs = [{"stem": stem, "status": "ok", "reason": "", "hint": "", "exit_code": 0, "step": ""} for stem in stems]
    runs.append(
        {"stem": failed, "status": "failed", "step": "examine", "exit_code": 65,
         "reason": f"{failed}_bold.nii.gz: ends after 12 of 60 volumes.", "hint": "Copy the file again."}
    )  # fmt: skip
    versions = {"neurostorm": "0.1.0", "python": "3.11.7"}
    content = {"runs": runs, "versions": versions, "command": ["neurostorm", "raw", "out", "participant"],
               "finished": "2026-01-01T12:00:00+0000"}  # fmt: skip
    write_json(folder / "summary.json", content)
    write_text(folder / "neurostorm.toml", '[invocation]\ncommand = "neurostorm raw out participant"\n')
    write_text(folder / f"crash-{failed}-examine.txt", "Traceback\n")


@pytest.fixture(scope="session")
def derivatives(tmp_path_factory):
    """Output folder with one participant: two completed runs and one failed run."""
    root = tmp_path_factory.mktemp("derivatives")
    raw, out = root / "raw", root / "out"
    raw.mkdir()
    (raw / "dataset_description.json").write_text(json.dumps({"Name": "Study", "BIDSVersion": "1.10.0"}))
    describe_outputs(out, raw)
    steps = [
        Sentence("query"),
        Sentence("motion"),
        Sentence("model", {"model": "demo", "weights_sha256": "0123", "clip_volumes": 20, "clip_seconds": 16.0}),
    ]
    write_methods(out, steps, demonstration="demo")
    runs = [{"sub": "01", "task": "rest", "run": "1"}, {"sub": "01", "task": "rest", "run": "2"}]
    write_anatomy(out)
    for run in runs:
        write_run(out, run, None)
    write_log(out, ["sub-01_task-rest_run-1", "sub-01_task-rest_run-2"], "sub-01_task-rest_run-3")
    return SimpleNamespace(raw=raw, out=Path(out), participant="01")


@pytest.fixture
def out(derivatives, tmp_path):
    """Copy of the derivatives that a test may change."""
    return Path(shutil.copytree(derivatives.out, tmp_path / "out"))
