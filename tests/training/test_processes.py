"""Processes of a training run: nodes, devices and launchers, and the end of one of them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from bids_app.errors import TemporaryError, UsageError
from bids_app.training.processes import (
    ITSELF,
    SRUN,
    TORCHRUN,
    Layout,
    check_devices,
    check_single,
    find_layout,
    lost_processes,
    noted_sigterm,
)
from tests.helpers.scripts import ENVIRONMENT

BY_TORCHRUN = {"TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}
BY_SRUN = {
    "SLURM_NTASKS": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
IN_A_JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}
"""A job of four tasks whose script does not use ``srun``."""
RENDEZVOUS = {"MASTER_ADDR": "node1", "MASTER_PORT": "29500", "NODE_RANK": "0"}


@pytest.mark.parametrize(
    ("options", "environ", "expected"),
    [
        ((None, None), {}, Layout(1, 1, ITSELF)),
        ((None, 2), {}, Layout(1, 2, ITSELF)),
        ((2, 4), RENDEZVOUS, Layout(2, 4, ITSELF)),
        ((None, 2), IN_A_JOB, Layout(1, 2, ITSELF)),
        ((None, None), BY_TORCHRUN, Layout(2, 2, TORCHRUN)),
        ((2, 2), BY_TORCHRUN, Layout(2, 2, TORCHRUN)),
        ((None, None), BY_SRUN, Layout(2, 2, SRUN)),
        ((None, 4), {**BY_SRUN, "SLURM_STEP_NUM_NODES": "1", "SLURM_STEP_TASKS_PER_NODE": "4"}, Layout(1, 4, SRUN)),
        ((None, None), {**BY_SRUN, **BY_TORCHRUN, "WORLD_SIZE": "8"}, Layout(4, 2, TORCHRUN)),
    ],
)
def test_nodes_and_devices_are_those_of_the_launcher_or_the_options(options, environ, expected):
    assert find_layout(*options, environ) == expected


@pytest.mark.parametrize(
    ("options", "environ", "named"),
    [
        ((None, 1), BY_TORCHRUN, "--devices 1 does not match torchrun, which has started 2 processes on each of 2"),
        ((4, 1), BY_SRUN, "--nodes 4 --devices 1 does not match srun"),
        ((1, None), BY_SRUN, "--nodes 1"),
        ((2, 2), {}, "MASTER_ADDR, MASTER_PORT, NODE_RANK is not set"),
        ((None, 0), {}, "--devices: 0"),
        ((None, None), {**BY_TORCHRUN, "WORLD_SIZE": "5"}, "torchrun has started 5 processes, 2 of them"),
        ((None, None), {**BY_SRUN, "SLURM_STEP_TASKS_PER_NODE": "3,1"}, "3,1 processes"),
    ],
)
def test_a_wrong_combination_is_refused(options, environ, named):
    with pytest.raises(UsageError, match=named):
        find_layout(*options, environ)


def test_a_command_of_one_process_refuses_to_be_started_several_times():
    check_single("adapt", IN_A_JOB)
    for environ in (BY_SRUN, BY_TORCHRUN):
        with pytest.raises(UsageError, match="adapt runs in one process"):
            check_single("adapt", environ)


@pytest.mark.parametrize(
    ("device", "layout", "strategy", "named"),
    [
        ("cuda:1", Layout(1, 2), "ddp", "--device cuda:1 is one device"),
        ("cuda", Layout(1, 1000, TORCHRUN), "ddp", "1000 processes run on a node"),
        ("cpu", Layout(1, 1), "fsdp", "--strategy fsdp"),
    ],
)
def test_devices_that_do_not_exist_are_refused(device, layout, strategy, named):
    check_devices("cpu", layout)
    with pytest.raises(UsageError, match=named):
        check_devices(device, layout, strategy)


def test_more_processes_than_cores_are_not_started(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    check_devices("cpu", Layout(1, 2))
    check_devices("cpu", Layout(1, 4, SRUN))  # they run already
    with pytest.raises(UsageError, match="--devices 3: this machine has 2 cores"):
        check_devices("cpu", Layout(1, 3))


def test_errors_after_the_end_of_another_process_are_named():
    fabric = SimpleNamespace(global_rank=1, world_size=4)
    with pytest.raises(TemporaryError, match="Process 1 of 4: another process"), lost_processes(fabric):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:39660.")
    with pytest.raises(RuntimeError, match="shape"), lost_processes(fabric):
        raise RuntimeError("The size of tensor a must match the shape of b.")


def test_a_killed_reading_process_is_named_wherever_torch_reports_it():
    with (
        pytest.raises(TemporaryError, match="reading process was killed"),
        lost_processes(SimpleNamespace(world_size=1)),
    ):
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed.")


def test_sigterm_is_noted_once():
    before = signal.getsignal(signal.SIGTERM)
    with noted_sigterm() as noted:
        assert not noted.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted.wait(5)
        assert signal.getsignal(signal.SIGTERM) == before  # a second one ends the process
    assert signal.getsignal(signal.SIGTERM) == before


SCRIPT = """
import os, signal, sys
from pathlib import Path
from dataclasses import replace
from tests.training.test_pretrain import LOOP, SMALL, SmallScan, make_autoencoder
from bids_app.cli.outcome import exit_code_of
from bids_app.training.data.loader import ClipBatches
from bids_app.training.processes import fabric_for, find_layout, lost_processes
from bids_app.training.pretrain import PretrainSettings, pretrain

