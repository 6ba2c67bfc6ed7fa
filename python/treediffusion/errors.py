"""Every error a user can meet, as one tree.

A message says what was given, what was expected and what to do, in that order. The same facts are
fields, so that a server or a notebook need not parse prose. Each class is also the matching
builtin, so ``except ValueError`` works as a Python programmer expects.
"""

from __future__ import annotations


class TreeDiffusionError(Exception):
    """Base of all errors raised on purpose.

    Attributes:
        name: the argument, file or field at fault.
        got: what was given.
        expected: what would have been right.
        hint: what to do about it.
    """

    def __init__(self, name: str, *, got: object, expected: str, hint: str = "") -> None:
        # First: ImportError and OSError set fields of their own, and would overwrite ours.
        super().__init__(name, got, expected, hint)
        self.name, self.got, self.expected, self.hint = name, got, expected, hint

    def __reduce__(self) -> tuple[object, ...]:
        """Copies and crosses process borders although its fields are keyword-only."""
        return _rebuild, (type(self), self.name, self.got, self.expected, self.hint)

    def __str__(self) -> str:
        message = f"{self.name}: got {self.got}, expected {self.expected}"
        return f"{message}; {self.hint}" if self.hint else message


def _rebuild(
    kind: type[TreeDiffusionError], name: str, got: object, expected: str, hint: str
) -> TreeDiffusionError:
    return kind(name, got=got, expected=expected, hint=hint)


class ConfigError(TreeDiffusionError, ValueError):
    """A setting, preset or command-line value that cannot be used."""


class TopologyError(TreeDiffusionError, ValueError):
    """A tree that is not a binary tree, or a node that is not in it."""


class ShapeError(TreeDiffusionError, ValueError):
    """An array whose shape, type or range does not fit."""


class DataError(TreeDiffusionError, ValueError):
    """A data set that is missing, cut or not what its name says."""


class CheckpointError(TreeDiffusionError, OSError):
    """A checkpoint that cannot be read or written."""


class TrainingError(TreeDiffusionError, RuntimeError):
    """A training that cannot go on."""


class DependencyError(TreeDiffusionError, ImportError):
    """An optional package that is not installed."""

    name: str  # narrower than ImportError's


class BackendUnavailableError(TreeDiffusionError, RuntimeError):
    """A back end or device that was asked for by name and cannot run here."""


class CallCancelledError(TreeDiffusionError, RuntimeError):
    """A call that its caller gave up."""


class CallTimeoutError(TreeDiffusionError, TimeoutError):
    """A call that took longer than it was allowed."""


class BundleError(TreeDiffusionError):
    """A bundle that cannot be used."""


class BundleFormatError(BundleError, ValueError):
    """A bundle with a missing, unreadable or self-contradicting part."""


class BundleVersionError(BundleError, ValueError):
    """A bundle written by a newer version."""


class BundleIntegrityError(BundleError, ValueError):
    """A bundle with a file that is not the one that was written."""


class ParityError(BundleError, ValueError):
    """An exported graph that does not compute what the model computes."""
