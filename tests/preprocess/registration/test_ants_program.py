"""Programs of ANTs in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bids_app.preprocess.registration import ants_program
from bids_app.preprocess.registration.ants_program import run_ants
from bids_app.workflow import code


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An extension module whose programs report their environment, fail, or are killed."""
    path = tmp_path / "lib.py"
    path.write_text(
        "import os, signal\n"
        "def report(arguments):\n"
        "    names = [name for name in os.environ if name.startswith('ITK_')]\n"
        "    open(arguments[0], 'w').write(repr({name: os.environ[name] for name in sorted(names)}))\n"
        "    return 0\n"
        "def count(arguments):\n"
        "    open(arguments[0], 'w').write(str(len(os.sched_getaffinity(0))))\n"
        "    return 0\n"
        "def fail(arguments):\n"
        "    raise RuntimeError('no overlap')\n"
        "def refuse(arguments):\n"
        "    return 3\n"
        "def die(arguments):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    monkeypatch.setattr(ants_program, "extension", lambda: path)
    return path


def test_a_program_has_its_own_number_of_threads(programs: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(ants_program.N_THREADS, "1")
    run_ants("report", [str(tmp_path / "environment")], threads=2)
    wanted = {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "2", "ITK_GLOBAL_DEFAULT_THREADER": "Platform"}
    assert (tmp_path / "environment").read_text() == repr(wanted)
    assert os.environ[ants_program.N_THREADS] == "1"


@pytest.mark.parametrize(("limit", "threads", "used"), [("1", 2, 1), ("2", 2, None), ("1", 1, None)])
def test_more_threads_than_processors_share_one(
    programs: Path, tmp_path: Path, monkeypatch, limit: str, threads: int, used: int | None
) -> None:
    monkeypatch.setenv(ants_program.PROCESSORS, limit)
    run_ants("count", [str(tmp_path / "processors")], threads)
    assert int((tmp_path / "processors").read_text()) == (used or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize(("program", "reason"), [("fail", "no overlap"), ("refuse", "exit code 3")])
def test_a_failure_says_why(programs: Path, program: str, reason: str) -> None:
    with pytest.raises(RuntimeError, match=f"{program}: .*{reason}"):
        run_ants(program, [])


def test_a_killed_program_ends_its_step_in_the_same_way(programs: Path) -> None:
    script = (
        "from pathlib import Path\n"
        "from bids_app.preprocess.registration import ants_program\n"
        f"ants_program.extension = lambda: Path({str(programs)!r})\n"
        "ants_program.run_ants('die', [])\n"
        "print('goes on')\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "")


def test_the_extension_of_antspyx_has_the_programs_and_is_loaded_without_the_package() -> None:
    script = (
        "import sys\n"
        "from bids_app.preprocess.registration.ants_program import extension, load_extension\n"
        "lib = load_extension(str(extension()))\n"
        "print(callable(lib.antsRegistration), callable(lib.N4BiasFieldCorrection), 'numpy' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "True True False\n"


def test_another_version_of_antspyx_repeats_the_registrations(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(code, "library_version", lambda module: seen.append(module) or "")
    code.symbol_hash.__wrapped__(("bids_app.preprocess.registration.ants_program", "load_extension"))
    symbols = code.all_dependencies(("bids_app.preprocess.registration.ants", "register"))
    assert "ants" in seen
    assert ("bids_app.preprocess.registration.ants_program", "load_extension") in symbols
