"""Publication of an adapter: its file, and its card as the README.md of a repository of the Hugging Face Hub.

The front matter of the README has the hub's metadata: licence, tags, base model, datasets, and the metrics of the
adapter's own evaluation (``model-index``).
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bids_app.adapters.checks import check_alone
from bids_app.adapters.file import (
    EMBEDDING,
    Adapter,
    AdapterCard,
    load_adapter,
    save_adapter,
)
from bids_app.adapters.privacy import require_publishable, without
from bids_app.bids.writer import write_text
from bids_app.catalog.cards import card_markdown
from bids_app.catalog.fetch import file_sha256
from bids_app.catalog.models import Entry, catalog, find_adapter, stored_entries, weights_path
from bids_app.catalog.references import HUB_PREFIX
from bids_app.errors import NeurostormError, UsageError
from bids_app.files import read_rows
from bids_app.model.checkpoint import read_checkpoint, weights_sha256
from bids_app.outputs.cards import describe_adapter

if TYPE_CHECKING:
    from huggingface_hub import EvalResult, ModelCardData

README = "README.md"
TAGS = ("neurostorm", "fmri", "bold", "neuroimaging", "bids")
FEATURES = "feature-extraction"
"""The hub's task of embeddings; it has none for predictions from BOLD series."""
OTHER = "other"
HUB_LICENCES = (
    "apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0",
    "cc-by-nd-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0", "gpl-2.0", "gpl-3.0", "lgpl-3.0", "agpl-3.0", "mpl-2.0",
    "openrail", "odbl", "odc-by", "pddl", "unlicense", "isc",
)  # fmt: skip
"""Identifiers of licences on the hub; others are named in ``license_name``."""
METRICS = {
    "accuracy": ("accuracy", "accuracy"),
    "balanced_accuracy": ("balanced_accuracy", "balanced accuracy"),
    "auroc": ("roc_auc", "AUROC"),
    "r": ("pearsonr", "Pearson r"),
    "mse": ("mse", "MSE"),
    "mae": ("mae", "MAE"),
    "rank1": ("rank1", "Rank-1"),
    "map": ("map", "mAP"),
    "top1": ("top1", "top-1"),
}
"""Types and names of metrics on the hub, by those of `bids_app.training.evaluation.metrics`."""
DATASET_ID = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


def write_publication(
    name: str,
    repo: str,
    folder: Path,
    changes: Mapping[str, str | None],
    omitted: Sequence[str] = (),
    base_model: str | None = None,
    datasets: Sequence[str] = (),
) -> list[Path]:
    """Write the files that are uploaded: README.md and the adapter, with the changed card.

    Parameters
    ----------
    name : str
        File, name in the catalog, or reference of the adapter.
    repo : str
        ``owner/name`` of the repository, for the commands in the README.
    folder : pathlib.Path
    changes : mapping of str to str
        Texts of the card to set: ``intended_use``, ``licence``, ``limits``; None: as in the file.
    omitted : sequence of str
        Parts of the card to leave out, see `bids_app.adapters.privacy.without`.
    base_model : str, optional
        Repository of the encoder; default: that of the catalog's model with the encoder of the adapter.
    datasets : sequence of str
        Identifiers of the training datasets.

    Raises
    ------
    UsageError
        The adapter may not be published, see `bids_app.adapters.privacy.require_publishable`.
    NoInputError, BadDataError
        The file cannot be read, or is not an adapter.
    """
    wrong = [name for name in (*datasets, *([base_model] if base_model else [])) if not DATASET_ID.fullmatch(name)]
    if wrong:
        raise UsageError(f"Invalid name on the hub: {wrong[0][:100]!a}.", "Give identifiers such as owner/name.")
    entry = find_adapter(name)
    path = weights_path(entry)
    adapter = load_adapter(path)
    check_alone(adapter)
    card = without(adapter.card, omitted)
    texts: dict[str, Any] = {key: text for key, text in changes.items() if text is not None}
    card = replace(card, **{"licence": card.licence or entry.licence, **texts})
    require_publishable(card, str(path), _split_participants(path))
    adapter = replace(adapter, card=card)
    published = save_adapter(folder / f"{card.name}.safetensors", adapter)
    base = find_base(adapter)
    text = readme(adapter, repo, published, base, base_model or (base.repo if base else ""), datasets)
    return [write_text(folder / README, text), published]


