"""Recipes of the images: installed packages are locked, and the recipes agree with each other and with the package."""

from __future__ import annotations

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from bids_app import __version__
from bids_app.cli.boutiques import CONTAINERS
from tests.helpers.containers import read_recipe
from tests.helpers.paths import ROOT

RECIPES = ("Singularity.def", "Singularity.debian.def")


@pytest.fixture(params=RECIPES)
def recipe(request: pytest.FixtureRequest) -> tuple[dict[str, str], dict[str, str]]:
    return read_recipe(request.param)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked_versions(name: str) -> dict[str, str]:
    """Return the versions in a lock file by name; each entry has a hash for one or two architectures."""
    text = (ROOT / "requirements" / name).read_text()
    entry = r"^(\S+?)===?(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64}){1,2})$"
    entries = re.findall(entry, text, re.MULTILINE)
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert len(lines) == len(entries) + sum(hashes.count("--hash") for _, _, hashes in entries)
    return {name: version for name, version, _ in entries}


def test_lock_file_pins_version_and_hash_of_every_package() -> None:
    entries = locked_versions("container.lock")
    constraints = (ROOT / "requirements" / "constraints.txt").read_text()
    versions = {canonical(n): v for n, v in re.findall(r"^([\w.-]+)==(\S+)$", constraints, re.MULTILINE)}
    for name, version in entries.items():
        assert versions.get(name, version) == version, (
            f"{name} has a different version in constraints.txt: run 'make lock'"
        )
    assert f"torch=={versions['torch']}" in (ROOT / "requirements" / "torch.txt").read_text()
    assert locked_versions("torch-cpu.lock") == locked_versions("torch-cuda.lock") == {"torch": versions["torch"]}
    assert {"cyclonedx-bom", "debsbom"} <= locked_versions("sbom.lock").keys()


def test_lock_file_contains_all_dependencies() -> None:
    text = (ROOT / "requirements" / "container.lock").read_text()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in declared:
        name = canonical(re.split(r"[<>=~!\[ ]", requirement)[0])
        assert name == "torch" or f"\n{name}==" in text, f"{name} is missing from container.lock: run 'make lock'"


@pytest.mark.parametrize("name", ["Dockerfile", *RECIPES, "container/build.sh"])
def test_recipes_contain_no_registry_or_mirror(name: str) -> None:
    assert not re.search(r"https?://|\bpypi\b|\.org/|\.io/", (ROOT / name).read_text())


def test_recipes_and_descriptors_have_the_version_of_the_package(recipe) -> None:
    header, sections = recipe
    assert f"org.opencontainers.image.version {__version__}" in sections["labels"]
    assert header["bootstrap"] in ("docker-daemon", "debootstrap")
    if header["bootstrap"] == "docker-daemon":
        assert header["from"] == CONTAINERS["cpu"]["image"] == f"neurostorm:{__version__}"
    assert f"ARG VERSION={__version__}\n" in (ROOT / "Dockerfile").read_text()


def run_section(script: str, folder: Path, *arguments: str) -> list[str]:
    """Run a section of a recipe with a fake ``neurostorm``, and return the arguments of that command."""
    fake = folder / "neurostorm"
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    command = ["env", "-i", f"PATH={folder}:/usr/bin:/bin", "/bin/sh", "-e", "-c", script, "section", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def test_containers_pass_their_arguments_unchanged(recipe, tmp_path: Path) -> None:
    _, sections = recipe
    words = ["/data/my study", "/out", "participant", "--participant-label", "01", "", "$HOME"]
    assert run_section(sections["runscript"], tmp_path, *words) == words


def test_container_test_is_the_self_test(recipe, tmp_path: Path) -> None:
    _, sections = recipe
    assert run_section(sections["test"], tmp_path) == ["--self-test"]


def test_all_recipes_set_the_same_environment(recipe) -> None:
    _, sections = recipe
    command = ["env", "-i", "/bin/sh", "-c", f"{sections['environment']}\nenv"]
    given = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    dockerfile = (ROOT / "Dockerfile").read_text()
    (block,) = re.findall(r"^FROM base AS runtime$.*?^ENV (.*?[^\\])$", dockerfile, re.MULTILINE | re.DOTALL)
    for assignment in block.replace("\\\n", " ").split():
        assert assignment in given


def stages_of(dockerfile: str) -> dict[str, str]:
    """Return the instructions of each stage of a Dockerfile, by its name, on one line each."""
    joined = re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE))
    return dict(re.findall(r"^FROM \S+ AS (\S+)\n(.*?)(?=^FROM|\Z)", joined, re.MULTILINE | re.DOTALL))


