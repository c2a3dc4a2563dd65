"""The same mistake in both modes: who notices, when, and which line is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from staticgrad.ir.dim import Dim
from staticgrad.ir.errors import StaticgradError

from .outcome import described
from .subject import Batch, Subject, declare_like


@dataclass(frozen=True)
class Mistake:
    """A batch that does not fit; `shapes` of the inputs where it can be seen in a declaration."""

    name: str
    what: str
    batch: Batch
    shapes: tuple[Any, ...] | None = None
    changes_shape: bool = True


def mistakes(subject: Subject) -> list[dict[str, Any]]:
    """For each mistake the outcome of declaring it, of calling the compiled step with it, and of a
    step of the dynamic mode: None where it can't be made there, else whether it was noticed."""
    found = []
    for mistake in _made(subject):
        found.append({
            "name": mistake.name,
            "what": mistake.what,
            "declare": _declared(subject, mistake),
            "call": _outcome(subject, partial(subject.static, *mistake.batch)),
            "dynamic": _ran(subject, mistake),
        })  # fmt: skip
    return found


def _ran(subject: Subject, mistake: Mistake) -> dict[str, Any] | None:
    if subject.replays and mistake.changes_shape:
        return None  # what the declared graph knows of its sizes is not what the model's code does
    return _outcome(subject, lambda: _run(subject, mistake.batch))


def _run(subject: Subject, batch: Batch) -> Any:
    return subject.forward(batch, located=True).backward()


def _declared(subject: Subject, mistake: Mistake) -> dict[str, Any] | None:
    if mistake.shapes is None or subject.program.loss is None:
        return None
    pairs = zip(subject.train.inputs, mistake.shapes)
    inputs = [declare_like(v, shape) for v, shape in pairs]
    return _outcome(subject, lambda: subject.program.loss(*inputs))  # type: ignore[misc]


def _outcome(subject: Subject, call: Callable[[], Any]) -> dict[str, Any]:
    try:
        with subject.unchanged():
            call()
    except StaticgradError as error:
        return {"noticed": True, **described(error)}
    return {"noticed": False, "type": None, "message": None, "line": None}


def _made(subject: Subject) -> Iterator[Mistake]:
    yield from _wrong_features(subject)
    yield from _wrong_label(subject)
    yield from _wrong_count(subject)


def _wrong_features(subject: Subject) -> Iterator[Mistake]:
    """One more of what the model has weights for: along the last fixed axis of an input."""
    for i, v in enumerate(subject.train.inputs):
        axes = [a for a, d in enumerate(v.shape) if not isinstance(d, Dim)]
        if axes:
            axis = axes[-1]
            size = subject.batch[i].shape[axis] + 1
            name = v.node.attrs["name"]
            shapes = [list(w.shape) for w in subject.train.inputs]
            shapes[i][axis] = size
            yield Mistake(
                "wrong size", f"axis {axis} of {name} is {size} in place of {size - 1}",
                subject.resized([(i, axis)], size), tuple(tuple(s) for s in shapes),
            )  # fmt: skip
            return


def _wrong_label(subject: Subject) -> Iterator[Mistake]:
    for i, (v, array) in enumerate(zip(subject.train.inputs, subject.batch)):
        if array.dtype.kind == "i" and array.size:
            wrong = min(10**6, int(np.iinfo(array.dtype).max))
            changed = array.copy()
            changed.flat[0] = wrong
            batch = (*subject.batch[:i], changed, *subject.batch[i + 1 :])
            name = v.node.attrs["name"]
            yield Mistake(
                "label out of range", f"the first element of {name} is {wrong}", batch,
                changes_shape=False,
            )  # fmt: skip
            return


def _wrong_count(subject: Subject) -> Iterator[Mistake]:
    """Inputs of one batch that do not have the same number of samples."""
    for label, places, _ in subject.axes():
        others = [place for place in places if place[0] != places[0][0]]
        if others:
            (i, axis), size = others[0], subject.batch[others[0][0]].shape[others[0][1]] + 1
            first, second = (subject.train.inputs[j].node.attrs["name"] for j in (places[0][0], i))
            yield Mistake(
                "sizes that differ", f"{label} is {size - 1} in {first}, {size} in {second}",
                subject.resized([(i, axis)], size),
            )  # fmt: skip
            return


__all__ = ["mistakes"]
