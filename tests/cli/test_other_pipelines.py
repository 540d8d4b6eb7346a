"""Options of fMRIPrep, XCP-D and MRIQC: accepted under their names, or refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from bids_app.cli.neurostorm import build_parser, main, parse_settings
from bids_app.cli.other_pipelines import foreign_options
from bids_app.errors import UsageError

WITH_NAMES_OF_OURS = {"--level", "--ignore", "--use-syn-sdc", "--dummy-scans", "--output-spaces"}
"""Our options of which a value of other pipelines is listed."""


@pytest.mark.parametrize("option", foreign_options().values(), ids=lambda option: option.name)
def test_an_option_of_other_pipelines_is_refused_with_its_reason_and_an_option_of_ours(option, capsys) -> None:
    known = build_parser().spellings
    name, *value = option.name.split()
    assert (name in known) == (name in WITH_NAMES_OF_OURS) == bool(value)
    assert not option.use or option.use.split()[0] in known, "names an option that does not exist"
    assert main(["in", "out", "participant", name, *value]) == 64
    said = capsys.readouterr().err
    assert option.because in said
    assert (option.do or (f"leave {value[0]} out" if value else option.use or "leave it out")) in said


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("--skull-strip-template OASIS30ANTs", "leave it out"),
        ("--skull-strip-t1w force", "leave it out"),
        ("--skull-strip-fixed-seed", "use --random-seed"),
        ("--slice-time-ref 0.5", "leave it out"),
        ("--fmap-bspline", "leave it out"),
        ("--fallback-total-readout-time 0.03", "add TotalReadoutTime to the sidecar"),
        ("--force-syn", "use --use-syn-sdc with --ignore fieldmaps"),
        ("--head-radius auto", "leave it out"),
        ("--min-coverage 0.5", "leave it out"),
        ("--dummy-scans auto", "leave --dummy-scans out"),
        ("--level resampling", "use --level minimal or --level full"),
        ("--bids-database-wipe", "delete the folder of --bids-database-dir"),
    ],
)
def test_the_remedy_belongs_to_the_option(words: str, remedy: str, capsys) -> None:
    assert main(["in", "out", "participant", *words.split()]) == 64
    assert f"; {remedy}." in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        "--fs-license-file license.txt in out participant",
        "in out participant --fs_license_file=license.txt",
        "in out participant --fs-no-reconall --output-spaces MNI152NLin2009cAsym:res-2 fsaverage:den-10k",
    ],
)
def test_they_are_recognised_before_the_folders_with_underscores_and_with_modifiers(words: str, capsys) -> None:
    assert main(words.split()) == 64
    said = capsys.readouterr().err
    assert "no surfaces are made here" in said
    assert ("--fs-no-reconall" in said) == ("--output-spaces fsaverage (" in said)


def test_all_of_a_command_line_are_named_at_once(capsys) -> None:
    usual = "--mode linc --smoothing 6 -p 36P --lower-bpf 0.01 --nthreads 4 --mem-gb 16 --despike"
    assert main(["derivatives", "out", "participant", *usual.split()]) == 64
    said = capsys.readouterr().err
    assert [name for name in ("--mode", "--smoothing", "-p ", "--lower-bpf", "--despike") if name not in said] == []
    assert "--nthreads" not in said


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("--n-procs 4", "--nprocs 4"),
        ("--n_cpus 4", "--nprocs 4"),
        ("--nthreads 4", "--nprocs 4"),
        ("--nprocs 4 --omp_nthreads 2", "--nprocs 4 --omp-nthreads 2"),
        ("--nprocs 4 --ants-nthreads 2", "--nprocs 4 --omp-nthreads 2"),
        ("--mem-gb 8", "--mem 8GB"),
        ("--mem_gb 8", "--mem 8GB"),
        ("--mem 8000", "--mem 8GB"),
        ("--mem 8G", "--mem 8GB"),
        ("--mem_mb 8000", "--mem 8GB"),
        ("--fd-thresh 0.3", "--fd-spike-threshold 0.3"),
        ("--fd_thres 0.3", "--fd-spike-threshold 0.3"),
        ("--session-id a", "--session-label a"),
        ("--participant_labels 01", "--participant-label 01"),
        ("--nipype-plugin-file p.yml", "--use-plugin p.yml"),
    ],
)
def test_their_names_of_our_options_are_accepted(theirs: str, ours: str) -> None:
    folders = ["in", "out", "participant"]
    assert parse_settings([*folders, *theirs.split()]) == parse_settings([*folders, *ours.split()])
    assert parse_settings([*folders, *theirs.split()]) != parse_settings(folders)


def test_values_after_two_dashes_are_not_options() -> None:
    assert parse_settings(["--low-mem", "--", "in", "--debug", "participant"]).out_dir == Path("--debug").absolute()


def test_a_configuration_file_with_an_option_of_theirs_says_why(tmp_path: Path) -> None:
    file = tmp_path / "options.toml"
    file.write_text("[options]\nuse_aroma = true\n")
    with pytest.raises(UsageError, match="no independent components"):
        parse_settings(["in", "out", "participant", "--config-file", str(file)])


def test_the_configuration_file_of_another_pipeline_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fmriprep.toml"
    file.write_text('[environment]\ncpu_count = 8\n[execution]\nbids_dir = "/data"\n')
    with pytest.raises(UsageError, match=r"no table \[options\]; fMRIPrep's"):
        parse_settings(["in", "out", "participant", "--config-file", str(file)])
