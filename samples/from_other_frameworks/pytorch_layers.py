"""PyTorch: a layer with its loss and optimiser, a classifier over a loader, modules of one's own.

    python samples/from_other_frameworks/pytorch_layers.py

`torch.nn` becomes `sg.nn`, `torch.optim` becomes `sg.optim`, `torch.utils.data` becomes `sg.data`;
what was `torch.tensor` is `sg.eager.tensor`. The weights are set, so that the numbers are those of
PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import staticgrad as sg

nn, F = sg.nn, sg.nn.functional


def wave(*shape: int, scale: float = 1.0) -> np.ndarray:
    """Numbers that are the same everywhere: cosines."""
    return (scale * np.cos(np.arange(np.prod(shape)) * 1.7)).reshape(shape).astype("float32")


def set_weights(module: Any, scale: float) -> None:
    for parameter in module.parameters():
        parameter.data.copy_(sg.eager.from_numpy(wave(*parameter.shape, scale=scale)))


# --- Linear, relu, MSELoss, SGD -------------------------------------------------------------------


def one_layer(steps: int = 5) -> tuple[list[float], Any, Any]:
    """The losses of five steps, and the gradients of weight and bias in the first."""
    x = sg.eager.from_numpy(wave(10, 5))
    y = sg.eager.from_numpy(wave(10, 3) ** 2)
    linear = nn.Linear(5, 3)
    set_weights(linear, 0.5)
    criterion = nn.MSELoss()
    optimizer = sg.optim.SGD(linear.parameters(), lr=0.1)
    losses: list[float] = []
    first: Any = None
    for _ in range(steps):
        pred = F.relu(linear(x))
        loss = criterion(pred, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if first is None:
            first = linear.weight.grad.clone(), linear.bias.grad.clone()
    return losses, *first


def one_layer_compiled(steps: int = 5) -> list[float]:
    """The same lines, declared: the step is one native call."""
    x, y = sg.input("x", ("N", 5)), sg.input("y", ("N", 3))
    linear = nn.Linear(5, 3)
    set_weights(linear, 0.5)
    loss = nn.MSELoss()(F.relu(linear(x)), y)
    optimizer = sg.optim.SGD(linear.parameters(), lr=0.1)
    train_step = sg.compile([x, y], loss, optimizer.minimize(loss))
    return [float(train_step(wave(10, 5), wave(10, 3) ** 2)) for _ in range(steps)]


# --- CrossEntropyLoss over a loader ---------------------------------------------------------------


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc1 = nn.Linear(6 * 3 * 3, 16)
        self.fc2 = nn.Linear(16, 3)

    def forward(self, x):
        x = self.pool(F.relu(self.conv(x)))
        x = F.relu(self.fc1(x.reshape(-1, 6 * 3 * 3)))
        return self.fc2(x)


def images() -> tuple[np.ndarray, np.ndarray]:
    """192 noisy RGB images of 8 x 8 with the brightest channel as their class."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 192)
    x = rng.normal(0, 0.5, (192, 3, 8, 8)) + np.eye(3)[y][:, :, None, None]
    return x.astype("float32"), y


