"""Encoders of Brainmarks at the participant level: what is checked before the start, and the step that embeds a run.

Experimental: the run is preprocessed as for our encoders, and is one sample in the space of the wrapper, at its own
repetition time. There are no clips, adapters, attributions and reconstructions.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bids_app.adapters.predict import Embeddings, Encoded, ModelFacts
from bids_app.catalog.fetch import file_sha256
from bids_app.clips import GridSeries
from bids_app.errors import BadDataError, UsageError
from bids_app.model.brainmarks import TOKENS_IN_WORDS, Embedded, WrapperFacts, build, describe_wrapper, embed
from bids_app.preprocess.brainmarks_samples import IN_WORDS, Sample, columns_on_grid, make_sample, source_of
from bids_app.preprocess.preprocessed import OnGrid, PreprocessedRun
from bids_app.settings import BRAINMARKS_PREFIX, ModelSettings

NORMALISATION = "none"
"""Name of the normalisation of the embeddings: that of the clips of our encoders is not applied."""
NOT_JUDGED = "Encoders of Brainmarks state no such limit."
NO_AUTOENCODER = "Encoders of Brainmarks reconstruct nothing."


def find_wrapper(wanted: ModelSettings) -> WrapperFacts | None:
    """Return the facts about the selected encoder of Brainmarks; None for an encoder of ours.

    Raises
    ------
    UsageError
        Brainmarks or the encoder is missing, its space is not available, or it is untrained and that is not allowed.
    NoInputError, BadDataError
        The image of its space is missing or another one, or the encoder cannot be constructed.
    """
    if not wanted.model.startswith(BRAINMARKS_PREFIX):
        return None
    found = describe_wrapper(wanted.model.removeprefix(BRAINMARKS_PREFIX), wanted.model_options)
    source_of(found.space)
    if found.is_untrained and not wanted.allow_untrained:
        raise UsageError(
            f"{found.title} is untrained: {random_weights(found)} are random.",
            "Give its weights, such as --model-options ckpt_path=FILE; or run it as a control with --allow-untrained.",
        )
    return found


def check_wrapper(wanted: ModelSettings) -> str:
    """Check the selected encoder of Brainmarks, the image of its space and other options; describe them.

    Raises
    ------
    UsageError
        Options are given for the wrong kind of encoder; or as `find_wrapper`.
    NoInputError, BadDataError
        As `find_wrapper`.

    Returns
    -------
    str
        Empty for an encoder of ours.
    """
    if not wanted.model.startswith(BRAINMARKS_PREFIX):
        if wanted.model_options:
            raise UsageError(
                f"--model-options are those of encoders of Brainmarks, but the model is {wanted.model}.",
                f"Omit them, or give --model {BRAINMARKS_PREFIX}NAME.",
            )
        return ""
    given = {"--adapter": wanted.adapters, "--attribution": wanted.attribution}
    if unused := [name for name, value in given.items() if value]:
        raise UsageError(
            f"{wanted.model}: {' and '.join(unused)} cannot be used with encoders of Brainmarks.",
            "They give embeddings only; omit these options, or choose another model.",
        )
    found = find_wrapper(wanted)
    assert found is not None
    columns_on_grid(found.space)
    weights = f"weights {found.weights_sha256[:12]}…" if found.weights_sha256 else "no weights"
    untrained = ", UNTRAINED" if found.is_untrained else ""
    return f"{found.title} of Brainmarks {found.version}, {weights}{untrained}, space {found.space}"


def random_weights(found: WrapperFacts) -> str:
    """Say how many tensors have random values."""
    return f"{found.n_random} of {found.n_tensors} tensors"


def files_of(found: WrapperFacts) -> dict[str, str]:
    """Hash the files that a wrapper needs: the image of its space, and files in its options; by path."""
    named = (Path(option.partition("=")[2]) for option in found.options)
    paths = [source_of(found.space), *(path for path in named if path.is_absolute() and path.is_file())]
    return {str(path): file_sha256(path) for path in paths}


def encode_with_brainmarks(
    grid: OnGrid,
    preprocessed: PreprocessedRun,
    wrapper: WrapperFacts,
    device: str,
    threads: int,
    stamp: str,
    out_dir: Path,
) -> Encoded:
    """Embed a run with an encoder of Brainmarks; ``stamp`` changes when a file changes.

    Raises
    ------
    BadDataError
        The encoder fails, or its weights are not those that were found at the start.
    """
    import torch

    from bids_app.model.device import choose_device

    torch.set_num_threads(threads)
    chosen = choose_device(device)
    series = GridSeries.open(grid.folder)
    sample = make_sample(series, wrapper.space, preprocessed.offset)
    model = build(wrapper.name, wrapper.options)
    if model.weights_sha256 != wrapper.weights_sha256:
        raise BadDataError(
            f"{wrapper.title}: its weights changed after the start.",
            "Run again; if this is reported again, its weights are random and do not follow the seeds of PyTorch.",
        )
    embedded = embed(model, sample.as_dict(), torch.device(chosen))
    embeddings = Embeddings(
        {NORMALISATION: embedded.values[None]}, np.array([series.start]), duration=series.n_vols * series.tr
    )
    facts = ModelFacts(
        model=wrapper.title,
        weights_sha256=wrapper.weights_sha256 or None,
        demonstration=False,
        device=str(chosen),
        scan_backend=None,
        threads=threads,
        untrained=wrapper.is_untrained,
    )
    return Encoded(
        embeddings,
        (),
        facts,
        card=describe(wrapper, sample),
        verdict_facts=facts_for_verdict(wrapper, embedded),
        columns=describe_columns(embedded),
    )


def describe(wrapper: WrapperFacts, sample: Sample) -> dict[str, Any]:
    """Return the model card: what is known about an encoder of Brainmarks, and the input that it got."""
    options = f", options {' '.join(map(_without_folder, wrapper.options))}" if wrapper.options else ""
    missing = f"; {sample.n_without_data} of {sample.bold.shape[1]} without data" if sample.n_without_data else ""
    return {
        "Model": wrapper.title,
        "Description": "An encoder of Brainmarks after our preprocessing; experimental",
        "Source": f"{wrapper.name} of Brainmarks {wrapper.version}{options}",
        "Inputs": f"Brainmarks' space {wrapper.space}: {IN_WORDS[wrapper.space]}{missing}",
        "Normalisation": "z-score of each column over time, with its mean and standard deviation",
        "Demonstration": False,
    }


def _without_folder(option: str) -> str:
    """Return ``KEY=VALUE`` with the name of a file instead of its absolute path."""
    key, _, value = option.partition("=")
    return f"{key}={Path(value).name}" if Path(value).is_absolute() else option


def facts_for_verdict(wrapper: WrapperFacts, embedded: Embedded) -> dict[str, Any]:
    """Return the facts for the verdict; limits that hold for our encoders only are not applied."""
    return {
        "tr": None,
        "tr_unknown": NOT_JUDGED,
        "seconds": None,
        "duration_unknown": NOT_JUDGED,
        "reconstruction_unknown": NO_AUTOENCODER,
        "random_weights": random_weights(wrapper) if wrapper.is_untrained else "",
        "token_mean": embedded.share,
        "tokens_cancel": embedded.is_rounding_error,
    }


def describe_columns(embedded: Embedded) -> dict[str, Any]:
    """Return the entries of the data dictionary that differ from those of our encoders."""
    return {
        "normalisation": {
            "Description": "Normalisation of the run before it was cut into clips",
            "Levels": {NORMALISATION: "The run was not cut into clips; the encoder normalises it itself"},
        },
        "clip": {"Description": "0: the whole run; mean: the same values"},
        "eNNNN": {"Description": f"Features of the encoder: {TOKENS_IN_WORDS[embedded.tokens]}"},
    }
