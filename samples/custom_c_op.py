"""An operation of your own: the Bessel functions J0 and J1 of the C library's mathematics.

    python samples/custom_c_op.py            fits a drum's vibration, and finds a zero of J0
    staticgrad train samples/custom_c_op.py  the fit alone

`sg.custom_op` makes the record of an operation: its NumPy reference, its gradient and the C
function, which ctypes finds. The compiled program calls that function by its address, without
Python in between.
"""

from __future__ import annotations

import ctypes

import numpy as np
import staticgrad as sg

LIBRARY = ctypes.CDLL(None)  # what this process has loaded: libm is part of it

FIRST_ZERO = 2.404825557695773  # of J0; Abramowitz and Stegun, table 9.5


def bessel(order: int):
    """J_n(x) = 1/pi times the integral of cos(n t - x sin t) from 0 to pi, for |x| < 100.

    The midpoint rule converges exponentially, since the integrand is periodic.
    """
    t = (np.arange(200) + 0.5) * (np.pi / 200)

    def reference(x: np.ndarray) -> np.ndarray:
        wide = np.asarray(x, "float64")[..., None]
        return np.cos(order * t - wide * np.sin(t)).mean(axis=-1).astype(x.dtype)

    return reference


def vjp_j0(c, ct):
    """J0' = -J1"""
    return (-ct * j1(c.operands[0]),)


def vjp_j1(c, ct):
    """J1' = J0 - J1 / x, and 1/2 at 0"""
    (x,), (y,) = c.operands, c.results
    inside = sg.where(x == 0.0, 1.0, x)
    return (ct * sg.where(x == 0.0, 0.5, j0(x) - y / inside),)


POINTS = np.array([0.0, 0.1, 1.0, -2.0, 4.7, 6.5, 30.0])  # none near a zero of J0 or J1
SHARED = {
    "signature": "scalar",  # T f(T)
    "samples": [(POINTS,), (np.zeros((0, 3)),)],
    "source": "NIST DLMF 10.9.2",
}
j0 = sg.custom_op(
    "bessel_j0", reference=bessel(0), vjp=vjp_j0, **SHARED,
    c_functions={"float64": LIBRARY.j0},
)  # fmt: skip
j1 = sg.custom_op(
    "bessel_j1", reference=bessel(1), vjp=vjp_j1, **SHARED,
    c_functions={"float64": LIBRARY.j1},
)  # fmt: skip


# --- a fit ----------------------------------------------------------------------------------------

AMPLITUDE, WAVE_NUMBER = 1.5, 4.2


def measured() -> tuple[np.ndarray, np.ndarray]:
    """Radii and the heights of a circular drum's skin there, with 1 % of noise."""
    rng = np.random.default_rng(0)
    r = np.linspace(0, 1, 200)
    return r, AMPLITUDE * bessel(0)(WAVE_NUMBER * r) + rng.normal(0, 0.01 * AMPLITUDE, r.shape)


def build() -> sg.Program:
    """height(r) = a * J0(k * r), fitted by gradient descent; an epoch is one step."""
    r = sg.input("r", ("N",), dtype="float64")
    height = sg.input("height", ("N",), dtype="float64")
    a = sg.parameter(np.float64(1.0), name="a")
    k = sg.parameter(np.float64(3.0), name="k")
    fitted = a * j0(k * r)
    loss = ((fitted - height) ** 2).mean()
    optimizer = sg.optim.SGD([a, k], lr=0.5, momentum=0.8)
    return sg.Program(
        train=sg.Graph([r, height], [loss], updates=optimizer.minimize(loss)),
        predict=sg.Graph([r], fitted),
        train_batches=lambda rng: [measured()],
        test_batches=lambda: [measured()],
        metrics={"rms": lambda h, batch: float(np.sqrt(np.mean((h - batch[1]) ** 2)))},
        state={"a": a, "k": k},
        epochs=200,
    )


def fit() -> tuple[float, float]:
    """Amplitude and wave number after the training."""
    program = build()
    step = sg.compile(program.train.inputs, program.train.outputs, program.train.updates)
    for _ in range(program.epochs):
        step(*measured())
    return float(program.state["a"].numpy()), float(program.state["k"].numpy())


# --- a zero ---------------------------------------------------------------------------------------


def newton(start: float, steps: int) -> list[float]:
    """x <- x - J0(x) / J0'(x); a step is one native call."""
    x = sg.parameter(np.float64(start), name="x")
    y = j0(x)
    step = sg.compile([], [x], updates=[(x, x - y / sg.gradients(y, x))])
    return [float(step()[0]) for _ in range(steps + 1)]


def main() -> None:
    a, k = fit()
    print(f"amplitude   {a:.4f}, true {AMPLITUDE}")
    print(f"wave number {k:.4f}, true {WAVE_NUMBER}")
    print("Newton's way to the first zero of J0:")
    for x in newton(2.0, 5):
        print(f"  {x:.15f}")
    print(f"  {FIRST_ZERO:.15f}  (table)")


if __name__ == "__main__":
    main()