def classify(epochs: int = 6) -> tuple[list[float], float]:
    """The mean loss of each epoch, and the accuracy after the last."""
    x, y = (sg.eager.from_numpy(a) for a in images())
    trainset = sg.data.TensorDataset(x, y)
    trainloader = sg.data.DataLoader(trainset, batch_size=4, shuffle=False)
    net = Net()
    set_weights(net, 0.2)
    criterion = nn.CrossEntropyLoss()
    optimizer = sg.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    losses = []
    for epoch in range(epochs):  # loop over the dataset several times
        running_loss = 0.0
        for inputs, labels in trainloader:
            optimizer.zero_grad()
            outputs = net(inputs)
            loss = criterion(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        losses.append(running_loss / len(trainloader))
        print(f"  epoch {epoch + 1}, loss {losses[-1]:.4f}")
    with sg.eager.no_grad():
        predicted = net(x).argmax(-1)
    return losses, (predicted == y).sum().item() / len(y)


def classify_compiled(epochs: int = 6) -> list[float]:
    """The same network, declared and compiled, over a loader of arrays."""
    trainloader = sg.data.DataLoader(sg.data.TensorDataset(*images()), batch_size=4)
    inputs, labels = sg.input("inputs", ("N", 3, 8, 8)), sg.input("labels", ("N",), "int64")
    net = Net()
    set_weights(net, 0.2)
    loss = nn.CrossEntropyLoss()(net(inputs), labels)
    optimizer = sg.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    train_step = sg.compile([inputs, labels], loss, optimizer.minimize(loss))
    return [
        sum(float(train_step(*batch)) for batch in trainloader) / len(trainloader)
        for _ in range(epochs)
    ]


# --- a module with its own forward, a function with its own gradient ------------------------------


class Quadratic(nn.Module):
    """a x² + b x + c with trainable coefficients."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(np.zeros((), "float32"))
        self.b = nn.Parameter(np.zeros((), "float32"))
        self.c = nn.Parameter(np.zeros((), "float32"))

    def forward(self, x):
        return self.a * x**2 + self.b * x + self.c


def quadratic(epochs: int = 300) -> tuple[list[float], list[float]]:
    """The coefficients of x² - 4x + 1, found from its values, and every 50th loss."""
    x = sg.eager.linspace(-2, 2, 41)
    y = x**2 - 4 * x + 1
    model = Quadratic()
    optimizer = sg.optim.SGD(model.parameters(), lr=0.1)
    printed = []
    for epoch in range(epochs):
        loss = ((model(x) - y) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if epoch % 50 == 0:
            printed.append(loss.item())
            print(f"  epoch {epoch:3d}, loss {printed[-1]:.8f}")
    return [p.item() for p in model.parameters()], printed


@sg.custom_vjp
def clipped_relu(x):
    """max(x, 0), whose gradient is held between -1 and 1."""
    return sg.maximum(x, 0)


def clipped_forward(x):
    return clipped_relu(x), x


def clipped_backward(x, gradient):
    return (sg.where(x > 0, sg.clip(gradient, -1, 1), 0),)


clipped_relu.defvjp(clipped_forward, clipped_backward)


class Clipped(nn.Module):
    """PyTorch's `autograd.Function` with `forward` and `backward`, as a module around it."""

    def forward(self, x):
        return clipped_relu(x)


def own_gradient() -> tuple[Any, Any]:
    """The gradient of sum(3r² - r), r = relu(x), through the one written by hand: in the dynamic
    mode and in the static one."""
    points = np.array([-1.0, 0.1, 0.2, 2.0])
    layer = Clipped()

    def cost(x):
        r = layer(x)
        return (3 * r**2 - r).sum()

    x = sg.eager.tensor(points, requires_grad=True)
    cost(x).backward()
    return x.grad.numpy(), sg.grad(cost)(points)


class WithBackward(nn.Module):
    """What is refused: nobody would call this `backward`."""

    def forward(self, x):
        return x**2

    def backward(self, gradient):
        return gradient


def main() -> None:
    losses, weight_grad, bias_grad = one_layer()
    print("Linear(5, 3), five steps:", [round(v, 6) for v in losses])
    print("the same compiled:        ", [round(v, 6) for v in one_layer_compiled()])
    print("gradients of the first:", weight_grad, bias_grad, sep="\n")
    print("CrossEntropyLoss over a loader:")
    _, accuracy = classify()
    print(f"  accuracy {accuracy:.4f}")
    print("  compiled:", *(f"{v:.4f}" for v in classify_compiled()))
    print("a module with its own forward:")
    coefficients, _ = quadratic()
    print("  coefficients", [round(v, 5) for v in coefficients])
    print("a gradient by hand, dynamic and static:", *own_gradient())
    try:
        WithBackward()
    except sg.UnsupportedError as error:
        print(f"\n{error}")


if __name__ == "__main__":
    main()
