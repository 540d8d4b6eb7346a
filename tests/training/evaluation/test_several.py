"""One table for several targets of the same scans."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bids_app.errors import UsageError
from bids_app.training.evaluation.comparison import ENCODER, holm
from bids_app.training.evaluation.several import corrected_p_values, name_folders, write_summary
from bids_app.training.tasks import Task


@pytest.fixture
def two_targets(make_examples, evaluate_given):
    """Evaluations of sex, which the embeddings show, and of age, which they do not."""
    participants = [f"{k:02d}" for k in range(40)]
    rng = np.random.default_rng(0)
    sex = ["FM"[k % 2] for k in range(40)]
    age = [f"{value:.1f}" for value in rng.uniform(20, 60, 40)]
    rows = np.hstack([1.2 * np.array([v == "M" for v in sex])[:, None], np.zeros((40, 4))]) + rng.normal(size=(40, 5))
    noise = {"mean": rng.normal(size=(40, 4))}
    return {
        f"participants.tsv:{name}": evaluate_given(
            Task.from_values(name, values), make_examples(values, participants), rows, noise if name == "sex" else {}
        )
        for name, values in (("sex", sex), ("age", age))
    }


def test_the_table_has_one_row_per_target_with_its_own_metric(two_targets, tmp_path: Path) -> None:
    folders = name_folders(list(two_targets))
    assert list(folders.values()) == ["sex", "age"]
    write_summary(two_targets, folders, tmp_path)
    lines = (tmp_path / "report.md").read_text().splitlines()
    sex, age = (next(line for line in lines if line.startswith(f"| participants.tsv:{n}")) for n in ("sex", "age"))
    own = two_targets["participants.tsv:sex"].methods[ENCODER].metrics["balanced_accuracy"]
    assert f"| balanced accuracy | {own:.3f} (" in sex
    assert "| Pearson r |" in age
    assert age.split(" | ")[4] == ""  # this baseline was not computed for age
    rows = [line.split("\t") for line in (tmp_path / "scores.tsv").read_text().splitlines()]
    assert len(rows) == 1 + 2 * 3 + 3
    assert 'href="age/report.html"' in (tmp_path / "report.html").read_text()


def test_p_values_are_corrected_for_the_number_of_targets(two_targets) -> None:
    raw = [evaluation.methods[ENCODER].p_value for evaluation in two_targets.values()]
    assert list(corrected_p_values(two_targets).values()) == holm(raw)
    assert corrected_p_values(two_targets)["participants.tsv:sex"] == pytest.approx(2 * min(raw))


@pytest.mark.parametrize("targets", [["a.tsv:x", "a.tsv:x"], ["a.tsv:x", "b.tsv:x"], ["a.tsv:x y", "a.tsv:x_y"]])
def test_equal_columns_are_refused(targets: list[str]) -> None:
    with pytest.raises(UsageError, match="same column"):
        name_folders(targets)
