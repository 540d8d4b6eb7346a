"""Options of all commands, from their parsers."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from importlib import import_module

from site_pages.markdown import anchor, code, escape, table

COMMANDS = {
    "neurostorm": "bids_app.cli.neurostorm:build_parser",
    "neurostorm-train": "bids_app.cli.train_options:parser",
    "neurostorm-models": "bids_app.cli.models:parser",
    "neurostorm-cluster": "bids_app.cli.cluster:parser",
    "neurostorm-phantom": "bids_app.cli.phantom:parser",
    "neurostorm-review": "bids_app.cli.review:parser",
}
"""Function that makes the parser of each command."""


def parser_of(command: str) -> argparse.ArgumentParser:
    """Make the parser of a command."""
    module, _, name = COMMANDS[command].partition(":")
    make: Callable[[], argparse.ArgumentParser] = getattr(import_module(module), name)
    return make()


def describe_command(command: str) -> str:
    """Describe a command and its subcommands: one table for each group of options."""
    return "\n\n".join(_describe(parser_of(command), level=3))


def subcommands(parser: argparse.ArgumentParser) -> dict[str, tuple[argparse.ArgumentParser, str]]:
    """Return the parsers of the subcommands with their help."""
    found: dict[str, tuple[argparse.ArgumentParser, str]] = {}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            about = {each.dest: each.help or "" for each in action._choices_actions}
            found |= {name: (each, about.get(name, "")) for name, each in action.choices.items()}
    return found


def arguments_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Iterate over options and positional arguments that are shown in the help, except subcommands and ``--help``."""
    for action in parser._actions:
        hidden = isinstance(action, argparse._SubParsersAction | argparse._HelpAction)
        if not hidden and action.help is not argparse.SUPPRESS:
            yield action


def spelling(action: argparse.Action) -> str:
    """Return the names of an option as in the help, without the spellings with underscores."""
    names = list(action.option_strings)
    dashed = [name for name in names if not name.startswith("--") or "_" not in name] or names
    return "/".join(dashed)


def usage(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return an option with its value: ``-t/--task-id TASK [TASK ...]``."""
    formatter = parser._get_formatter()
    if not action.option_strings:
        return formatter._format_args(action, formatter._get_default_metavar_for_positional(action))
    if action.nargs == 0:
        return spelling(action)
    return f"{spelling(action)} {formatter._format_args(action, formatter._get_default_metavar_for_optional(action))}"


def help_of(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    """Return the help of an option, with its default and choices as in the terminal."""
    return parser._get_formatter()._expand_help(action) if action.help else ""


def _describe(parser: argparse.ArgumentParser, level: int) -> Iterator[str]:
    if parser.description:
        yield escape(parser.description)
    for group in parser._action_groups:
        shown = [action for action in arguments_of(parser) if action in group._group_actions]
        if not shown:
            continue
        title = {"positional arguments": "arguments", "options": "general", "optional arguments": "general"}
        name = title.get(group.title or "", group.title or "")
        yield f"{'#' * level} {escape(name.capitalize())} {{ #{anchor(parser.prog, name)} }}"
        if group.description:
            yield escape(group.description)
        rows = []
        for action in shown:
            longest = next((name for name in action.option_strings if name.startswith("--")), "")
            label = f"{{ #{anchor(parser.prog, longest)} }}" if longest else ""
            rows.append([code(usage(parser, action)) + label, escape(help_of(parser, action))])
        yield table(["option" if group.title != "positional arguments" else "argument", "meaning"], rows)
    for each, about in subcommands(parser).values():
        yield f"{'#' * level} {code(each.prog)} {{ #{anchor(each.prog)} }}"
        if about and not each.description:
            yield escape(about[:1].upper() + about[1:].rstrip(".") + ".")
        yield from _describe(each, level + 1)
