"""From a checkpoint to a bundle: ONNX graphs, TensorRT engines, and the proof that they agree.

Reached as ``treediffusion.export``. Modules here import with leading dots only, so that a stray
``import export`` from the checkout fails instead of loading a second copy.
"""

from .. import __version__ as __version__
