"""What is written, under which names: each function lays out a tree of files, and `publish` copies it to the output.

The trees are made in the scratch folder, so that they are cached with the steps; publishing is the only step that
writes to the output folder, file by file, each whole or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pandas as pd

from bids_app.adapters.cards import describe_adapter
from bids_app.adapters.file import EMBEDDING
from bids_app.adapters.predict import LEVEL, Encoded, Prediction
from bids_app.adapters.reliability import (
    describe_embedding_halves,
    describe_halves,
    describe_uncertainty,
    describe_views,
)
from bids_app.bids.entities import as_label, join_name, split_name
from bids_app.bids.writer import copy_file, dataset_uri, output_path, write_json, write_tsv
from bids_app.clips import MODEL_GRID_AFFINE, ClipReader, GridSeries
from bids_app.preprocess.anatomical import Anatomy
from bids_app.preprocess.io.headers import load_nifti
from bids_app.preprocess.io.slice_timing import describe_slices
from bids_app.preprocess.preprocessed import OnGrid, PreprocessedRun
from bids_app.preprocess.resample import resample_to_space
from bids_app.preprocess.sdc.apply import describe_unwarping, write_itk_field
from bids_app.reports.contents import quality_columns

CARPET_VOXELS = 3000
BOLDREFS = {
    "hmc": "Median of the steadiest volumes after correction of head motion",
    "coreg": "The same without distortion by uneven fields; what is aligned with the T1w image or template",
    "mean": "Mean of the steady volumes of the series that was taken over",
}
"""What reference images are, by their ``desc-`` label."""
TISSUES = ("grey matter", "white matter", "CSF")


@dataclass(frozen=True)
class RunName:
    """Names of one run's outputs, in a tree.

    Attributes
    ----------
    tree : pathlib.Path
        Root; stands for the output folder.
    entities : dict
        Of the run.
    sources : tuple of str
        BIDS URIs of what it was made from.
    """

    tree: Path
    entities: Mapping[str, str]
    sources: tuple[str, ...]

    def path(self, suffix: str, extension: str, datatype: str = "func", **extra: str | None) -> Path:
        """Where a file goes; its folder is made."""
        path = output_path(self.tree, self.entities, suffix, extension, datatype=datatype, **extra)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def stem(self) -> str:
        """The run's name without suffix."""
        return join_name(self.entities, "").removesuffix("_")

    def figure(self, desc: str) -> Path:
        """Where a figure of the run goes."""
        return self.path("bold", ".svg", "figures", desc=desc)

    def sidecar(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write the JSON beside a file, with the run's sources."""
        name = path.name.removesuffix(".gz")
        write_json(path.with_name(Path(name).stem + ".json"), {"Sources": list(self.sources), **content})


def name_run(
    tree: Path, entities: Mapping[str, str], datasets: Mapping[str, Path], sources: Sequence[Path | None]
) -> RunName:
    """Names of a run's outputs in ``tree``, made from files of the datasets that are read."""
    uris = [dataset_uri(path, datasets) for path in sources if path is not None]
    return RunName(tree, entities, tuple(uris))


def anatomy_outputs(anatomy: Anatomy, datasets: Mapping[str, Path], out_dir: Path) -> Path:
    """Lay out what was made of a T1w image: at its own resolution, with mask, transforms and figures."""
    from bids_app.reports.figures.brains import plot_flicker, plot_outlines

    found = split_name(anatomy.source.name)[0]
    entities = {key: value for key, value in found.items() if key not in ("part", "echo")}
    names = name_run(out_dir / "tree", entities, datasets, anatomy.used or [anatomy.source])
    image = load_nifti(anatomy.native)
    affine, shape = image.affine, image.shape[:3]

    t1w = names.path("T1w", ".nii.gz", "anat", desc="preproc")
    corrected = image.get_fdata(dtype=np.float32).reshape(shape)
    corrected /= on_grid(anatomy.bias, shape, affine)
    save_int16(t1w, corrected, affine)
    names.sidecar(t1w, {"SkullStripped": anatomy.stripped, "Description": describe_t1w(anatomy)})

    mask = on_grid(anatomy.mask, shape, affine, outside="constant") > 0.5
    path = names.path("mask", ".nii.gz", "anat", desc="brain")
    nib.Nifti1Image(mask.astype(np.uint8), affine).to_filename(path)
    names.sidecar(path, {"Type": "Brain", "RawSources": list(names.sources)})

    there, back = {"from_": "T1w", "to": anatomy.template}, {"from_": anatomy.template, "to": "T1w"}
    copy_file(anatomy.to_template, names.path("xfm", anatomy.to_template.suffix, "anat", **there, mode="image"))
    copy_file(anatomy.from_template, names.path("xfm", anatomy.from_template.suffix, "anat", **back, mode="image"))

    plot_outlines(
        anatomy.image,
        {"brain mask": anatomy.mask},
        names.path("T1w", ".svg", "figures", desc="mask"),
        title=f"Brain mask of {names.stem}",
    )
    template, brain = template_images(anatomy.template, out_dir)
    plot_flicker(
        template,
        anatomy.in_template,
        names.path("T1w", ".svg", "figures", desc="norm"),
        outline=brain,
        names=(anatomy.template, "T1w"),
        title=f"{names.stem} on the template",
    )
    return names.tree


def describe_t1w(anatomy: Anatomy) -> str:
    """What was done to the T1w image that is written, in words."""
    if anatomy.merged:
        return f"Mean of {len(anatomy.used)} images, aligned with each other; without its bias field (N4)"
    return "Without its bias field (N4)"


def on_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray, outside: str = "nearest") -> np.ndarray:
    """A 3D image on another grid of its space, linearly, in float32; (X, Y, Z)."""
    from scipy.ndimage import affine_transform

    image = load_nifti(path)
    to_voxels = np.linalg.inv(image.affine) @ affine
    data = image.get_fdata(dtype=np.float32)
    return affine_transform(data, to_voxels[:3, :3], to_voxels[:3, 3], shape, output=np.float32, order=1, mode=outside)


