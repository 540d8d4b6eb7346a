"""Output folders with figures to review."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

DESCS = ("coreg", "norm", "carpet")
SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 400 200"><style>#second{{display:none}}'
    '#second:target{{display:inline}}</style><rect width="400" height="200" fill="#123"/>'
    '<text x="20" y="90" fill="#fff">{text}</text><rect id="second" width="400" height="200" fill="#a20"/></svg>'
)


def write_figures(out_dir: Path, n_participants: int = 2, tasks: Sequence[str] = ("go", "rest")) -> Path:
    """Write the figures of participants with a T1w image and a run of each task."""
    for number in range(1, n_participants + 1):
        participant = f"sub-{number:02d}"
        folder = out_dir / participant / "figures"
        folder.mkdir(parents=True)
        names = [f"{participant}_desc-norm_T1w"]
        names += [f"{participant}_task-{task}_desc-{desc}_bold" for task in tasks for desc in DESCS]
        names += [f"{participant}_task-{task}_desc-sexpredictions_bold" for task in tasks]
        for name in names:
            (folder / f"{name}.svg").write_text(SVG.format(text=name))
    return out_dir
