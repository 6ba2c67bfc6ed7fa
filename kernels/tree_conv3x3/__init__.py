"""3x3 convolutions of many nodes through a table of tiles, for inference; see README.md."""

from .op import tree_conv3x3
from .pack import pack_conv
from .tiles import Tiles, level_tiles, path_tiles

__all__ = ["Tiles", "level_tiles", "pack_conv", "path_tiles", "tree_conv3x3"]
