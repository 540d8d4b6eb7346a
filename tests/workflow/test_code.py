"""A step runs again only when the code that it depends on changed."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bids_app
from bids_app.workflow import code
from bids_app.workflow.code import code_hash

STEPS = {
    "registration of the T1w": "bids_app.preprocess.anatomical:normalise_t1w",
    "head motion": "bids_app.preprocess.hmc:correct_motion",
    "registration of the BOLD": "bids_app.workflow.nodes:align",
    "confounds": "bids_app.workflow.nodes:confounds",
    "encoder": "bids_app.workflow.encoding:encode",
    "verdict": "bids_app.workflow.nodes:judge",
    "figures": "bids_app.outputs.functional:run_figures",
}
HASHES = """
import json, sys
from bids_app.workflow.code import hash_of_definition
print(json.dumps({name: hash_of_definition(*step.split(":")) for name, step in json.loads(sys.argv[1]).items()}))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory) -> Path:
    """Copy of this package that the tests can modify."""
    folder = tmp_path_factory.mktemp("copy") / "bids_app"
    shutil.copytree(Path(bids_app.__file__).parent, folder, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    return folder


def hashes_in(package: Path) -> dict[str, str]:
    call = [sys.executable, "-c", HASHES, json.dumps(STEPS)]
    environment = {"PYTHONPATH": str(package.parent)}
    done = subprocess.run(call, env=environment, cwd=package.parent, capture_output=True, check=True)
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def hashes(package: Path) -> dict[str, str]:
    return hashes_in(package)


@pytest.fixture
def changed_by(package: Path, hashes: dict[str, str]) -> Callable[..., set[str]]:
    """Steps whose hash changes when text is appended to a file, or replaced in it."""

    def changed(file: str, text: str, instead_of: str = "") -> set[str]:
        path = package / file
        kept = path.read_text()
        assert instead_of in kept
        path.write_text(kept.replace(instead_of, text, 1) if instead_of else kept + text)
        try:
            after = hashes_in(package)
        finally:
            path.write_text(kept)
        return {name for name in STEPS if hashes[name] != after[name]}

    return changed


def test_a_changed_report_repeats_no_registration(changed_by) -> None:
    assert changed_by("reports/templates/participant.html.jinja", "<p>new</p>") == set()
    assert changed_by("reports/participant.py", "\nNEW = 1\n") == set()
    assert changed_by("reports/figures/charts.py", "MARKERS = 1 #", instead_of="MARKERS =") == {"figures"}


def test_changed_registration_code_repeats_all_registrations(changed_by) -> None:
    changed = changed_by("preprocess/registration/ants.py", "SYN_THREADS = 0 #", instead_of="SYN_THREADS =")
    assert {"registration of the T1w", "registration of the BOLD"} <= changed
    assert not {"head motion", "encoder"} & changed


def test_kernels_affect_what_uses_them(changed_by) -> None:
    for header in ("scan", "gemm", "linear"):
        assert changed_by(f"model/csrc/{header}.h", "// new\n") == {"encoder"}
    changed = changed_by("model/csrc/spline.h", "// new\n")
    assert {"registration of the T1w", "registration of the BOLD", "confounds"} <= changed
    assert "encoder" not in changed


def test_the_interpolation_on_gpus_affects_what_uses_it(changed_by) -> None:
    changed = changed_by("preprocess/spline_torch.py", "/ 7", instead_of="/ 6")
    assert {"head motion", "confounds"} <= changed


def test_the_deformation_of_a_t1w_affects_what_uses_it(changed_by) -> None:
    changed = changed_by(
        "preprocess/registration/diffeomorphic.py", "step: float = 0.2", instead_of="step: float = 0.3"
    )
    assert "registration of the T1w" in changed
    assert "head motion" not in changed


def test_each_source_of_the_kernels_belongs_to_a_module() -> None:
    folder = Path(bids_app.__file__).parent / "model" / "csrc"
    assert {Path(file).name for files in code.SOURCE_FILES.values() for file in files} == {
        path.name for path in folder.iterdir()
    }


def test_a_catalog_affects_only_its_readers(changed_by) -> None:
    changed = changed_by("catalog/templates.yml", "# new\n")
    assert "registration of the T1w" in changed
    assert not {"head motion", "verdict"} & changed


def test_steps_in_the_same_module_are_independent(changed_by) -> None:
    docstring = "Register a run to its T1w image, or to the template if it has none that can be used."
    assert changed_by("workflow/nodes.py", "Another.", instead_of=docstring) == {"registration of the BOLD"}
    assert changed_by("workflow/nodes.py", "MIN_TSNR = 3.0", instead_of="MIN_TSNR = 2.0") == {"verdict"}


def test_only_definitions_that_a_step_uses_affect_it(changed_by) -> None:
    assert changed_by("adapters/attribution.py", "STEPS = 9", instead_of="STEPS = 16") == set()


@pytest.mark.parametrize(
    ("file", "text", "instead_of", "step"),
    [
        ("preprocess/masking.py", "import threshold_li as threshold_otsu", "import threshold_otsu", "confounds"),
        ("preprocess/hmc.py", "import torch as torch\nimport os\nos.environ['X'] = '1'", "import torch", "head motion"),
        ("preprocess/__init__.py", '"""\nprint("imported")', '"""\n', "head motion"),
    ],
    ids=["another function of a library", "a statement that runs on import", "a statement of a package"],
)
def test_what_takes_effect_on_import_counts(changed_by, file: str, text: str, instead_of: str, step: str) -> None:
    if file.endswith("__init__.py"):
        assert step in changed_by(file, "\nprint('imported')\n")
    else:
        assert changed_by(file, text, instead_of=instead_of)


def test_the_version_of_a_library_counts_for_the_steps_that_use_it(monkeypatch) -> None:
    before = {step: code.hash_of_definition(*step.split(":")) for step in STEPS.values()}
    installed = code.importlib.metadata.version
    newer = {"niworkflows": "99.0"}
    monkeypatch.setattr(code.importlib.metadata, "version", lambda name: newer.get(name) or installed(name))
    for cached in (code.library_version, code.symbol_hash, code.hash_of_definition):
        cached.cache_clear()
    changed = {name for name, step in STEPS.items() if code.hash_of_definition(*step.split(":")) != before[step]}
    for cached in (code.library_version, code.symbol_hash, code.hash_of_definition):
        cached.cache_clear()
    assert changed == {"confounds"}


def test_the_package_has_no_imports_that_the_hash_cannot_follow() -> None:
    for path in sorted(Path(bids_app.__file__).parent.rglob("*.py")):
        tree = ast.parse(path.read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            assert "*" not in names, path
            if isinstance(node, ast.Import):
                assert not [a for a in node.names if a.name.startswith("bids_app") and not a.asname], path
        for statement in tree.body:
            if isinstance(statement, ast.If | ast.Try | ast.With):
                assert not code.uses_of(statement).imports or "__main__" in ast.unparse(statement), path


def test_long_texts_are_not_taken_for_names_of_files(tmp_path) -> None:
    (tmp_path / "table.yml").touch()
    texts = ("table.yml", f"{'One sentence. ' * 30}The second")
    assert code.files_named_in(texts, tmp_path / "module.py") == [tmp_path / "table.yml"]


def test_a_function_of_an_unknown_module_has_a_hash() -> None:
    assert code_hash(test_a_function_of_an_unknown_module_has_a_hash)
    assert code_hash(subprocess.run) != code_hash(subprocess.call)
