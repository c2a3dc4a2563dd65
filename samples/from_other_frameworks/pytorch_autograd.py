"""PyTorch: tensors that require a gradient, `backward`, and descent by `.data`.

    python samples/from_other_frameworks/pytorch_autograd.py

`torch.tensor` becomes `sg.eager.tensor`, `torch.no_grad` becomes `sg.eager.no_grad`; methods and
attributes of tensors keep their names.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import staticgrad as sg

tensor = sg.eager.tensor


def loss_of_two_tensors() -> tuple[Any, Any, Any]:
    """50 - mean(3a² - b²) with its gradients: -2a and 2b/3."""
    a = tensor([1.0, 2.0, 3.0], requires_grad=True)
    b = tensor([4.0, 5.0, 6.0], requires_grad=True)
    loss = 50 - (3 * a**2 - b**2).mean()
    loss.backward()
    return loss, a.grad, b.grad


def slope_at_ten() -> Any:
    """The gradient of x² - 4x at 10."""
    x = tensor(10.0, requires_grad=True)
    cost = x**2 - 4 * x
    cost.backward()
    return x.grad


def descend_retained(dtype: str = "float32", steps: int = 1000, lr: float = 0.02) -> float:
    """The graph of the cost is built once. It reads x's memory, which changes behind `.data`, so
    each `backward` takes the gradient at the x of that moment."""
    x = tensor(10.0, dtype=dtype, requires_grad=True)
    cost = x**2 - 4 * x
    for _ in range(steps):
        cost.backward(retain_graph=True)
        x.data.sub_(lr * x.grad)
        x.grad.data.zero_()
    return float(x.detach())


def descend_rebuilt(dtype: str = "float32", steps: int = 1000, lr: float = 0.02) -> float:
    """The same with a new graph at each step, as it is usually written."""
    x = tensor(10.0, dtype=dtype, requires_grad=True)
    for _ in range(steps):
        cost = x**2 - 4 * x
        cost.backward()
        with sg.eager.no_grad():
            x -= lr * x.grad
        x.grad.zero_()
    return x.item()


def gradients_add_up() -> list[float]:
    """Nobody clears the gradient of x² - 4x at 10: 16, then 32, then 48."""
    x = tensor(10.0, requires_grad=True)
    seen = []
    for _ in range(3):
        cost = x**2 - 4 * x
        cost.backward()
        seen.append(x.grad.item())
    return seen


def shared_with_numpy() -> np.ndarray:
    """`from_numpy` shares the array's memory, and `detach().numpy()` gives it back."""
    array = np.array([1.0, 2.0, 3.0])
    x = sg.eager.from_numpy(array)
    x.mul_(2)
    return x.detach().numpy()


# --- the same as static graphs --------------------------------------------------------------------


def loss_as_a_graph() -> Any:
    """The loss of two tensors declared, with both gradients in the same program."""
    a, b = sg.input("a", (3,)), sg.input("b", (3,))
    loss = 50 - (3 * a**2 - b**2).mean()
    program = sg.compile([a, b], [loss, *sg.gradients(loss, [a, b])])
    return program([1.0, 2.0, 3.0], [4.0, 5.0, 6.0])


@sg.jit
def descend_compiled(x, lr=0.02):
    """All 1000 steps in one native call."""
    slope = sg.grad(lambda x: x**2 - 4 * x)
    return sg.fori_loop(0, 1000, lambda i, x: x - lr * slope(x), x)


# --- what is refused ------------------------------------------------------------------------------


def numpy_of_a_recorded_tensor() -> Any:
    """NumPy's computations are not on the tape: `detach()` says that this is meant."""
    x = tensor([1.0, 2.0], requires_grad=True)
    return x.numpy()


def retained_graph_of_a_changed_leaf() -> Any:
    """`x -= ...` counts as a change of what the retained graph needs; `.data` does not."""
    x = tensor(10.0, requires_grad=True)
    cost = x**2 - 4 * x
    for _ in range(2):
        cost.backward(retain_graph=True)
        with sg.eager.no_grad():
            x -= 0.02 * x.grad
    return x


def second_backward() -> Any:
    """The first one has freed what the tape saved."""
    x = tensor(10.0, requires_grad=True)
    cost = x**2 - 4 * x
    cost.backward()
    cost.backward()


def leaf_changed_where_it_is_recorded() -> Any:
    """The step belongs under `no_grad`."""
    x = tensor(10.0, requires_grad=True)
    (x**2).backward()
    x -= 0.1 * x.grad


def leaf_replaced_by_a_result() -> Any:
    """`x = x - ...` under `no_grad` is a new tensor, which requires no gradient."""
    x = tensor(10.0, requires_grad=True)
    for _ in range(2):
        (x**2).backward()
        with sg.eager.no_grad():
            x = x - 0.1 * x.grad


def gradient_of_integers() -> Any:
    return tensor([1, 2, 3], requires_grad=True)


FAILING = (
    numpy_of_a_recorded_tensor, retained_graph_of_a_changed_leaf, second_backward,
    leaf_changed_where_it_is_recorded, leaf_replaced_by_a_result, gradient_of_integers,
)  # fmt: skip


def main() -> None:
    loss, a_grad, b_grad = loss_of_two_tensors()
    print("50 - mean(3a² - b²):", loss.detach(), a_grad, b_grad)
    print("slope of x² - 4x at 10:", slope_at_ten())
    print("1000 steps, graph retained:", descend_retained(), descend_retained("float64"))
    print("1000 steps, graph rebuilt: ", descend_rebuilt(), descend_rebuilt("float64"))
    print("as a graph:", *loss_as_a_graph(), "and", descend_compiled(10.0))
    print("gradients that nobody clears:", gradients_add_up())
    print("shared with NumPy:", shared_with_numpy())
    for failing in FAILING:
        try:
            failing()
        except sg.StaticgradError as error:
            print(f"\n{failing.__name__}: {type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
