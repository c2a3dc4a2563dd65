"""Do both modes compute the same? Loss, every gradient, every parameter after a step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from staticgrad.autodiff.reverse import gradients
from staticgrad.ir.errors import DTypeError, UnsupportedError
from staticgrad.ir.graph import Graph
from staticgrad.ir.node import Value
from staticgrad.ops.random import default_generator

from .graphs import draws, training_form, with_draws_in_turn, with_state_as_inputs
from .replay import Replay
from .subject import Array, Subject

# How far two right answers may be apart, relative to the largest element: sums in another order
# (a fused kernel against single ones) round differently. A wrong rule is wrong by far more.
TOLERANCES = {"float32": 1e-4, "float64": 1e-9}

# A gradient this small beside the largest of the model is what is left of sums that cancel, such as
# that of a bias before batch normalisation, which is 0: its digits are rounding in either mode, and
# so is the direction of a step that an adaptive optimiser makes of them.
_NOISE = {"float32": 1e-5, "float64": 1e-12}


@dataclass(frozen=True)
class Difference:
    """The largest difference of one array, relative to its largest element. `is_noise` where the
    gradient is 0 but for rounding."""

    what: str
    name: str
    dtype: str
    relative: float
    is_noise: bool = False

    @property
    def tolerance(self) -> float:
        return TOLERANCES[self.dtype]

    @property
    def agrees(self) -> bool:
        return self.is_noise or self.relative <= self.tolerance

    def plain(self) -> dict[str, Any]:
        return {
            "what": self.what, "name": self.name, "dtype": self.dtype,
            "max_relative_difference": self.relative, "tolerance": self.tolerance,
            "zero_but_for_rounding": self.is_noise, "agrees": self.agrees,
        }  # fmt: skip


def difference(what: str, name: str, static: Array, dynamic: Array) -> Difference:
    """The difference of two arrays. Equal NaN and infinities differ by 0; a shape or a dtype of
    its own counts as infinitely far."""
    a, b = np.asarray(static), np.asarray(dynamic)
    dtype = str(a.dtype)
    if a.shape != b.shape or a.dtype != b.dtype:
        return Difference(what, name, dtype, float("inf"))
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return Difference(what, name, dtype, 0.0)
    if not (np.isfinite(a[~same]).all() and np.isfinite(b[~same]).all()):
        return Difference(what, name, dtype, float("inf"))
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    scale = max(scale, float(np.abs(b[np.isfinite(b)]).max(initial=0.0)))
    apart = np.abs(a[~same].astype("float64") - b[~same].astype("float64"))
    return Difference(what, name, dtype, float(apart.max()) / scale)


def agreement(subject: Subject) -> dict[str, Any]:
    """Both modes from the same state on the same batch."""
    notes = []
    own = str(subject.train.outputs[0].dtype)
    if subject.updates:
        notes.append("parameters after a step: along the same gradients in both modes")
    found, same_draws = _as_called(subject)
    if not same_draws:
        notes.clear()
        found = _replayed(subject, wide=False)
        notes.append(
            "the two modes draw other random numbers here, so the declared graph was replayed node "
            "by node with the draws of the compiled step"
        )
    drawn = draws(subject.train, [subject.train.outputs[0]])
    if drawn and same_draws:
        notes.append(
            "the model draws random numbers: the compiled step was given those that the dynamic "
            "mode draws"
        )
    if own == "float32":
        try:
            found += _replayed(subject, wide=True)
            notes.append(
                "float64: every float32 of the declared graph widened, replayed node by node"
            )
        except (DTypeError, UnsupportedError) as error:  # an operation of the user's own
            notes.append(f"float64 is not possible for this model: {error}")
    worst = {
        dtype: max(d.relative for d in found if d.dtype == dtype and not d.is_noise)
        for dtype in dict.fromkeys(d.dtype for d in found)
    }
    noise = [d.name for d in found if d.is_noise and d.what == "gradient" and d.relative]
    if noise:
        notes.append(
            f"0 but for rounding, so without digits to compare: the gradient of {', '.join(noise)}"
        )
    return {
        "agrees": all(d.agrees for d in found),
        "worst": worst,
        "differences": [d.plain() for d in found],
        "notes": notes,
    }


# --- in the model's own dtype ---------------------------------------------------------------------


def _as_called(subject: Subject) -> tuple[list[Difference], bool]:
    """A step by the model's own code, or by the replay where it has none; and whether both modes
    drew the same random numbers, without which the differences mean nothing."""
    train, loss = subject.train, subject.train.outputs[0]
    outputs = [loss, *subject._gradients(loss, subject._states())]
    updates = _parameter_updates(subject) if subject.updates else []
    new_values = [new for _, new in updates]
    declared = Graph(train.inputs, [*outputs, *new_values], locs=train.locs)
    form = training_form(declared)
    drawn = draws(form, form.outputs[:1])
    if drawn is None:
        return [], False
    compiled = subject.compiled(_without_updates(with_draws_in_turn(form, form.outputs[:1])))
    static = subject.keeping_state(lambda: compiled(*subject.batch))
    with subject.unchanged():
        before = int(default_generator().cell.numpy()[1])
        loss_tensor = subject.forward(subject.batch)
        moved = int(default_generator().cell.numpy()[1]) - before
        loss_tensor.backward()
        dynamic = [loss_tensor.detach().numpy().copy(), *_gradients_of(subject)]
        if subject.updates:
            after = _stepped(subject, static[1:])
            dynamic += [after[s.node.payload] for s, _ in updates]
    count = len(subject.names)
    found = _compared(subject.names, static[: 1 + count], dynamic[: 1 + count])
    names = dict(zip((p.cell for p in subject.parameters), subject.names))
    for (state, _), a, b in zip(updates, static[1 + count :], dynamic[1 + count :]):
        found.append(difference("parameter after a step", names[state.node.payload], a, b))
    return found, moved == len(drawn) or subject.replays


def _stepped(subject: Subject, grads: Sequence[Array]) -> dict[Any, Array]:
    """The parameters, by cell, after the optimiser's step along the compiled program's gradients.

    Along its own, which differ in the last digits, an adaptive optimiser would step another way
    wherever a gradient has no digits but those.
    """
    from staticgrad import eager

    for p, g in zip(subject.parameters, grads):
        p.grad = eager.tensor(g)
    subject.program.optimizer.step()
    return {p.cell: p.numpy() for p in subject.parameters}


def _parameter_updates(subject: Subject) -> list[tuple[Value, Value]]:
    cells = {p.cell for p in subject.parameters}
    return [(s, new) for s, new in subject.train.updates if s.node.payload in cells]


def _without_updates(graph: Graph) -> Graph:
    return Graph(graph.inputs, graph.outputs, locs=graph.locs)


def _gradients_of(subject: Subject) -> list[Array]:
    """The gradients of the dynamic mode; zeros where none arrived."""
    return [
        np.zeros(p.cell.shape, p.cell.dtype) if p.grad is None else p.grad.detach().numpy().copy()
        for p in subject.parameters
    ]


def _compared(
    names: Sequence[str], static: Sequence[Array], dynamic: Sequence[Array]
) -> list[Difference]:
    """The loss and the gradients that follow it."""
    found = [difference("loss", "loss", static[0], dynamic[0])]
    sizes = [max(_size(a), _size(b)) for a, b in zip(static[1:], dynamic[1:])]
    rows = zip(names, static[1:], dynamic[1:], sizes, strict=True)
    for name, a, b, size in rows:
        one = difference("gradient", name, a, b)
        found.append(replace(one, is_noise=size <= _NOISE[one.dtype] * max(sizes)))
    return found


def _size(a: Array) -> float:
    """The largest magnitude; infinite where there is a NaN."""
    found = float(np.abs(a).max(initial=0.0))
    return found if found == found else float("inf")


# --- the declared graph, node by node -------------------------------------------------------------


def _replayed(subject: Subject, *, wide: bool) -> list[Difference]:
    """Loss and gradients of the declared graph: compiled, and replayed on the tape."""
    from staticgrad import eager

    form = training_form(Graph(subject.train.inputs, subject.train.outputs[:1]))
    form = _without_updates(with_draws_in_turn(form, form.outputs))
    graph, states = with_state_as_inputs(form, wide=wide)
    values = [*subject.batch, *(s.node.payload.numpy() for s in states)]
    arrays = [a.astype(v.dtype.numpy) for a, v in zip(values, graph.inputs)]
    place = {s.node.payload: len(subject.batch) + i for i, s in enumerate(states)}
    wanted = [place[p.cell] for p in subject.parameters]
    targets = [graph.inputs[i] for i in wanted]
    loss = graph.outputs[0]
    grads = gradients(loss, targets)  # type: ignore[arg-type]
    static = subject.compiled(Graph(graph.inputs, [loss, *grads]))(*arrays)
    tensors = [eager.tensor(a, requires_grad=i in wanted) for i, a in enumerate(arrays)]
    (result,) = Replay(graph)(tensors)
    result.backward()
    dynamic = [result.detach().numpy()]
    for i in wanted:
        grad = tensors[i].grad
        dynamic.append(np.zeros_like(arrays[i]) if grad is None else grad.detach().numpy())
    return _compared(subject.names, static, dynamic)


def mismatch_text(found: Mapping[str, Any]) -> str:
    """What disagrees, the worst first."""
    wrong = sorted(
        (d for d in found["differences"] if not d["agrees"]),
        key=lambda d: -d["max_relative_difference"],
    )
    lines = [
        f"  {d['what']} {d['name']} ({d['dtype']}): {d['max_relative_difference']:.2g}, at most "
        f"{d['tolerance']:.0e} is rounding"
        for d in wrong
    ]
    return "\n".join(["the static and the dynamic mode disagree:", *lines])


__all__ = ["TOLERANCES", "Difference", "agreement", "difference", "mismatch_text"]
