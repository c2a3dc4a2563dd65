"""x² - 4x from its starting point: a training graph without inputs."""

import staticgrad as sg


def build():
    x = sg.parameter(10.0, name="x")
    loss = x**2 - 4.0 * x
    optimizer = sg.optim.SGD([x], lr=0.1)
    return sg.Program(
        train=sg.Graph([], [loss], updates=optimizer.minimize(loss)), predict=sg.Graph([], x)
    )
