"""Each option is defined once; parser, log and table agree with the definition."""

from __future__ import annotations

import argparse
import json
import tomllib
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from bids_app.cli.neurostorm import build_parser, main, parse_settings
from bids_app.cli.options import CONFIG_FILE, all_options
from bids_app.cli.options_table import replace_table
from bids_app.errors import UsageError
from bids_app.settings import Option, Settings, options_of
from bids_app.settings.option import OPTIONS, number, whole_number
from bids_app.workflow.provenance import as_toml

ROOT = Path(__file__).parents[2]
NAMED = [option for option in options_of(Settings) if not option.is_positional]
FILTERS = {"bold": {"task": ["rest", None], "run": 1}, "t1w": {"acquisition": None, "session": "a//b"}}


def words(option: Option, folder: Path) -> list[str]:
    """Command-line words that set an option to a value other than its default."""
    if option.flag:
        return [option.long_name]
    if option.counted:
        return [option.long_name, option.long_name]
    if option.choices:
        value = next(
            choice for choice in reversed(option.choices) if choice not in option.text.partition("(default")[2]
        )
    elif option.metavar == "FILE":
        path = folder / f"{option.key}.file"
        path.write_text(json.dumps(FILTERS))
        value = str(path)
    elif option.type is str:
        value = f"{option.key}=x" if option.many else option.key
    else:
        value = {whole_number: "3", number: "4567.8"}.get(option.type, "7.3GiB")
    return [option.long_name, value]


def replay(settings: Settings, folder: Path, *more: str) -> Settings:
    """Parse the shortest command on the same folders with the log as its configuration file."""
    log = folder / "neurostorm.toml"
    log.write_text(as_toml(settings, "now"))
    for file in folder.glob("*.file"):
        file.unlink()  # what an option's file held has to be in the log, where it decides what is computed
    return parse_settings(
        [str(settings.bids_dir), str(settings.out_dir), "participant", "--config-file", str(log), *more]
    )


@pytest.mark.parametrize("option", NAMED, ids=lambda option: option.key)
def test_an_option_is_restored_from_the_log(option: Option, tmp_path: Path) -> None:
    plain = ["in", "out", "participant", "--nprocs", "8"]
    settings = parse_settings([*plain, *words(option, tmp_path)])
    assert settings != parse_settings(plain), f"{option.long_name} changes nothing"
    assert replay(settings, tmp_path) == settings


def firsts(settings: Any) -> Iterator[Option]:
    """Options, without the second of two for the same field."""
    for part in fields(settings):
        if is_dataclass(part.default_factory):
            yield from firsts(part.default_factory)
        yield from (option for option in part.metadata.get(OPTIONS, ())[:1] if not option.is_positional)


def test_all_options_together_are_restored_from_the_log(tmp_path: Path) -> None:
    given = [word for option in firsts(Settings) for word in words(option, tmp_path)]
    settings = parse_settings(["in", "out", "participant", *given])
    assert replay(settings, tmp_path) == settings


def test_the_command_line_takes_precedence_over_the_log(tmp_path: Path) -> None:
    settings = parse_settings(["in", "out", "participant", "--mem", "8GB", "-vv", "--bids-filter-file", "{}"])
    again = replay(settings, tmp_path, "--mem-mb", "6000", "-v")
    assert again.resources.memory_gb == 6
    assert again.verbosity == 1


def test_the_log_contains_the_filters(tmp_path: Path) -> None:
    path = tmp_path / "filters.json"
    path.write_text(json.dumps(FILTERS))
    settings = parse_settings(["in", "out", "participant", "--bids-filter-file", str(path)])
    path.write_text('{"bold": {"task": "other"}}')
    written = tomllib.loads(as_toml(settings, "now"))["options"]["bids_filter_file"]
    assert json.loads(written) == FILTERS
    assert replay(settings, tmp_path).query.filters == FILTERS


