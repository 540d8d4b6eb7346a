"""All backends of the selective scan agree, including gradients."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bids_app.errors import UsageError
from bids_app.model import native, scan
from bids_app.model.encoder import Encoder, EncoderConfig
from bids_app.model.scan import BACKENDS, backend_in_use, causal_conv_silu, choose_backend, selective_scan
from bids_app.model.scan_reference import reference_scan
from tests.helpers.scripts import ENVIRONMENT

NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
CPU = torch.device("cpu")

needs_native = pytest.mark.skipif(native.library() is None, reason="the native scan was not compiled")


def make_inputs(n: int, length: int, channels: int, dtype=torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """Simulate arguments of a scan with the mixer's memory layout: views of larger arrays."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype)

    xz, low = draw(n, length, 2 * channels), draw(n, length, 35)
    rates = -torch.exp(torch.arange(1, 17, dtype=torch.float64).log() + 0.1 * draw(channels, 16).double())
    u, z = xz.chunk(2, dim=-1)
    delta, skip, bias = draw(n, length, channels), draw(channels), draw(channels) - 3
    return [u, delta, rates.to(dtype), low[..., 3:19], low[..., 19:], skip, z, bias]


def run(inputs, backend, dtype) -> list[torch.Tensor]:
    """Return the output and the eight gradients."""
    leaves = [t.to(dtype).detach().requires_grad_() for t in inputs]
    y = selective_scan(*leaves, backend=backend)
    weight = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).to(dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, weight)]


def by_hand(u, delta, A, B, C, D, z, bias) -> torch.Tensor:
    """Compute the recurrence element by element."""
    n_windows, length, channels = u.shape
    y = torch.zeros_like(u)
    for n in range(n_windows):
        for d in range(channels):
            h = torch.zeros(16, dtype=u.dtype)
            for token in range(length):
                step = torch.log1p(torch.exp(delta[n, token, d] + bias[d]))
                h = torch.exp(step * A[d]) * h + step * B[n, token] * u[n, token, d]
                y[n, token, d] = (
                    (C[n, token] @ h + D[d] * u[n, token, d]) * z[n, token, d] * torch.sigmoid(z[n, token, d])
                )
    return y


def test_the_reference_equals_the_recurrence():
    inputs = make_inputs(2, 9, 3, torch.float64)
    torch.testing.assert_close(selective_scan(*inputs, backend="reference"), by_hand(*inputs))


def test_gradients_of_the_reference_agree_with_finite_differences():
    inputs = [t.detach().requires_grad_() for t in make_inputs(1, 5, 2, torch.float64)]
    torch.autograd.gradcheck(lambda *t: selective_scan(*t, backend="reference"), inputs)


@needs_native
@pytest.mark.parametrize("isa", native.INSTRUCTION_SETS)
@pytest.mark.parametrize("shape", [(3, 37, 72), (2, 256, 24), (5, 32, 31), (1, 16, 7), (4, 1, 16), (1, 306, 1)])
def test_native_output_and_gradients_agree_with_float64(isa, shape, monkeypatch):
    if not native.library().ns_has(isa.encode()):
        pytest.skip(f"this processor or build has no {isa}")
    monkeypatch.setenv("NEUROSTORM_SCAN_ISA", isa)
    inputs = make_inputs(*shape)
    found, expected = run(inputs, "native", torch.float32), run(inputs, "reference", torch.float64)
    for name, one, other in zip(("y", *NAMES), found, expected, strict=True):
        scale = other.abs().max().item()
        assert (one - other).abs().max().item() <= 2e-6 * scale + 1e-12, name


@needs_native
def test_native_gradients_agree_with_finite_differences_in_float64():
    """Compare the native gradient with float64 differences of the reference along random directions."""
    inputs = make_inputs(2, 20, 6)
    gradients = run(inputs, "native", torch.float32)[1:]
    weight = torch.randn(2, 20, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    for index, gradient in enumerate(gradients):
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(index))
        sides = []
        for step in (1e-5, -1e-5):
            moved = [t.double() for t in inputs]
            moved[index] = moved[index] + step * direction
            sides.append((selective_scan(*moved, backend="reference") * weight).sum())
        difference = (sides[0] - sides[1]) / 2e-5
        torch.testing.assert_close((gradient.double() * direction).sum(), difference, rtol=1e-3, atol=1e-4)


