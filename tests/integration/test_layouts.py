"""Datasets of every layout give their runs or a clear error."""

import errno
import gzip
import itertools
import json
import os
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.entities import join_name
from bids_app.bids.query import find_runs
from bids_app.cli.neurostorm import main
from bids_app.errors import (
    EXIT_CODES,
    EXIT_OK,
    BadDataError,
    InvalidBIDSError,
    NeurostormError,
    NoInputError,
    NoMatchError,
)
from bids_app.settings import QuerySettings


def small_image(*shape: int) -> bytes:
    """Make a NIfTI file of zeros; `--check` does not read the values."""
    image = nib.Nifti1Image(np.zeros(shape, np.uint8), np.diag([4.0, 4.0, 4.0, 1.0]))
    image.header.set_zooms((4.0, 4.0, 4.0, 2.0)[: len(shape)])
    image.header.set_xyzt_units("mm", "sec")
    return gzip.compress(image.to_bytes(), mtime=0)


IMAGE, VOLUME = small_image(4, 4, 4, 30), small_image(4, 4, 4)
DESCRIPTION = json.dumps({"Name": "layout", "BIDSVersion": "1.10.0"})
LINK = "->"
"""Prefix of content that is the target of a symbolic link."""


@dataclass(frozen=True)
class Layout:
    """Dataset, and the expected result of the query.

    Attributes
    ----------
    name : str
        Of the test.
    files : tuple of str
        Images.
    runs : tuple of str
        Stems of the runs that are to be found; empty when an error is.
    error : type
        The error instead.
    t1w : str or None
        Name of the T1w image of the first run; None: not looked at; empty: there is none.
    contents : dict
        Files with their text or bytes.
    settings : dict
        Of the query.
    problems : tuple of str
        Those of the runs that cannot be used.
    """

    name: str
    files: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()
    error: type[NeurostormError] | None = None
    t1w: str | None = None
    contents: dict[str, str | bytes] = field(default_factory=dict)
    settings: dict[str, object] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    def write(self, root: Path) -> Path:
        images = {name: VOLUME if "/anat/" in name else IMAGE for name in self.files}
        for name, content in ({"dataset_description.json": DESCRIPTION} | images | self.contents).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str) and content.startswith(LINK):
                path.symlink_to(content.removeprefix(LINK))
            else:
                data = content.encode() if isinstance(content, str) else content
                path.write_bytes(gzip.decompress(data) if name.endswith(".nii") and data else data)
        return root

    def check(self, root: Path) -> int:
        """Run --check on this layout in this process."""
        asked = {"participants": "--participant-label", "sessions": "--session-label", "tasks": "--task-id"}
        options = [word for key, labels in self.settings.items() for word in (asked[key], *labels)]
        out = str(root.parent / "out")
        return main([str(root), out, "participant", "--check", "--model", "demo", "--mem", "8GB", *options])


def func(*names: str, sub: str = "01", ses: str = "") -> tuple[str, ...]:
    """Make paths of functional images from the part of their name after participant and session."""
    folder, start = f"sub-{sub}/", f"sub-{sub}_"
    if ses:
        folder, start = f"{folder}ses-{ses}/", f"{start}ses-{ses}_"
    return tuple(f"{folder}func/{start}{name}.nii.gz" for name in names)


def anat(*names: str, sub: str = "01", ses: str = "") -> tuple[str, ...]:
    """Paths of anatomical images."""
    return tuple(path.replace("/func/", "/anat/") for path in func(*names, sub=sub, ses=ses))


REST = func("task-rest_bold")
T1W = anat("T1w")
STEM = "sub-01_task-rest"

