"""The operations worth a kernel of their own: reference, Triton code, and the choice between them.

Reached as ``treediffusion.kernels``. Modules here import with leading dots only, so that a stray
``import kernels`` from the checkout fails instead of loading a second copy.
"""

from .. import __version__ as __version__
