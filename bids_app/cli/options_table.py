"""Table of common options, written by ``python -m bids_app.cli.options_table docs/usage.md`` (``make options``)."""

from __future__ import annotations

import sys
from itertools import chain
from pathlib import Path

from bids_app.cli.options import all_options
from bids_app.settings import GROUPS, Option

BEGIN = "<!-- options: written by `make options` -->"
END = "<!-- end of options -->"


def options_table() -> str:
    """Format the everyday options as a Markdown table."""
    by_group = ([each for each in all_options() if each.group == heading and each.everyday] for heading in GROUPS)
    rows = [f"| {usage(option)} | {option.text.replace('|', chr(92) + '|')} |" for option in chain(*by_group)]
    return "\n".join(["| option | meaning |", "| --- | --- |", *rows])


def usage(option: Option) -> str:
    """Format an option with its value: ``-t/--task-id TASK…``."""
    names = [name for name in option.names if not name.startswith("--")] + [option.long_name]
    value = option.metavar or ("|".join(option.choices) or option.key.upper())
    takes = "" if option.flag or option.counted else f" {value}{'…' if option.many else ''}"
    return f"`{'/'.join(names)}{takes}`".replace("|", "\\|")


def replace_table(text: str) -> str:
    """Replace the text between `BEGIN` and `END` with the table."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{options_table()}\n{END}{after}"


if __name__ == "__main__":
    file = Path(sys.argv[1])
    file.write_text(replace_table(file.read_text(encoding="utf-8")), encoding="utf-8")
