"""TensorFlow 1: declare, then run what is fetched.

    python samples/from_other_frameworks/tensorflow1_session.py

`tf.placeholder` becomes `sg.input`, `tf.Variable` becomes `sg.parameter`, `tf.Session` becomes
`sg.Session`; `minimize` gives the updates to be run. A run computes only what its fetches need.
"""

from __future__ import annotations

import numpy as np
import staticgrad as sg


def declared() -> dict[str, float]:
    """c = a b + a, fetched whole and in part, and with a value put in place of the product."""
    a = sg.input("a", ())
    b = sg.input("b", ())
    product = a * b
    c = product + a
    with sg.Session() as session:
        both = session.run([c, product], feed_dict={a: 3.0, b: 4.0})
        return {
            "c": float(both[0]),
            "product": float(both[1]),
            "product alone": float(session.run(product, {a: 5.0, b: 6.0})),
            "c of a fed product": float(session.run(c, {a: 3.0, product: 100.0})),
        }


def only_what_is_fetched() -> dict[str, int]:
    """The kernels of the programs that two fetches need."""
    a = sg.input("a", ("N",))
    b = sg.input("b", ("N", "N"))
    small = a + 1
    large = sg.exp(b @ b)
    session = sg.Session()
    session.run(small, {a: [1.0, 2.0]})  # b needs no value
    fetches = {"a + 1": small, "both": [small, large]}
    return {k: len(session.executable(f).report().to_dict()["kernels"]) for k, f in fetches.items()}


def gradient() -> tuple[float, float]:
    """tf.gradients of (x - y)²: symbolic, run like anything else."""
    x = sg.input("x", ())
    y = sg.input("y", ())
    loss = (x - y) ** 2
    found = sg.Session().run(sg.gradients(loss, [x, y]), {x: 3.0, y: 1.0})
    return float(found[0]), float(found[1])


def descent(epochs: int = 15, rate: float = 0.3) -> list[float]:
    """x² from 5: the values of x after each run of the training operation."""
    x = sg.parameter(np.float64(5.0), name="x")
    loss = x**2
    train = sg.optim.SGD([x], lr=rate).minimize(loss)
    path = []
    with sg.Session() as session:
        session.run(sg.global_variables_initializer())
        for _ in range(epochs):
            path.append(float(session.run(x)))
            session.run(train)
        path.append(float(session.run(x)))
    return path


def regression(steps: int = 200) -> tuple[float, float, float]:
    """y = 0.1 x + 0.3 fitted, as TensorFlow's first example did: weight, bias, loss."""
    x_data = np.random.default_rng(0).random(100).astype("float32")
    y_data = x_data * 0.1 + 0.3
    x = sg.input("x", ("N",))
    y = sg.input("y", ("N",))
    w = sg.parameter(np.zeros(1, "float32"), name="w")
    b = sg.parameter(np.zeros(1, "float32"), name="b")
    loss = sg.mean((w * x + b - y) ** 2)
    train = sg.optim.SGD([w, b], lr=0.5).minimize(loss)
    feed = {x: x_data, y: y_data}
    with sg.Session() as session:
        session.run(sg.global_variables_initializer())
        for step in range(steps):
            session.run(train, feed_dict=feed)
            if step % 40 == 0:
                print(f"  step {step:3d}", *session.run([w, b]))
        found = session.run([w, b, loss], feed)
    return float(found[0][0]), float(found[1][0]), float(found[2])


def main() -> None:
    print(declared())
    print("kernels for each fetch:", only_what_is_fetched())
    print("gradients of (x - y)² at 3, 1:", gradient())
    print("x² from 5 at rate 0.3:", np.around(descent(), 2))
    print("linear regression:")
    weight, bias, loss = regression()
    print(f"  w {weight:.6f}, b {bias:.6f}, loss {loss:.1e}")


if __name__ == "__main__":
    main()
