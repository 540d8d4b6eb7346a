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
from tests.helpers.paths import ROOT, shared_path

pytestmark = [pytest.mark.container, pytest.mark.timeout(7200)]
NO_HOME = ("--env", "HOME=/nonexistent")
LABELS = {
    *("title", "description", "vendor", "authors", "licenses", "url", "source", "documentation"),
    *("base.name", "base.digest", "version", "revision", "created"),
}
"""Labels of the OCI's specification, without their common prefix."""


def mounted(raw: Path, out: Path) -> list[str]:
    return ["-v", f"{raw}:/data:ro", "-v", f"{out}:/out"]


def test_image_is_smaller_than_2_5_gb(image) -> None:
    assert int(image.plain("image", "inspect", "--format", "{{.Size}}", image.tag)) < 2.5e9


def test_image_has_labels_and_no_health_check(image) -> None:
    (content,) = json.loads(image.plain("image", "inspect", image.tag))
    config = content["Config"]
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): value for name, value in config["Labels"].items() if name.startswith(prefix)}
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"  # nothing is baked in
    assert labels["base.name"].partition("@")[0].endswith("debian:bookworm-slim")
    assert labels.keys() >= LABELS
    assert not config.get("Healthcheck")
    assert not content.get("Healthcheck")  # batch jobs are not services
    assert config["Entrypoint"] == ["/usr/bin/tini", "--", "neurostorm"]


def test_outputs_name_the_image(image, simulated: Path, out: Path) -> None:
    one = ("--participant-label", "01", "--level", "minimal", "--model", "demo")
    done = image.run(mounted(simulated, out), "/data", "/out", "participant", *one)
    assert done.returncode == 0, done.stderr
    (generator,) = json.loads((out / "dataset_description.json").read_text())["GeneratedBy"]
    assert generator["Container"] == {"Type": "docker", "Tag": f"neurostorm:{__version__}"}


def facts(image, name: str) -> dict:
    done = image.run(["--entrypoint", "cat"], f"/opt/neurostorm/share/neurostorm/{name}")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_bills_of_materials_list_what_is_installed(image) -> None:
    python, debian = facts(image, "python.cdx.json"), facts(image, "debian.cdx.json")
    assert python["bomFormat"] == debian["bomFormat"] == "CycloneDX"
    assert {c["name"] for c in python["components"] if "purl" not in c} <= {"neurostorm"}  # from a folder, not an index
    code = (
        "from importlib.metadata import distributions as d;"
        "print(*sorted({f'{x.name}=={x.version}'.lower().replace('_', '-').replace('.', '-') for x in d()}))"
    )
    installed = image.run(["--entrypoint", "/opt/neurostorm/bin/python"], "-c", code).stdout.split()
    listed = {f"{c['name']}=={c['version']}".lower().replace("_", "-").replace(".", "-") for c in python["components"]}
    assert {"torch", "neurostorm"} <= {name.partition("==")[0] for name in listed}
    assert set(installed) == listed
    packages = image.run(["--entrypoint", "dpkg-query"], "-W", "-f", "${Package}=${Version} ").stdout.split()
    binary = {f"{c['name']}={c['version']}" for c in debian["components"] if "arch=source" not in c["purl"]}
    assert len(packages) > 50
    assert set(packages) <= binary


def test_provenance_names_torch_by_hash(image) -> None:
    content = facts(image, "provenance.json")
    assert content["version"] == __version__
    assert content["torch"]["sha256"] in (ROOT / "requirements" / "torch-cpu.lock").read_text()
    names = {Path(file["path"]).name for file in content["files"]}
    assert {"python.cdx.json", "debian.cdx.json", "container.lock", "torch-cpu.lock"} <= names


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
