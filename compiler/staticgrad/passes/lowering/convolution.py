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
        from staticgrad.codegen import conv  # a dozen modules, which few programs need
        from staticgrad.codegen.conv_depthwise import near_stride

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
        workspace = self.lowerer.scratch(
            dtype("uint8"),
            conv.workspace_bytes(self.lowerer.target, str(result.dtype)),
            per_thread=True,
        )
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
        # Another order of the sum, so a function of the declared shapes alone.
        depthwise = w.shape[1] == 1 and w.shape[0] == x.shape[1] == attrs["groups"]
        described: dict[str, Any] = {"dtype": str(result.dtype), "depthwise": depthwise}
        if depthwise:
            window = (w.shape[2:], attrs["stride"], attrs["dilation"])
            described["near"] = near_stride(*window)
        per_output = product(tuple(w.shape[1:]))
        extent = result.shape[0]
        target = self.lowerer.target
        if weight:
            extent = conv.weight_parts(
                target, str(result.dtype), extent, attrs["groups"], per_output, depthwise
            )
            outputs = floor_div(result.shape[0], attrs["groups"])
            described |= conv.weight_tile(target, str(result.dtype), outputs, per_output)
        elif not depthwise:
            outputs = floor_div(w.shape[0], attrs["groups"])
            channels, terms, sizes = outputs, per_output, (y.shape[0], *y.shape[2:])
            if self.kind == "conv_grad_input":
                channels, sizes = w.shape[1], (x.shape[0], *x.shape[2:])
                terms = floor_div(outputs * product(w.shape[2:]), product(attrs["stride"]))
            described["rows"] = conv.wide_rows(target, str(result.dtype), channels, sizes, terms)
        template = Template(
            self.kind, every, (*geometry, begin, end), described,
            epilogue[0] if epilogue else None,
        )  # fmt: skip
        flops = product(y.shape) * per_output * 2
        self.finish((template,), extent, (epilogue,), flops)
