"""The pictures people look at first: the tree, its leaves, what it generates, how it was trained.

Arrays in, a matplotlib `Figure` out; `save` writes it as PNG and SVG. Images are uint8
``[.., C, H, W]`` with one or three channels. Nothing here shows a window, reads matplotlib's global
state, or knows a model; the caller decides which images to draw. One look: `style`.
"""

from __future__ import annotations

from .bars import ablation_bars
from .classes import attribute_frequency, attribute_table, class_table
from .curves import history_chart, metrics_chart
from .gallery import leaf_gallery
from .grid import image_grid, save_png
from .layout import left_to_right
from .saving import save
from .sheets import all_leaf_sheet, reconstruction_sheet, samples_sheet
from .tree import tree_picture
from .words import top_words, word_tree

__all__ = [
    "ablation_bars",
    "all_leaf_sheet",
    "attribute_frequency",
    "attribute_table",
    "class_table",
    "history_chart",
    "image_grid",
    "leaf_gallery",
    "left_to_right",
    "metrics_chart",
    "reconstruction_sheet",
    "samples_sheet",
    "save",
    "save_png",
    "top_words",
    "tree_picture",
    "word_tree",
]