WHOLE = [
    Layout("one run with a T1w image", REST + T1W, (STEM,), t1w="sub-01_T1w.nii.gz"),
    Layout("uncompressed", tuple(p.removesuffix(".gz") for p in REST + T1W), (STEM,), t1w="sub-01_T1w.nii"),
    Layout("no T1w image", REST, (STEM,), t1w=""),
    Layout("T2w and FLAIR only", REST + anat("T2w", "FLAIR"), (STEM,), t1w=""),
    Layout("UNIT1 only", REST + anat("UNIT1", "inv-1_MP2RAGE"), (STEM,), t1w=""),
    Layout("two T1w runs", REST + anat("run-2_T1w", "run-1_T1w"), (STEM,), t1w="sub-01_run-1_T1w.nii.gz"),
    Layout("T1w with and without contrast", REST + anat("ce-gad_T1w", "run-9_T1w"), (STEM,),
           t1w="sub-01_run-9_T1w.nii.gz"),
    Layout("T1w parts", REST + anat("part-phase_T1w", "part-mag_T1w"), (STEM,), t1w="sub-01_part-mag_T1w.nii.gz"),
    Layout("defaced and raw", REST + anat("rec-defaced_T1w"), (STEM,), t1w="sub-01_rec-defaced_T1w.nii.gz"),
    Layout("numbered participants", func("task-rest_bold", sub="1") + func("task-rest_bold", sub="10"),
           ("sub-1_task-rest", "sub-10_task-rest")),
    Layout("labels of letters", func("task-rest_bold", sub="CTRLa"), ("sub-CTRLa_task-rest",)),
    Layout("labels that begin alike", func("task-rest_bold", sub="1") + func("task-rest_bold", sub="1a"),
           ("sub-1_task-rest",), settings={"participants": ("1",)}),
    Layout("leading zeros", func("task-rest_run-01_bold", "task-rest_run-02_bold"),
           (f"{STEM}_run-01", f"{STEM}_run-02")),
    Layout("ten runs", func(*(f"task-rest_run-{n}_bold" for n in range(1, 11))),
           tuple(f"{STEM}_run-{n}" for n in range(1, 11))),
    Layout("two tasks", func("task-rest_bold", "task-nback_bold"), ("sub-01_task-nback", STEM)),
    Layout("one of two tasks", func("task-rest_bold", "task-nback_bold"), (STEM,), settings={"tasks": ("rest",)}),
    Layout("a session", func("task-rest_bold", ses="1") + anat("T1w", ses="1"), ("sub-01_ses-1_task-rest",),
           t1w="sub-01_ses-1_T1w.nii.gz"),
    Layout("T1w in another session", func("task-rest_bold", ses="2") + anat("T1w", ses="1"),
           ("sub-01_ses-2_task-rest",), t1w="sub-01_ses-1_T1w.nii.gz"),
    Layout("T1w without a session", func("task-rest_bold", ses="2") + T1W, ("sub-01_ses-2_task-rest",),
           t1w="sub-01_T1w.nii.gz"),
    Layout("run without a session", REST + anat("T1w", ses="b") + anat("T1w", ses="a"), (STEM,),
           t1w="sub-01_ses-a_T1w.nii.gz"),
    Layout("one of three sessions", tuple(itertools.chain.from_iterable(func("task-rest_bold", ses=s) for s in "abc")),
           ("sub-01_ses-b_task-rest",), settings={"sessions": ("b",)}),
    Layout("mixed with and without sessions", REST + func("task-rest_bold", sub="02", ses="1"),
           (STEM, "sub-02_ses-1_task-rest")),
    Layout("session labels of letters", func("task-rest_bold", ses="baselineYear1"),
           ("sub-01_ses-baselineYear1_task-rest",)),
    Layout("directions", func("task-rest_dir-AP_bold", "task-rest_dir-PA_bold"), (f"{STEM}_dir-AP", f"{STEM}_dir-PA")),
    Layout("acquisitions", func("task-rest_acq-mb_bold", "task-rest_acq-sb_bold"),
           (f"{STEM}_acq-mb", f"{STEM}_acq-sb")),
    Layout("reconstructions", func("task-rest_rec-magnitude_bold", "task-rest_rec-dico_bold"),
           (f"{STEM}_rec-dico", f"{STEM}_rec-magnitude")),
    Layout("contrast agents", func("task-rest_ce-gad_bold"), (f"{STEM}_ce-gad",)),
    Layout("everything in a name", func("task-rest_acq-a_ce-b_rec-c_dir-AP_run-1_bold", ses="1"),
           ("sub-01_ses-1_task-rest_acq-a_ce-b_rec-c_dir-AP_run-1",)),
    Layout("three echoes", func(*(f"task-rest_echo-{n}_bold" for n in (1, 2, 3))), (STEM,)),
    Layout("echoes of two runs", func(*(f"task-rest_run-{r}_echo-{n}_bold" for r in (1, 2) for n in (1, 2))),
           (f"{STEM}_run-1", f"{STEM}_run-2")),
    Layout("one echo that is numbered", func("task-rest_echo-1_bold"), (STEM,)),
    Layout("echoes with one inherited sidecar", func(*(f"task-rest_echo-{n}_bold" for n in (1, 2))), (STEM,),
           contents={"task-rest_bold.json": '{"EchoTime": 0.03}'}),
    Layout("magnitude and phase", func("task-rest_part-mag_bold", "task-rest_part-phase_bold"), (STEM,)),
    Layout("echoes in parts", func(*(f"task-rest_echo-{n}_part-{p}_bold" for n in (1, 2) for p in ("mag", "phase"))),
           (STEM,)),
    Layout("reference images", REST + func("task-rest_sbref"), (STEM,)),
    Layout("cbv beside bold", REST + func("task-rest_cbv", "task-rest_phase"), (STEM,)),
    Layout("chunks", func("task-rest_chunk-1_bold", "task-rest_chunk-2_bold"), (f"{STEM}_chunk-1", f"{STEM}_chunk-2")),
    Layout("fieldmaps, diffusion, perfusion", (*REST, "sub-01/fmap/sub-01_phasediff.nii.gz",
           "sub-01/dwi/sub-01_dwi.nii.gz", "sub-01/perf/sub-01_asl.nii.gz"), (STEM,)),
    Layout("eeg recorded at the same time", (*REST, "sub-01/eeg/sub-01_task-rest_eeg.vhdr"), (STEM,)),
    Layout("physiology", REST, (STEM,), contents={"sub-01/func/sub-01_task-rest_physio.tsv.gz": b"\x1f\x8b"}),
    Layout("tables at the root", REST, (STEM,),
           contents={"participants.tsv": "participant_id\nsub-01\n", "CHANGES": ""}),
    Layout("scans table that is broken", REST, (STEM,), contents={"sub-01/sub-01_scans.tsv": b"\xff\xfe"}),
    Layout("sidecars at four levels", func("task-rest_bold", ses="1"), ("sub-01_ses-1_task-rest",), contents={
        "bold.json": "{}", "sub-01/sub-01_bold.json": "{}", "sub-01/ses-1/sub-01_ses-1_bold.json": "{}"}),
    Layout("a sidecar for another suffix is broken", REST, (STEM,), contents={"task-rest_sbref.json": "{"}),
    Layout("a broken sidecar of another run", func("task-rest_bold", "task-nback_bold"), ("sub-01_task-nback", STEM),
           contents={"sub-01/func/sub-01_task-nback_bold.json": "{"}, problems=("sub-01_task-nback",)),
    Layout("derivatives inside", (*REST, f"derivatives/x/{REST[0]}", f"derivatives/{REST[0]}"), (STEM,)),
    Layout("sourcedata inside", (*REST, f"sourcedata/{REST[0]}", f"sourcedata/sub-02/{REST[0]}"), (STEM,)),
    Layout("hidden folders", (*REST, f".datalad/{REST[0]}", f".git/annex/{REST[0]}", f"sub-01/.old/{REST[0]}"),
           (STEM,)),
    Layout("hidden files", (*REST, "sub-01/func/._sub-01_task-rest_bold.nii.gz"), (STEM,)),
    Layout("preprocessed images among raw ones", REST + func("task-rest_space-T1w_desc-preproc_bold"), (STEM,)),
    Layout("links to files", (*T1W, "store/1"), (STEM,), contents={REST[0]: "->../../store/1"},
           t1w="sub-01_T1w.nii.gz"),
    Layout("links to participants", ("store/func/sub-01_task-rest_bold.nii.gz",), (STEM,),
           contents={"sub-01": "->store"}),
    Layout("one of two runs not fetched", REST, ("sub-01_task-nback", STEM), problems=("sub-01_task-nback",),
           contents={func("task-nback_bold")[0]: "->../../.git/annex/objects/1"}),
    Layout("T1w not fetched in one participant", REST + func("task-rest_bold", sub="02"),
           (STEM, "sub-02_task-rest"), problems=(STEM,), contents={T1W[0]: "->../../.git/annex/objects/1"}),
    Layout("an index file of pybids' own", REST, (STEM,), contents={".pybids/x.sqlite": b""}),
    Layout("bidsignore and code", REST, (STEM,), contents={".bidsignore": "*", "code/sub-01_bold.py": ""}),
    Layout("files that are not images", REST, (STEM,), contents={"sub-01/func/sub-01_task-rest_bold.nii.gz.part": ""}),
    Layout("a folder named as an image", REST, (STEM,), contents={func("task-x_bold")[0] + "/x": ""}),
    Layout("no task in the name", func("bold"), ("sub-01",)),
    Layout("an entity nobody knows", func("task-rest_foo-bar_bold"), (f"{STEM}_foo-bar",)),
    Layout("labels with a plus sign", func("task-rest_acq-a+b_bold"), (f"{STEM}_acq-a+b",)),
    Layout("a description with odd types", REST, (STEM,), contents={
        "dataset_description.json": '{"Name": 1, "BIDSVersion": [], "DatasetType": null, "DatasetLinks": 3}'}),
    Layout("names that are not ASCII beside the data", REST, (STEM,), contents={
        "sub-01/func/größe 表.txt": "", "Übersicht.md": "", "sub-Jürg/func/sub-Jürg_task-rest_bold.nii.gz": ""}),
    Layout("a task that is not ASCII", func("task-größe_bold"), ("sub-01_task-größe",),
           problems=("sub-01_task-größe",)),
    Layout("a task that holds markup", func("task-<b>x&y_bold"), ("sub-01_task-<b>x&y",),
           problems=("sub-01_task-<b>x&y",)),
    Layout("a T1w image of another participant", (*REST, "sub-01/anat/sub-02_T1w.nii.gz"), (STEM,), problems=(STEM,)),
    Layout("non-ASCII values", REST, (STEM,), contents={"dataset_description.json": '{"Name": "Größe"}'}),
]  # fmt: skip

