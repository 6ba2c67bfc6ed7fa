"""The one place that imports an optional package, or refuses with the command that installs it.

Everything outside the base dependencies is reached through ``require`` or from a room that belongs
to an extra. A package is probed by importing it: a stray folder of the same name is found by
``importlib.util.find_spec`` too.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType

from .errors import DependencyError

NOT_INSTALLED = "no such package installed"


def require(module: str, *, extra: str) -> ModuleType:
    """Import an optional module.

    Args:
        module: dotted name, such as ``cuda.bindings.driver``.
        extra: the extra of treediffusion that installs it.

    Returns:
        The module.

    Raises:
        DependencyError: it is not installed, or it is and cannot be loaded (a missing shared
            library, a folder of that name with no code in it). The cause is chained.
    """
    try:
        loaded = import_module(module)
    except (ImportError, OSError) as error:
        raise _refusal(module, extra, _reason(module, error)) from error
    if getattr(loaded, "__file__", None) is None and getattr(loaded, "__path__", None) is not None:
        folder = next(iter(loaded.__path__), "?")
        raise _refusal(module, extra, f"the folder {folder}, which is no package")
    return loaded


def _reason(module: str, error: Exception) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and _is_part(error.name, module):
        return NOT_INSTALLED
    return f"an error while loading it ({type(error).__name__}: {error})"


def _is_part(name: str, module: str) -> bool:
    return module == name or module.startswith(f"{name}.")


def _refusal(module: str, extra: str, got: str) -> DependencyError:
    refusal = DependencyError(
        module,
        got=got,
        expected="an importable package",
        hint=f'run: pip install "treediffusion[{extra}]"',
    )
    refusal.name = module  # ImportError's own constructor clears a field of this name
    return refusal
