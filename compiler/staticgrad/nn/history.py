"""`History`: what `fit` saw, epoch by epoch; it prints and plots itself."""

from __future__ import annotations

import html
import io
import os
from collections.abc import Iterator, Mapping
from typing import Any

from staticgrad.api.progress import figures
from staticgrad.ir.errors import ArgumentError, UnsupportedError
from staticgrad.ops.public import list_of

# Of more epochs the table shows the first and the last ones.
_SHOWN = 20


class History(Mapping[str, list[float]]):
    """The figures of each epoch, by name: `history["loss"]`, `history["val_loss"]`.

    `history.history` is the dict of lists, `history.epoch` the list of the epochs' numbers (from
    0), `history.params` what `fit` was called with. Printing it gives a table, `plot()` a picture,
    which a notebook shows by itself.
    """

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params: dict[str, Any] = dict(params or {})
        self.epoch: list[int] = []
        self.history: dict[str, list[float]] = {}

    def add(self, epoch: int, logs: Mapping[str, float]) -> None:
        """Appends the figures of one epoch. A name that comes later was NaN until then."""
        for name in logs:
            self.history.setdefault(name, [float("nan")] * len(self.epoch))
        for name, values in self.history.items():
            values.append(float(logs.get(name, float("nan"))))
        self.epoch.append(epoch)

    def __getitem__(self, name: str) -> list[float]:
        if name not in self.history:
            raise KeyError(f"{name!r}; there are {', '.join(self.history) or 'no epochs yet'}")
        return self.history[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.history)

    def __len__(self) -> int:
        return len(self.history)

    def __contains__(self, name: object) -> bool:
        return name in self.history

    def _rows(self) -> list[list[str]]:
        """The table's cells, the heading first."""
        places: list[int | None] = list(range(len(self.epoch)))
        if len(places) > _SHOWN:
            half = _SHOWN // 2
            places = [*places[:half], None, *places[-half:]]
        rows = [["epoch", *self.history]]
        for place in places:
            if place is None:
                rows.append(["..."] * len(rows[0]))
                continue
            values = {name: values[place] for name, values in self.history.items()}
            cells = [text.rpartition(" ")[2] for text in figures(values)]
            rows.append([str(self.epoch[place] + 1), *cells])
        return rows

    def __str__(self) -> str:
        if not self.epoch:
            return "History: no epochs"
        rows = self._rows()
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join("  ".join(c.rjust(w) for c, w in zip(row, widths)) for row in rows)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head, *body = self._rows()
        lines = ["<table>", "<tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in head) + "</tr>"]
        lines += ["<tr>" + "".join(f"<td>{c}</td>" for c in row) + "</tr>" for row in body]
        return "\n".join([*lines, "</table>"])

    def _repr_png_(self) -> bytes | None:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            return None  # the table serves
        if not self.epoch:
            return None
        memory = io.BytesIO()
        self.plot().savefig(memory, format="png")
        return memory.getvalue()

    def plot(self, path: Any = None, names: Any = None) -> Any:
        """The figures against the epochs: one panel for each metric, training and validation
        together. `names` chooses metrics ("loss"), all of them by default.

        Returns a Matplotlib figure; with `path` it is also written there, as PNG or whatever the
        ending says. Raises `UnsupportedError` where Matplotlib is not installed, `ArgumentError`
        where there is nothing to draw or no such metric.
        """
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            raise UnsupportedError(
                'History.plot needs Matplotlib: pip install "staticgrad[samples]"'
            ) from None
        if not self.epoch:
            raise ArgumentError("History.plot: there are no epochs to draw")
        panels = list(dict.fromkeys(name.removeprefix("val_") for name in self.history))
        if names is not None:
            wanted = [names] if isinstance(names, str) else list_of(names, "names", "strs")
            for name in wanted:
                if name not in panels:
                    raise ArgumentError(
                        f"History.plot: there is no {name!r}; there are {', '.join(panels)}"
                    )
            panels = wanted
        figure = Figure(figsize=(5.0 * len(panels), 3.6), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, name in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels):
            self._draw(axes, name)
        if path is not None:
            figure.savefig(os.fspath(path), dpi=110)
        return figure

    def _draw(self, axes: Any, name: str) -> None:
        epochs = [e + 1 for e in self.epoch]
        for key, label in ((name, "training"), (f"val_{name}", "validation")):
            if key in self.history:
                axes.plot(epochs, self.history[key], "o-", markersize=3, label=label)
        axes.set(title=name, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        axes.legend()


__all__ = ["History"]