def template_images(name: str, out_dir: Path) -> tuple[Path, Path]:
    """A template and its brain mask as files, for figures."""
    from bids_app.catalog.templates import load_template

    template = load_template(name)
    head, brain = out_dir / "template.nii.gz", out_dir / "template_mask.nii.gz"
    nib.Nifti1Image(template.t1w, template.affine).to_filename(head)
    nib.Nifti1Image(template.mask.astype(np.uint8), template.affine).to_filename(brain)
    return head, brain


def run_outputs(
    preprocessed: PreprocessedRun,
    grid: OnGrid,
    entities: Mapping[str, str],
    datasets: Mapping[str, Path],
    notes: Sequence[str],
    output_spaces: Sequence[str],
    threads: int,
    out_dir: Path,
) -> Path:
    """Lay out what preprocessing made of a run: confounds, masks, references, transforms, quality."""
    run = preprocessed
    t1w = run.anatomy.source if run.anatomy else None
    names = name_run(out_dir / "tree", entities, datasets, [run.source, t1w, *run.beside])

    copy_file(run.confounds, names.path("timeseries", ".tsv", desc="confounds"))
    copy_file(run.confounds_meta, names.path("timeseries", ".json", desc="confounds"))

    mask = copy_file(run.brain_mask, names.path("mask", ".nii.gz", space=run.space, desc="brain"))
    names.sidecar(mask, {"Type": "Brain", "RawSources": list(names.sources)})
    boldref = copy_file(run.boldref, names.path("boldref", ".nii.gz", space=run.space, desc=boldref_kind(run)))
    names.sidecar(boldref, {"Description": BOLDREFS[boldref_kind(run)]})
    write_unwarping(names, run)

    if run.hmc_file:
        copy_file(run.hmc_file, names.path("xfm", ".txt", from_="orig", to="boldref", mode="image", desc="hmc"))
    if run.coreg_file:
        copy_file(run.coreg_file, names.path("xfm", ".txt", from_="boldref", to="T1w", mode="image", desc="coreg"))
    for file, ends in ((run.to_template, ("boldref", run.template)), (run.from_template, (run.template, "boldref"))):
        if file and run.route == "direct":
            copy_file(file, names.path("xfm", file.suffix, from_=ends[0], to=ends[1], mode="image"))

    for space in output_spaces:
        write_in_space(names, run, space, threads, out_dir)

    quality = {**run.quality, "coverage": grid.coverage, **scan_figures(run)}
    content = {
        "route": run.route,
        "template": run.template,
        "quality": quality,
        "warnings": list(run.warnings),
        "notes": [*notes, *run.notes],
        "parameters": {**run.parameters, "Threads": threads},
    }
    table = names.path("metrics", ".tsv", desc="quality")
    write_tsv(table, {key: [value] for key, value in {"bids_name": f"{names.stem}_bold", **quality}.items()})
    names.sidecar(table, {**content, "bids_name": {"Description": "The run"}, **quality_columns(quality)})
    return names.tree


