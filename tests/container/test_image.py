"""The container image under restrictions of clusters: any user, no network, no home, only /tmp and output writable."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from bids_app import __version__
from bids_app.cli.boutiques import EXAMPLE, describe
from tests.helpers.containers import sh
from tests.helpers.paths import shared_path

pytestmark = [pytest.mark.container, pytest.mark.timeout(7200)]
NO_HOME = ("--env", "HOME=/nonexistent")


def mounted(raw: Path, out: Path) -> list[str]:
    return ["-v", f"{raw}:/data:ro", "-v", f"{out}:/out"]


def test_image_is_smaller_than_2_5_gb(image) -> None:
    assert int(image.plain("image", "inspect", "--format", "{{.Size}}", image.tag)) < 2.5e9


def test_image_has_labels_and_a_health_check(image) -> None:
    (content,) = json.loads(image.plain("image", "inspect", image.tag))
    labels = content["Config"]["Labels"]
    assert labels["org.opencontainers.image.version"] == __version__
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    health = content["Config"].get("Healthcheck") or content["Healthcheck"]
    assert health["Test"] == ["CMD", "neurostorm", "--self-test"]


@pytest.mark.parametrize("options", [(), NO_HOME], ids=["home of the engine", "missing home"])
def test_self_test_passes(image, options: tuple[str, ...]) -> None:
    done = image.run(options, "--self-test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "self-test passed" in done.stdout


def test_self_test_passes_with_home_unset(image) -> None:
    done = image.without_home([], "--self-test")
    assert done.returncode == 0, done.stdout + done.stderr
    assert image.without_home([], "--list-models").returncode == 0


def test_login_shells_find_the_commands(image) -> None:
    for command in ("neurostorm --version", "neurostorm-models list", "neurostorm-phantom --help"):
        done = image.run(["--entrypoint", "/bin/sh"], "-lc", command)
        assert done.returncode == 0, done.stderr


def test_errors_keep_their_exit_codes(image, simulated: Path, out: Path) -> None:
    assert image.run(mounted(simulated, out), "/data", "/out", "cohort").returncode == 17
    label = ("--participant-label", "nobody", "--model", "demo")
    assert image.run(mounted(simulated, out), "/data", "/out", "participant", *label).returncode == 18
    done = image.run(["-v", f"{simulated}:/data:ro"], "/data", "/out", "participant", "--model", "demo")
    assert done.returncode == 73, done.stderr
    assert "no write permission for the output folder" in done.stderr


def test_participant_and_group_level_run_with_only_tmp_and_output_writable(image, simulated: Path, out: Path) -> None:
    options = [*mounted(simulated, out), *NO_HOME]
    done = image.run(options, "/data", "/out", "participant", "--model", "demo")
    assert done.returncode == 0, done.stdout + done.stderr
    for label in ("01", "02"):
        assert (out / f"sub-{label}.html").is_file()
        assert (out / f"sub-{label}.html").stat().st_uid == 1234
        assert list(out.glob(f"sub-{label}/**/*_embeddings.tsv"))
        assert list(out.glob(f"sub-{label}/**/*_desc-demostate_predictions.tsv"))
    done = image.run(options, "/data", "/out", "group")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((out / "group_embeddings.tsv").read_text().splitlines()) == 1 + 2 * 2  # two normalisations each


def test_a_real_participant_runs_with_home_unset(image, out: Path) -> None:
    raw = shared_path("data", "ds-oneback")
    done = image.without_home(mounted(raw, out), "/data", "/out", "participant", "--model", "demo", "--nprocs", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(out.glob("sub-01/**/*_task-oneback_run-1_desc-demo_embeddings.tsv"))
    assert list(out.glob("sub-01/anat/*_mode-image_xfm.h5"))


def test_boutiques_launches_the_image(image, simulated: Path, tmp_path: Path, out: Path) -> None:
    bosh = Path(sys.executable).with_name("bosh")
    if not bosh.exists():
        pytest.skip("boutiques is not installed (the extra dev)")
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    # like the engine, but without a network and without pulling the image first
    engine = " ".join(image.engine.plain)
    cases = f'run) shift; exec {engine} run --network none "$@" ;; pull) exit 1 ;; *) exec {engine} "$@" ;;'
    program.write_text(f'#!/bin/sh\ncase "$1" in {cases} esac\n')
    program.chmod(0o755)
    descriptor = describe()
    descriptor["container-image"]["image"] = image.tag
    (tmp_path / "descriptor.json").write_text(json.dumps(descriptor))
    values = EXAMPLE | {"bids_dir": "raw", "output_dir": "out", "work_dir": "/tmp/work", "level": "minimal"}
    (tmp_path / "invocation.json").write_text(json.dumps(values))
    sh("cp", "-r", simulated, tmp_path / "raw")
    path = f"{program.parent}:{os.environ['PATH']}"
    launch = (bosh, "exec", "launch", "--skip-data-collection", "descriptor.json", "invocation.json")
    done = sh(*launch, cwd=tmp_path, env=os.environ | image.engine.environment | {"PATH": path})
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(out.glob("sub-01/**/*_embeddings.tsv"))
