"""A tree to look at: one HTML file with everything in it, for a browser and nothing else.

`collect` asks an engine for what the page shows and gives an `Atlas`, `write_page` makes the file.
`clusters_atlas` is for a tree that nothing can be generated from yet. No torch.
"""

from .atlas import Amounts, Atlas, Node, RealImages, Router, Sample
from .collect import clusters_atlas, collect
from .page import render, write_page

__all__ = [
    "Amounts",
    "Atlas",
    "Node",
    "RealImages",
    "Router",
    "Sample",
    "clusters_atlas",
    "collect",
    "render",
    "write_page",
]