def main():
    fabric = fabric_for("cpu", find_layout(None, {devices}), strategy={strategy!r})
    fabric.launch()
    scans = tuple(SmallScan(k) for k in range(16))
    settings = PretrainSettings(loop=replace(LOOP, epochs=3, checkpoint_interval=0.0))
    done = []

    class Killed(ClipBatches):
        def epoch(self, number, first=0):
            for step, batch in enumerate(super().epoch(number, first), first):
                if (fabric.global_rank, number, step) == (1, 1, 2) and {stop}:
                    os.kill(os.getpid(), {stop})
                yield batch

    batches = Killed(scans, 8 // fabric.world_size, shard=(fabric.global_rank, fabric.world_size))
    held_out = tuple(SmallScan(k) for k in range(20, 23))
    pretrain(make_autoencoder(), batches, settings, Path({out!r}), fabric=fabric, held_out=held_out)

sys.exit(exit_code_of("train", main))
"""


def run_script(
    tmp_path, out: str, launcher: list[str], devices: int | None = None, stop: int = 0, strategy: str = "ddp"
):
    """Start the script in one or more processes; return a process whose output is read."""
    script = tmp_path / f"{out}{stop}.py"
    script.write_text(SCRIPT.format(out=str(tmp_path / out), devices=devices, stop=int(stop), strategy=strategy))
    command = [*launcher, str(script)] if launcher else [sys.executable, str(script)]
    return subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def torchrun(rank: int, port: int) -> list[str]:
    """Return the command of one of two nodes with two processes."""
    options = ["--nnodes=2", f"--node-rank={rank}", "--nproc-per-node=2", f"--master-port={port}"]
    return [sys.executable, "-m", "torch.distributed.run", *options, "--master-addr=127.0.0.1"]


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def steps_of(folder) -> np.ndarray:
    return np.loadtxt(folder / "steps.csv", delimiter=",", skiprows=1)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_nodes_of_two_processes_equal_one_process(tmp_path):
    port = free_port()
    nodes = [run_script(tmp_path, "four", torchrun(rank, port)) for rank in (0, 1)]
    errors = [node.communicate(timeout=280)[1] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], errors
    assert run_script(tmp_path, "one", []).wait(280) == 0
    one, four = steps_of(tmp_path / "one"), steps_of(tmp_path / "four")
    assert one.shape == (12, 5)
    assert four[:, 2] == pytest.approx(one[:, 2], rel=1e-5)
    held_out = [np.genfromtxt(tmp_path / k / "log.csv", delimiter=",", names=True)["held_out"] for k in ("one", "four")]
    assert held_out[1] == pytest.approx(held_out[0], rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_after_the_end_of_one_process_the_others_end_and_the_run_resumes_bit_equal(tmp_path):
    """Four processes, so that the order of sums matters."""
    assert run_script(tmp_path, "whole", [], 4).wait(280) == 0
    started = time.monotonic()
    killed = run_script(tmp_path, "killed", [], 4, stop=signal.SIGKILL)
    _, message = killed.communicate(timeout=120)
    assert time.monotonic() - started < 110
    assert killed.returncode in (75, -signal.SIGKILL)  # by itself, or by Fabric's observer of the processes
    assert "another process of this training run has ended" in message
    assert len(steps_of(tmp_path / "killed")) == 6
    assert run_script(tmp_path, "killed", [], 4).wait(280) == 0
    assert (tmp_path / "killed" / "steps.csv").read_text() == (tmp_path / "whole" / "steps.csv").read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_divided_weights_give_the_same_losses_and_resume_after_sigterm(tmp_path):
    assert run_script(tmp_path, "one", []).wait(280) == 0
    terminated = run_script(tmp_path, "fsdp", [], 2, stop=signal.SIGTERM, strategy="fsdp")
    assert "terminated" in terminated.communicate(timeout=280)[1]
    assert terminated.returncode == 143
    assert len(steps_of(tmp_path / "fsdp")) == 7
    assert run_script(tmp_path, "fsdp", [], 2, strategy="fsdp").wait(280) == 0
    assert run_script(tmp_path, "whole", [], 2, strategy="fsdp").wait(280) == 0
    steps = {name: steps_of(tmp_path / name) for name in ("one", "fsdp", "whole")}
    assert steps["fsdp"][:, 2] == pytest.approx(steps["one"][:, 2], rel=1e-5)
    assert (steps["fsdp"] == steps["whole"]).all()
