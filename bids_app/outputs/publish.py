"""Copy of the outputs to the output folder; only this step writes there, and no file is ever incomplete.

The outputs are first written to trees in the scratch folder, which are cached with the steps.
"""

from __future__ import annotations

from pathlib import Path

from bids_app.bids.writer import copy_file


def publish(target: Path, out_dir: Path, **trees: Path | None) -> tuple[str, ...]:
    """Copy trees to the output folder; existing files with the same content are kept.

    Returns
    -------
    tuple of str
        Paths of the files, relative to the output folder.
    """
    files = []
    for tree in filter(None, trees.values()):
        for source in sorted(p for p in tree.rglob("*") if p.is_file()):
            relative = source.relative_to(tree)
            (target / relative).parent.mkdir(parents=True, exist_ok=True)
            copy_file(source, target / relative)
            files.append(relative.as_posix())
    return tuple(files)


def remove_withheld(target: Path, stem: str, adapter: str) -> list[Path]:
    """Delete figures and attributions that an earlier run wrote for a prediction that is now withheld."""
    participant = target / stem.partition("_")[0]
    wanted = (
        f"{stem}_*desc-{adapter}{rest}.*"
        for rest in ("predictions_bold", "attribution_bold", "_attribution", "_boldmap")
    )
    found = [path for pattern in wanted for path in participant.rglob(pattern)]
    for path in found:
        path.unlink()
    return found
