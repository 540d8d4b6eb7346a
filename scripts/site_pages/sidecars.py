"""Keys of the JSON files, from the dataclasses of ``bids_app/outputs/schema``."""

from __future__ import annotations

import ast
import inspect
import sys
import types
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path

from bids_app.outputs import schema
from bids_app.outputs.schema.record import Record
from site_pages.markdown import code, escape, sentence, table

FILES: dict[type[Record], str] = {
    schema.BoldSidecar: "`*_desc-preproc_bold.json`",
    schema.DenoisedSidecar: "`*_desc-denoised_bold.json`",
    schema.BoldrefSidecar: "`*_boldref.json`",
    schema.MaskSidecar: "`*_desc-brain_mask.json`",
    schema.T1wSidecar: "`*_desc-preproc_T1w.json`",
    schema.T2starSidecar: "`*_T2starmap.json`",
    schema.TransformSidecar: "`*_xfm.json`",
    schema.QualitySidecar: "`*_desc-quality_metrics.json`",
    schema.EmbeddingsSidecar: "`*_embeddings.json`",
    schema.PredictionSidecar: "`*_predictions.json`, `*_vectors.json`",
    schema.AttributionSidecar: "`*_attribution.json`, `*_boldmap.json`",
    schema.TimeseriesSidecar: "`*_stat-mean_timeseries.json`",
    schema.RelmatSidecar: "`*_stat-pearsoncorrelation_relmat.json`",
    schema.CoverageSidecar: "`*_stat-coverage_bold.json`",
}
"""Sidecars, in the order of the page; data dictionaries without other keys are left out."""
KEYS = Path(__file__).with_name("keys.yml")
JSON_TYPES = {str: "text", bool: "true or false", int: "integer", float: "number", dict: "object", tuple: "list"}


def describe_sidecars() -> str:
    """Describe the keys of all sidecars, then those of the objects in them."""
    return _describe(FILES)


def describe_summary() -> str:
    """Describe the keys of ``summary.json``."""
    return _describe({schema.Summary: "`sub-*/log/*/summary.json`"})


def describe_manifest() -> str:
    """Describe the keys of a manifest."""
    return _describe({schema.Manifest: "`sub-*/log/manifests/*.json`"})


def _describe(files: dict[type[Record], str]) -> str:
    nested = list(dict.fromkeys(kind for each in files for kind in _all_nested(each) if kind not in files))
    parts = []
    for kind in [*files, *nested]:
        heading = files.get(kind) or f"Object: {_name(kind)}"
        parts += [
            f"### {heading}",
            escape(sentence(kind.__doc__ or "")),
            table(["key", "type", "meaning"], {row[0]: row for row in _rows(kind)}.values()),
        ]
    return "\n\n".join(parts)


def keys_of(kind: type[Record]) -> dict[str, str]:
    """Return the JSON keys of a record with their meaning; those of inlined records are included."""
    return {row[0].strip("`"): row[2] for row in _rows(kind)}


def _rows(kind: type[Record]) -> Iterator[list[str]]:
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    about = _docstrings_with_bases(kind)
    for each in fields(kind):
        metadata = each.metadata
        if "key" in metadata:
            null = ", or null" if metadata["null"] else ""
            name = metadata["key"]
            meaning = about.get(each.name, "s.").replace("None:", "absent:")
            meaning = meanings()[name] if meaning == "s." else meaning  # only a unit
            yield [code(name), _type_name(hints[each.name]) + null, escape(meaning)]
        elif "inline" in metadata:
            for inlined in metadata["inline"]:
                yield from _rows(inlined)
        elif "columns" in metadata:
            yield ["(column)", "object", "Description of each column, as in a BIDS data dictionary"]


def _type_name(hint: object) -> str:
    kinds = [part for part in (typing.get_args(hint) or (hint,)) if part is not type(None)]
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return " or ".join(dict.fromkeys(map(_type_name, kinds)))
    origin = typing.get_origin(hint) or hint
    inner = [part for part in typing.get_args(hint) if part is not Ellipsis]
    if origin is tuple:
        return f"list of {_type_name(inner[0])}" if inner else "list"
    if origin is dict:
        return f"object of {_type_name(inner[1])}" if inner and inner[1] is not typing.Any else "object"
    if isinstance(origin, type) and is_dataclass(origin):
        return f"object: {_name(origin)}"
    return JSON_TYPES.get(origin, "text") if isinstance(origin, type) else "any"


def _name(kind: type) -> str:
    return kind.__name__.removesuffix("Record").removesuffix("Sidecar")


def _all_nested(kind: type[Record]) -> Iterator[type[Record]]:
    hints = typing.get_type_hints(kind, vars(sys.modules[kind.__module__]))
    for each in fields(kind):
        if "inline" in each.metadata:
            for inlined in each.metadata["inline"]:
                yield from _all_nested(inlined)
        elif "key" in each.metadata:
            for found in _records_in(hints[each.name]):
                yield found
                yield from _all_nested(found)


def _records_in(hint: object) -> Iterator[type[Record]]:
    if isinstance(hint, type) and issubclass(hint, Record):
        yield hint
    for part in typing.get_args(hint):
        yield from _records_in(part)


@cache
def meanings() -> dict[str, str]:
    """Read the meaning of keys whose fields have no text of their own."""
    import yaml

    return yaml.safe_load(KEYS.read_text(encoding="utf-8"))


def _docstrings_with_bases(kind: type) -> dict[str, str]:
    found: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        if is_dataclass(each):
            found |= _docstrings(each)
    return found


def _docstrings(kind: type) -> dict[str, str]:
    """Return the strings below the fields of a class."""
    (tree,) = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if is_text and isinstance(before, ast.AnnAssign) and isinstance(before.target, ast.Name):
            found[before.target.id] = sentence(str(after.value.value))  # type: ignore[attr-defined]
    return found
