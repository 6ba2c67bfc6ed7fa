"""The pictures people look at first: the tree, its leaves, and what it generates.

Arrays in, a matplotlib `Figure` out. Images are uint8 ``[.., C, H, W]`` with one or three channels.
Nothing here shows a window, reads or sets matplotlib's global state, or knows a model; the caller
decides which images to draw.
"""

from __future__ import annotations

from .classes import class_table
from .grid import image_grid, save_png
from .layout import left_to_right
from .page import save
from .sheets import all_leaf_sheet, leaf_gallery, samples_sheet
from .tree import tree_picture

__all__ = [
    "all_leaf_sheet",
    "class_table",
    "image_grid",
    "leaf_gallery",
    "left_to_right",
    "samples_sheet",
    "save",
    "save_png",
    "tree_picture",
]
