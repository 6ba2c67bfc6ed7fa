"""Writes the table of README.md from results/cpu.json; nobody edits it by hand.

python bench/render.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
README, RESULTS = HERE / "README.md", HERE / "results" / "cpu.json"
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def table(document: dict[str, Any]) -> str:
    """The machine in a sentence and a line per goal, as Markdown."""
    device = document["device"]
    versions = ", ".join(f"{name} {version}" for name, version in document["versions"].items())
    state = " with uncommitted changes" if document["dirty"] else ""
    lines = [
        f"{device['cpu']}, {device['cores']} cores; {versions}; "
        f"commit {document['commit']}{state}; {document['date']}.",
        "",
        "| Goal | Threads | Ratio | p20 to p80 | Ours, ms | Baseline, ms | At least |",
        "|---|---|---|---|---|---|---|",
        *map(_line, document["rows"]),
    ]
    return "\n".join(lines)


def with_table(text: str, document: dict[str, Any]) -> str:
    """The text with the table between its marks replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table(document)}\n{END}{rest.split(END)[1]}"


def _line(row: dict[str, Any]) -> str:
    unit = row["unit"]
    aim = f"{row['goal']:.2f}" if unit == "x" else f"{row['goal']:g} {unit}"
    found = row["found"]
    if found is None:
        return f"| `{row['name']}` | | not measured here | | | | {aim} |"
    return (
        f"| `{row['name']}` | {row['threads']} | {found['ratio']:.2f} | {found['p20']:.2f} to "
        f"{found['p80']:.2f} | {found['ours_ms']:.1f} | {found['baseline_ms']:.1f} | {aim} |"
    )


if __name__ == "__main__":
    README.write_text(
        with_table(README.read_text("utf-8"), json.loads(RESULTS.read_text("utf-8"))), "utf-8"
    )
