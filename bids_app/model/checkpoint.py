"""Checkpoint files: the published Lightning checkpoints of 2025 and 2026, and our safetensors format.

No code in a file is executed, and no parameter stays uninitialised: files with missing or unexpected keys are refused,
and the error names the keys. Keys that the encoder does not use (decoder, mask tokens, unused norms) are listed.

Our format, `neurostorm-encoder`: tensors ``encoder.*``, and optionally ``head.*`` and ``decoder.*``; metadata
``format``, ``version``, ``name``, ``config`` (JSON of `EncoderConfig`), ``demonstration`` (``true`` or ``false``)
and ``info`` (JSON: task, labels, source and licence, where known).
"""

from __future__ import annotations

import hashlib
import json
import os
import pickletools
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save

from bids_app.errors import BadDataError, NeurostormError
from bids_app.files import check_plain, check_regular, open_regular, parse_json
from bids_app.model.config import EncoderConfig
from bids_app.model.lora import has_low_rank_updates, merge_low_rank_updates
from bids_app.model.wrong_files import CHECKPOINT, ENCODER_FORMAT, SAFETENSORS, unreadable, wrong_format

ENCODER_FORMAT_VERSION = "1"
MODEL_NAMES = ("neurostorm", "swin4d_mae", "swin4d_ver7", "fmrifound")
"""Names of the architecture in published files."""
DECODER_PREFIXES = ("first_patch_expanding.", "layers_up.", "norm_up.", "decoder_pred.")
HEAD = "output_head."
"""Prefix of a head's keys; newer files have it inside of another module, ``output_head.head.``."""
MASKING_KEYS = ("mask_token", "window_mask_token", "atlas_mask_token", "atlas_map")
HYPER_PARAMETERS = (
    "img_size",
    "patch_size",
    "embed_dim",
    "depths",
    "window_size",
    "first_window_size",
    "last_layer_full_MSA",
)
PLAIN_NAMES = (
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "_codecs encode",
    "builtins set",
    "__builtin__ set",
)
PLAIN_TORCH_NAME = re.compile(r"torch ([A-Z][A-Za-z0-9]*Storage|b?float\d+|u?int\d+|bool)")
"""Names in a pickle without which no checkpoint can be written; others can allocate any amount of memory."""
NOT_JSON = (torch.Tensor, torch.device, torch.dtype, bytes, set)
"""Types of hyperparameters that have no form in JSON; they describe no encoder and are not kept."""
MAX_SHARING = 4
"""Largest ratio of the size of all tensors of a checkpoint to the size of its file; tensors may share their data."""
MAX_METADATA = 100_000
"""Values in the metadata of a model or an adapter."""
MAX_KEY = 200
"""Letters of the name of a tensor; the published ones have about 50."""
MAX_LABEL = 100
"""Letters and digits of the name of a model or an adapter, which is part of file names."""
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """The contents of a checkpoint, by part; tensors are float32 on the CPU.

    Attributes
    ----------
    encoder, prompts, decoder, head : dict of str to torch.Tensor
        Without prefixes; ``decoder`` holds mask tokens as well. ``head`` and ``decoder`` may be empty.
    unused_keys : tuple of str
        Full names of keys that are not used.
    info : dict
        Hyperparameters of a Lightning file that are numbers, text, lists or mappings; or the ``info`` of ours.
    """

    path: Path
    name: str
    config: EncoderConfig
    encoder: State
    prompts: State = field(default_factory=dict)
    decoder: State = field(default_factory=dict)
    head: State = field(default_factory=dict)
    unused_keys: tuple[str, ...] = ()
    info: dict[str, Any] = field(default_factory=dict)
    demonstration: bool = False

    def require_decoder(self) -> None:
        """Raise a `BadDataError` if there is no decoder, which reconstruction requires."""
        if not any(key.startswith("decoder_pred.") for key in self.decoder):
            raise BadDataError(
                f"{self.path}: the file has no decoder.", "Give a pre-training file, not a fine-tuned one."
            )


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a file of either format.

    Raises
    ------
    NoInputError
        The file does not exist, may not be read, or is not a regular file.
    BadDataError
        The file contains code, claims more data than it has, is truncated, or has an unknown or incomplete format.
    """
    path = Path(path)
    open_regular(path).close()
    checkpoint = _read_safetensors(path) if path.suffix == ".safetensors" else _read_lightning(path)
    if not checkpoint.name.isprintable() or not 1 <= len(re.sub(r"[^A-Za-z0-9]", "", checkpoint.name)) <= MAX_LABEL:
        raise BadDataError(
            f"{path}: the name of the model, {checkpoint.name[:50]!a}, has no or more than {MAX_LABEL} letters and "
            "digits, or has control characters.",
            "Rename the file, or the model in its metadata: the name is part of the names of the outputs.",
        )
    n_blocks, n_tensors = sum(checkpoint.config.depths), len(checkpoint.encoder)
    if n_blocks > n_tensors:
        raise BadDataError(
            f"{path}: the configuration has {n_blocks} blocks, but the file has only {n_tensors} tensors.",
            "Download the file again; it is incomplete.",
        )
    return checkpoint


def weights_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Hash names, shapes and values of tensors; the same weights have the same hash in every file format.

    Prompts are excluded: they belong to an adapter, not to the encoder.
    """
    digest = hashlib.sha256()
    for key in sorted(k for k in state if not k.endswith(".prompt")):
        value = state[key].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{key}:{tuple(value.shape)};".encode())
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _read_lightning(path: Path) -> Checkpoint:
    content = _unpickle(path)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), dict):
        raise BadDataError(
            f"{path}: the file has no state_dict.",
            "Give a Lightning checkpoint or a safetensors file of NeuroSTORM.",
        )
    hyper = content.get("hyper_parameters") or {}
    if not isinstance(hyper, dict) or not all(
        isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in content["state_dict"].items()
    ):
        raise BadDataError(
            f"{path}: state_dict or hyper_parameters have an invalid type.", "Download the file again; it is damaged."
        )
    hyper = {key: value for key, value in hyper.items() if not isinstance(value, NOT_JSON)}
    check_plain(hyper, f"{path}, hyper_parameters", max_values=MAX_METADATA)
    parts: dict[str, State] = {"encoder": {}, "prompts": {}, "decoder": {}, "head": {}}
    unused_keys = []
    for key, value in _without_low_rank_updates(_as_weights(content["state_dict"], path), hyper, path).items():
        bare = key.removeprefix("model.")
        if key.startswith(HEAD):
            parts["head"][key.removeprefix(HEAD)] = value
        elif not key.startswith("model."):
            unused_keys.append(key)
        elif bare in MASKING_KEYS or bare.startswith(DECODER_PREFIXES):
            parts["decoder"][bare] = value
        else:
            parts["prompts" if bare.endswith(".prompt") else "encoder"][bare] = value
    if not {"head.weight", "head.bias"} & set(parts["head"]):
        parts["head"] = {key.removeprefix("head."): value for key, value in parts["head"].items()}
    if not parts["encoder"]:
        raise BadDataError(
            f"{path}: the file has no encoder (no keys that begin with model.).", "Give a checkpoint of NeuroSTORM."
        )
    with naming(path, "hyper_parameters"):
        config = _config_from_hyper_parameters(path, hyper, parts["prompts"])
    return Checkpoint(
        path=path,
        name=path.stem,
        config=config,
        encoder=parts["encoder"],
        prompts=parts["prompts"],
        decoder=parts["decoder"],
        head=parts["head"],
        unused_keys=tuple(unused_keys),
        info=hyper,
    )


