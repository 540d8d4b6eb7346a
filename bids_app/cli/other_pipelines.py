"""Options of fMRIPrep, XCP-D and MRIQC that do not exist here, each with the reason and the nearest option.

`other_pipelines.yml` lists them; options with the same meaning are accepted as further names in `settings`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bids_app.errors import UsageError

LIST = Path(__file__).with_name("other_pipelines.yml")


@dataclass(frozen=True)
class ForeignOption:
    """An option of other pipelines: its name (and value), these pipelines, the reason, our nearest option, a remedy."""

    name: str
    of: str
    because: str
    use: str = ""
    do: str = ""

    @property
    def sentence(self) -> str:
        """What it is and what to do."""
        _, _, value = self.name.partition(" ")
        if self.do:
            remedy = self.do
        elif value:
            remedy = f"leave {value} out"
        elif self.use:
            remedy = f"use {self.use}"
        else:
            remedy = "leave it out"
        return f"{self.name} ({self.of}): {self.because}; {remedy}."


@cache
def foreign_options() -> dict[str, ForeignOption]:
    """Read the options of other pipelines, by name."""
    import yaml  # takes longer to import than all the rest of the parser

    entries = yaml.safe_load(LIST.read_text(encoding="utf-8"))
    return {
        name: ForeignOption(name, entry["of"], entry["because"], entry.get("use", ""), entry.get("do", ""))
        for entry in entries
        for name in entry["options"]
    }


def refuse_foreign_options(arguments: Sequence[str], known: Collection[str]) -> None:
    """Refuse options and values of other pipelines before the arguments are parsed.

    Parameters
    ----------
    arguments : sequence of str
        Command line.
    known : collection of str
        Spellings of all options that exist here.

    Raises
    ------
    UsageError
        At least one; the message has a sentence for each.
    """
    given = []
    option = ""
    for word in arguments:
        if word == "--":
            break
        if word.startswith("-"):
            option, _, value = word.partition("=")
            name = with_dashes(option)
            if option not in known:
                given.append(name)
            elif value:
                given.append(f"{name} {value}")
        elif option:
            given.append(f"{with_dashes(option)} {strip_modifiers(word)}")
    if any(" " in name or name not in known for name in given):
        _refuse(given)


def refuse_foreign_keys(keys: Iterable[str]) -> None:
    """Refuse options of other pipelines in a configuration file.

    Raises
    ------
    UsageError
        At least one; the message has a sentence for each.
    """
    _refuse(with_dashes(f"--{key}") for key in keys)


def with_dashes(option: str) -> str:
    """Spell an option with dashes."""
    return "--" + option[2:].replace("_", "-") if option.startswith("--") else option


def strip_modifiers(value: str) -> str:
    """Strip ``:res-2`` or the like from the name of an output space."""
    return value.partition(":")[0]


def _refuse(names: Iterable[str]) -> None:
    listed = foreign_options()
    found = [listed[name] for name in dict.fromkeys(names) if name in listed]
    if found:
        raise UsageError(
            "\n  ".join(option.sentence for option in found), "All options of neurostorm are listed by --help."
        )