def test_the_log_of_an_older_version_is_readable(tmp_path: Path) -> None:
    log = tmp_path / "neurostorm.toml"
    log.write_text(
        '[options]\nparticipant_label = ["01"]\nfd_spike_threshold = 0.5\nlevel = "full"\nmem = "13.9GB"\n'
        'low_mem = false\nuse_syn_sdc = true\nderivatives = ["fmriprep=/data/x"]\n[versions]\ntorch = "2.6"\n'
    )
    settings = parse_settings(["in", "out", "participant", "--config-file", str(log)])
    assert settings.query.participants == ("01",)
    assert settings.query.derivatives == {"fmriprep": Path("/data/x")}
    assert (settings.resources.memory_gb, settings.preprocess.use_syn_sdc) == (13.9, True)


def test_the_parser_accepts_both_spellings_of_every_option() -> None:
    spelled = {name for action in build_parser()._actions for name in action.option_strings}
    for option in all_options():
        if not option.is_positional:
            assert {option.long_name, "--" + option.key, *option.names} <= spelled


def test_keys_are_unique_and_every_option_has_help_and_a_heading() -> None:
    options = list(all_options())
    assert len({option.key for option in options}) == len(options)
    assert all(option.help for option in options)
    assert all(option.group for option in options if not option.is_positional)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--mem", "8"], "Invalid value for --mem: '8' has no unit and is too little in MB; write 8GB"),
        (["--mem", "0"], "Invalid value for --mem: '0' has no unit and is too little in MB; write 8GB"),
        (["--nthreads", "two"], "Invalid value for --nprocs: 'two' is not a whole number"),
        (["--fd_spike_threshold", "x"], "Invalid value for --fd-spike-threshold: 'x' is not a number"),
        (["-t"], "Invalid value for --task-id: expected at least one argument"),
    ],
)
def test_the_error_of_an_invalid_value_names_its_option(arguments: list[str], said: str, capsys) -> None:
    with pytest.raises(SystemExit):
        parse_settings(["in", "out", "participant", *arguments])
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "number"),
    [
        ("--nprocs", "0"),
        ("--nprocs", "1025"),
        ("--nprocs", "9" * 20),
        ("--omp-nthreads", "0"),
        ("--aggregate-session-reports", "0"),
    ],
)
def test_numbers_of_processes_and_threads_have_limits(option: str, number: str) -> None:
    with pytest.raises(UsageError, match=f"Invalid value for {option}: {number} is"):
        parse_settings(["in", "out", "participant", option, number])


def test_a_config_file_accepts_settings_only(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text(f'[options]\n{CONFIG_FILE.key} = "other.toml"\n')
    with pytest.raises(UsageError, match=CONFIG_FILE.key):
        parse_settings(["in", "out", "participant", "--config-file", str(file)])


def test_the_table_of_common_options_is_up_to_date() -> None:
    text = (ROOT / "docs" / "usage.md").read_text()
    assert replace_table(text) == text, "an option changed: run 'make options'"


def test_number_types_describe_what_they_expect() -> None:
    for convert in (whole_number, number):
        with pytest.raises(argparse.ArgumentTypeError, match="'x' is not a"):
            convert("x")


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["", "out", "participant"], "bids_dir"),
        (["in", "", "participant"], "output_dir"),
        (["in", "out", "participant", "-w", ""], "--work-dir"),
        (["in", "out", "participant", "--work-dir="], "--work-dir"),
        (["in", "out", "participant", "--config-file", ""], "--config-file"),
        (["in", "out", "participant", "--bids-database-dir", ""], "--bids-database-dir"),
        (["in", "out", "participant", "--use-plugin", ""], "--use-plugin"),
        (["in", "out", "participant", "--derivatives", ""], "--derivatives"),
    ],
)
def test_an_empty_path_is_not_the_current_folder(words: list[str], name: str, capsys) -> None:
    assert main([*words, "--check"]) == 64
    said = capsys.readouterr().err
    assert f"{name} is empty" in said
    assert "Is a variable unset?" in said


def test_a_derivative_without_a_path_is_refused(capsys) -> None:
    assert main(["in", "out", "participant", "--check", "--derivatives", "fmriprep="]) == 64
    assert "the path is empty" in capsys.readouterr().err
