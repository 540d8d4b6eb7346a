"""Processes of a training run: nodes and devices, who starts them, and what they agree on.

A run starts its own processes on one machine, or is started once per device by ``torchrun`` or ``srun``; nodes, ranks
and rendezvous are then read from the environment. Lightning Fabric handles devices, processes and precision.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from bids_app.errors import NeurostormError, TemporaryError, UsageError
from bids_app.terminal import count_of
from bids_app.training.sharding import make_strategy

if TYPE_CHECKING:
    from lightning.fabric import Fabric

ITSELF, TORCHRUN, SRUN = "the command itself", "torchrun", "srun"
DDP, FSDP = "ddp", "fsdp"
TASKS_PER_NODE = re.compile(r"(\d+)(\(x\d+\))?")
"""Pattern of SLURM for nodes with the same number of tasks: ``4``, or ``4(x2)``."""
RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK")
"""Variables with which the command itself may be started once per node."""
LOST_PROCESS = re.compile(r"gloo|NCCL|Connection (closed|reset)|Timed out|Broken pipe", re.IGNORECASE)
"""Errors of collective operations after another process has ended."""


@dataclass(frozen=True)
class Layout:
    """Processes of a run, one per device.

    Attributes
    ----------
    nodes, devices : int
        Number of nodes, and of processes on each.
    launcher : str
        Who starts the processes: `ITSELF`, `TORCHRUN` or `SRUN`.
    """

    nodes: int = 1
    devices: int = 1
    launcher: str = ITSELF

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.nodes * self.devices

    def describe(self) -> str:
        """Describe the processes for a log."""
        where = f" ({self.devices} on each of {self.nodes} nodes)" if self.nodes > 1 else ""
        return f"{self.world_size}{where}, started by {self.launcher}"


def find_layout(nodes: int | None, devices: int | None, environ: Mapping[str, str] = os.environ) -> Layout:
    """Return the processes of a run from its options and the environment.

    Parameters
    ----------
    nodes, devices : int, optional
        As given; None: as started by ``torchrun`` or ``srun``, else 1.
    environ : mapping

    Raises
    ------
    UsageError
        The options differ from what the launcher has started, or several nodes have no launcher.
    """
    for name, value in (("--nodes", nodes), ("--devices", devices)):
        if value is not None and value < 1:
            raise UsageError(f"Invalid value for {name}: {value}.", "Use at least 1.")
    started = _find_launcher(environ)
    if started is None:
        own = Layout(nodes or 1, devices or 1)
        missing = [name for name in RENDEZVOUS if name not in environ]
        if own.nodes > 1 and missing:
            raise UsageError(
                f"--nodes {own.nodes}: no launcher has started this process, and {', '.join(missing)} is not set.",
                "Start the command with torchrun or srun, or once per node with these variables.",
            )
        return own
    if (nodes or started.nodes, devices or started.devices) != (started.nodes, started.devices):
        options = [f"--{n} {v}" for n, v in (("nodes", nodes), ("devices", devices)) if v is not None]
        raise UsageError(
            f"{' '.join(options)} does not match {started.launcher}, which has started "
            f"{count_of(started.devices, 'process')} on each of {count_of(started.nodes, 'node')}.",
            f"Omit --nodes and --devices, or change those of {started.launcher}.",
        )
    return started


def _find_launcher(environ: Mapping[str, str]) -> Layout | None:
    """Return what a launcher has started; None if there is no launcher, or only one process."""
    if "TORCHELASTIC_RUN_ID" in environ:  # first: srun may start torchrun
        world, devices = int(environ["WORLD_SIZE"]), int(environ["LOCAL_WORLD_SIZE"])
        if world % devices:
            raise UsageError(
                f"torchrun has started {world} processes, {devices} of them on this node.",
                "Start the same number on each node (--nproc-per-node).",
            )
        return Layout(world // devices, devices, TORCHRUN)
    if int(environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return None
    per_node = TASKS_PER_NODE.fullmatch(environ["SLURM_STEP_TASKS_PER_NODE"])
    if per_node is None:
        raise UsageError(
            f"srun has started {environ['SLURM_STEP_TASKS_PER_NODE']} processes on the nodes.",
            "Start the same number on each node (--ntasks-per-node).",
        )
    return Layout(int(environ["SLURM_STEP_NUM_NODES"]), int(per_node[1]), SRUN)


def check_single(command: str, environ: Mapping[str, str] = os.environ) -> None:
    """Check that a command which runs in one process was not started several times by a launcher.

    Raises
    ------
    UsageError
        It was: all copies would write the same files.
    """
    layout = find_layout(None, None, environ)
    if layout.world_size > 1:
        raise UsageError(
            f"{command} runs in one process, but {layout.launcher} has started {layout.world_size}.",
            f"Start it without {layout.launcher}, or once (srun -n 1).",
        )


def check_devices(device: str, layout: Layout, strategy: str = DDP, precision: str = "float32") -> None:
    """Check that the devices of a layout exist on this node, and have the strategy.

    A launcher has already started its processes, however many; without one, a CPU has at most one for each core.

    Raises
    ------
    UsageError
        They do not.
    """
    kind, _, index = device.partition(":")
    if index and layout.world_size > 1:
        raise UsageError(
            f"--device {device} is one device, but there are {layout.world_size} processes.", f"Use --device {kind}."
        )
    if strategy == FSDP and (layout.world_size < 2 or precision != "float32"):
        raise UsageError(
            f"--strategy fsdp divides weights in float32 among several processes, not {precision} in "
            f"{layout.world_size}.",
            "Use --strategy ddp.",
        )
    cores = os.cpu_count() or 1
    if kind == "cpu" and layout.launcher == ITSELF and layout.devices > cores:
        raise UsageError(f"--devices {layout.devices}: this machine has {cores} cores.", "Use one process per core.")
    if kind == "cuda" and torch.cuda.device_count() < max(layout.devices, int(index or 0) + 1):
        raise UsageError(
            f"This process sees {torch.cuda.device_count()} GPUs, but {layout.devices} processes run on a node.",
            "Lower --devices. Under SLURM, use --gpus-per-node without --gpus-per-task and --gpu-bind.",
        )


def fabric_for(
    device: torch.device | str = "cpu",
    layout: Layout | None = None,
    precision: str = "32-true",
    strategy: str = DDP,
    loggers: Any = None,
) -> Fabric:
    """Create Lightning Fabric for the processes of a run.

    Parameters
    ----------
    device : torch.device or str
        ``cpu``, ``cuda``, ``cuda:1``.
    layout : Layout, optional
        None: this process alone, whatever has started it.
    precision : str
        ``32-true`` or ``bf16-mixed``.
    strategy : str
        `DDP` (gloo on CPUs, NCCL on GPUs) or `FSDP`; for several processes.
    loggers : sequence, optional
        Loggers of Fabric.
    """
    from lightning.fabric import Fabric

    device, layout = torch.device(device), layout or Layout()
    several = layout.world_size > 1
    devices: Any = layout.devices if several or device.type == "cpu" else [device.index or 0]
    return Fabric(
        accelerator=device.type,
        devices=devices,
        num_nodes=layout.nodes,
        strategy=(make_strategy(layout.world_size) if strategy == FSDP else strategy) if several else "auto",
        precision=precision,  # type: ignore[arg-type]
        plugins=[_environment(layout)],
        loggers=loggers,
    )


def _environment(layout: Layout) -> Any:
    """Return the environment of Fabric for a launcher; without one, the variables of a scheduler are ignored."""
    from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment

    if layout.launcher == TORCHRUN:
        return TorchElasticEnvironment()
    if layout.launcher == SRUN:
        # Fabric requires this variable, which SLURM sets with the option of this name only
        os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(layout.devices))
        return SLURMEnvironment(auto_requeue=False)
    return LightningEnvironment()


def on_first(fabric: Fabric, function: Callable[[], object]) -> None:
    """Run a function in the first process; after an error, which it alone raises, all processes end with its code."""
    error: NeurostormError | None = None
    if fabric.is_global_zero:
        try:
            function()
        except NeurostormError as found:
            error = found
    _end_together(fabric, fabric.broadcast(error))


def check_agreement(fabric: Fabric, facts: Mapping[str, Any]) -> None:
    """Check that all processes were started with the same options.

    Raises
    ------
    UsageError
        They were not; in the first process.
    """
    if fabric.world_size == 1:
        return
    found: list[Any] = [None] * fabric.world_size
    torch.distributed.all_gather_object(found, dict(facts))
    for rank, other in enumerate(found):
        for key in sorted(facts):
            if other.get(key) != found[0].get(key):
                error = UsageError(
                    f"Process {rank} has {key} {other.get(key)}, process 0 has {found[0].get(key)}.",
                    "Start all processes with the same options.",
                )
                _end_together(fabric, error)


def _end_together(fabric: Fabric, error: NeurostormError | None) -> None:
    if error is not None:
        if fabric.is_global_zero:
            raise error
        raise SystemExit(error.exit_code)


def lost_reader(error: RuntimeError) -> TemporaryError | None:
    """Return the error for a killed reading process, which torch raises in whatever the run does; None for another."""
    if "DataLoader worker" not in str(error):
        return None
    return TemporaryError(
        f"A reading process was killed, probably out of memory ({str(error).splitlines()[0]}).", "Use fewer --workers."
    )


@contextmanager
def lost_processes(fabric: Fabric) -> Iterator[None]:
    """Report errors of collective operations as what they are: another process of the run has ended.

    Raises
    ------
    TemporaryError
        Another process has ended, or does not respond; or a reading process was killed.
    """
    try:
        yield
    except RuntimeError as error:
        if killed := lost_reader(error):
            raise killed from error
        if fabric.world_size == 1 or not LOST_PROCESS.search(str(error)):
            raise
        raise TemporaryError(
            f"Process {fabric.global_rank} of {fabric.world_size}: another process of this training run has ended, or "
            f"does not respond ({str(error).splitlines()[0][:200]}).",
            "See its message. Run the same command to resume.",
        ) from error


@contextmanager
def noted_sigterm() -> Iterator[threading.Event]:
    """Note SIGTERM in an event instead of ending at once; a second one ends the process."""
    noted = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return
    before = signal.getsignal(signal.SIGTERM)

    def note(*_: object) -> None:
        noted.set()
        signal.signal(signal.SIGTERM, before)

    signal.signal(signal.SIGTERM, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGTERM, before)