REFUSED = [
    Layout("empty folder", error=InvalidBIDSError, contents={"dataset_description.json": ""}),
    Layout("description only", error=InvalidBIDSError),
    Layout("description that is a list", REST, error=InvalidBIDSError, contents={"dataset_description.json": "[]"}),
    Layout("description in Latin-1", REST, error=InvalidBIDSError,
           contents={"dataset_description.json": b'{"Name": "Gr\xf6\xdfe"}'}),
    Layout("description not fetched", REST, error=NoInputError,
           contents={"dataset_description.json": "->.git/annex/objects/1"}),
    Layout("a derivative dataset", REST, error=InvalidBIDSError,
           contents={"dataset_description.json": '{"Name": "x", "DatasetType": "derivative"}'}),
    Layout("participants' files without folders", ("sub-01_task-rest_bold.nii.gz",), error=InvalidBIDSError),
    Layout("only participants with forbidden labels", ("sub-a_b/func/sub-a_b_task-rest_bold.nii.gz",),
           error=InvalidBIDSError),
    Layout("an empty participant", error=NoMatchError, contents={"sub-01/notes.txt": ""}),
    Layout("anatomy only", T1W, error=NoMatchError),
    Layout("PET only", ("sub-01/pet/sub-01_pet.nii.gz",), error=NoMatchError),
    Layout("EEG only", error=NoMatchError, contents={"sub-01/eeg/sub-01_task-rest_eeg.edf": ""}),
    Layout("MEG folders only", error=NoMatchError, contents={"sub-01/meg/sub-01_task-rest_meg.ds/x.meg4": ""}),
    Layout("ASL only", ("sub-01/perf/sub-01_asl.nii.gz",), error=NoMatchError),
    Layout("diffusion only", ("sub-01/dwi/sub-01_dwi.nii.gz",), error=NoMatchError),
    Layout("phase images only", func("task-rest_part-phase_bold"), error=NoMatchError),
    Layout("reference images only", func("task-rest_sbref"), error=NoMatchError),
    Layout("bold outside func", ("sub-01/sub-01_task-rest_bold.nii.gz",), error=NoMatchError),
    Layout("bold too deep", ("sub-01/func/old/sub-01_task-rest_bold.nii.gz",), error=NoMatchError),
    Layout("preprocessed images only", func("task-rest_desc-preproc_bold"), error=NoMatchError),
    Layout("in the folder of another participant", ("sub-01/func/sub-02_task-rest_bold.nii.gz",),
           error=InvalidBIDSError),
    Layout("in the folder of another session", ("sub-01/ses-1/func/sub-01_ses-2_task-rest_bold.nii.gz",),
           error=InvalidBIDSError),
    Layout("session in the folder alone", ("sub-01/ses-1/func/sub-01_task-rest_bold.nii.gz",), error=InvalidBIDSError),
    Layout("nothing fetched", error=NoInputError, contents={REST[0]: "->../../.git/annex/objects/1"}),
    Layout("sidecar not fetched", REST, error=NoInputError,
           contents={"sub-01/func/sub-01_task-rest_bold.json": "->../../.git/annex/objects/1"}),
    Layout("unlocked annex pointers", error=NoInputError, contents={REST[0]: "/annex/objects/MD5E-s1--0.nii.gz\n"}),
    Layout("sidecar that is a list", REST, error=BadDataError, contents={"task-rest_bold.json": "[]"}),
    Layout("sidecar in UTF-16", REST, error=BadDataError, contents={"task-rest_bold.json": "{}".encode("utf-16")}),
    Layout("empty sidecar", REST, error=BadDataError, contents={"sub-01/func/sub-01_task-rest_bold.json": ""}),
    Layout("unknown participant", REST, error=NoMatchError, settings={"participants": ("02",)}),
    Layout("unknown session", REST, error=NoMatchError, settings={"sessions": ("1",)}),
    Layout("unknown task", REST, error=NoMatchError, settings={"tasks": ("nback",)}),
    Layout("task of another participant", REST + func("task-nback_bold", sub="02"), error=NoMatchError,
           settings={"tasks": ("nback",), "participants": ("01",)}),
]  # fmt: skip


