"""What it costs to begin with a bundle, where nothing but `treediffusion[cpu]` is installed.

    python bench/light.py BUNDLE [--python build/empty/bin/python] [--json bench/results/light.json]

    installed    MB of the files of all packages, pip and setuptools aside; in brackets with the
                 byte code that pip compiles of them
    import       seconds of a fresh process that imports `treediffusion.runtime`
    first image  seconds of a fresh process that loads the bundle, with hashes and all, and draws
                 one image in ten evaluations

Medians of processes one after another; the machine has to be idle. Exit status 1 where one is above
its goal, or where a process has loaded one of PyTorch, Triton and onnx.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import describe
from treediffusion.files import write_json

PROCESSES = 15
GOALS = {"installed MB": 200.0, "import s": 0.15, "first image s": 1.0}
SIZES = """
import json
from importlib.metadata import distributions
from pathlib import Path
files = {
    Path(file.locate()) for found in distributions() if found.name not in {"pip", "setuptools"}
    for file in found.files or ()
}
sizes = {file: file.stat().st_size for file in files if file.is_file()}
code = sum(size for file, size in sizes.items() if file.suffix == ".pyc")
print(json.dumps([sum(sizes.values()) - code, sum(sizes.values())]))
"""
IMPORT = "import treediffusion.runtime"
FIRST = """
import sys
from treediffusion.runtime import Engine
with Engine.load(sys.argv[1], threads=2) as engine:
    engine.generate(1, num_inference_steps=10)
"""
LOADED = """
loaded = {"torch", "triton", "onnx"} & set(__import__("sys").modules)
assert not loaded, loaded
"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--python", type=Path, default=Path(sys.executable))
    parser.add_argument("--json", type=Path)
    told = parser.parse_args()
    python, bundle = told.python.absolute(), told.bundle.absolute()
    bare, compiled = json.loads(_run(python, SIZES).stdout)
    rows = {
        "installed MB": bare / 1e6,
        "import s": _seconds(python, IMPORT),
        "first image s": _seconds(python, FIRST, bundle),
    }
    _run(python, FIRST + LOADED, bundle)
    for name, found in rows.items():
        short = "" if found <= GOALS[name] else "  falls short"
        print(f"{name:16} {found:8.3f} of at most {GOALS[name]:g}{short}")
    print(f"({compiled / 1e6:.0f} MB with byte code)")
    if told.json is not None:
        measured = {"processes": PROCESSES, "with_byte_code_mb": compiled / 1e6}
        write_json(told.json, {"machine": describe(threads=2), "measured": measured, "rows": rows})
    return int(any(found > GOALS[name] for name, found in rows.items()))


def _seconds(python: Path, code: str, *arguments: Path) -> float:
    _run(python, code, *arguments)  # once for the disk
    return statistics.median(_timed(python, code, *arguments) for _ in range(PROCESSES))


def _timed(python: Path, code: str, *arguments: Path) -> float:
    began = time.perf_counter()
    _run(python, code, *arguments)
    return time.perf_counter() - began


def _run(python: Path, code: str, *arguments: Path) -> subprocess.CompletedProcess[str]:
    command = [str(python), "-c", code, *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, cwd="/")


if __name__ == "__main__":
    sys.exit(main())
