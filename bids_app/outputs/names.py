"""Names and sidecars of the outputs of a run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bids_app.bids.entities import join_name, split_name
from bids_app.bids.writer import bids_uri, dataset_uri, output_path, write_json
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
        path = self.locate(suffix, extension, datatype, **extra)
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def locate(self, suffix: str, extension: str, datatype: str = "func", **extra: str | None) -> Path:
        """Return the path of an output, which another step may write."""
        return output_path(self.tree, self.entities, suffix, extension, datatype=datatype, **extra)

    def uri(self, path: Path) -> str:
        """Return the BIDS URI of an output."""
        return bids_uri(path, self.tree)

    @property
    def stem(self) -> str:
        """Name of the run without suffix."""
        return join_name(self.entities, "").removesuffix("_")

    def figure(self, desc: str) -> Path:
        """Return the path of a figure."""
        return self.path("bold", ".svg", "figures", desc=desc)

    def sidecar(self, path: Path, content: Sidecar, ancestors: Iterable[Path | str | None] | None = None) -> None:
        """Write the sidecar of a file, with its sources.

        Parameters
        ----------
        path : pathlib.Path
        content : Sidecar
        ancestors : iterable of pathlib.Path, str or None, optional
            Outputs, or BIDS URIs of inputs, that the file was directly made from; None is skipped. Default: the
            sources of the run.
        """
        name = path.name.removesuffix(".gz")
        found = self.sources if ancestors is None else tuple(self._uris(ancestors))
        written = replace(content, sources=found)
        write_json(path.with_name(Path(name).stem + ".json"), written.to_json())

    def _uris(self, ancestors: Iterable[Path | str | None]) -> Iterator[str]:
        for ancestor in ancestors:
            if ancestor is not None:
                yield self.uri(ancestor) if isinstance(ancestor, Path) else ancestor


def entities_of(sources: Sequence[Path]) -> dict[str, str]:
    """Return the entities of the outputs of T1w images; the mean of several sessions has no session."""
    found = [split_name(path.name)[0] for path in sources]
    left_out = {"part", "echo"} | ({"ses", "run"} if len({one.get("ses") for one in found}) > 1 else set())
    return {key: value for key, value in found[0].items() if key not in left_out}


def name_run(
    tree: Path, entities: Mapping[str, str], datasets: Mapping[str, Path], sources: Sequence[Path | None]
) -> RunName:
    """Make the names of the outputs of a run; ``sources`` are files of the datasets."""
    uris = [dataset_uri(path, datasets) for path in sources if path is not None]
    return RunName(tree, entities, tuple(uris))