def layout_id(layout: Layout) -> str:
    return layout.name.replace(" ", "-")


@pytest.mark.parametrize("layout", WHOLE, ids=layout_id)
def test_a_dataset_gives_its_runs(layout, tmp_path):
    root = layout.write(tmp_path / "dataset")
    runs = find_runs(root, QuerySettings(**layout.settings))
    assert [run.stem for run in runs] == list(layout.runs)
    assert [run.stem for run in runs if run.problem] == list(layout.problems)
    if layout.t1w is not None:
        assert (runs[0].t1w.name if runs[0].t1w else "") == layout.t1w
    for run in runs:
        assert run.problem or run.bold.is_file()
        assert run.problem is None or (str(root) in run.problem.message and run.problem.hint)


def raise_first_problem(root: Path, settings: QuerySettings) -> None:
    for run in find_runs(root, settings):
        raise run.problem or AssertionError(f"{run.stem} can be used")


@pytest.mark.parametrize("layout", REFUSED, ids=layout_id)
def test_a_dataset_without_usable_runs_has_an_error_and_a_hint(layout, tmp_path):
    root = layout.write(tmp_path / "dataset")
    with pytest.raises(layout.error) as caught:
        raise_first_problem(root, QuerySettings(**layout.settings))
    assert str(root) in caught.value.message
    assert len(caught.value.hint) > 15


