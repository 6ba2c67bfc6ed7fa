"""Kernels on a GPU: right first, then the share of what the device can do, then the goals.

    python bench/gpu/kernels.py --json OUT.json           all of it, in under nine minutes
    python bench/gpu/kernels.py --smoke --json OUT.json   on a CPU, tiny: that it runs, no figures

Sections run in order, each within its own time. One that fails is recorded with its reason, and the
rest goes on; the file is renewed after each, so that a run that is cut off has left what it found.
Rows are printed as they come. PyTorch, NumPy and Triton are enough for all but two sections: the
tests and the step read settings, and so need what the package needs. Not run yet on a GPU.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the cases
sys.path.append(str(Path(__file__).resolve().parents[2] / "tests"))  # the baselines' home
sys.path.append(str(Path(__file__).resolve().parents[2] / "python"))  # where nothing is installed

import torch
from cases.kernels import KERNEL_GOALS, MATMUL_RATE, Case, Roofline, worst_error
from cases.kernels_clock import measure_rates, median_seconds
from cases.kernels_maps import norm_cases
from cases.kernels_passes import pass_cases
from cases.kernels_rows import row_cases
from cases.kernels_run import Row, Run
from cases.kernels_tree import tree_cases
from interleave import Side
from machine import describe
from treediffusion.kernels.choice import use_kernels

FORMAT = 1
SANITIZERS = (("memcheck", ""), ("racecheck", "tree_node_gen"))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status is 1 where something is wrong, not where it is slow."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--smoke", action="store_true", help="tiny, on a CPU, without figures")
    parser.add_argument("--launch", metavar="OP", help="only call ours, of an operation or of all")
    parser.add_argument("--compile", nargs=2, type=int, metavar=("PART", "PARTS"), help="no clock")
    given = parser.parse_args(arguments)
    if not given.smoke and not torch.cuda.is_available():
        parser.error("no CUDA device: nothing to measure here; --smoke to see that it runs")
    if given.smoke:
        os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton
    run = Run(torch.device("cpu" if given.smoke else "cuda"), given.smoke, given.json)
    if given.launch is not None:
        launch(run, given.launch)
        return 0
    if given.compile is not None:
        compile_part(run, *given.compile)
        return 0
    run.document |= {"format": FORMAT, "smoke": run.smoke} | describe(
        threads=torch.get_num_threads()
    )
    if not run.smoke:
        run.document["gpu"] = torch.cuda.get_device_name()
        run.document["cuda"] = torch.version.cuda
    for name, seconds, measure in SECTIONS:
        run.section(name, seconds, measure)
    return 1 if run.broken() else 0


def cases() -> list[Case]:
    """All of them, the goals' first."""
    return [*pass_cases(), *norm_cases(), *tree_cases(), *row_cases()]


def smalls(op: str = "") -> list[Case]:
    """One case for each small size, of an operation or of all."""
    found: dict[tuple[str, str], Case] = {}
    for case in cases():
        if op in ("", case.op):
            found.setdefault((case.op, repr(case.small)), case)
    return list(found.values())


def launch(run: Run, op: str) -> None:
    """Calls ours once at each small size: what a sanitizer watches."""
    for case in smalls("" if op == "all" else op):
        roofline = case.small(run.device)
        with use_kernels("triton"):
            roofline.forms["ours"]()
        print(roofline.op, roofline.shape, flush=True)
    if run.device.type == "cuda":
        torch.cuda.synchronize()


def compile_part(run: Run, part: int, parts: int) -> None:
    """Calls every form of every so many cases once, which fills the compilers' caches."""
    for case in cases()[part::parts]:
        torch.compiler.reset()
        for name, side in case.build(run.device).forms.items():
            try:
                with use_kernels("triton"):
                    side()
            except Exception as error:  # is recorded where it is measured
                print(case.op, case.shape, name, error, flush=True)