def boldref_kind(run: PreprocessedRun) -> str:
    """The ``desc-`` label of a run's reference image."""
    if run.unwarping is not None:
        return "coreg"
    return "hmc" if run.space is None else "mean"


def write_unwarping(names: RunName, run: PreprocessedRun) -> None:
    """Write the reference image as it was measured, and the displacement that undoes its distortion."""
    if run.unwarping is None:
        return
    measured = copy_file(run.unwarping.distorted, names.path("boldref", ".nii.gz", desc="hmc"))
    names.sidecar(measured, {"Description": BOLDREFS["hmc"]})
    field = names.path("xfm", ".nii.gz", from_="distorted", to="boldref", mode="image", desc="sdc")
    write_itk_field(run.unwarping.warp, field)
    names.sidecar(field, {"Description": "Displacement field (ITK)", **describe_unwarping(run.unwarping)})


def scan_figures(run: PreprocessedRun) -> dict[str, float]:
    """Size and resolution of a run under MRIQC's names: voxels and volumes, mm and s; axes as they are stored."""
    header = load_nifti(run.boldref).header
    figures = {"size_t": run.n_volumes, "dummy_trs": run.n_dummy, "spacing_tr": run.tr}
    for axis, size, spacing in zip("xyz", header.get_data_shape(), header.get_zooms(), strict=False):
        figures |= {f"size_{axis}": int(size), f"spacing_{axis}": round(float(spacing), 4)}
    return figures


def write_in_space(names: RunName, run: PreprocessedRun, space: str, threads: int, out_dir: Path) -> None:
    """Write the preprocessed series at 2 mm in a space, with its mask."""
    series, brain = resample_to_space(run, space, out_dir, threads)
    bold = names.path("bold", ".nii.gz", space=space, res="2", desc="preproc")
    series.rename(bold)
    seconds: dict[str, Any] = {"RepetitionTime": run.tr, "SkullStripped": False, "Resolution": "2 mm isotropic"}
    seconds |= describe_slices(run.slices) | describe_unwarping(run.unwarping)
    names.sidecar(bold, {**seconds, "TaskName": names.entities.get("task", "n/a"), "NumberOfVolumes": run.n_volumes})
    mask = names.path("mask", ".nii.gz", space=space, res="2", desc="brain")
    brain.rename(mask)
    names.sidecar(mask, {"Type": "Brain", "RawSources": list(names.sources), "Resolution": "2 mm isotropic"})


def model_outputs(
    encoded: Encoded,
    preprocessed: PreprocessedRun,
    entities: Mapping[str, str],
    datasets: Mapping[str, Path],
    out_dir: Path,
) -> Path:
    """Lay out embeddings and predictions with their sidecars."""
    names = name_run(out_dir / "tree", entities, datasets, [preprocessed.source])
    facts, template, timing = encoded.facts, preprocessed.template, describe_slices(preprocessed.slices)
    table = names.path("embeddings", ".tsv", desc=as_label(facts["Model"]))
    write_tsv(table, pd.DataFrame(encoded.embeddings.rows()))
    trust = {
        "Verdict": encoded.verdict.as_dict() if encoded.verdict else None,
        "SplitHalf": describe_embedding_halves(encoded.embeddings),
    }
    card = {"ModelCard": encoded.card} if encoded.card else {}
    names.sidecar(table, {**facts, "Template": template, **timing, **trust, **describe_embeddings(encoded), **card})
    for prediction in encoded.predictions:
        suffix = "vectors" if prediction.card.task == EMBEDDING else "predictions"
        table = names.path(suffix, ".tsv", desc=prediction.card.name)
        write_tsv(table, pd.DataFrame(prediction.rows()))
        names.sidecar(table, {**facts, "Template": template, **timing, **describe_prediction(prediction)})
    return names.tree