@pytest.mark.parametrize("layout", [*WHOLE, *REFUSED], ids=layout_id)
def test_check_prints_a_plan_or_a_clear_error(layout, tmp_path, capsys):
    root = layout.write(tmp_path / "dataset")
    code = layout.check(root)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert code in EXIT_CODES
    failed = [line for line in out.splitlines() if line.startswith("FAIL")]
    if layout.error:
        assert code == layout.error.exit_code, out
        assert str(root) in failed[0]
    else:
        assert (code == EXIT_OK) == (not layout.problems), out
        plans = {stem: stem in layout.problems for stem in layout.runs}
        for stem, is_bad in plans.items():
            lines = [line for line in out.splitlines() if line.startswith("FAIL" if is_bad else "ok")]
            assert any(stem in re.split(r"[ :,()]+", line) for line in lines), out
    assert not (tmp_path / "out").exists()


def test_check_of_one_among_a_thousand_participants_takes_seconds(tmp_path, capsys):
    files = tuple(func("task-rest_bold", sub=f"{n:04}")[0] for n in range(1000))
    root = Layout("", files, settings={"participants": ("0500",)}).write(tmp_path / "dataset")
    layout = Layout("", settings={"participants": ("0500",)})
    started = time.process_time()
    assert layout.check(root) == EXIT_OK
    assert time.process_time() - started < 10
    assert "1 BOLD runs of 1 participants" in capsys.readouterr().out


