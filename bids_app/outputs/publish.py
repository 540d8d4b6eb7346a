"""The only step that writes to the output folder: trees of files are copied to it, each file whole or not at all.

The trees are made in the scratch folder, so that they are cached with the steps.
"""

from __future__ import annotations

from pathlib import Path

from bids_app.bids.writer import copy_file


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
