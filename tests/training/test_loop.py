"""Training loop: learning rate, resuming, and the best epoch."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import nn

from bids_app.errors import BadDataError, Terminated, UsageError
from bids_app.training.loop import fit
from bids_app.training.optimiser import LoopSettings, make_optimiser
from bids_app.training.state import Checkpoints, check_state, fingerprint


class Numbers:
    """Batches (x, y) of a linear function, seeded by the epoch."""

    steps = 5

    def epoch(self, number: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(number)
        for step in range(self.steps):
            x = torch.randn(16, 2, generator=generator)
            if step >= first:
                yield x, x @ torch.tensor([[1.0], [-2.0]])


def line() -> nn.Module:
    torch.manual_seed(3)
    return nn.Linear(2, 1)


def loss_with_dropout(model):
    def loss_of(batch):
        x, y = batch
        return (model(nn.functional.dropout(x, 0.2)) - y).square().mean()

    return loss_of


def test_learning_rate_warms_up_and_follows_a_cosine():
    settings = LoopSettings(epochs=1, learning_rate=1.0, warmup=0.1, final=0.1)
    rates = [settings.learning_rate_at(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(k + 1) / 10 for k in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[55] == pytest.approx(0.1 + 0.9 / 2, abs=1e-6)
    assert settings.learning_rate_at(99, 100) == pytest.approx(0.1, abs=0.001)


def test_training_reduces_the_loss():
    model = line()
    rows = fit(model, Numbers(), loss_with_dropout(model), LoopSettings(epochs=30, learning_rate=0.1))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert not model.training


def test_a_resumed_run_gives_the_same_losses(tmp_path):
    settings = LoopSettings(epochs=6, learning_rate=0.05)
    whole = line()
    expected = fit(whole, Numbers(), loss_with_dropout(whole), settings)

    interrupted = line()
    calls = 0

    def interrupted_in_epoch_4(batch):
        nonlocal calls
        calls += 1
        if calls == 17:
            raise KeyboardInterrupt
        return loss_with_dropout(interrupted)(batch)

    with pytest.raises(KeyboardInterrupt):
        fit(interrupted, Numbers(), interrupted_in_epoch_4, settings, tmp_path)
    resumed = line()
    rows = fit(resumed, Numbers(), loss_with_dropout(resumed), settings, tmp_path)
    assert [r["loss"] for r in rows] == [r["loss"] for r in expected]
    assert torch.equal(resumed.weight, whole.weight)
    assert len((tmp_path / "log.csv").read_text().splitlines()) == 7


class HeldOut:
    """Held-out clips whose measurement is interrupted once."""

    is_interrupted = True

    def measure(self, compute, fabric):
        if self.is_interrupted:
            raise Terminated
        return 0.5


def test_no_step_is_lost_while_held_out_clips_are_measured(tmp_path):
    settings, held_out = LoopSettings(epochs=2, learning_rate=0.05), HeldOut()
    whole, model = line(), line()
    expected = fit(whole, Numbers(), loss_with_dropout(whole), settings)
    with pytest.raises(Terminated):
        fit(model, Numbers(), loss_with_dropout(model), settings, tmp_path, held_out=held_out)
    held_out.is_interrupted = False
    resumed, calls = line(), []

    def loss_of(batch):
        calls.append(batch)
        return loss_with_dropout(resumed)(batch)

    rows = fit(resumed, Numbers(), loss_of, settings, tmp_path, held_out=held_out)
    assert len(calls) == Numbers.steps  # of the second epoch
    assert [r["loss"] for r in rows] == [r["loss"] for r in expected]
    assert [r["held_out"] for r in rows] == [0.5, 0.5]


def test_a_run_killed_within_an_epoch_gives_the_same_losses(tmp_path):
    """The process is killed twice with SIGKILL and resumed each time."""
    settings = LoopSettings(epochs=4, learning_rate=0.05, checkpoint_interval=0.0)
    whole = line()
    expected = fit(whole, Numbers(), loss_with_dropout(whole), settings, tmp_path / "whole")
    for kill_step in (13, 17):
        child = os.fork()
        if child == 0:
            model, count = line(), [0]
            done = len((tmp_path / "killed" / "steps.csv").read_text().splitlines()) - 1 if kill_step > 13 else 0

            def loss_or_kill(batch, model=model, count=count, done=done):
                count[0] += 1
                if done + count[0] == kill_step:  # noqa: B023
                    os.kill(os.getpid(), signal.SIGKILL)
                return loss_with_dropout(model)(batch)

            fit(model, Numbers(), loss_or_kill, settings, tmp_path / "killed")
            os._exit(1)  # it was not killed
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    lines = (tmp_path / "killed" / "steps.csv").read_text().splitlines()
    assert len(lines) == 1 + 16
    resumed = line()
    rows = fit(resumed, Numbers(), loss_with_dropout(resumed), settings, tmp_path / "killed")
    assert [r["loss"] for r in rows] == [r["loss"] for r in expected]
    assert torch.equal(resumed.weight, whole.weight)
    assert (tmp_path / "killed" / "steps.csv").read_text() == (tmp_path / "whole" / "steps.csv").read_text()


def test_a_state_of_other_data_raises(tmp_path):
    model = line()
    fit(model, Numbers(), loss_with_dropout(model), LoopSettings(epochs=1), tmp_path)

    class More(Numbers):
        steps = 7

    with pytest.raises(BadDataError, match="another training"):
        fit(model, More(), loss_with_dropout(model), LoopSettings(epochs=2), tmp_path)


def test_the_best_epoch_is_restored_and_patience_stops_the_run():
    model = line()
    scores = iter([0.1, 0.9, 0.5, 0.4, 0.8, 1.0])
    seen = []

    def validate():
        seen.append(model.weight.detach().clone())
        return {"score": next(scores)}

    settings = LoopSettings(epochs=6, learning_rate=0.05)
    rows = fit(model, Numbers(), loss_with_dropout(model), settings, None, validate, "score", patience=3)
    assert [r["score"] for r in rows] == [0.1, 0.9, 0.5, 0.4, 0.8]
    assert torch.equal(model.weight, seen[1])


def test_frozen_parameters_do_not_change(tmp_path):
    model = line()
    model.bias.requires_grad_(False)
    before = model.bias.clone()
    fit(model, Numbers(), loss_with_dropout(model), LoopSettings(epochs=2, learning_rate=0.1))
    assert torch.equal(model.bias, before)


def test_accumulated_batches_equal_one_larger_batch():
    def loss(model):
        return lambda batch: (model(batch[0]) - batch[1]).square().mean()

    class Separate(Numbers):
        steps = 2

    class Joined(Numbers):
        steps = 1

        def epoch(self, number, first=0):
            (x1, y1), (x2, y2) = Separate().epoch(number)
            yield torch.cat([x1, x2]), torch.cat([y1, y2])

    settings = LoopSettings(epochs=3, learning_rate=0.05, warmup=0.0)
    separate, joined = line(), line()
    fit(separate, Separate(), loss(separate), LoopSettings(epochs=3, learning_rate=0.05, warmup=0.0, accumulate=2))
    fit(joined, Joined(), loss(joined), settings)
    assert torch.allclose(separate.weight, joined.weight, atol=1e-6)


def test_without_warm_up_and_decay_the_rate_is_constant():
    settings = LoopSettings(learning_rate=5e-5, warmup=0.0, final=1.0)
    assert {settings.learning_rate_at(step, 100) for step in range(100)} == {5e-5}


def test_gradients_are_clipped_only_with_a_maximum_norm():
    def fitted(clip_norm):
        model = line()
        settings = LoopSettings(epochs=1, learning_rate=0.1, clip_norm=clip_norm)
        fit(model, Numbers(), lambda batch: 100 * loss_with_dropout(model)(batch), settings)
        return model.weight

    assert torch.equal(fitted(None), fitted(1e9))
    assert not torch.equal(fitted(None), fitted(1e-8))


def test_the_optimiser_has_the_decay_and_beta_of_its_settings():
    groups = make_optimiser(line(), LoopSettings(weight_decay=0.1, decay_vectors=True, beta2=0.999)).param_groups
    assert [(g["weight_decay"], g["betas"]) for g in groups] == [(0.1, (0.9, 0.999))] * 2
    assert [g["weight_decay"] for g in make_optimiser(line(), LoopSettings()).param_groups] == [0.01, 0.0]


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("settings", "facts", "named"),
    [
        (LoopSettings(epochs=2, learning_rate=0.1), {"strd": None}, "learning_rate 0.05 instead of 0.1"),
        (LoopSettings(epochs=2, learning_rate=0.05), {"strd": (5, 5)}, r"strd None instead of \[5, 5\]"),
    ],
)
def test_going_on_with_another_recipe_is_refused_before_anything_is_written(tmp_path, settings, facts, named):
    model, first = line(), LoopSettings(epochs=1, learning_rate=0.05)
    fit(model, Numbers(), loss_with_dropout(model), first, tmp_path, facts={"strd": None})
    before = files_in(tmp_path)
    with pytest.raises(UsageError, match=named):
        check_state(tmp_path, fingerprint(settings, facts))
    with pytest.raises(UsageError, match=named):
        fit(model, Numbers(), loss_with_dropout(model), settings, tmp_path, facts=facts)
    assert files_in(tmp_path) == before


def test_a_run_may_be_continued_for_more_epochs(tmp_path):
    model, first = line(), LoopSettings(epochs=1, learning_rate=0.05)
    fit(model, Numbers(), loss_with_dropout(model), first, tmp_path)
    assert len(fit(line(), Numbers(), loss_with_dropout(model), replace(first, epochs=2), tmp_path)) == 2


def test_a_state_that_does_not_tell_its_recipe_is_refused(tmp_path):
    model, settings = line(), LoopSettings(epochs=1)
    fit(model, Numbers(), loss_with_dropout(model), settings, tmp_path)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    del state["recipe"]
    torch.save(state, tmp_path / "state.pt")
    with pytest.raises(UsageError, match="earlier version"):
        check_state(tmp_path, fingerprint(settings, {}))


def weights_as_files():
    """Return checkpoints that keep their weights in a dictionary, by name."""
    kept = {}
    return kept, Checkpoints(lambda path, weights: kept.update({path.name: {k: v.clone() for k, v in weights.items()}}))


@pytest.mark.parametrize("spoilt", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_with_the_weights_before_it(tmp_path, spoilt):
    model, settings = line(), LoopSettings(epochs=2, learning_rate=0.05)
    calls, before = [0], {}

    def loss_of(batch):
        calls[0] += 1
        loss = loss_with_dropout(model)(batch)
        if calls[0] < 7:
            return loss
        before.update({name: value.clone() for name, value in model.state_dict().items()})
        return (
            loss * torch.nan if spoilt == "loss" else loss + (model.weight.sum() - model.weight.sum().detach()).sqrt()
        )

    kept, checkpoints = weights_as_files()
    with pytest.raises(BadDataError, match=r"is (nan|inf) in epoch 2, step 7\."):
        fit(model, Numbers(), loss_of, settings, tmp_path, checkpoints=checkpoints)
    assert all(torch.equal(kept["good.safetensors"][name], value) for name, value in before.items())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_loss_that_diverges_stops_with_the_last_good_weights(tmp_path):
    model, settings = line(), LoopSettings(epochs=60, learning_rate=0.2, warmup=0.0)
    weights = []

    def loss_of(batch):
        weights.append(model.weight.detach().clone())
        return loss_with_dropout(model)(batch) + (1e3 if len(weights) > 118 else 0)

    kept, checkpoints = weights_as_files()
    with pytest.raises(BadDataError, match=r"The loss has diverged: .* The weights of step 115 .* with --start-from"):
        fit(model, Numbers(), loss_of, settings, tmp_path, checkpoints=checkpoints)
    assert len(weights) < 160
    assert torch.equal(kept["good.safetensors"]["weight"], weights[115])


def test_a_terminated_run_saves_its_state_and_resumes_with_the_same_losses(tmp_path):
    settings = LoopSettings(epochs=3, learning_rate=0.05)
    whole = line()
    expected = fit(whole, Numbers(), loss_with_dropout(whole), settings)
    model, calls = line(), [0]

    def loss_of(batch):
        calls[0] += 1
        if calls[0] == 8:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss_with_dropout(model)(batch)

    with pytest.raises(Terminated):
        fit(model, Numbers(), loss_of, settings, tmp_path)
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 1 + 8
    resumed = line()
    rows = fit(resumed, Numbers(), loss_with_dropout(resumed), settings, tmp_path)
    assert [r["loss"] for r in rows] == [r["loss"] for r in expected]
    assert len((tmp_path / "steps.csv").read_text().splitlines()) == 1 + 15  # no step was repeated


def test_weights_are_kept_every_so_many_steps_and_at_the_lowest_held_out_loss(tmp_path):
    model, losses, seen = line(), iter([3.0, 1.0, 2.0]), []

    class HeldOut:
        def measure(self, compute, fabric):
            seen.append(model.weight.detach().clone())
            assert not model.training
            return next(losses)

    kept, checkpoints = weights_as_files()
    settings = LoopSettings(epochs=3, learning_rate=0.05)
    every_4 = replace(checkpoints, every=4)
    rows = fit(model, Numbers(), loss_with_dropout(model), settings, tmp_path, held_out=HeldOut(), checkpoints=every_4)
    assert [row["held_out"] for row in rows] == [3.0, 1.0, 2.0]
    names = ["best", "step-0000004", "step-0000008", "step-0000012"]
    assert sorted(kept) == [f"{name}.safetensors" for name in names]
    assert torch.equal(kept["best.safetensors"]["weight"], seen[1])


def test_waiting_for_data_is_measured():
    class Slow(Numbers):
        def epoch(self, number, first=0):
            for batch in super().epoch(number, first):
                time.sleep(0.02)
                yield batch

    model = line()
    row = fit(model, Slow(), loss_with_dropout(model), LoopSettings(epochs=2))[1]
    assert 0.3 < row["waiting"] < 1
    assert row["clips_per_s"] > 0


def test_a_state_of_another_model_raises(tmp_path):
    model = line()
    fit(model, Numbers(), loss_with_dropout(model), LoopSettings(epochs=1), tmp_path)
    other = nn.Linear(2, 3)
    with pytest.raises(BadDataError, match="another training"):
        fit(other, Numbers(), loss_with_dropout(other), LoopSettings(epochs=2), tmp_path)


@pytest.mark.parametrize("invalid", [{"epochs": 0}, {"learning_rate": 0.0}, {"warmup": 1.0}, {"accumulate": 0}])
def test_invalid_settings_raise(invalid):
    with pytest.raises(UsageError):
        LoopSettings(**invalid)