@needs_native
@pytest.mark.parametrize("isa", native.INSTRUCTION_SETS)
def test_native_convolution_agrees_with_torch(isa, monkeypatch):
    if not native.library().ns_has(isa.encode()):
        pytest.skip(f"this processor or build has no {isa}")
    monkeypatch.setenv("NEUROSTORM_SCAN_ISA", isa)
    torch.manual_seed(0)
    leaves = [torch.randn(3, 21, 39), torch.randn(39, 1, 4), torch.randn(39)]
    results = []
    for backend, dtype in (("native", torch.float32), ("reference", torch.float64)):
        own = [t.to(dtype).requires_grad_() for t in leaves]
        y = causal_conv_silu(*own, backend=backend)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), own)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@needs_native
def test_threads_do_not_change_the_output():
    inputs = make_inputs(7, 40, 24)
    before = torch.get_num_threads()
    outcomes = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        outcomes.append(run(inputs, "native", torch.float32))
    torch.set_num_threads(before)
    assert torch.equal(outcomes[0][0], outcomes[1][0])
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@needs_native
def test_a_forked_process_can_scan():
    """The parent's OpenMP threads do not exist in the child; waiting for them would block forever."""
    code = """
import os, signal, torch
from bids_app.model.encoder import Encoder, EncoderConfig

torch.set_num_threads(2)
encoder = Encoder(EncoderConfig(img_size=(24, 24, 24, 6), embed_dim=8, depths=(2, 2))).eval().requires_grad_(False)
clips = torch.randn(1, 1, 24, 24, 24, 6)
expected = encoder(clips)
torch.randn(500, 500) @ torch.randn(500, 500)
child = os.fork()
if child == 0:
    signal.alarm(60)
    os._exit(0 if torch.equal(encoder(clips), expected) else 1)
print(os.waitpid(child, 0)[1])
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "0"


@needs_native
def test_nan_inputs_give_nan_outputs():
    inputs = make_inputs(1, 20, 16)
    for index in (0, 1, 6):
        broken = [t.clone() for t in inputs]
        broken[index][0, 5, 3] = float("nan")
        y = selective_scan(*broken, backend="native")
        assert y[0, 5, 3].isnan()
        assert y[..., :3].isfinite().all()


@needs_native
def test_extreme_steps_stay_finite():
    inputs = make_inputs(1, 30, 16)
    for value in (-200.0, 60.0):
        inputs[1][:] = value
        found, expected = (selective_scan(*inputs, backend=name) for name in ("native", "reference"))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_native
@pytest.mark.parametrize("value", [-300.0, -90.0, 90.0, 300.0])
def test_extreme_gates_and_inputs_stay_finite(value):
    inputs = make_inputs(1, 10, 24)
    inputs[6] = torch.full_like(inputs[6], value)
    for found, expected in zip(
        run(inputs, "native", torch.float32), run(inputs, "reference", torch.float64), strict=True
    ):
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)
    x, weight, bias = torch.full((1, 9, 24), value), torch.ones(24, 1, 4), torch.zeros(24)
    found, expected = (causal_conv_silu(x, weight, bias, backend=name) for name in ("native", "reference"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@needs_native
@pytest.mark.parametrize(
    "config",
    [
        EncoderConfig(img_size=(24, 24, 24, 6), embed_dim=8, depths=(2, 2)),
        EncoderConfig(img_size=(36, 36, 36, 10), embed_dim=9, depths=(2,), prompt_len=3),
        EncoderConfig(img_size=(24, 48, 24, 5), embed_dim=36, depths=(2, 2), whole_last_stage=False),
    ],
)
@pytest.mark.parametrize("isa", native.INSTRUCTION_SETS)
def test_fused_blocks_equal_the_modules(config, isa, monkeypatch):
    if not native.library().ns_has(isa.encode()):
        pytest.skip(f"this processor or build has no {isa}")
    monkeypatch.setenv("NEUROSTORM_SCAN_ISA", isa)
    torch.manual_seed(0)
    encoder, clips = Encoder(config).eval(), torch.randn(2, 1, *config.img_size)
    by_modules = encoder(clips)
    assert by_modules.requires_grad
    with torch.no_grad():
        fused = encoder(clips)
        monkeypatch.setenv("NEUROSTORM_SCAN", "reference")
        reference = encoder(clips)
    torch.testing.assert_close(fused, by_modules.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fused, reference, rtol=1e-4, atol=1e-5)


def test_lower_precision_is_accepted_and_returned():
    inputs = make_inputs(2, 20, 16)
    expected = selective_scan(*inputs, backend="reference")
    for name in ("reference", "native"):
        if BACKENDS[name].obstacle(CPU, torch.bfloat16, 16):
            continue
        half = [t.bfloat16() if t.ndim == 3 else t for t in inputs]
        y = selective_scan(*half, backend=name)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)


def test_the_environment_variable_selects_the_backend(monkeypatch):
    monkeypatch.setenv("NEUROSTORM_SCAN", "reference")
    assert backend_in_use() == "reference (slow)"
    monkeypatch.setenv("NEUROSTORM_SCAN", "fastest")
    with pytest.raises(UsageError, match="fastest"):
        choose_backend(CPU)


def test_requesting_an_unavailable_backend_is_an_error(monkeypatch):
    monkeypatch.setenv("NEUROSTORM_SCAN", "mamba_ssm")
    with pytest.raises(UsageError, match="mamba_ssm"):
        choose_backend(CPU)
    with pytest.raises(UsageError, match="native"):
        choose_backend(CPU, torch.float64, name="native")


def test_inputs_that_native_does_not_support_use_the_reference():
    assert choose_backend(CPU, torch.float64).name == "reference"
    assert choose_backend(CPU, torch.float32, n_states=8).name == "reference"


def test_without_the_library_the_reference_is_used_and_reported(monkeypatch):
    monkeypatch.setattr(native, "library", lambda: None)
    monkeypatch.delenv("NEUROSTORM_SCAN", raising=False)
    assert backend_in_use() == "reference (slow)"
    assert scan.choose_backend(CPU).name == "reference"


@needs_native
def test_an_unavailable_instruction_set_is_rejected(monkeypatch):
    assert "native" in backend_in_use()
    monkeypatch.setenv("NEUROSTORM_SCAN_ISA", "avx1024")
    with pytest.raises(UsageError, match="baseline"):
        native.instruction_set()


ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_build_is_reproducible_and_optional(tmp_path):
    """The build of setup.py is reproducible and optional."""
    built = []
    for name in ("one", "two"):
        subprocess.run(
            [
                sys.executable,
                "setup.py",
                "-q",
                "build_ext",
                "--build-lib",
                tmp_path / name,
                "--build-temp",
                tmp_path / "t",
            ],
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        built.append(next((tmp_path / name).rglob("_scan*")).read_bytes())
    assert built[0] == built[1]
    result = subprocess.run(
        [
            sys.executable,
            "setup.py",
            "-q",
            "build_ext",
            "--build-lib",
            tmp_path / "none",
            "--build-temp",
            tmp_path / "n",
        ],
        cwd=ROOT,
        env={**os.environ, "CC": "no-such-compiler", "CXX": "no-such-compiler"},
        check=True,
        capture_output=True,
        text=True,
    )
    assert list((tmp_path / "none").rglob("_scan*")) == []
    assert "failed" in result.stdout + result.stderr


@pytest.mark.gpu  # requires no GPU, but Triton, which is part of PyTorch for GPUs
def test_triton_output_and_gradients_agree_with_float64_in_its_interpreter():
    """In a separate process, because the interpreter is selected when Triton is imported."""
    pytest.importorskip("triton", reason="triton is not installed")
    code = """
