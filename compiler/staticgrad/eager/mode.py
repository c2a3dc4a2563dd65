"""Whether operations are recorded: `no_grad`, `enable_grad`, `set_grad_enabled`, anomaly mode."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Any, TypeVar

from staticgrad.ir.errors import ArgumentTypeError

F = TypeVar("F", bound=Callable[..., Any])

recording: ContextVar[bool] = ContextVar("eager_recording", default=True)
checking: ContextVar[bool] = ContextVar("eager_anomaly", default=False)
tapes: ContextVar[tuple[Any, ...]] = ContextVar("gradient_tapes", default=())  # that record


class _Switch:
    """Sets a mode for a `with` block or for the calls of a function that it decorates."""

    _variable = recording

    def __init__(self, value: bool) -> None:
        if not isinstance(value, bool):
            raise ArgumentTypeError(f"{type(self).__name__}: expected True or False, got {value!r}")
        self._value = value
        self._tokens: list[Token[bool]] = []

    def __enter__(self) -> _Switch:
        self._tokens.append(self._variable.set(self._value))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        # One object may serve several threads, and a generator may be closed in another thread than
        # the one that began it: there nothing was switched, so there is nothing to restore.
        for token in reversed(tuple(self._tokens)):
            try:
                self._variable.reset(token)
            except ValueError:  # of another thread, or another task
                continue
            self._tokens.remove(token)
            return
        self._tokens.pop()

    def __call__(self, function: F) -> F:
        switch, value = type(self)._variable, self._value
        if not callable(function):
            raise ArgumentTypeError(
                f"{type(self).__name__}: expected a function to decorate, got {function!r}; use "
                f"`with {type(self).__name__}():` for a block"
            )
        if inspect.isgeneratorfunction(function):
            raise ArgumentTypeError(
                f"{type(self).__name__}: can't decorate a generator, whose body runs between other "
                "code; use `with` inside it"
            )

        @functools.wraps(function)
        def switched(*args: Any, **kwargs: Any) -> Any:
            token = switch.set(value)
            try:
                return function(*args, **kwargs)
            finally:
                switch.reset(token)

        return switched  # type: ignore[return-value]


class no_grad(_Switch):
    """Operations inside are not recorded: their results require no gradient, and leaves that do
    may be changed in place. A context manager and a decorator, as `no_grad()` or `@no_grad`."""

    def __new__(cls, function: Any = None) -> Any:
        made = super().__new__(cls)
        if function is None:
            return made
        made.__init__()  # type: ignore[misc]
        return made(function)

    def __init__(self) -> None:
        super().__init__(False)


class enable_grad(_Switch):
    """Operations inside are recorded again, within `no_grad`."""

    def __new__(cls, function: Any = None) -> Any:
        made = super().__new__(cls)
        if function is None:
            return made
        made.__init__()  # type: ignore[misc]
        return made(function)

    def __init__(self) -> None:
        super().__init__(True)


class _Setting(_Switch):
    """A switch that is thrown when it is made, and thrown back at the end of a `with` block."""

    def __init__(self, mode: bool) -> None:
        super().__init__(mode)
        self._before = self._variable.get()
        self._variable.set(mode)

    def __enter__(self) -> _Setting:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self._variable.set(self._before)


class set_grad_enabled(_Setting):
    """Switches recording on or off: from here on, or for a `with` block."""

    def __call__(self, function: F) -> F:
        self._variable.set(self._before)
        return super().__call__(function)


def is_grad_enabled() -> bool:
    """Whether operations are recorded here."""
    return recording.get()


class detect_anomaly(_Switch):
    """A backward pass inside that computes a NaN raises, and names the operation's forward line."""

    _variable = checking

    def __init__(self) -> None:
        super().__init__(True)


class set_detect_anomaly(_Setting):
    """As `detect_anomaly`, from here on or for a `with` block."""

    _variable = checking


def is_anomaly_enabled() -> bool:
    """Whether backward passes look for NaN."""
    return checking.get()


__all__ = [
    "detect_anomaly",
    "enable_grad",
    "is_anomaly_enabled",
    "is_grad_enabled",
    "no_grad",
    "set_detect_anomaly",
    "set_grad_enabled",
]
