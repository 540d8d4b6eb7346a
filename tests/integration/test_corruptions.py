"""Damaged files are named with an exit code as early as possible, and other runs are unaffected."""

from __future__ import annotations

import gzip
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest

from bids_app.bids.participants import read_ages
from bids_app.cli.neurostorm import main
from bids_app.errors import NeurostormError
from bids_app.preprocess.anatomical import UnusableT1w
from bids_app.preprocess.ingest.confounds import read_table
from bids_app.workflow import nodes as steps
from tests.helpers.images import noise
from tests.helpers.odd_files import ODD_FILES, make_deep, make_giant

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
SIDECAR = {"RepetitionTime": 2.0, "TaskName": "rest"}
HERE, LATER, WARNED, FINE = "by --check", "when voxels are read", "with a warning", "not at all"


def make_image(data: np.ndarray, affine: np.ndarray = AFFINE, kind: type = nib.Nifti1Image, **fields: Any) -> bytes:
    """Make the bytes of a NIfTI file; keywords set header fields without corrections by nibabel."""
    image = kind(data, affine, dtype=data.dtype)
    image.set_sform(affine, 1)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm", "sec")
    if data.ndim > 3:
        image.header["pixdim"][4] = 2.0
    content = bytearray(image.to_bytes())
    size = image.header.sizeof_hdr
    header = type(image.header)(bytes(content[:size]), check=False)
    for key, value in fields.items():
        header[key] = value
    content[:size] = header.binaryblock
    return bytes(content)


SERIES, VOLUME = noise(8, 8, 6, 30, dtype=np.int16), noise(8, 8, 6, dtype=np.int16)
PLAIN = make_image(SERIES)
PACKED, PACKED_T1W = gzip.compress(PLAIN, 1, mtime=0), gzip.compress(make_image(VOLUME), 1, mtime=0)


def packed(data: np.ndarray, affine: np.ndarray = AFFINE, **fields: Any) -> bytes:
    return gzip.compress(make_image(data, affine, **fields), 1)


def with_value(value: float, share: float = 0.0) -> np.ndarray:
    """Make the float32 series with another value in one voxel, or in a fraction of all voxels."""
    data = SERIES.astype(np.float32)
    data[4, 4, 3, 11] = value
    data[: round(share * len(data))] = value
    return data


def colour(shape: tuple[int, ...], channels: str) -> np.ndarray:
    return np.zeros(shape, [(channel, np.uint8) for channel in channels])


def sheared() -> np.ndarray:
    affine = AFFINE.copy()
    affine[1] = affine[0]
    return affine


def bomb() -> bytes:
    """Make a small file with a valid header that decompresses to 60 MB."""
    target = io.BytesIO()
    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1) as file:
        file.write(PLAIN)
        for _ in range(60):
            file.write(bytes(2**20))
    return target.getvalue()


def extension_bomb() -> bytes:
    """Make a file of 200 kB whose header has an extension of 40 MB."""
    size = 40 * 2**20
    image = nib.Nifti1Image(SERIES, AFFINE)
    header = bytearray(make_image(SERIES, vox_offset=352 + size)[: image.header.sizeof_hdr])
    target = io.BytesIO()
    with gzip.GzipFile(fileobj=target, mode="wb", compresslevel=1) as file:
        file.write(bytes(header) + b"\1\0\0\0" + size.to_bytes(4, "little") + (6).to_bytes(4, "little"))
        for _ in range(40):
            file.write(bytes(2**20))
    return target.getvalue()


def huge_nifti2() -> bytes:
    dim = [4, 2**20, 2**20, 2**20, 40, 1, 1, 1]
    return gzip.compress(make_image(SERIES, kind=nib.Nifti2Image, dim=dim))


@dataclass(frozen=True)
class Damage:
    """Damage to participant 01 and the expected error.

    Attributes
    ----------
    bold, t1w : bytes or None
        Content of the file in place of a sound one; there is no T1w image unless one is given.
    sidecar, events : bytes, dict or None
    name : str
        The BOLD file's, without participant and task.
    """

    seen: str
    words: str
    bold: bytes | None = None
    t1w: bytes | None = None
    sidecar: bytes | dict[str, Any] | None = None
    events: bytes | None = None
    name: str = "bold.nii.gz"
    code: int = 65
    file: str = "sub-01"


