"""The device of the encoder, from its name."""

from __future__ import annotations

from bids_app.errors import UsageError

AUTO = "auto"


def check_device(name: str, option: str = "device") -> str:
    """Check the name of a device, and that the device exists; ``option`` is what the user gave, for the error.

    Returns
    -------
    str
        The device; of ``auto``, GPU or CPU.

    Raises
    ------
    UsageError
        There is no such device.
    """
    import torch

    hint = "Use auto, cpu, cuda or cuda:N."
    if name.startswith("gpu"):
        hint = f"Use {name.replace('gpu', 'cuda', 1)}, or auto, which uses the GPU if there is one."
    n_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == AUTO:
        return "GPU" if n_gpus else "CPU"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"Invalid value for {option}: {name!r}.", hint) from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"Invalid value for {option}: {name!r}.", hint)
    if device.type == "cuda" and (device.index or 0) >= n_gpus:
        raise UsageError(f"{option} {name}: {n_gpus} GPUs are available here.", f"Use {AUTO} or cpu.")
    return name


def choose_device(name: str) -> str:
    """Return the device; ``auto`` is the GPU if there is one, else the CPU."""
    import torch

    if name != AUTO:
        return name
    return "cuda" if torch.cuda.is_available() else "cpu"