def compiling(run: Run, rows: list[Row]) -> None:
    """All cases in many processes, so that the clock's section need not wait for compilers."""
    parts = max((os.cpu_count() or 1) - 2, 1)
    words = [sys.executable, str(Path(__file__).resolve()), "--compile"]
    with ThreadPoolExecutor(parts) as pool:
        told = pool.map(
            lambda part: run.command(
                [*words, str(part), str(parts)], TORCHINDUCTOR_COMPILE_THREADS="1"
            ),
            () if run.smoke else range(parts),
        )
        rows.append({"parts": parts, "failed": sum(ended.returncode != 0 for ended in told)})


def check(run: Run, roofline: Roofline) -> Row:
    """Ours against the reference in float64."""
    with use_kernels("triton"):
        error = worst_error(roofline.forms["ours"](), roofline.truth())
    right = error <= roofline.error
    row: Row = {"op": roofline.op, "shape": roofline.shape, "dtype": str(roofline.dtype)[6:]}
    return row | {"error": float(f"{error:.2g}"), "allowed": roofline.error, "right": right}


def correctness(run: Run, rows: list[Row]) -> None:
    """Every operation at sizes where nothing is whole."""
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolutions.fp32_precision
    convolutions.fp32_precision = "ieee"  # what is compared with float64 may not be TF32
    try:
        for case in smalls():
            run.check_time()
            rows.append(check(run, case.small(run.device)))
            print(f"   {verdict(rows[-1])}", flush=True)
    finally:
        convolutions.fp32_precision = before


def verdict(row: Row) -> str:
    """A row of `check` in a line."""
    words = "right" if row["right"] else "WRONG"
    return f"{row['op']:15} {row['shape']:44} {row['dtype']:8} {row['error']:.1e} {words}"


def noise(run: Run, rows: list[Row]) -> None:
    """Every bit of the noise, for words at the ends of their ranges, against NumPy's."""
    import numpy as np
    from treediffusion.kernels.philox_normal import philox_normal
    from treediffusion.noise import WORD_RANGE, Stream, normal

    top, shape = WORD_RANGE - 1, (3, 5, 7) if run.smoke else (3, 64, 64)
    draws = (
        (0, [0], Stream.START, 0, 0),
        (top, [top, 1], Stream.STEP, top, top),
        ([2**63, 7], [2**63, 0], Stream.NODE, 999, 3),
        (12345, range(3 if run.smoke else 256), Stream.START, 50, 0),
    )
    for seed, images, stream, step, draw in draws:
        run.check_time()
        named = {"stream": stream, "step": step, "draw": draw}
        want = normal(seed, images, shape, **named)
        with use_kernels("triton"):
            found = philox_normal(seed, images, shape, device=run.device, **named)
        wrong = int((found.cpu().numpy().view(np.int32) != want.view(np.int32)).sum())
        rows.append({"images": len(images), "numbers": want.size, "wrong": wrong})
        rows[-1]["right"] = wrong == 0
        print(f"   {want.size} numbers of {stream.name}: {wrong} differ", flush=True)


def suite(run: Run, rows: list[Row]) -> None:
    """The tests of the kernels, which take compiled ones where there is a GPU."""
    if run.smoke:
        rows.append({"skipped": "on a CPU the tests run this, and not this the tests"})
        return
    if find_spec("pydantic") is None:
        rows.append({"skipped": "the tests read settings, and pydantic is not installed"})
        return
    folder = str(Path(__file__).resolve().parents[2] / "tests" / "kernels")
    words = ["-m", "pytest", "-q", folder, "-k", "not compile", "-p", "no:cacheprovider"]
    ended = run.command([sys.executable, *words, "-n", "8", "--dist", "loadfile"])
    print(ended.stdout[-2000:], flush=True)
    last = (ended.stdout.strip() or ended.stderr.strip() or "nothing printed").splitlines()[-1]
    rows.append({"tests": last, "right": ended.returncode == 0})


