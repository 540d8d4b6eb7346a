"""Names of a run's outputs, and their sidecars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.bids.entities import join_name
from bids_app.bids.writer import dataset_uri, output_path, write_json
from bids_app.outputs.schema import Sidecar


@dataclass(frozen=True)
class RunName:
    """Names of one run's outputs, in a tree.

    Attributes
    ----------
    tree : pathlib.Path
        Root; stands for the output folder.
    entities : dict
        Of the run.
    sources : tuple of str
        BIDS URIs of what it was made from.
    """

    tree: Path
    entities: Mapping[str, str]
    sources: tuple[str, ...]

    def path(self, suffix: str, extension: str, datatype: str = "func", **extra: str | None) -> Path:
        """Where a file goes; its folder is made."""
        path = output_path(self.tree, self.entities, suffix, extension, datatype=datatype, **extra)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    @property
    def stem(self) -> str:
        """The run's name without suffix."""
        return join_name(self.entities, "").removesuffix("_")

    def figure(self, desc: str) -> Path:
        """Where a figure of the run goes."""
        return self.path("bold", ".svg", "figures", desc=desc)

    def sidecar(self, path: Path, content: Sidecar) -> None:
        """Write the JSON beside a file, with the run's sources."""
        name = path.name.removesuffix(".gz")
        written = replace(content, sources=self.sources)
        write_json(path.with_name(Path(name).stem + ".json"), written.to_json())


def name_run(
    tree: Path, entities: Mapping[str, str], datasets: Mapping[str, Path], sources: Sequence[Path | None]
) -> RunName:
    """Names of a run's outputs in ``tree``, made from files of the datasets that are read."""
    uris = [dataset_uri(path, datasets) for path in sources if path is not None]
    return RunName(tree, entities, tuple(uris))
