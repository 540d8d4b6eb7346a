"""Triton kernels of the scan. Imported only if Triton is installed; scan_triton.py calls them.

One program scans a block of channels over the tokens of one window, with the states in registers. The backward pass
processes the tokens in chunks from the end; it recomputes each chunk's states from the one saved at its start, in its
own scratch array. Partial sums over channels and windows are added by the caller, so that gradients are reproducible.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def softplus(x):
    e = tl.exp(-tl.abs(x))
    w = 1.0 + e
    # log(1 + e), accurate for small e: the quotient corrects the rounding error of w
    tail = tl.where(w == 1.0, e, tl.log(w) * (e / (w - 1.0)))
    return tl.maximum(x, 0.0) + tail


@triton.jit
def scan_forward(
    u_ptr,
    delta_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    skip_ptr,
    z_ptr,
    bias_ptr,
    y_ptr,
    saved_ptr,
    n_tokens,
    n_channels,
    n_chunks,
    u_window,
    u_token,
    delta_window,
    delta_token,
    b_window,
    b_token,
    c_window,
    c_token,
    z_window,
    z_token,
    BLOCK: tl.constexpr,
    STATES: tl.constexpr,
    CHUNK: tl.constexpr,
    SAVE: tl.constexpr,
):
    window = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    inside = channel < n_channels
    cells = channel[:, None] * STATES + state[None, :]
    rate = tl.load(a_ptr + cells, mask=inside[:, None], other=0.0)
    skip = tl.load(skip_ptr + channel, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0)
    h = tl.zeros([BLOCK, STATES], dtype=tl.float32)
    for token in range(n_tokens):
        if SAVE:  # noqa: SIM102 - a compile-time condition around a run-time one
            if token % CHUNK == 0:
                to = saved_ptr + (window * n_chunks + token // CHUNK) * n_channels * STATES
                tl.store(to + cells, h, mask=inside[:, None])
        u = tl.load(u_ptr + window * u_window + token * u_token + channel, mask=inside, other=0.0).to(tl.float32)
        raw = tl.load(delta_ptr + window * delta_window + token * delta_token + channel, mask=inside, other=0.0)
        z = tl.load(z_ptr + window * z_window + token * z_token + channel, mask=inside, other=0.0).to(tl.float32)
        b = tl.load(b_ptr + window * b_window + token * b_token + state).to(tl.float32)
        c = tl.load(c_ptr + window * c_window + token * c_token + state).to(tl.float32)
        step = softplus(raw.to(tl.float32) + bias)
        h = tl.exp(step[:, None] * rate) * h + (step * u)[:, None] * b[None, :]
        y = (tl.sum(h * c[None, :], axis=1) + skip * u) * (z / (1.0 + tl.exp(-z)))
        tl.store(y_ptr + (window * n_tokens + token) * n_channels + channel, y, mask=inside)


@triton.jit
def scan_backward(
    u_ptr,
    delta_ptr,
    a_ptr,
    b_ptr,
    c_ptr,
    skip_ptr,
    z_ptr,
    bias_ptr,
    saved_ptr,
    dy_ptr,
    du_ptr,
    ddelta_ptr,
    db_ptr,
    dc_ptr,
    dz_ptr,
    da_ptr,
    dskip_ptr,
    dbias_ptr,
    scratch_ptr,
    n_tokens,
    n_channels,
    n_chunks,
    u_window,
    u_token,
    delta_window,
    delta_token,
    b_window,
    b_token,
    c_window,
    c_token,
    z_window,
    z_token,
    dy_window,
    dy_token,
    BLOCK: tl.constexpr,
    STATES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    window = tl.program_id(0).to(tl.int64)
    block, n_blocks = tl.program_id(1), tl.num_programs(1)
    channel = block * BLOCK + tl.arange(0, BLOCK)
    state = tl.arange(0, STATES)
    inside = channel < n_channels
    cells = channel[:, None] * STATES + state[None, :]
    own = tl.arange(0, BLOCK)[:, None] * STATES + state[None, :]
    scratch = scratch_ptr + (window * n_blocks + block) * CHUNK * BLOCK * STATES
    rate = tl.load(a_ptr + cells, mask=inside[:, None], other=0.0)
    skip = tl.load(skip_ptr + channel, mask=inside, other=0.0)
    bias = tl.load(bias_ptr + channel, mask=inside, other=0.0)
    dh = tl.zeros([BLOCK, STATES], dtype=tl.float32)
    da = tl.zeros([BLOCK, STATES], dtype=tl.float32)
    dskip = tl.zeros([BLOCK], dtype=tl.float32)
    dbias = tl.zeros([BLOCK], dtype=tl.float32)
    for back in range(n_chunks):
        chunk = n_chunks - 1 - back
        first = chunk * CHUNK
        length = tl.minimum(n_tokens - first, CHUNK)
        from_ptr = saved_ptr + (window * n_chunks + chunk) * n_channels * STATES
        h = tl.load(from_ptr + cells, mask=inside[:, None], other=0.0)
        for k in range(length):
            token = first + k
            tl.store(scratch + k * BLOCK * STATES + own, h)  # before the token
            u = tl.load(u_ptr + window * u_window + token * u_token + channel, mask=inside, other=0.0).to(tl.float32)
            raw = tl.load(delta_ptr + window * delta_window + token * delta_token + channel, mask=inside, other=0.0)
            b = tl.load(b_ptr + window * b_window + token * b_token + state).to(tl.float32)
            step = softplus(raw.to(tl.float32) + bias)
            h = tl.exp(step[:, None] * rate) * h + (step * u)[:, None] * b[None, :]
        tl.debug_barrier()
        for k in range(length):
            token = first + length - 1 - k
            u = tl.load(u_ptr + window * u_window + token * u_token + channel, mask=inside, other=0.0).to(tl.float32)
            raw = tl.load(delta_ptr + window * delta_window + token * delta_token + channel, mask=inside, other=0.0)
            z = tl.load(z_ptr + window * z_window + token * z_token + channel, mask=inside, other=0.0).to(tl.float32)
            b = tl.load(b_ptr + window * b_window + token * b_token + state).to(tl.float32)
            c = tl.load(c_ptr + window * c_window + token * c_token + state).to(tl.float32)
            dy = tl.load(dy_ptr + window * dy_window + token * dy_token + channel, mask=inside, other=0.0)
            dy = dy.to(tl.float32)
            raw = raw.to(tl.float32) + bias
            step = softplus(raw)
            decay = tl.exp(step[:, None] * rate)
            before = tl.load(scratch + (length - 1 - k) * BLOCK * STATES + own)
            drive = step * u
            now = decay * before + drive[:, None] * b[None, :]
            gate = 1.0 / (1.0 + tl.exp(-z))
            dout = dy * z * gate
            out = tl.sum(now * c[None, :], axis=1) + skip * u
            dh += dout[:, None] * c[None, :]
            row = (window * n_blocks + block) * n_tokens + token
            tl.store(db_ptr + row * STATES + state, tl.sum(dh * drive[:, None], axis=0))
            tl.store(dc_ptr + row * STATES + state, tl.sum(dout[:, None] * now, axis=0))
            ddrive = tl.sum(dh * b[None, :], axis=1)
            dexponent = dh * before * decay
            da += dexponent * step[:, None]
            dstep = tl.sum(dexponent * rate, axis=1) + ddrive * u
            ddelta = dstep / (1.0 + tl.exp(-raw))
            place = (window * n_tokens + token) * n_channels + channel
            tl.store(ddelta_ptr + place, ddelta, mask=inside)
            tl.store(du_ptr + place, dout * skip + ddrive * step, mask=inside)
            tl.store(dz_ptr + place, dy * out * gate * (1.0 + z * (1.0 - gate)), mask=inside)
            dskip += dout * u
            dbias += ddelta
            dh *= decay
        tl.debug_barrier()
    tl.store(da_ptr + window * n_channels * STATES + cells, da, mask=inside[:, None])
    tl.store(dskip_ptr + window * n_channels + channel, dskip, mask=inside)
    tl.store(dbias_ptr + window * n_channels + channel, dbias, mask=inside)
