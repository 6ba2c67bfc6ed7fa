# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201 - arguments have the types of Triton's language
"""Device code: one program per sample and node, which loops over the elements of its map.

With the shares s_i = v_i / (v_i + v_p) and s_p = v_p / (v_i + v_p) of the two variances,

    mean - mean_p = s_p (mean_i - mean_p)        var / v_p - 1 = eps / v_p - s_p

so nothing is a difference of numbers that are almost equal, however small the variances are.
Gradients are worked out again from the inputs; nothing is saved. A node's divergence is one sum
within its program, so there are no atomics and two runs give the same bits.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..device import softplus
from ..variants import Variant

LARGEST_BLOCK = 1024


@triton.jit
def forward(
    infer, prior, noise,
    nodes, infer_b, infer_n, prior_b, prior_n, noise_b, noise_n,
    z, kl,
    ELEMENTS: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """infer, prior: [B, N, 2, ELEMENTS] with strides; z: [B, N, ELEMENTS]; kl: [B, N]."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    b, n = row // nodes, row % nodes
    infer += b * infer_b + n * infer_n
    prior += b * prior_b + n * prior_n
    noise += b * noise_b + n * noise_n
    total = tl.zeros([BLOCK], dtype)
    for block in range((ELEMENTS + BLOCK - 1) // BLOCK):
        at = block * BLOCK + tl.arange(0, BLOCK)
        live = at < ELEMENTS
        mean_i = tl.load(infer + at, mask=live, other=0.0).to(dtype)
        var_i = softplus(tl.load(infer + ELEMENTS + at, mask=live, other=0.0).to(dtype)) + EPS
        mean_p = tl.load(prior + at, mask=live, other=0.0).to(dtype)
        var_p = softplus(tl.load(prior + ELEMENTS + at, mask=live, other=0.0).to(dtype)) + EPS
        drawn = tl.load(noise + at, mask=live, other=0.0).to(dtype)
        apart, both = mean_i - mean_p, var_i + var_p
        share_i, share_p = var_i / both, var_p / both
        value = mean_p + apart * share_p + tl.sqrt(var_p * share_i + EPS) * drawn
        tl.store(z + row * ELEMENTS + at, value.to(z.dtype.element_ty), mask=live)
        more = EPS / var_p
        square = apart * share_p * (apart / both)
        found = square + (more - share_p) - tl.log(share_i + more)
        total += tl.where(live, found, 0.0)
    tl.store(kl + row, 0.5 * tl.sum(total))


@triton.jit
def backward(
    of_z, of_kl, infer, prior, noise,
    nodes, infer_b, infer_n, prior_b, prior_n, noise_b, noise_n,
    of_infer, of_prior,
    ELEMENTS: tl.constexpr, BLOCK: tl.constexpr, EPS: tl.constexpr, DOUBLE: tl.constexpr,
):  # fmt: skip
    """of_z: [B, N, ELEMENTS], of_kl: [B, N]; of_infer, of_prior: [B, N, 2, ELEMENTS]."""
    dtype: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    row = tl.program_id(0).to(tl.int64)
    b, n = row // nodes, row % nodes
    infer += b * infer_b + n * infer_n
    prior += b * prior_b + n * prior_n
    noise += b * noise_b + n * noise_n
    of_infer += row * 2 * ELEMENTS
    of_prior += row * 2 * ELEMENTS
    g_kl = tl.load(of_kl + row).to(dtype)
    for block in range((ELEMENTS + BLOCK - 1) // BLOCK):
        at = block * BLOCK + tl.arange(0, BLOCK)
        live = at < ELEMENTS
        mean_i = tl.load(infer + at, mask=live, other=0.0).to(dtype)
        raw_i = tl.load(infer + ELEMENTS + at, mask=live, other=0.0).to(dtype)
        mean_p = tl.load(prior + at, mask=live, other=0.0).to(dtype)
        raw_p = tl.load(prior + ELEMENTS + at, mask=live, other=0.0).to(dtype)
        drawn = tl.load(noise + at, mask=live, other=0.0).to(dtype)
        g_z = tl.load(of_z + row * ELEMENTS + at, mask=live, other=0.0).to(dtype)
        var_i, var_p = softplus(raw_i) + EPS, softplus(raw_p) + EPS
        apart, both = mean_i - mean_p, var_i + var_p
        share_i, share_p = var_i / both, var_p / both
        var = var_p * share_i + EPS
        excess = EPS / var_p - share_p
        off = apart / both
        g_mean = g_z + g_kl * off
        g_var = 0.5 * (g_z * drawn / tl.sqrt(var) + g_kl * excess / var)
        # Straight through the divergence; the rest goes through the posterior.
        g_var_p = -0.5 * g_kl * (excess / var_p + off * off)
        g_var_p += g_mean * off * share_i + g_var * share_i * share_i
        g_var_i = g_var * share_p * share_p - g_mean * off * share_p
        kind = of_infer.dtype.element_ty
        tl.store(of_infer + at, (g_mean * share_p).to(kind), mask=live)
        tl.store(of_infer + ELEMENTS + at, (g_var_i * tl.sigmoid(raw_i)).to(kind), mask=live)
        kind_p = of_prior.dtype.element_ty
        g_mean_p = g_z * share_i - g_kl * off * share_p
        tl.store(of_prior + at, g_mean_p.to(kind_p), mask=live)
        tl.store(of_prior + ELEMENTS + at, (g_var_p * tl.sigmoid(raw_p)).to(kind_p), mask=live)


def sizes(elements: int) -> tuple[int, int]:
    """Elements that a program does at a time, and its warps."""
    block = min(triton.next_power_of_2(elements), LARGEST_BLOCK)
    return block, min(max(block // 256, 1), 4)


def _variants() -> tuple[Variant, ...]:
    """Training in float32 and in bfloat16, at the sizes of the grey and of the colour trees."""
    found = []
    strides = ("infer_b", "infer_n", "prior_b", "prior_n", "noise_b", "noise_n")
    for short, kind in (("fp32", "*fp32"), ("bf16", "*bf16")):
        for elements in (64, 1024):
            block, warps = sizes(elements)
            constants = {"ELEMENTS": elements, "BLOCK": block, "EPS": 1e-7, "DOUBLE": False}
            numbers = dict.fromkeys(("nodes", *strides), "i32")
            inputs = {"infer": kind, "prior": kind, "noise": "*fp32"}
            grads = {"of_z": "*fp32", "of_kl": "*fp32"}
            types = {
                forward: inputs | numbers | {"z": "*fp32", "kl": "*fp32"},
                backward: grads | inputs | numbers | {"of_infer": kind, "of_prior": kind},
            }
            found += [
                Variant(
                    name=f"node_posterior_{kernel.__name__}_{short}_m{elements}",
                    kernel=kernel,
                    types=arguments | dict.fromkeys(constants, "constexpr"),
                    constants=constants,
                    num_warps=warps,
                    aligned=(*(k for k, v in arguments.items() if v[0] == "*"), *strides),
                )
                for kernel, arguments in types.items()
            ]
    return tuple(found)


VARIANTS = _variants()