def describe_embeddings(encoded: Encoded) -> dict[str, Any]:
    """What the columns of an embeddings table are."""
    return {
        "normalisation": {
            "Description": "How the run was normalised before it was cut into clips",
            "Levels": {
                "global": "One z-score over all voxels of the brain and all volumes",
                "voxel": "A z-score of each voxel over time",
            },
        },
        "clip": {"Description": "Number of the clip, or the mean over clips"},
        "onset": {"Description": "Start of the clip in the run as it was scanned", "Units": "s"},
        "duration": {"Description": "Length of the clip, or of all clips", "Units": "s"},
        "eNNNN": {"Description": "Features of the encoder, averaged over all tokens of a clip"},
        "SecondsDropped": encoded.embeddings.dropped,
    }


def describe_prediction(prediction: Prediction) -> dict[str, Any]:
    """What a predictions table means, from the adapter's card."""
    return {
        **describe_adapter(prediction.card),
        **describe_trust(prediction),
        "Disclaimer": "A research result, not a medical device: not a statement about a person.",
    }


def describe_trust(prediction: Prediction) -> dict[str, Any]:
    """The verdict; and, unless the answer is withheld, how sure it is and what it rests on."""
    found: dict[str, Any] = {"Verdict": prediction.verdict.as_dict()} if prediction.verdict else {}
    if prediction.verdict:
        found["verdict"] = {
            "Description": "Whether the run's answer can be trusted; the checks stand under Verdict",
            "Levels": {
                "pass": "Nothing speaks against it",
                "warn": "It may be worse than the adapter's card promises",
                "refuse": "It would mean nothing, and is withheld",
            },
        }
    if prediction.interval is not None:
        about = f"end of the interval that holds the true value of {LEVEL:.0%} of scans like those of the calibration"
        for name in ("lower", "upper"):
            found[name] = {"Description": f"{name.capitalize()} {about}", "Units": prediction.card.unit or "n/a"}
    if prediction.is_refused:
        return found
    return found | {
        "Agreement": prediction.agreement,
        "Uncertainty": describe_uncertainty(prediction),
        "Views": describe_views(prediction),
        "SplitHalf": describe_halves(prediction),
    }


def run_figures(
    preprocessed: PreprocessedRun,
    grid: OnGrid,
    encoded: Encoded,
    entities: Mapping[str, str],
    fd_spike_mm: float,
    out_dir: Path,
) -> Path:
    """Draw what the report shows of a run: alignments, mask, signal, the model's view, embeddings and predictions."""
    names = RunName(out_dir / "tree", entities, ())
    draw_alignments(preprocessed, names, out_dir)
    draw_carpet(preprocessed, names, fd_spike_mm)
    draw_model_grid(grid, names)
    draw_answers(encoded, names)
    return names.tree


def draw_alignments(run: PreprocessedRun, names: RunName, out_dir: Path) -> None:
    """Draw the brain mask on the reference image, and the reference on T1w image and template."""
    from bids_app.catalog.templates import standing_in
    from bids_app.reports.figures.brains import plot_flicker, plot_outlines

    masks = {"brain mask": run.brain_mask} | ({"from the EPI alone": run.epi_mask} if run.epi_mask else {})
    plot_outlines(run.boldref, masks, names.figure("mask"), title=f"Brain mask of {names.stem}")
    if run.unwarping is not None:
        plot_flicker(
            run.unwarping.distorted,
            run.boldref,
            names.figure("sdc"),
            outline=run.brain_mask,
            names=("measured", "corrected"),
            title=f"Distortion of {names.stem}",
        )
    if run.anatomy and run.boldref_in_t1w:
        plot_flicker(
            run.anatomy.image,
            run.boldref_in_t1w,
            names.figure("coreg"),
            outline=run.anatomy.mask,
            names=("T1w", "BOLD"),
            title=f"{names.stem} on the T1w image",
        )
    if run.boldref_in_template:
        shown = standing_in(run.space or run.template)
        template, brain = template_images(shown, out_dir)
        plot_flicker(
            template,
            run.boldref_in_template,
            names.figure("norm"),
            outline=brain,
            names=(shown, "BOLD"),
            title=f"{names.stem} on the template",
        )