def sanitizer(run: Run, rows: list[Row]) -> None:
    """Out-of-bounds accesses of all operations, and races of the one that shares memory by hand."""
    tool = shutil.which("compute-sanitizer", path=f"{os.environ['PATH']}:/usr/local/cuda/bin")
    if run.smoke or tool is None:
        rows.append({"skipped": "no GPU" if run.smoke else "no compute-sanitizer on this machine"})
        print(f"   skipped: {rows[-1]['skipped']}", flush=True)
        return
    for check_, op in SANITIZERS:
        words = [
            "--tool",
            check_,
            "--error-exitcode",
            "3",
            sys.executable,
            str(Path(__file__).resolve()),
        ]
        # From a pool of PyTorch's, what lies behind a tensor would be allowed, too.
        ended = run.command(
            [tool, *words, "--launch", op or "all"], PYTORCH_NO_CUDA_MEMORY_CACHING="1"
        )
        print("\n".join(ended.stdout.splitlines()[-3:]), flush=True)
        told = [line for line in ended.stdout.splitlines() if line.startswith("=========")]
        row: Row = {"tool": check_, "ops": op or "all", "told": told[-12:]}
        rows.append(row | {"right": ended.returncode == 0})


def timings(run: Run, rows: list[Row]) -> None:
    """Every case: is it right at its real size, how long it takes, and who else how long."""
    if not run.smoke:
        run.rates = measure_rates()
        rates: Row = {"copy_gb_s": run.rates.copy / 1e9, "tensor_tflop_s": run.rates.tensor / 1e12}
        run.document["rates"] = rates | {"l2_mb": run.rates.l2 / 1e6}
        print(f"   {run.document['rates']}", flush=True)
    for case in smalls() if run.smoke else cases():
        run.check_time()
        torch.compiler.reset()  # what an earlier case compiled would count as a recompilation
        try:
            row = called(case.small(run.device)) if run.smoke else measured(run, case)
        except Exception as error:
            row = {"op": case.op, "shape": case.shape, "right": False, "fault": str(error)}
        rows.append(row)
        print(f"   {line(row)}", flush=True)
    if not run.smoke:
        run.found |= goals_of(run, rows)


def called(roofline: Roofline) -> Row:
    """Every form but ours and the compiler's, once."""
    names = [name for name in roofline.forms if name not in ("ours", "inductor")]
    for name in names:
        roofline.forms[name]()
    row: Row = {"op": roofline.op, "shape": roofline.shape, "called": names}
    return row | {"bytes": roofline.bytes, "flops": roofline.flops}


def measured(run: Run, case: Case) -> Row:
    """A row with microseconds by form; a form that cannot run gives its reason."""
    roofline = case.build(run.device)
    row = check(run, roofline) | {"bytes": roofline.bytes, "flops": roofline.flops}
    assert run.rates is not None
    with use_kernels("triton"):
        times, faults = median_seconds(roofline.forms)
    row["us"] = {name: round(1e6 * seconds, 2) for name, seconds in times.items()}
    if faults:
        row["faults"] = faults
    if "ours" in times:
        row["gb_s"] = roofline.bytes / times["ours"] / 1e9
        row["tflop_s"] = roofline.flops / times["ours"] / 1e12
        row["copy_share"] = roofline.bytes / times["ours"] / run.rates.copy
        row["tensor_share"] = roofline.flops / times["ours"] / run.rates.tensor
        row["limit"] = roofline.limit
        row["above_l2"] = roofline.bytes > run.rates.l2
    return row


def line(row: Row) -> str:
    """A row of `timings` in a line."""
    if "error" not in row:
        return f"{row['op']:15} {row['shape']:44} {row.get('fault') or row['called']}"
    if "us" not in row:
        return verdict(row)
    share = ""
    if "limit" in row:
        share = (
            f"{row['gb_s']:7.0f} GB/s {row['copy_share']:4.0%} of copy"
            if row["limit"] == "copy"
            else f"{row['tflop_s']:7.1f} TFLOP/s {row['tensor_share']:4.0%} of products"
        )
    return f"{verdict(row)} {share} us: {row['us']}"