def _without_low_rank_updates(state: State, hyper: Mapping[str, Any], path: Path) -> State:
    """Merge low-rank updates of encoder and head into their weights."""
    for prefix in ("model.", HEAD):
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        if has_low_rank_updates(part):
            with naming(path, "the low-rank updates"):
                part = merge_low_rank_updates(part, hyper)
            state = {key: value for key, value in state.items() if not key.startswith(prefix)}
            state |= {prefix + key: value for key, value in part.items()}
    return state


def _unpickle(path: Path) -> Any:
    """Read a file of `torch.save`: first without its tensors, which may claim any size."""
    try:
        file_bytes = check_regular(path).st_size
        records = torch._C.PyTorchFileReader(str(path))
        sizes = [records.get_record_size(name) for name in records.get_all_records()]
        if sum(sizes) > file_bytes:
            raise _unsafe(path, "its records are compressed")
        for opcode, argument, _ in pickletools.genops(records.get_record("data.pkl")):
            if opcode.name in ("STACK_GLOBAL", "INST") or (opcode.name == "GLOBAL" and not _is_plain(str(argument))):
                raise _unsafe(path, f"it contains objects that could run code when loaded ({str(argument)[:100]})")
        claimed = torch.load(path, map_location="meta", weights_only=True)
        tensors = list(_tensors_in(claimed))
        if any(not _fits(tensor, file_bytes) for tensor in tensors):
            raise _unsafe(path, "it contains tensors that are larger than their data")
        if sum(tensor.nbytes for tensor in tensors) > MAX_SHARING * file_bytes:
            raise _unsafe(path, "its tensors share their data")
        return torch.load(path, map_location="cpu", weights_only=True)
    except NeurostormError:
        raise
    except Exception as err:  # damaged files make the unpickler raise any exception
        raise unreadable(path, CHECKPOINT, err) from err