import torch
from tests.model import test_scan as cases
for shape in ((2, 19, 40), (1, 3, 5)):
    inputs = cases.make_inputs(*shape)
    found, expected = cases.run(inputs, "triton", torch.float32), cases.run(inputs, "reference", torch.float64)
    for name, one, other in zip(("y", *cases.NAMES), found, expected, strict=True):
        error, scale = (one - other).abs().max().item(), other.abs().max().item()
        assert error <= 1e-5 * scale + 1e-12, (shape, name, error, scale)
half = [t.bfloat16() if t.ndim == 3 else t for t in inputs]
assert cases.selective_scan(*half, backend="triton").dtype == torch.bfloat16
print("agree")
"""
    environment = {**ENVIRONMENT, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "agree", result.stderr[-2000:]


@pytest.mark.slow
def test_triton_kernels_compile_for_absent_gpus():
    """For the GPU generations from V100 to RTX 50, in a separate process without the interpreter."""
    pytest.importorskip("triton", reason="triton is not installed")
    code = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from bids_app.model import scan_triton_kernels as kernels

for fn, constants in (
    (kernels.scan_forward, dict(BLOCK=32, STATES=16, CHUNK=16, SAVE=True)),
    (kernels.scan_backward, dict(BLOCK=32, STATES=16, CHUNK=16)),
):
    kinds = {n: "constexpr" if n in constants else "*fp32" if n.endswith("_ptr") else "i32" for n in fn.arg_names}
    for capability in (70, 75, 80, 86, 89, 90, 100, 120):
        source = ASTSource(fn, kinds, constexprs=constants)
        built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 1})
        assert len(built.asm["cubin"]) > 1000
print("compiled")
"""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.stdout.strip() == "compiled", result.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["triton", "mamba_ssm"])
@pytest.mark.parametrize("shape", [(3, 37, 72), (8, 256, 144)])
def test_gpu_output_and_gradients_agree_with_float64(name, shape):
    obstacle = (
        BACKENDS[name].unavailable(torch.device("cuda"), torch.float32, 16) if torch.cuda.is_available() else "no GPU"
    )
    if obstacle:
        pytest.skip(obstacle)
    inputs = [t.cuda() for t in make_inputs(*shape)]
    leaves = [t.detach().requires_grad_() for t in inputs]
    weight = torch.randn(*shape, device="cuda")
    y = selective_scan(*leaves, backend=name)
    found = [y.detach(), *torch.autograd.grad(y, leaves, weight)]
    exact = [t.double().detach().requires_grad_() for t in inputs]
    y = selective_scan(*exact, backend="reference")
    expected = [y.detach(), *torch.autograd.grad(y, exact, weight.double())]
    for one, other in zip(found, expected, strict=True):
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.slow
def test_the_kernels_run_on_arm64(tmp_path):
    """Compile for arm64 and run in an emulator, if both are installed."""
    compiler, emulator = shutil.which("aarch64-linux-gnu-g++"), shutil.which("qemu-aarch64")
    if not compiler or not emulator:
        pytest.skip("needs aarch64-linux-gnu-g++ and qemu-aarch64")
    sources = ROOT / "bids_app" / "model" / "csrc"
    program = tmp_path / "driver"
    files = [sources / "kernels.cpp", sources / "dispatch.cpp", Path(__file__).with_name("scan_driver.cpp")]
    flags = ["-std=c++17", "-O3", "-ffp-contract=fast", "-static", "-pthread", f"-I{sources}", "-DISA=baseline"]
    subprocess.run([compiler, *flags, *files, "-o", program], check=True)
    n, length, channels = 3, 37, 23
    inputs = make_inputs(n, length, channels)
    weight = torch.randn(n, length, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(9)).float()
    (tmp_path / "in").write_bytes(b"".join(t.contiguous().numpy().tobytes() for t in [*inputs, weight]))
    sizes = [str(v) for v in (n, length, channels)]
    subprocess.run([emulator, program, tmp_path / "in", tmp_path / "out", *sizes], check=True)
    found = torch.frombuffer(bytearray((tmp_path / "out").read_bytes()), dtype=torch.float32)
    expected = torch.cat([t.flatten() for t in run(inputs, "reference", torch.float64)]).float()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def _no_kernels(*inputs: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("CUDA error: no kernel image is available\nfor execution on the device")


def _not_gated(u: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
    *others, z, bias = others
    return reference_scan(u, *others, torch.ones_like(z) * z.mean(), bias)


def _untrainable(*inputs: torch.Tensor) -> torch.Tensor:
    return reference_scan(*(t.detach() for t in inputs))


def _installed(monkeypatch, kernels) -> None:
    """Pretend that a package with these kernels is installed."""
    package = replace(BACKENDS["reference"], name="package", scan=kernels, on_trial=True)
    others = {name: BACKENDS[name] for name in ("native", "reference")}
    monkeypatch.setattr(scan, "BACKENDS", {"package": package, **others})


@needs_native
@pytest.mark.parametrize(
    ("kernels", "problem"),
    [(_no_kernels, "no kernel image is available for execution"), (_not_gated, "wrong"), (_untrainable, "grad")],
)
def test_a_package_whose_trial_scan_fails_is_replaced_with_one_line_in_the_log(
    monkeypatch, caplog, kernels, problem
) -> None:
    _installed(monkeypatch, kernels)
    with caplog.at_level(logging.WARNING):
        chosen = [choose_backend(CPU).name for _ in range(3)]
    assert chosen == ["native"] * 3
    (line,) = caplog.messages
    assert "package is not used on cpu" in line
    assert problem in line
    with pytest.raises(UsageError, match="a trial scan failed"):
        choose_backend(CPU, name="package")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_package_whose_trial_scan_succeeds_is_used(monkeypatch, dtype) -> None:
    _installed(monkeypatch, reference_scan)
    with torch.inference_mode():
        assert choose_backend(CPU, dtype).name == "package"


def test_logs_and_sidecars_say_that_plain_pytorch_is_slow(monkeypatch) -> None:
    monkeypatch.setenv("NEUROSTORM_SCAN", "reference")
    assert scan.uses_reference("cpu")
    assert scan.backend_in_use("cpu") == "reference (slow)"
