"""Names and sidecars of the outputs of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.bids.entities import join_name
from bids_app.bids.writer import dataset_uri, output_path, write_json
from bids_app.outputs.schema import Sidecar


@dataclass(frozen=True)
class RunName:
    """Names of the outputs of a run in a folder tree.

    Attributes
    ----------
    tree : pathlib.Path
        Root of the tree, with the layout of the output folder.
    entities : dict
        Entities of the run.
    sources : tuple of str
        BIDS URIs of the sources.
    """

    tree: Path
    entities: Mapping[str, str]
    sources: tuple[str, ...]

    def path(self, suffix: str, extension: str, datatype: str = "func", **extra: str | None) -> Path:
        """Return the path of an output; create its folder."""
        path = output_path(self.tree, self.entities, suffix, extension, datatype=datatype, **extra)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def stem(self) -> str:
        """Name of the run without suffix."""
        return join_name(self.entities, "").removesuffix("_")

    def figure(self, desc: str) -> Path:
        """Return the path of a figure."""
        return self.path("bold", ".svg", "figures", desc=desc)

    def sidecar(self, path: Path, content: Sidecar) -> None:
        """Write the sidecar of a file, with the sources."""
        name = path.name.removesuffix(".gz")
        written = replace(content, sources=self.sources)
        write_json(path.with_name(Path(name).stem + ".json"), written.to_json())


def name_run(
    tree: Path, entities: Mapping[str, str], datasets: Mapping[str, Path], sources: Sequence[Path | None]
) -> RunName:
    """Make the names of the outputs of a run; ``sources`` are files of the datasets."""
    uris = [dataset_uri(path, datasets) for path in sources if path is not None]
    return RunName(tree, entities, tuple(uris))
