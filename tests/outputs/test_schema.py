"""Sidecars are written and read with one schema; nothing is lost, and invalid values are named."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import pytest

import bids_app
from bids_app.bids.orientation import LeftRight, Orientation
from bids_app.errors import BadDataError
from bids_app.outputs import schema
from bids_app.outputs.functional import describe_parameters
from bids_app.preprocess.preprocessed import Origin

GOLDEN = Path(__file__).parents[1] / "golden" / "sidecars"
"""Sidecars written before the schema existed."""
KINDS = {
    "desc-quality_metrics": schema.QualitySidecar,
    "embeddings": schema.EmbeddingsSidecar,
    "predictions": schema.PredictionSidecar,
    "attribution": schema.AttributionSidecar,
    "boldmap": schema.AttributionSidecar,
    "timeseries": schema.DataDictionary,
    "boldref": schema.BoldrefSidecar,
    "preproc_bold": schema.BoldSidecar,
    "mask": schema.MaskSidecar,
    "T1w": schema.T1wSidecar,
    "summary": schema.Summary,
}

STAMP = schema.FileStamp(size=2, sha256="0" * 64)
SOURCES = ("bids:raw:sub-01/func/sub-01_bold.nii.gz",)
MODEL = {"sources": SOURCES, "model": "demo", "weights_sha256": "0" * 64, "demonstration": True, "device": "cpu",
         "scan_backend": "native", "threads": 2, "template": "MNI152NLin6Asym", "slice_timing_corrected": True,
         "start_time": 0.5}  # fmt: skip
COLUMNS = {"onset": {"Units": "s"}}
CHECKS = tuple(
    schema.CheckRecord(
        name=f"check {level}", level=level, value=value, limits="at least 1", message="It is small.", reference="x"
    )
    for level, value in (("pass", 2.0), ("warn", "words"), ("refuse", None))
)
VERDICT = schema.VerdictRecord(level="refuse", checks=CHECKS, not_known={"age": "No age is known."})
LABEL = schema.View(normalisation="global", answer="rest", probabilities={"rest": 0.75, "visual": 0.25})
VALUE = schema.View(answer="27 years", value=27.0)
CORRECTION = schema.DistortionCorrection(
    method="a fieldmap", phase_encoding="j-", fieldmap=schema.MeasuredField(readout_s=None, files=("epi.nii.gz",))
)
INTERVAL = schema.PromisedInterval(interval=(20.5, 30.0))
SETS = schema.PromisedLabels(label_set=("rest",), by_class=None)


def uncertainty(promise: schema.PromisedInterval | schema.PromisedLabels | None) -> schema.Uncertainty:
    return schema.Uncertainty(
        effective_clips=4.5, standard_error=0.1, level=0.9, promise=promise, method="none", scans=0, source=""
    )


def reliability(promise: schema.PromisedInterval | schema.PromisedLabels | None) -> schema.Reliability:
    return schema.Reliability(
        agreement=0.8,
        uncertainty=uncertainty(promise),
        views=schema.Views(normalisation="voxel", own=LABEL, other=None, mean_image_only=VALUE, note="Why."),
        split_half=schema.Halves(odd=LABEL, even=VALUE, difference=0.25),
    )


ADAPTER = schema.AdapterFacts(
    name="state", task="classification", target="state", labels=("rest", "visual"), unit="", normalisation="voxel",
    strategy="linear", encoder_sha256="0" * 64, cohort={"scans": 4}, ranges={"age": [20, 30]}, calibration={},
    metrics={"accuracy": 0.9}, intended_use="Research.", limits="Few scans.", licence="CC0", demonstration=True,
    research_only=False,
)  # fmt: skip
OUTCOME = schema.RunOutcome(
    stem="sub-01", status="failed", step="examine", reason="It ends early.", hint="Copy it again.", exit_code=65,
    steps={"examine": {"seconds": 1.5, "peak_rss_mb": 200}}, outputs=("sub-01/x.tsv",), inputs={"bids:raw:x": "0"},
)  # fmt: skip
REGIONS = {"sources": SOURCES, "atlas": "AAL3", "atlas_sha256": "0" * 64, "atlas_is_known_copy": False,
           "space": "MNI152NLin6Asym", "resolution": "2 mm", "min_coverage": 0.5,
           "regions_without_series": ("a",)}  # fmt: skip
EXAMPLES: list[schema.Record] = [
    *CHECKS, VERDICT, LABEL, VALUE, schema.View(cosine=0.5), CORRECTION, schema.MeasuredField(readout_s=0.05), INTERVAL,
    SETS, uncertainty(None), uncertainty(SETS), uncertainty(INTERVAL), reliability(SETS), reliability(None), ADAPTER,
    OUTCOME,
    schema.Views(normalisation="voxel", other=LABEL, from_mean_image=0.5),
    schema.Halves(odd=LABEL, even=LABEL, difference=0.0),
    schema.HalfCorrelation(correlation=0.5, spearman_brown=0.75, clips=(3, 2)),
    schema.DataDictionary(columns=COLUMNS),
    schema.Sidecar(sources=SOURCES),
    schema.MaskSidecar(sources=SOURCES, kind="Brain", raw_sources=SOURCES, resolution="2 mm"),
    schema.BoldrefSidecar(sources=SOURCES, description="A median."),
    schema.T2starSidecar(units="s", raw_sources=SOURCES),
    schema.T1wSidecar(sources=SOURCES, skull_stripped=False, description="Without bias."),
    schema.TransformSidecar(description="A field.", distortion_corrected=True, distortion_correction=CORRECTION),
    schema.BoldSidecar(repetition_time=2.0, skull_stripped=False, task="rest", n_volumes=100, start_time=0.5),
    schema.DenoisedSidecar(task="rest", strategy="simple", software="x", confounds=("csf",), left_out=(3,)),
    schema.ImageSidecar(spatial_reference="bids::x", template="y"),
    schema.Parameters(random_seed=1, left_right=LeftRight.FLIPPED, left_right_in_words="perhaps", threads=1),
    schema.QualitySidecar(
        route="t1w", template="x", quality={"tsnr": 50.0, "fber": None}, warnings=("It moved.",), notes=(),
        parameters=schema.Parameters(distortion_corrected=True, distortion_correction=CORRECTION), columns=COLUMNS,
    ),
    schema.ModelSidecar(**MODEL),
    schema.ReconstructionRecord(error=0.5, dynamics=1.2, clips=(0, 4), mask="50%", reason="none"),
    schema.EmbeddingsSidecar(
        **MODEL, verdict=VERDICT, columns=COLUMNS, seconds_dropped=8.0, model_card={"Model": "demo"},
        split_half={"global": None, "voxel": schema.HalfCorrelation(correlation=0.5, clips=(3, 2))},
        reconstruction=schema.ReconstructionRecord(reason="No decoder."),
    ),
    schema.PredictionSidecar(
        **MODEL, adapter=ADAPTER, verdict=VERDICT, columns={"verdict": {"Levels": {}}}, disclaimer="Research."
    ),
    schema.PredictionSidecar(**MODEL, adapter=ADAPTER, reliability=reliability(INTERVAL)),
    schema.AttributionSidecar(
        **MODEL, atlas="AAL3", atlas_is_known_copy=True, method="occlusion", measure="log-odds", answer="rest",
        clips=(0, 5), regions_without_token=3, unresolved_regions=("a",), control="permuted",
        control_in_words="Heads.", control_heads=9, control_correlation=0.1, control_correlation_of_sizes=0.8,
        columns=COLUMNS, disclaimer="Research.",
    ),
    schema.RegionSidecar(**REGIONS),
    schema.CoverageSidecar(**REGIONS, warnings=("Too few volumes.",), columns=COLUMNS),
    schema.TimeseriesSidecar(
        **REGIONS, statistic="mean", sampling_frequency=0.5, repetition_time=2.0, start_time=4.0, n_volumes=38,
        left_out=(0, 1), left_out_in_words="Dummies.", denoised=True, strategy="simple", software="nilearn 0.14",
        confounds=("csf",), columns=COLUMNS,
    ),
    schema.RelmatSidecar(
        **REGIONS, measure="Pearson correlation", measure_in_words="Of series.", weighted=True, directed=False,
        non_negative=False, valid_diagonal=True, storage_format="Full", n_volumes=38, denoised=True,
        strategy="simple", columns=COLUMNS,
    ),
    schema.Summary(
        run_id="x", status="failed", seconds=1.5, command=("neurostorm",), versions={"a": "1"}, runs=(OUTCOME,)
    ),
    STAMP,
    schema.Manifest(
        run_id="x", published="2026-01-01", configuration="0123abcd", options={"version": "1"}, source="y",
        complete=True, files={"sub-01/func/a.json": STAMP}, earlier={"sub-01/func/b.json": STAMP},
    ),
]  # fmt: skip


def text_of(record: schema.Record) -> str:
    return json.dumps(record.to_json(), indent=2, ensure_ascii=False) + "\n"


@pytest.mark.parametrize("record", EXAMPLES, ids=lambda record: type(record).__name__)
def test_records_are_read_back_unchanged(record: schema.Record) -> None:
    assert type(record).from_json(json.loads(text_of(record))) == record


def test_every_record_has_an_example() -> None:
    types = {kind for name in schema.__all__ if isinstance(kind := getattr(schema, name), type)}
    kinds = {kind for kind in types if issubclass(kind, schema.Record)}
    assert kinds - {type(record) for record in EXAMPLES} == {schema.Record}


@pytest.mark.parametrize("path", sorted(GOLDEN.iterdir()), ids=lambda path: path.stem)
def test_sidecars_are_unchanged_byte_for_byte(path: Path) -> None:
    kind = next(kind for ending, kind in KINDS.items() if path.stem.endswith(ending))
    assert text_of(kind.read(path)) == path.read_text()


@pytest.mark.parametrize("kind", dict.fromkeys(KINDS.values()), ids=lambda kind: kind.__name__)
def test_an_early_file_without_all_keys_is_readable(kind: type[schema.Record]) -> None:
    found = kind.from_json({"SomethingNew": 1})
    missing = [field.name for field in fields(found) if getattr(found, field.name) is None]
    assert missing or kind is schema.DataDictionary


def test_early_embeddings_have_one_split_half_number() -> None:
    found = schema.EmbeddingsSidecar.from_json({"SplitHalf": {"global": 0.98}})
    assert found.split_half == {"global": schema.HalfCorrelation(spearman_brown=0.98)}


@pytest.mark.parametrize(
    ("kind", "content", "message"),
    [
        (schema.PredictionSidecar, [], "x.json: The content is not an object"),
        (schema.PredictionSidecar, {"Verdict": {"Level": "perhaps"}}, "Verdict.Level is none of pass, warn, refuse"),
        (schema.PredictionSidecar, {"Verdict": {"Level": []}}, "Verdict.Level is none of pass, warn, refuse"),
        (schema.PredictionSidecar, {"Verdict": {}}, "Verdict.Level is missing"),
        (
            schema.PredictionSidecar,
            {"Verdict": {"Level": "warn", "Checks": [{"Check": "tr", "Level": "pass"}, 1]}},
            "Verdict.Checks.1 is not an object",
        ),
        (schema.PredictionSidecar, {"Uncertainty": {"Interval": [1]}}, "Uncertainty.Interval is not a pair of numbers"),
        (schema.PredictionSidecar, {"Demonstration": "no"}, "Demonstration is neither true nor false"),
        (schema.EmbeddingsSidecar, {"SplitHalf": {"voxel": "high"}}, "SplitHalf.voxel is not an object"),
        (schema.QualitySidecar, {"parameters": {"LeftRight": "left"}}, "parameters.LeftRight is none of as stored"),
        (schema.Summary, {"runs": "x"}, "runs is not a list"),
        (schema.Summary, {"exit_code": True}, "exit_code is not a whole number"),
    ],
)
def test_the_error_of_an_invalid_file_names_its_key(tmp_path: Path, kind, content, message: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(json.dumps(content))
    with pytest.raises(BadDataError, match=r"x\.json") as caught:
        kind.read(path)
    assert message in caught.value.message


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in (b'{"Model": ', b"\xff", b""):
        path.write_bytes(content)
        with pytest.raises(BadDataError, match=r"x\.json: not a valid JSON file"):
            schema.ModelSidecar.read(path)


def test_orientation_is_written_as_text_and_as_a_value() -> None:
    run = SimpleNamespace(
        seed=None,
        route="derivatives",
        template="MNI152NLin6Asym",
        space="MNI152NLin6Asym",
        orientation=Orientation(LeftRight.AS_STORED, ("T1w", "boldref")),
        origin=Origin("fMRIPrep", "the model's own space", slice_timing_corrected=True),
    )
    written = describe_parameters(run, 1).to_json()
    assert written["LeftAndRight"] == "as in the participant's own T1w and boldref"
    assert written["LeftRight"] == "as stored"
    assert "RandomSeed" not in written


def test_the_schema_needs_the_standard_library_only() -> None:
    heavy = "{'torch', 'numpy', 'nibabel', 'pandas'}"
    code = f"import sys, bids_app.outputs.schema; sys.exit(bool({heavy} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def keys_of(kind: type[schema.Record]) -> set[str]:
    return {field.metadata["key"] for field in fields(kind) if "key" in field.metadata}


def test_sidecar_keys_are_used_in_the_schema_only() -> None:
    kinds = [kind for name in schema.__all__ if isinstance(kind := getattr(schema, name), type)]
    ours = {key for kind in kinds for key in keys_of(kind) if key[0].isupper()}
    package = Path(bids_app.__file__).parent
    found = []
    for room in ("outputs", "reports", "group", "workflow"):
        for path in (package / room).rglob("*.py"):
            if path.parent.name != "schema":
                found += [f"{path.name}: {key}" for key in keys_read(ast.parse(path.read_text())) if key in ours]
    assert found == []


def keys_read(tree: ast.AST) -> list[str]:
    """Strings used as keys: ``x["Key"]`` and ``x.get("Key")``."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Load):
            found.append(node.slice)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            found += node.args[:1]
    return [key.value for key in found if isinstance(key, ast.Constant) and isinstance(key.value, str)]
