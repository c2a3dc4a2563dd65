"""Containers of modules: `Sequential`, `ModuleList`, `ModuleDict`, `ParameterList`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from staticgrad.ir.dim import is_index
from staticgrad.ir.errors import ArgumentError, ArgumentTypeError
from staticgrad.ops.leaves import Parameter
from staticgrad.ops.public import list_of

from .module import Module


class _Numbered(Module):
    """Modules under the names "0", "1", ..."""

    def _at(self, index: Any) -> int:
        if not is_index(index):
            raise ArgumentTypeError(f"{type(self).__name__}: expected an int, got {index!r}")
        at = index.__index__()
        if not -len(self) <= at < len(self):
            raise IndexError(f"index {at} is out of range for {len(self)} modules")
        return at % len(self)

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def __getitem__(self, index: Any) -> Any:
        items = list(self._modules.items())
        if isinstance(index, slice):
            return type(self)._of(items[index])
        return items[self._at(index)][1]

    def __setitem__(self, index: int, module: Module) -> None:
        self.add_module(list(self._modules)[self._at(index)], module)

    def __delitem__(self, index: Any) -> None:
        items = list(self._modules.values())
        del items[index if isinstance(index, slice) else self._at(index)]
        self._modules.clear()
        self.extend(m for m in items if m is not None)

    @classmethod
    def _of(cls, items: list[tuple[str, Module | None]]) -> Any:
        found = cls()
        for name, module in items:
            found.add_module(name if cls is Sequential else str(len(found)), module)
        return found

    def append(self, module: Module) -> Any:
        self.add_module(str(len(self)), module)
        return self

    def extend(self, modules: Iterable[Module]) -> Any:
        for m in modules:
            self.append(m)
        return self

    def insert(self, index: int, module: Module) -> Any:
        items = list(self._modules.values())
        items.insert(index, module)
        self._modules.clear()
        for m in items:
            self.add_module(str(len(self)), m)
        return self


class Sequential(_Numbered):
    """Modules that are called one after another. `Sequential(a, b)`, or of an ordered dict of
    names, as in PyTorch."""

    def __init__(self, *args: Any) -> None:
        super().__init__()
        named = len(args) == 1 and isinstance(args[0], Mapping)
        items = args[0].items() if named else ((str(i), m) for i, m in enumerate(args))
        for name, module in items:
            if not isinstance(module, Module):
                listed = len(args) == 1 and isinstance(module, (list, tuple))
                raise ArgumentTypeError(
                    f"Sequential: entry {name} is {type(module).__name__}, expected a Module"
                    + ("; of a list write Sequential(*layers)" if listed else "")
                )
            self.add_module(name, module)

    def forward(self, input: Any) -> Any:
        for module in self:
            input = module(input)
        return input


class ModuleList(_Numbered):
    """Modules in a list, registered under "0", "1", ...; it has no `forward` of its own."""

    def __init__(self, modules: Iterable[Module] | None = None) -> None:
        super().__init__()
        self.extend(() if modules is None else list_of(modules, "ModuleList: modules", "modules"))


class ModuleDict(Module):
    """Modules by name."""

    def __init__(self, modules: Mapping[str, Module] | None = None) -> None:
        super().__init__()
        self.update({} if modules is None else modules)

    def update(self, modules: Mapping[str, Module]) -> None:
        if not isinstance(modules, Mapping):
            raise ArgumentTypeError(
                f"ModuleDict: modules must be a dict of modules, got {type(modules).__name__}"
            )
        for name, module in modules.items():
            self.add_module(name, module)

    def __getitem__(self, key: str) -> Any:
        return self._modules[key]

    def __setitem__(self, key: str, module: Module) -> None:
        self.add_module(key, module)

    def __delitem__(self, key: str) -> None:
        del self._modules[key]

    def __len__(self) -> int:
        return len(self._modules)

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __contains__(self, key: object) -> bool:
        return key in self._modules

    def keys(self) -> Any:
        return self._modules.keys()

    def values(self) -> Any:
        return self._modules.values()

    def items(self) -> Any:
        return self._modules.items()


class ParameterList(Module):
    """Parameters in a list, registered under "0", "1", ..."""

    def __init__(self, values: Iterable[Parameter] | None = None) -> None:
        super().__init__()
        given = () if values is None else values
        for p in list_of(given, "ParameterList: values", "parameters"):
            self.append(p)

    def append(self, value: Parameter) -> ParameterList:
        if not isinstance(value, Parameter) or not value.trainable:
            raise ArgumentError(f"ParameterList: expected a trainable parameter, got {value!r}")
        self.register_parameter(str(len(self)), value)
        return self

    def __len__(self) -> int:
        return len(self._parameters)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parameters.values())

    def __getitem__(self, index: int) -> Any:
        return list(self._parameters.values())[index]


__all__ = ["ModuleDict", "ModuleList", "ParameterList", "Sequential"]
