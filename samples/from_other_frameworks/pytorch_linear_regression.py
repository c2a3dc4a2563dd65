"""PyTorch: one linear regression in six programs, then `fit` and the static graph.

    python samples/from_other_frameworks/pytorch_linear_regression.py

From gradients by hand to layers and optimisers, one thing after another is taken over by the
library. All go through the same `training_loop`, and their parameters are equal after it; with more
epochs all become those of scikit-learn's LinearRegression.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import staticgrad as sg

LR = 0.1
EPOCHS = 400
Parameters = tuple[np.ndarray, float]
# Each `next` is one step: it gives the loss before it, and the parameters as they are then.
Program = Callable[[np.ndarray, np.ndarray], Iterator[tuple[float, Parameters]]]


def data() -> tuple[np.ndarray, np.ndarray]:
    """x [100, 2] and noisy y [100, 1]."""
    rng = np.random.default_rng(42)
    x = rng.normal(size=(100, 2))
    y = x @ np.array([[2.0], [-3.0]]) + 1.0 + 0.1 * rng.normal(size=(100, 1))
    return x, y


def training_loop(program: Program, epochs: int, every: int = 0) -> tuple[Parameters, list[float]]:
    """The parameters after so many epochs, and the losses; prints each `every`-th."""
    steps = program(*data())
    losses: list[float] = []
    for epoch in range(1, epochs + 1):
        loss, parameters = next(steps)
        losses.append(loss)
        if every and epoch % every == 0:
            print(f"  epoch {epoch:4d}, loss {loss:.8f}")
    return parameters, losses


def partial_derivatives(x, y):
    """1. NumPy: each partial derivative of mean((x w + b - y)²), parameter by parameter."""
    w, b = [0.0, 0.0], 0.0
    y = y[:, 0]
    while True:
        error = w[0] * x[:, 0] + w[1] * x[:, 1] + b - y
        dw = [2 * np.mean(error * x[:, j]) for j in range(2)]
        db = 2 * np.mean(error)
        w = [w[j] - LR * dw[j] for j in range(2)]
        b -= LR * db
        yield float(np.mean(error**2)), (np.array(w), float(b))


def back_propagation(x, y):
    """2. NumPy: the gradient handed back from the loss to the product, on whole arrays."""
    w, b = np.zeros((2, 1)), np.zeros(1)
    while True:
        pred = x @ w + b
        loss = ((pred - y) ** 2).mean()
        d_pred = 2 * (pred - y) / y.size
        w = w - LR * (x.T @ d_pred)
        b = b - LR * d_pred.sum(axis=0)
        yield float(loss), (w[:, 0].copy(), float(b[0]))


def tensors_by_hand(x, y):
    """3. Tensors that share the arrays' memory, the gradient still by hand."""
    x, y = sg.eager.from_numpy(x), sg.eager.from_numpy(y)
    w, b = sg.eager.zeros(2, 1, dtype="float64"), sg.eager.zeros(1, dtype="float64")
    while True:
        pred = x @ w + b
        loss = ((pred - y) ** 2).mean()
        d_pred = 2 * (pred - y) / len(y)
        w -= LR * (x.T @ d_pred)
        b -= LR * d_pred.sum(0)
        yield loss.item(), (w[:, 0].numpy().copy(), b.item())


def backward_and_no_grad(x, y):
    """4. `backward` finds the gradient."""
    x, y = sg.eager.from_numpy(x), sg.eager.from_numpy(y)
    w = sg.eager.zeros(2, 1, dtype="float64", requires_grad=True)
    b = sg.eager.zeros(1, dtype="float64", requires_grad=True)
    while True:
        loss = ((x @ w + b - y) ** 2).mean()
        loss.backward()
        with sg.eager.no_grad():
            w -= LR * w.grad
            b -= LR * b.grad
        w.grad.zero_()
        b.grad.zero_()
        yield loss.item(), (w[:, 0].detach().numpy().copy(), b.item())


def optimizer_step(x, y):
    """5. An optimiser makes the step."""
    x, y = sg.eager.from_numpy(x), sg.eager.from_numpy(y)
    w = sg.eager.zeros(2, 1, dtype="float64", requires_grad=True)
    b = sg.eager.zeros(1, dtype="float64", requires_grad=True)
    optimizer = sg.optim.SGD([w, b], lr=LR)
    while True:
        loss = ((x @ w + b - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item(), (w[:, 0].detach().numpy().copy(), b.item())


def linear_at_zero() -> sg.nn.Module:
    model = sg.nn.Linear(2, 1).double()
    sg.nn.init.zeros_(model.weight)
    sg.nn.init.zeros_(model.bias)
    return model


def of_linear(model: sg.nn.Module) -> Parameters:
    return model.weight.numpy()[0], float(model.bias.numpy()[0])


def layer_and_loss(x, y):
    """6. A layer holds the parameters, and the loss is one of the library."""
    x, y = sg.eager.from_numpy(x), sg.eager.from_numpy(y)
    model = linear_at_zero()
    criterion = sg.nn.MSELoss()
    optimizer = sg.optim.SGD(model.parameters(), lr=LR)
    while True:
        loss = criterion(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item(), of_linear(model)


def one_call_of_fit(x, y):
    """7. `fit`: an epoch of one batch with all samples."""
    model = linear_at_zero()
    optimizer = sg.optim.SGD(model.parameters(), lr=LR)
    while True:
        history = model.fit(
            x, y, loss="mse", optimizer=optimizer, batch_size=len(x), shuffle=False, progress=False
        )
        yield history["loss"][0], of_linear(model)


def static_graph(x, y):
    """8. The same model declared once: forward, backward and step are one native call."""
    model = linear_at_zero()
    inputs = [sg.input("x", ("N", 2), "float64"), sg.input("y", ("N", 1), "float64")]
    loss = sg.nn.MSELoss()(model(inputs[0]), inputs[1])
    updates = sg.optim.SGD(model.parameters(), lr=LR).minimize(loss)
    train_step = sg.compile(inputs, loss, updates)
    while True:
        yield float(train_step(x, y)), of_linear(model)


SIX = (partial_derivatives, back_propagation, tensors_by_hand, backward_and_no_grad,
       optimizer_step, layer_and_loss)  # fmt: skip
PROGRAMS = (*SIX, one_call_of_fit, static_graph)


def closed_form() -> Parameters:
    """What scikit-learn finds."""
    from sklearn.linear_model import LinearRegression

    x, y = data()
    found = LinearRegression().fit(x, y[:, 0])
    return found.coef_, float(found.intercept_)


def main() -> None:
    for program in PROGRAMS:
        print((program.__doc__ or "").split("\n")[0])
        (w, b), _ = training_loop(program, EPOCHS, every=200)
        print(f"  w {w}, b {b:.10f}")
    w, b = closed_form()
    print(f"scikit-learn's LinearRegression\n  w {w}, b {b:.10f}")


if __name__ == "__main__":
    main()