def goals_of(run: Run, rows: list[Row]) -> dict[str, float]:
    """The numbers of the goals that rows of `timings` tell."""
    from cases.kernels_level import COLOUR

    norms = [row for row in rows if row["op"] == "gn_silu" and "copy_share" in row]
    norms = [row for row in norms if "gradients" not in str(row["shape"])]
    found: dict[str, float] = {}
    if large := [100 * row["copy_share"] for row in norms if row["above_l2"]]:
        found["kernels/norm-bandwidth-gpu"] = min(large)
    slower = [
        min(row["us"][name] for name in ("eager", "inductor") if name in row["us"])
        / row["us"]["ours"]
        for row in norms
        if {"eager", "inductor"} & {*row["us"]}
    ]
    if slower:
        found["kernels/norm-slowest-gpu"] = min(slower)
    whole = COLOUR.shape(COLOUR.topology.num_nodes - 1)
    for op, name in (("generation", "generation"), ("posterior pass", "posterior")):
        for row in rows:
            if row["op"] == op and row["shape"] == whole and "tensor_share" in row:
                floor_us = 1e6 * row["flops"] / MATMUL_RATE
                found[f"kernels/{name}-gpu"] = 100 * floor_us / row["us"]["ours"]
    return found


def step(run: Run, rows: list[Row]) -> None:
    """A denoising step of one image: as a program makes it, and as one graph."""
    from cases.kernels_step import SHAPES, steps

    for preset in list(SHAPES)[: 1 if run.smoke else None]:
        for dtype in (torch.float32,) if run.smoke else (torch.bfloat16, torch.float32):
            run.check_time()
            sides = steps(preset, dtype, run.device, toy=run.smoke)
            error = worst_error(sides["kernels"](), sides["published"]())
            row: Row = {"op": "step", "shape": preset, "dtype": str(dtype)[6:]}
            allowed = 0.15 if dtype == torch.bfloat16 else 5e-3  # TF32
            rows.append(row | {"error": error, "allowed": allowed, "right": error <= allowed})
            if not run.smoke:
                rows[-1] |= step_times(sides)
                took = rows[-1]["us"]
                if preset == "paper-cifar10" and dtype == torch.bfloat16:
                    ratio = took["published, eager"] / took["kernels, one graph"]
                    run.found["kernels/step-graph-gpu"] = ratio
            print(f"   {line(rows[-1])}", flush=True)


def step_times(sides: Mapping[str, Side]) -> Row:
    """Microseconds as a program makes the steps, and of what can be recorded as one graph."""
    eager = median_seconds(sides, graphs=False)
    graph = median_seconds({name: sides[name] for name in ("reference", "kernels")})
    times = {f"{name}, eager": took for name, took in eager.seconds.items()}
    times |= {f"{name}, one graph": took for name, took in graph.seconds.items()}
    row: Row = {"us": {name: round(1e6 * took, 1) for name, took in times.items()}}
    return row | {"faults": eager.faults | graph.faults}


def goals(run: Run, rows: list[Row]) -> None:
    """What was found, goal by goal."""
    for goal in KERNEL_GOALS:
        value = run.found.get(goal.name)
        met = None if value is None else value >= goal.goal
        rows.append({"name": goal.name, "goal": goal.goal, "unit": goal.unit, "found": value})
        rows[-1]["met"] = met
        said = "not measured" if value is None else f"{value:.2f} {goal.unit}"
        word = {None: "", True: "met", False: "falls short"}[met]
        print(
            f"   {goal.name:30} {said:>14}, at least {goal.goal:g} {goal.unit} {word}", flush=True
        )


SECTIONS: tuple[tuple[str, float, Callable[[Run, list[Row]], None]], ...] = (
    ("correctness", 45, correctness),
    ("noise", 15, noise),
    ("sanitizer", 90, sanitizer),
    ("compiling", 70, compiling),
    ("timings", 170, timings),
    ("step", 50, step),
    ("tests", 80, suite),
    ("goals", 5, goals),
)


if __name__ == "__main__":
    sys.exit(main())
