"""Another form of a network: the same weights, and some kinds of its layers replaced."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def twin(module: Module, forms: Mapping[type[nn.Module], Callable[[Any], nn.Module]]) -> Module:
    """A copy of a network that shares its parameters, with layers in other forms.

    Args:
        module: is left as it is.
        forms: makes another layer of each of a kind; the first kind that a layer is of counts.
    """
    shared: dict[int, object] = {id(parameter): parameter for parameter in module.parameters()}
    copied = copy.deepcopy(module, shared)
    for parent in list(copied.modules()):
        for name, child in parent.named_children():
            form = next((form for kind, form in forms.items() if isinstance(child, kind)), None)
            if form is not None:
                setattr(parent, name, form(child))
    return copied