def random_layout(seed: int) -> Layout:
    """Make a dataset of several participants, with or without sessions, with random entities."""
    draw = random.Random(seed)
    files, stems = [], []
    sessions = draw.choice([("",), ("1", "2"), ("pre", "post", "followUp")])
    keys = sorted(
        draw.sample(["acq", "ce", "rec", "dir", "run"], k=draw.randint(0, 3)),
        key=["acq", "ce", "rec", "dir", "run"].index,
    )
    n_echoes, parts = draw.choice([1, 1, 3]), draw.choice([("",), ("mag", "phase")])
    for sub, ses in itertools.product(("01", "2", "x3")[: draw.randint(1, 3)], sessions):
        if draw.random() < 0.7:
            files += anat(*draw.choice([("T1w",), ("run-1_T1w", "run-2_T1w"), ("acq-fine_T1w",)]), sub=sub, ses=ses)
        values = [draw.sample(["1", "2", "03"] if key == "run" else ["AP", "b", "c9"], k=2) for key in keys]
        for task, labels in itertools.product(("rest", "nback"), itertools.product(*values)):
            entities = {"task": task} | dict(zip(keys, labels, strict=True))
            name = join_name(entities, "").removesuffix("_")
            stems.append("_".join(filter(None, (f"sub-{sub}", ses and f"ses-{ses}", name))))
            for echo, part in itertools.product(range(1, n_echoes + 1), parts):
                ends = (f"_echo-{echo}" if n_echoes > 1 else "") + (f"_part-{part}" if part else "")
                files += func(f"{name}{ends}_bold", sub=sub, ses=ses)
            files += func(f"{name}_sbref", sub=sub, ses=ses)
    return Layout(f"seed {seed}", tuple(files), tuple(stems))


@pytest.mark.parametrize("seed", range(10))
def test_a_random_dataset_gives_each_run_once(seed, tmp_path):
    layout = random_layout(seed)
    runs = find_runs(layout.write(tmp_path), QuerySettings())
    assert sorted(run.stem for run in runs) == sorted(layout.runs)
    assert all(run.problem is None for run in runs)
    for run in runs:
        assert run.bold.name.startswith(run.stem)
        assert "_part-phase" not in run.bold.name
        assert run.t1w is None or run.t1w.name.startswith(f"sub-{run.participant}_")


@pytest.mark.parametrize("name", ["sub-01/func", "sub-01/ses-1", "sub-01"])
def test_an_unreadable_folder_is_named(name, tmp_path, monkeypatch):
    root = Layout("", func("task-rest_bold", ses="1") + REST).write(tmp_path)
    listing = os.scandir

    def scandir(path="."):
        if str(path) == str(root / name):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return listing(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(NoInputError, match=f"{name}: Permission denied") as caught:
        find_runs(root, QuerySettings(participants=("01",)))
    assert "permissions" in caught.value.hint