def test_torch_and_the_package_have_layers_of_their_own() -> None:
    stages = stages_of((ROOT / "Dockerfile").read_text())
    for target in ("cpu", "cuda"):
        copies = re.findall(r"^COPY --from=(\S+) (\S+)", stages[f"assembled-{target}"], re.MULTILINE)
        assert [source for source, _ in copies] == ["packages", f"torch-{target}", "data", "package"]
        assert "COPY . " not in stages["packages"] + stages[f"torch-{target}"]  # code does not change these layers


def test_steps_that_download_keep_their_downloads_between_builds() -> None:
    text = (ROOT / "Dockerfile").read_text()
    runs = re.findall(r"^RUN (.*)", "\n".join(stages_of(text).values()), re.MULTILINE)
    for step, cache in {
        "system": "apt",
        "tools": "apt",
        "packages": "pip",
        "torch-cpu": "pip",
        "torch-cuda": "pip",
    }.items():
        (run,) = [run for run in runs if run.endswith(f"build.sh {step}")]
        assert f"--mount=type=cache,target=/cache/{cache}" in run


def test_releases_are_built_on_a_base_image_with_a_digest(tmp_path: Path) -> None:
    digest = f"sha256:{'0a' * 32}"
    fake = tmp_path / "docker"
    fake.write_text(
        f'#!/bin/sh\ncase "$1 $2" in "buildx imagetools") echo {digest} ;; *) printf "%s\\n" "$@" ;; esac\n'
    )
    fake.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    command = ["make", "--silent", "release-image", "SOURCE_URL=place"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert f"BASE_IMAGE=debian:bookworm-slim@{digest}" in done.stdout.splitlines()
    assert f"BASE_DIGEST={digest}" in done.stdout.splitlines()
    fake.write_text("#!/bin/sh\nexit 1\n")  # the registry cannot be reached
    failed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "BASE_IMAGE" not in failed.stdout


@pytest.mark.parametrize("name", ["container/build.sh", "docs/slurm/pretrain.sbatch"])
def test_shell_scripts_have_valid_syntax(name: str) -> None:
    subprocess.run(["bash", "-n", ROOT / name], check=True)


def test_recipes_use_all_build_steps_and_no_others() -> None:
    steps = set(re.findall(r"^([\w-]+)\) #", (ROOT / "container" / "build.sh").read_text(), re.MULTILINE))
    used = set(re.findall(r"build\.sh ([a-z-]+)", (ROOT / "Dockerfile").read_text()))
    post = read_recipe("Singularity.debian.def")[1]["post"]
    loops = " ".join(re.findall(r"for step in ([a-z -]+);", post))
    used |= set(loops.split()) | set(re.findall(r"build\.sh ([a-z-]+)", post))
    assert used == steps


@pytest.mark.parametrize("right", [True, False])
def test_a_wrong_licence_label_stops_the_build(tmp_path: Path, right: bool) -> None:
    """The step that bakes atlases and models is run with a fake Python, which refuses the label or not."""
    prefix, script = tmp_path / "prefix", tmp_path / "container" / "build.sh"
    script.parent.mkdir()
    text = (ROOT / "container" / "build.sh").read_text()
    assert text.count("prefix=/opt/neurostorm\n") == 1
    script.write_text(text.replace("prefix=/opt/neurostorm\n", f"prefix={prefix}\n"))
    (prefix / "bin").mkdir(parents=True)
    fake = prefix / "bin" / "python"
    fake.write_text(f'#!/bin/sh\necho "$*"\ncase "$*" in *--check*) exit {0 if right else 1} ;; esac\n')
    fake.chmod(0o755)
    environment = {
        "PATH": "/usr/bin:/bin",
        "LICENSES": "Apache-2.0",
        "NEUROSTORM_CACHE": str(tmp_path / "cache"),
        "TEMPLATEFLOW_HOME": str(tmp_path / "templateflow"),
    }
    command = ["sh", str(script), "bake", "atlases"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == [
        "-m bids_app.catalog.bake atlases",
        "-m bids_app.catalog.licences --check Apache-2.0",
    ]
    assert (done.returncode == 0) == right, done.stderr


def test_build_context_contains_only_the_files_of_the_package() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    context = {line[1:] for line in lines if line.startswith("!")}
    copied = {line.split()[0] for line in read_recipe("Singularity.debian.def")[1]["files"].splitlines() if line}
    assert "*" in lines
    assert context == copied
    assert all((ROOT / name).exists() for name in context)


def test_commands_of_the_github_workflows_exist() -> None:
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    jobs = [job for path in workflows for job in yaml.safe_load(path.read_text())["jobs"].values()]
    runs = [step["run"] for job in jobs for step in job["steps"] if "run" in step]
    commands = [command for command in runs if not command.startswith("sudo ")]  # of the runner's system
    assert len(commands) >= 4
    for command in commands:
        program, *words = shlex.split(command)
        dry = {"make": ["make", "--dry-run", *words], "bash": ["bash", "-n", *words]}[program]
        subprocess.run(dry, cwd=ROOT, capture_output=True, check=True)
