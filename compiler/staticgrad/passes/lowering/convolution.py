"""Convolutions of any rank up to 2 and their gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from staticgrad.ir.dim import Dim, floor_div, product
from staticgrad.ir.dtype import dtype
from staticgrad.ir.node import Node
from staticgrad.kernels.ir import Template

from .body import Body
from .product import ProductLowering

if TYPE_CHECKING:
    from .lower import Lowerer


class ConvLowering(ProductLowering):
    """Operands and result are dense."""

    def __init__(self, lowerer: Lowerer, body: Body, root: Node, kind: str) -> None:
        super().__init__(lowerer, body, root)
        self.kind = kind

    def run(self) -> None:
        # A dozen modules, which few programs need.
        from staticgrad.codegen import conv, conv_depthwise_window

        first, second = (self.outer(v) for v in self.root.operands)
        result = self.result
        if self.kind == "conv":
            x, w, y = first.type, second.type, result.type
        elif self.kind == "conv_grad_input":
            x, w, y = result.type, second.type, first.type
        else:
            x, w, y = first.type, result.type, second.type
        attrs = self.root.attrs
        one = len(x.shape) == 3
        pick = (lambda t: (1, t[0])) if one else (lambda t: t)
        low = tuple(p[0] for p in attrs["padding"])
        geometry = (
            x.shape[0], x.shape[1], *pick(x.shape[2:]), w.shape[0], *pick(w.shape[2:]),
            *pick(y.shape[2:]), *pick(attrs["stride"]), *((0, low[0]) if one else low),
            *pick(attrs["dilation"]), attrs["groups"],
        )  # fmt: skip
        draft = self.draft
        place = {}
        for v in (first, second):
            place[v] = draft.buffer(self.lowerer.dense(v), "in")
        c_name = draft.buffer(self.c, "inout")
        target, name = self.lowerer.target, str(result.dtype)
        described: dict[str, Any] = {"dtype": name}
        # Another order of the sum, so a function of the declared shapes alone.
        window = conv_depthwise_window.depthwise_window(
            target, name, w.shape[2:], attrs["stride"], attrs["dilation"],
            (w.shape[1], floor_div(w.shape[0], attrs["groups"])), self.kind == "conv_grad_weight",
        )  # fmt: skip
        if window:
            width = y.shape[-1]
            if self.kind == "conv_grad_input":
                width = -floor_div(-x.shape[-1], attrs["stride"][-1])
            lanes = conv_depthwise_window.depthwise_lanes(target, name, window, width)
            described |= {"window": window, "lanes": lanes}
            size = conv_depthwise_window.depthwise_workspace_bytes(target, name, window, lanes)
        else:
            size = conv.workspace_bytes(target, name)
        workspace = self.lowerer.scratch(dtype("uint8"), size, per_thread=True)
        buffers = {
            "conv": (place[first], place[second], c_name),
            "conv_grad_input": (c_name, place[second], place[first]),
            "conv_grad_weight": (place[first], c_name, place[second]),
        }[self.kind]
        every = (*buffers, draft.buffer(workspace, "inout"))
        rank = len(result.shape)
        weight = self.kind == "conv_grad_weight"
        groups = ([], [0], list(range(1, rank))) if weight else ([0], [1], list(range(2, rank)))
        epilogue = self.epilogue(groups, c_name)
        begin, end = Dim.symbol("begin"), Dim.symbol("end")
        per_output = product(tuple(w.shape[1:]))
        extent = result.shape[0]
        if window:
            extent = conv_depthwise_window.depthwise_parts(
                target, name, window, lanes, extent, attrs["groups"], self.kind
            )
        elif weight:
            extent = conv.weight_parts(target, name, extent, attrs["groups"], per_output)
            outputs = floor_div(result.shape[0], attrs["groups"])
            described |= conv.weight_tile(target, name, outputs, per_output)
        else:
            outputs = floor_div(w.shape[0], attrs["groups"])
            channels, terms, sizes = outputs, per_output, (y.shape[0], *y.shape[2:])
            if self.kind == "conv_grad_input":
                channels, sizes = w.shape[1], (x.shape[0], *x.shape[2:])
                terms = floor_div(outputs * product(w.shape[2:]), product(attrs["stride"]))
            rows = conv.wide_rows(target, name, channels, sizes, terms)
            described["rows"] = rows
            extent = conv.image_parts(target, name, extent, attrs["groups"], channels, rows)
        template = Template(
            self.kind, every, (*geometry, begin, end), described,
            epilogue[0] if epilogue else None,
        )  # fmt: skip
        flops = product(y.shape) * per_output * 2
        self.finish((template,), extent, (epilogue,), flops)