def readme(
    adapter: Adapter, repo: str, file: Path, base: Entry | None, base_model: str, datasets: Sequence[str] = ()
) -> str:
    """Return the text of README.md: front matter, card, and how to use the adapter.

    Parameters
    ----------
    adapter : Adapter
    repo : str
        ``owner/name``.
    file : pathlib.Path
        File of the adapter as it is uploaded.
    base : Entry, optional
        Model with the encoder of the adapter.
    base_model : str
        Repository of the encoder; empty if it is not known.
    datasets : sequence of str
    """
    from huggingface_hub import ModelCard

    card = adapter.card
    facts = describe_adapter(card).to_json() | {"FileSHA256": file_sha256(file)}
    reference = shlex.quote(f"{HUB_PREFIX}{repo}@main:{file.name}")
    fetched = f"neurostorm-models fetch {shlex.quote(base.name)}\n" if base is not None and base.repo else ""
    model = shlex.quote(base.name) if base is not None else "MODEL"
    needs = "" if base is not None else f"\n`MODEL` is the encoder with the SHA-256 `{card.encoder_sha256}`.\n"
    use = (
        f"## Use\n\n```\n{fetched}neurostorm-models fetch {reference}\n"
        f"neurostorm BIDS OUT participant --model {model} --adapter {reference}\n```\n{needs}"
    )
    metadata = hub_metadata(card, base_model, datasets).to_yaml()
    text = f"---\n{metadata}\n---\n\n{card_markdown(facts)}\n{use}"
    ModelCard(text)  # parses the front matter as the hub does
    return text


def hub_metadata(card: AdapterCard, base_model: str, datasets: Sequence[str] = ()) -> ModelCardData:
    """Return the front matter of an adapter's README.

    Parameters
    ----------
    card : AdapterCard
    base_model : str
        Repository of the encoder; empty if it is not known.
    datasets : sequence of str
        Identifiers of the training datasets; default: the description of the cohort, if it is an identifier.
    """
    from huggingface_hub import ModelCardData

    licence = card.licence.strip().lower()
    on_hub = licence in HUB_LICENCES
    description = card.cohort.get("description")
    named = [description] if isinstance(description, str) and DATASET_ID.fullmatch(description) else None
    results = list(evaluation_results(card))
    kinds = [*(["research-only"] if card.research_only else []), *(["demonstration"] if card.demonstration else [])]
    relation: dict[str, Any] = {"base_model_relation": "adapter"} if base_model else {}
    return ModelCardData(
        license=licence if on_hub else "other",
        license_name=None if on_hub else re.sub(r"[^a-z0-9.]+", "-", licence).strip("-"),
        library_name="neurostorm",
        tags=[*TAGS, card.task, *([card.target] if card.target else []), *kinds],
        pipeline_tag=FEATURES if card.task == EMBEDDING else None,
        base_model=base_model or None,
        datasets=list(datasets) or named,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        eval_results=results or None,
        model_name=card.name if results else None,
        **relation,
    )


def evaluation_results(card: AdapterCard) -> Iterator[EvalResult]:
    """Yield the metrics of an adapter's card as entries of the hub's ``model-index``."""
    from huggingface_hub import EvalResult

    cohort = str(card.cohort.get("description") or "training cohort")
    for part, values in card.metrics.items():
        if not isinstance(values, dict):
            continue
        scans = f", {values['scans']} scans" if isinstance(values.get("scans"), int) else ""
        for key, (kind, title) in METRICS.items():
            value = values.get(key)
            if isinstance(value, int | float) and not isinstance(value, bool):
                yield EvalResult(
                    task_type=FEATURES if card.task == EMBEDDING else OTHER,
                    task_name=f"{card.task} of {card.target} from fMRI",
                    dataset_type=OTHER,
                    dataset_name=f"{part} participants of the {cohort}{scans}",
                    metric_type=kind,
                    metric_name=title,
                    metric_value=float(value),
                )


def find_base(adapter: Adapter) -> Entry | None:
    """Find the model on this machine with the encoder of an adapter: in the catalog, or fetched from the hub."""
    for entry in (*catalog("models").values(), *stored_entries()):
        if entry.path.is_file():
            try:
                encoder = read_checkpoint(entry.path).encoder
            except NeurostormError:  # of another file; `neurostorm-models verify` reports it
                continue
            if weights_sha256(encoder) == adapter.card.encoder_sha256:
                return entry
    return None


def _split_participants(path: Path) -> list[str]:
    """Return the participants of the split file of an adapter, if it is beside it."""
    split = path.with_suffix(".split.tsv")
    rows: list[dict[str, Any]] = list(read_rows(split)) if os.path.lexists(split) else []
    return [label for row in rows if (label := row.get("participant_id"))]