def draw_carpet(run: PreprocessedRun, names: RunName, fd_spike_mm: float) -> None:
    """Draw motion, and the signal of voxels spread over the brain, by tissue."""
    from bids_app.reports.figures.charts import plot_carpet

    if run.carpet is None or run.dseg is None:
        return
    values = np.load(run.carpet, mmap_mode="r")
    step = max(1, values.shape[1] // CARPET_VOXELS)
    tissue = load_nifti(run.dseg).get_fdata()[load_nifti(run.brain_mask).get_fdata() > 0.5].astype(int)[::step]
    plot_carpet(
        np.asarray(values[:, ::step])[:, tissue > 0],
        run.tr,
        pd.read_csv(run.confounds, sep="\t"),
        names.figure("carpet"),
        groups=tissue[tissue > 0] - 1,
        group_names=TISSUES,
        fd_threshold_mm=fd_spike_mm,
        title=f"Motion and signal of {names.stem}",
    )


def draw_model_grid(grid: OnGrid, names: RunName) -> None:
    """Draw what the encoder saw."""
    from bids_app.reports.figures.model_grid import GridView, plot_model_grid

    series = GridSeries.open(grid.folder)
    reader = ClipReader(series)
    mean = np.zeros(series.mask.shape, np.float32)
    mean[series.mask] = reader.statistics.mean
    frame = reader.clip(0, "voxel")[0, ..., reader.clip_volumes // 2].numpy()
    views = [
        GridView("mean of the run", mean),
        GridView("one volume of the first clip, each voxel over time", frame, signed=True, unit="z"),
    ]
    title = f"{names.stem} on the model grid"
    plot_model_grid(views, MODEL_GRID_AFFINE, names.figure("grid"), mask=series.mask, title=title)


def draw_answers(encoded: Encoded, names: RunName) -> None:
    """Draw embeddings, and each adapter's predictions."""
    from bids_app.reports.figures.charts import plot_embeddings, plot_predictions

    table = pd.DataFrame(encoded.embeddings.rows())
    plot_embeddings(table, names.figure("embeddings"), title=f"Embeddings of {names.stem}")
    for prediction in (p for p in encoded.predictions if p.card.task != EMBEDDING and not p.is_refused):
        path = names.figure(f"{prediction.card.name}predictions")
        title = f"{prediction.card.name} predicted from {names.stem}"
        plot_predictions(pd.DataFrame(prediction.rows()), path, title=title, unit=prediction.card.unit)


def publish(target: Path, out_dir: Path, **trees: Path | None) -> tuple[str, ...]:
    """Copy trees into the output folder; files that are there with the same content are left alone.

    Returns
    -------
    tuple of str
        The files, relative to the output folder.
    """
    files = []
    for tree in filter(None, trees.values()):
        for source in sorted(p for p in tree.rglob("*") if p.is_file()):
            relative = source.relative_to(tree)
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            copy_file(source, target / relative)
            files.append(relative.as_posix())
    return tuple(files)


def withdraw(target: Path, stem: str, adapter: str) -> list[Path]:
    """Remove what an earlier time left of an answer that is withheld now: its figures and attributions."""
    participant = target / stem.partition("_")[0]
    wanted = (
        f"{stem}_*desc-{adapter}{rest}.*"
        for rest in ("predictions_bold", "attribution_bold", "_attribution", "_boldmap")
    )
    found = [path for pattern in wanted for path in participant.rglob(pattern)]
    for path in found:
        path.unlink()
    return found


def save_int16(path: Path, data: np.ndarray, affine: np.ndarray) -> None:
    """Save an image in 16 bits with a scale, which loses nothing that a scanner measured."""
    image = nib.Nifti1Image(data, affine)
    image.header.set_data_dtype(np.int16)
    image.to_filename(path)