def sidecar(seen: str, words: str, **fields: Any) -> Damage:
    return Damage(seen, words, sidecar=SIDECAR | fields)


def bold(seen: str, words: str, content: bytes, **others: Any) -> Damage:
    return Damage(seen, words, bold=content, file="sub-01_task-rest_bold.nii", **others)


def t1w(seen: str, words: str, content: bytes) -> Damage:
    return Damage(seen, words, t1w=content, file="sub-01_T1w.nii.gz")


DAMAGES: dict[str, Damage] = {
    # the file
    "no bytes": bold(HERE, "unreadable", b""),
    "one byte": bold(HERE, "unreadable", PACKED[:1]),
    "cut in the gzip header": bold(HERE, "unreadable", PACKED[:8]),
    "cut in the NIfTI header": bold(HERE, "unreadable", PACKED[:60]),
    "cut in the middle": bold(HERE, "truncated", PACKED[: len(PACKED) // 2]),
    "cut before the checksum": bold(HERE, "truncated", PACKED[:-8]),
    "cut by a byte": bold(HERE, "truncated", PACKED[:-1]),
    "wrong checksum": bold(LATER, "CRC", PACKED[:-8] + bytes(4) + PACKED[-4:]),
    "a damaged block": bold(HERE, "unreadable", PACKED[:8_000] + b"\xff" * 64 + PACKED[8_064:]),
    "another file behind it": bold(HERE, "unreadable", PACKED + b"<html>"),
    "wrong gzip magic": bold(HERE, "unreadable", b"PK" + PACKED[2:]),
    "not compressed in spite of its name": bold(HERE, "unreadable", PLAIN),
    "compressed in spite of its name": bold(HERE, "unreadable", PACKED, name="bold.nii"),
    "a page of HTML": bold(HERE, "unreadable", b"<html>403 Forbidden</html>"),
    "text that is compressed": bold(HERE, "unreadable", gzip.compress(b"hello " * 200)),
    "wrong NIfTI magic": bold(HERE, "unreadable", packed(SERIES, magic=b"xyz")),
    "wrong size of the header": bold(FINE, "", packed(SERIES, sizeof_hdr=1)),
    "half the volumes in a sound gzip": bold(HERE, "truncated", gzip.compress(PLAIN[: len(PLAIN) // 2])),
    "half the volumes, uncompressed": bold(HERE, "truncated", PLAIN[: len(PLAIN) // 2], name="bold.nii"),
    "a gzip bomb": bold(LATER, "more than", bomb()),
    "an extension of 40 MB": bold(HERE, "bytes before the first voxel", extension_bomb()),
    # shapes
    "three axes": bold(HERE, "3D instead of 4D", packed(VOLUME)),
    "two axes": bold(HERE, "2D instead of 4D", packed(VOLUME[..., 0])),
    "five axes": bold(HERE, "5D instead of 4D", packed(noise(8, 8, 6, 30, 2, dtype=np.int16))),
    "a fifth axis of one": bold(FINE, "", packed(noise(8, 8, 6, 30, 1, dtype=np.int16))),
    **{f"{n} volumes": bold(HERE, f"{n} volumes, too few", packed(SERIES[..., :n])) for n in (2, 10, 19)},
    "one volume in four axes": bold(HERE, "too few|3D", packed(SERIES[..., :1])),
    "flat": bold(HERE, "too few for a brain", packed(noise(8, 8, 2, 30, dtype=np.int16))),
    "huge claims in a small file": bold(HERE, "truncated", packed(SERIES, dim=[4, 32767, 32767, 32767, 300, 1, 1, 1])),
    "claims beyond any integer": bold(HERE, "truncated", huge_nifti2()),
    "a negative axis": bold(HERE, "too few for a brain", packed(SERIES, dim=[4, -8, 8, 6, 30, 1, 1, 1])),
    "an axis of nothing": bold(HERE, "truncated|too few for a brain", packed(SERIES, dim=[4, 8, 0, 6, 30, 1, 1, 1])),
    "nine axes": bold(HERE, "unreadable|instead of 4D", packed(SERIES, dim=[9, 8, 8, 6, 30, 1, 1, 1])),
    # where voxels lie
    "voxels of no size": bold(HERE, "voxel size", packed(SERIES, pixdim=[1, 0, 4, 4, 2, 0, 0, 0])),
    "voxels of negative size": bold(FINE, "", packed(SERIES, pixdim=[1, -4, 4, 4, 2, 0, 0, 0])),
    "voxels whose size is no number": bold(HERE, "voxel size", packed(SERIES, pixdim=[1, np.nan, 4, 4, 2, 0, 0, 0])),
    "voxels in metres": bold(HERE, "range of human scans", packed(SERIES, np.diag([0.004, 0.004, 0.004, 1]))),
    "voxels of 5 cm": bold(HERE, "range of human scans", packed(SERIES, np.diag([50.0, 50, 50, 1]))),
    "no orientation": bold(HERE, "orientation is unknown", packed(SERIES, sform_code=0, qform_code=0)),
    "singular affine": bold(HERE, "singular", packed(SERIES, srow_y=AFFINE[0])),
    "affine of nothing": bold(HERE, "singular", packed(SERIES, srow_x=[0] * 4, srow_y=[0] * 4, srow_z=[0] * 4)),
    "affine that is no number": bold(HERE, "singular", packed(SERIES, srow_x=[np.nan, 0, 0, 0])),
    "affines that disagree about the side": bold(HERE, "left and right", packed(SERIES, srow_x=[-4, 0, 0, 0])),
    "affines 30 mm apart": bold(WARNED, "differ by up to 30 mm", packed(SERIES, srow_x=[4, 0, 0, 30])),
    # values
    "a voxel that is no number": bold(LATER, "NaN", packed(with_value(np.nan))),
    "a voxel of infinity": bold(LATER, "infinite", packed(with_value(np.inf))),
    "nothing but NaN": bold(LATER, "NaN", packed(with_value(np.nan, share=1))),
    "beyond single precision": bold(LATER, "infinite", packed(SERIES.astype(np.float64) * 1e300)),
    "one value throughout": bold(LATER, "each volume is constant", packed(np.full_like(SERIES, 7))),
    "zeros": bold(LATER, "each volume is constant", packed(np.zeros_like(SERIES))),
    "the same volume again and again": bold(LATER, "constant", packed(SERIES[..., :1].repeat(30, axis=3))),
    "empty volumes": bold(LATER, "5 of 30 volumes are empty", packed(SERIES * (np.arange(30) < 25).astype(np.int16))),
    "a scale that is no number": bold(FINE, "", packed(SERIES, scl_slope=np.nan, scl_inter=0)),
    "an offset that is no number": bold(HERE, "unreadable", packed(SERIES, scl_slope=1, scl_inter=np.nan)),
    "a unit that does not exist": bold(FINE, "", packed(SERIES, xyzt_units=12)),
    "64 bits without sign": bold(FINE, "", packed(SERIES.astype(np.uint64))),
    "complex": bold(HERE, "colour or complex", packed(SERIES.astype(np.complex64))),
    "RGB": bold(HERE, "colour or complex", packed(colour(SERIES.shape, "RGB"))),
    "RGBA": bold(HERE, "colour or complex", packed(colour(SERIES.shape, "RGBA"))),
    "a type that does not exist": bold(HERE, "unreadable", packed(SERIES, datatype=999)),
    "data in the header": bold(HERE, "unreadable", packed(SERIES, vox_offset=20)),
    "data beyond the end": bold(HERE, "truncated", packed(SERIES, vox_offset=90_000)),
    # the sidecar
    **{
        f"repetition time {tr!r}": sidecar(HERE, "RepetitionTime is", RepetitionTime=tr)
        for tr in ("two", [2.0], {"s": 2}, True, 0, -2, 2000, 0.01, float("nan"), float("inf"), 10**400)
    },
    "repetition time unlike the header's": sidecar(WARNED, "2.5 s in the sidecar, but 2 s", RepetitionTime=2.5),
    "no repetition time": Damage(WARNED, "RepetitionTime is missing", sidecar={}),
    "two kinds of time": sidecar(HERE, "mutually exclusive", VolumeTiming=list(range(30))),
    "times of volumes as text": Damage(HERE, "VolumeTiming", sidecar={"VolumeTiming": ["a"] * 30}),
    "times of volumes in lists": Damage(HERE, "VolumeTiming", sidecar={"VolumeTiming": [[1], [2, 3]]}),
    "times of too few volumes": Damage(HERE, "VolumeTiming", sidecar={"VolumeTiming": [0, 2, 4]}),
    "times that go back": Damage(HERE, "not evenly", sidecar={"VolumeTiming": list(range(30, 0, -1))}),
    "too few slice times": sidecar(WARNED, "3 times for 6 slices", SliceTiming=[0, 0.5, 1]),
    "slice times in milliseconds": sidecar(WARNED, "contradict", SliceTiming=[0, 300, 600, 900, 1200, 1500]),
    "slice times as text": sidecar(WARNED, "SliceTiming", SliceTiming=["0", "a", "b", "c", "d", "e"]),
    "slice times that are too large": sidecar(WARNED, "SliceTiming", SliceTiming=[0, 1, 1, 1, 1, 10**400]),
    "negative slice times": sidecar(WARNED, "SliceTiming", SliceTiming=[0, -1, 1, 1, 1, 1]),
    "an unknown slice direction": sidecar(
        WARNED, "SliceEncodingDirection", SliceTiming=[0, 1, 0, 1, 0, 1], SliceEncodingDirection="up"
    ),
    "odd types where nothing hangs on them": sidecar(
        FINE, "", EchoTime=[], TaskName={}, PhaseEncodingDirection=3, B0FieldSource=7, IntendedFor=5, FlipAngle="x"
    ),
    "a sidecar that is a list": Damage(HERE, "JSON list", sidecar=b"[1]"),
    "a sidecar that is cut": Damage(HERE, "not valid JSON", sidecar=b'{"RepetitionTime": 2'),
    "an empty sidecar": Damage(HERE, "not valid JSON", sidecar=b""),
    "a sidecar in Latin-1": Damage(HERE, "not UTF-8", sidecar='{"TaskName": "Größe"}'.encode("latin-1")),
    "a sidecar in UTF-16": Damage(HERE, "not UTF-8", sidecar='{"TaskName": "rest"}'.encode("utf-16")),
    "a sidecar nested too deeply": Damage(HERE, "nested", sidecar=b"[" * 100_000),
    # tables
    "events without onsets": Damage(HERE, "onset", events=b"time\tduration\n1\t2\n"),
    "events that are text": Damage(HERE, "not a valid events table", events=b"onset\tduration\nsoon\t2\n"),
    "events with too few columns": Damage(HERE, "not a valid events table", events=b"duration\tonset\n1\n"),
    "events with too many columns": Damage(FINE, "", events=b"onset\tduration\n1\t2\t3\t4\n"),
    "events that are no text": Damage(HERE, "not UTF-8", events=b"onset\n\xff\xfe\x00"),
    "events after the end": Damage(FINE, "", events=b"onset\tduration\n1000\t2\n"),
    # the T1w image: left out with a warning, or an error if it is required
    "T1w without bytes": t1w(WARNED, "unreadable", b""),
    "T1w cut in the middle": t1w(WARNED, "truncated", PACKED_T1W[: len(PACKED_T1W) // 2]),
    "T1w of zeros": t1w(LATER, "all voxels are 0", packed(np.zeros_like(VOLUME))),
    "T1w in four axes": t1w(WARNED, "instead of three axes", PACKED),
    "T1w in colour": t1w(WARNED, "colour or complex", packed(colour(VOLUME.shape, "RGB"))),
    "T1w of unknown orientation": t1w(WARNED, "left and right", packed(VOLUME, sform_code=0, qform_code=0)),
    "T1w with huge claims": t1w(WARNED, "truncated", packed(VOLUME, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])),
    "T1w that is mostly NaN": t1w(LATER, "NaN", packed(np.full(VOLUME.shape, np.nan, np.float32))),
}  # fmt: skip


class Dataset:
    """Dataset of two participants; the first is damaged."""

    def __init__(self, root: Path, damage: Damage) -> None:
        self.root, self.damage = root, damage
        self.put("dataset_description.json", b'{"Name": "damaged", "BIDSVersion": "1.10.0"}')
        self.bold = self.put(
            f"sub-01/func/sub-01_task-rest_{damage.name}", PACKED if damage.bold is None else damage.bold
        )
        self.put("sub-02/func/sub-02_task-rest_bold.nii.gz", PACKED)
        self.put("sub-02/func/sub-02_task-rest_bold.json", json.dumps(SIDECAR).encode())
        content = SIDECAR if damage.sidecar is None else damage.sidecar
        self.put(
            "sub-01/func/sub-01_task-rest_bold.json",
            content if isinstance(content, bytes) else json.dumps(content).encode(),
        )
        if damage.events is not None:
            self.put("sub-01/func/sub-01_task-rest_events.tsv", damage.events)
        self.t1w = None if damage.t1w is None else self.put("sub-01/anat/sub-01_T1w.nii.gz", damage.t1w)

    def put(self, name: str, content: bytes) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    def read(self, out_dir: Path) -> None:
        """Read everything of participant 01, as the first steps of a run do."""
        out_dir.mkdir()
        events = self.root / "sub-01/func/sub-01_task-rest_events.tsv"
        metadata = SIDECAR if self.damage.sidecar is None else self.damage.sidecar
        assert isinstance(metadata, dict)
        steps.examine(self.bold, metadata, events if events.exists() else None, 0, (), "", out_dir)
        if self.t1w:
            required = self.damage.seen == LATER
            found = steps.prepare_anatomy(self.t1w, (), 1, 1, required, "", out_dir)
            assert isinstance(found, UnusableT1w)
            assert re.search(self.damage.words, found.reason)


@pytest.fixture
def check(tmp_path: Path, capsys) -> Callable[[Path], tuple[int, str, str]]:
    """Run --check on a dataset; return the exit code and the output about the two participants."""

    def run(root: Path) -> tuple[int, str, str]:
        code = main([str(root), str(tmp_path / "out"), "participant", "--check", "--model", "demo", "--mem", "8GB"])
        text = capsys.readouterr().out
        assert "Traceback" not in text
        of_the_runs = text[text.index("participants:") :]
        if "ok    2 runs (sub-01_task-rest, sub-02_task-rest)" in of_the_runs:
            return code, of_the_runs, "ok "
        return code, *re.split(r"^(?=\S{2,4} +sub-02)", of_the_runs, maxsplit=1, flags=re.MULTILINE)

    return run


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damage_is_named_at_the_earliest_stage(tmp_path: Path, check, damage: Damage) -> None:
    dataset = Dataset(tmp_path / "raw", damage)
    code, said, of_the_other = check(dataset.root)
    assert of_the_other.startswith("ok ")
    if damage.seen == HERE:
        assert code == damage.code, said
        assert "FAIL" in said
        assert damage.file in said
        assert re.search(damage.words, said), said
        return
    assert code == 0, said
    assert re.search(damage.words, said) or damage.seen != WARNED, said
    if damage.seen != LATER:
        dataset.read(tmp_path / "scratch")
        return
    with pytest.raises(NeurostormError, match=damage.words) as caught:
        dataset.read(tmp_path / "scratch")
    assert damage.file in caught.value.message
    assert caught.value.exit_code == damage.code
    assert len(caught.value.hint) > 15


FUNC, ANAT = "sub-01/func/sub-01_task-rest", "sub-01/anat/sub-01"
KINDS = ODD_FILES | {"giant JSON": (make_giant, "too large"), "deep JSON": (make_deep, "nested too deeply")}
ODD: dict[str, tuple[str, str]] = {
    "a pipe instead of the run": (f"{FUNC}_bold.nii.gz", "a pipe"),
    "a device instead of the run": (f"{FUNC}_bold.nii.gz", "a device"),
    "a socket instead of the T1w image": (f"{ANAT}_T1w.nii.gz", "a socket"),
    "a pipe instead of the sidecar": (f"{FUNC}_bold.json", "a pipe"),
    "a folder instead of the sidecar": (f"{FUNC}_bold.json", "a folder"),
    "a sidecar of 33 million numbers": (f"{FUNC}_bold.json", "giant JSON"),
    "a sidecar of 900 levels": (f"{FUNC}_bold.json", "deep JSON"),
    "events in a loop of links": (f"{FUNC}_events.tsv", "a loop of links"),
    "a device instead of events": (f"{FUNC}_events.tsv", "a device"),
}
"""File and kind of each odd file."""


@pytest.mark.parametrize(("name", "kind"), ODD.values(), ids=ODD)
def test_an_odd_file_fails_its_own_participant_only(tmp_path: Path, check, name: str, kind: str) -> None:
    dataset = Dataset(tmp_path / "raw", Damage(HERE, ""))
    path, (make, words) = dataset.root / name, KINDS[kind]
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    make(path)
    code, said, of_the_other = check(dataset.root)
    assert of_the_other.startswith("ok ")
    assert code == (65 if "JSON" in kind else 66)
    assert "FAIL" in said
    assert re.search(rf"sub-01_\S+: {words}|{words}", said), said
    assert str(path.with_suffix("").with_suffix("")) in said or "loop" in kind


def test_odd_fieldmaps_and_repeats_are_left_out_by_name(tmp_path: Path, check) -> None:
    dataset = Dataset(tmp_path / "raw", Damage(HERE, ""))
    for run in ("1", "2"):
        dataset.put(f"{ANAT}_run-{run}_T1w.nii.gz", PACKED_T1W)
    (dataset.root / f"{ANAT}_run-2_T1w.nii.gz").unlink()
    ODD_FILES["a pipe"][0](dataset.root / f"{ANAT}_run-2_T1w.nii.gz")
    dataset.put("sub-01/fmap/sub-01_dir-AP_epi.json", b"{}")
    ODD_FILES["a device"][0](dataset.root / "sub-01/fmap/sub-01_dir-AP_epi.nii.gz")
    code, said, _ = check(dataset.root)
    assert code == 0
    assert re.search(r"run-2_T1w.nii.gz was not averaged with sub-01_run-1_T1w.nii.gz: \S+ is a named pipe", said)
    assert re.search(r"epi.nii.gz was not used: \S+ is a device", said)


def test_a_file_that_disappears_after_the_query_fails_its_step_only(tmp_path: Path) -> None:
    from bids_app.workflow.graph import file_stamp

    assert file_stamp(tmp_path / "gone.nii.gz").endswith("missing")


def test_at_least_sixty_kinds_of_damage_are_refused() -> None:
    assert sum(damage.seen in (HERE, LATER) for damage in DAMAGES.values()) >= 60


def test_decompression_is_limited_to_the_size_in_the_header(tmp_path: Path, monkeypatch) -> None:
    from bids_app.preprocess.io import images

    written: list[int] = []
    copy = images._copy

    def copy_and_tell(*arguments: Any) -> int:
        written.append(copy(*arguments))
        return written[-1]

    monkeypatch.setattr(images, "_copy", copy_and_tell)
    dataset = Dataset(tmp_path / "raw", DAMAGES["a gzip bomb"])
    with pytest.raises(NeurostormError):
        dataset.read(tmp_path / "scratch")
    assert written == [len(PLAIN)]
    assert not list((tmp_path / "scratch").iterdir())


TABLES = {
    "rows with too many columns": b"a\tb\n1\t2\t3\n1\t2\n",
    "rows with too few columns": b"a\tb\n1\n1\t2\n",
    "a head and nothing else": b"a\tb\n",
    "nothing": b"",
    "the same column twice": b"a\ta\n1\t2\n",
    "commas": b"a,b\n1,2\n",
    "bytes that are no text": b"a\tb\n\xff\xfe\t\x00\n",
    "text where numbers belong": b"framewise_displacement\nmuch\nlittle\n",
    "a quote that does not end": b'a\tb\n"1\t2\n',
}


@pytest.mark.parametrize("content", TABLES.values(), ids=TABLES)
def test_damaged_tables_are_refused_by_name_or_left_out(tmp_path: Path, content: bytes) -> None:
    table = tmp_path / "sub-01_desc-confounds_timeseries.tsv"
    table.write_bytes(content)
    (tmp_path / "participants.tsv").write_bytes(content)
    assert read_ages([tmp_path]) == {}
    try:
        said = read_table(table, None, 30, "sub-01_bold.nii.gz").warnings
    except NeurostormError as error:
        said = (error.message,)
    assert table.name in said[0]