def _unsafe(path: Path, reason: str) -> BadDataError:
    return BadDataError(
        f"{path}: {reason}.", "Save only the state dict and hyperparameters with torch.save, as tensors and values."
    )


def _is_plain(name: str) -> bool:
    """Return True if a name in a pickle stands for a tensor, a type of numbers or a plain value."""
    return name in PLAIN_NAMES or PLAIN_TORCH_NAME.fullmatch(name) is not None


def _tensors_in(content: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors of nested lists and mappings, each container once."""
    seen: set[int] = set()
    pending = [content]
    while pending:
        value = pending.pop()
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, list | tuple | Mapping) and id(value) not in seen:
            seen.add(id(value))
            pending += value.values() if isinstance(value, Mapping) else value


def _fits(tensor: torch.Tensor, file_bytes: int) -> bool:
    return tensor.layout is torch.strided and tensor.nbytes <= tensor.untyped_storage().nbytes() <= file_bytes


def _as_weights(tensors: State, path: Path) -> State:
    """Convert floats to float32; names that cannot be printed or hold control characters are refused."""
    for key in tensors:
        if len(key) > MAX_KEY or not key.isprintable():
            raise BadDataError(f"{path}: invalid name of a tensor ({key[:50]!a}).", "Download the file again.")
    return {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}


@contextmanager
def naming(path: str | Path, what: str) -> Iterator[None]:
    """Add the file's name to errors in a part of it."""
    try:
        yield
    except BadDataError as err:
        raise err if str(path) in err.message else BadDataError(f"{path}: {err.message}", err.hint) from err
    except (KeyError, TypeError, ValueError, IndexError, OverflowError, RecursionError, RuntimeError) as err:
        raise BadDataError(
            f"{path}: {what} are invalid ({str(err)[:200]}).", "Download the file again; it is damaged."
        ) from err


def _config_from_hyper_parameters(path: Path, hyper: dict[str, Any], prompts: State) -> EncoderConfig:
    missing = [name for name in HYPER_PARAMETERS if name not in hyper]
    if missing:
        raise BadDataError(f"{path}: hyper_parameters lack {', '.join(missing)}.", "Give a checkpoint that holds them.")
    if hyper.get("model", MODEL_NAMES[0]) not in MODEL_NAMES:
        raise BadDataError(
            f"{path}: unsupported model {str(hyper['model'])[:100]!a}.", f"Supported are {', '.join(MODEL_NAMES)}."
        )
    if hyper.get("use_mamba", True) is False:
        raise BadDataError(
            f"{path}: the encoder uses window attention.", "Only encoders with Mamba blocks are supported."
        )
    if hyper.get("c_multiplier", 2) != 2:
        raise BadDataError(
            f"{path}: c_multiplier is {str(hyper['c_multiplier'])[:100]}.", "Only a c_multiplier of 2 is supported."
        )
    lengths = {v.shape[1] for v in prompts.values()}
    if len(lengths) > 1 or (lengths and hyper.get("prompt_len", min(lengths)) not in lengths):
        raise BadDataError(
            f"{path}: the prompts have {sorted(lengths)} tokens, but prompt_len is {hyper.get('prompt_len')}.",
            "Correct prompt_len in hyper_parameters.",
        )
    return EncoderConfig(
        img_size=tuple(hyper["img_size"]),
        in_chans=int(hyper.get("in_chans", 1)),
        patch_size=tuple(hyper["patch_size"]),
        embed_dim=int(hyper["embed_dim"]),
        depths=tuple(hyper["depths"]),
        first_window_size=tuple(hyper["first_window_size"]),
        window_size=tuple(hyper["window_size"]),
        whole_last_stage=bool(hyper["last_layer_full_MSA"]),
        prompt_len=lengths.pop() if lengths else 0,
    )


def read_safetensors(path: Path, expected_format: str) -> tuple[State, dict[str, str]]:
    """Read tensors and metadata of a safetensors file and check its format."""
    open_regular(path).close()
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            _check_format(path, metadata, expected_format)
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except NeurostormError:
        raise
    except Exception as err:  # types that torch does not have make the library raise any exception
        raise unreadable(path, SAFETENSORS, err) from err
    return _as_weights(tensors, path), metadata


def parse_safetensors(content: bytes, path: Path, expected_format: str) -> tuple[State, dict[str, str]]:
    """Read as `read_safetensors` from a file's content; ``path`` is for error messages."""
    try:
        tensors = load(content)
        size = int.from_bytes(content[:8], "little")  # of the header, which `load` has validated
        metadata = json.loads(content[8 : 8 + size]).get("__metadata__") or {}
    except Exception as err:  # as above
        raise unreadable(path, SAFETENSORS, err) from err
    _check_format(path, metadata, expected_format)
    return _as_weights(tensors, path), metadata


def _check_format(path: Path, metadata: dict[str, str], expected: str) -> None:
    if metadata.get("format") != expected:
        raise wrong_format(path, str(metadata.get("format"))[:100], expected)


def file_format(path: Path) -> str:
    """Return the ``format`` in a safetensors file's metadata; empty for any other file."""
    try:
        check_regular(path)
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format", "")
    except (SafetensorError, OSError, NeurostormError):
        return ""


def _read_safetensors(path: Path) -> Checkpoint:
    tensors, metadata = read_safetensors(path, ENCODER_FORMAT)
    if metadata.get("version") != ENCODER_FORMAT_VERSION:
        raise BadDataError(
            f"{path}: format version {str(metadata.get('version'))[:100]!a} is not supported.",
            "Install a newer neurostorm.",
        )
    with naming(path, "metadata"):
        config = EncoderConfig.from_dict(parse_json(metadata["config"], f"{path}, config", max_values=MAX_METADATA))
        info = parse_json(metadata.get("info", "{}"), f"{path}, info", max_values=MAX_METADATA)
    if not isinstance(info, dict):
        raise BadDataError(f"{path}: info is not an object.", "Download the file again; it is damaged.")
    parts: dict[str, State] = {"encoder": {}, "prompts": {}, "decoder": {}, "head": {}}
    unused_keys = []
    for key, value in tensors.items():
        prefix, _, bare = key.partition(".")
        if prefix not in ("encoder", "decoder", "head"):
            unused_keys.append(key)
            continue
        parts["prompts" if bare.endswith(".prompt") else prefix][bare] = value
    return Checkpoint(
        path=path,
        name=metadata.get("name") or path.stem,
        config=config,
        encoder=parts["encoder"],
        prompts=parts["prompts"],
        decoder=parts["decoder"],
        head=parts["head"],
        unused_keys=tuple(unused_keys),
        info=info,
        demonstration=metadata.get("demonstration") == "true",
    )


def save_encoder(
    path: str | Path,
    config: EncoderConfig,
    encoder: Mapping[str, torch.Tensor],
    name: str,
    head: Mapping[str, torch.Tensor] | None = None,
    decoder: Mapping[str, torch.Tensor] | None = None,
    info: Mapping[str, Any] | None = None,
    demonstration: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write a file of our safetensors format atomically; the same input gives the same bytes.

    Parameters
    ----------
    config : EncoderConfig
        Its prompt length must be that of ``encoder``.
    encoder, head, decoder : mapping of str to torch.Tensor
        State dicts without prefixes (``Encoder(...).state_dict()``).
    name : str
        Name of the model in outputs.
    info : mapping, optional
        JSON values: task, labels, source, licence, training, ...
    demonstration : bool
        The model is for demonstration only; every output states this.
    dtype : torch.dtype
        Type of the stored floats; float16 halves the file and is converted to float32 on reading.
    """
    tensors: State = {}
    for prefix, state in (("encoder", encoder), ("head", head or {}), ("decoder", decoder or {})):
        for key, value in state.items():
            value = value.detach().to("cpu")
            tensors[f"{prefix}.{key}"] = (value.to(dtype) if value.is_floating_point() else value).contiguous().clone()
    metadata = {
        "format": ENCODER_FORMAT,
        "version": ENCODER_FORMAT_VERSION,
        "name": name,
        "config": json.dumps(config.as_dict(), sort_keys=True),
        "demonstration": "true" if demonstration else "false",
        "info": json.dumps(dict(info or {}), sort_keys=True),
    }
    return write_safetensors(path, tensors, metadata)


def _serialise(tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> bytes:
    """Return the content of a safetensors file with a sorted header; the library's order varies between runs."""
    content = save(dict(tensors), metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(dict(sorted(header.items())), separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


def write_safetensors(path: str | Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    """Write tensors atomically: to a temporary file in the same folder, which is then renamed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    os.close(handle)
    try:
        Path(temporary).write_bytes(_serialise(tensors, metadata))
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return path
