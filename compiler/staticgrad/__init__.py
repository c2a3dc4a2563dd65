"""staticgrad: static graphs of numerical models, compiled to one native call.

    import staticgrad as sg

Declare inputs and parameters, write the model with these functions and `sg.nn`, and compile it:
`sg.compile([x, y], [loss], updates=optimizer.minimize(loss))`.
"""

from __future__ import annotations

__version__ = "0.1.0"

from importlib import import_module
from sys import modules
from types import ModuleType

from . import nn, optim
from .api import debug
from .api import pytree as tree
from .api.compile import Executable, compile
from .api.control import checkpoint, cond, fori_loop, scan, switch, while_loop
from .api.custom import NotDifferentiable, Tolerance, custom_op
from .api.custom_derivatives import custom_jvp, custom_vjp
from .api.files import load, save
from .api.graph import Graph
from .api.jacobian import hessian, hvp, jacfwd, jacobian, jacrev
from .api.memory import release_memory
from .api.program import Program
from .api.session import Session, global_variables_initializer
from .api.trace import jit
from .api.transforms import grad, jvp, value_and_grad, vjp
from .api.vmap import vmap
from .autodiff.reverse import gradients
from .ir.dim import Dim
from .ir.dtype import (
    DType,
    float32,
    float64,
    int8,
    int16,
    int32,
    int64,
    uint8,
    uint16,
    uint32,
    uint64,
)
from .ir.dtype import bool_ as bool
from .ir.errors import (
    ArgumentError,
    ArgumentTypeError,
    BindError,
    DifferentiationError,
    DTypeError,
    ExecutionError,
    GraphError,
    ParseError,
    PromotionWarning,
    ShapeError,
    StateError,
    StaticgradError,
    UnsupportedError,
    VerifyError,
)
from .nn import data
from .ops import random
from .ops.activation import (
    elu,
    gelu,
    hardsigmoid,
    hardswish,
    hardtanh,
    leaky_relu,
    logsigmoid,
    mish,
    relu,
    relu6,
    selu,
    sigmoid,
    silu,
    softplus,
    softsign,
)
from .ops.arithmetic import (
    add,
    conj,
    divide,
    floor_divide,
    imag,
    multiply,
    negative,
    positive,
    pow,
    real,
    reciprocal,
    remainder,
    square,
    subtract,
)
from .ops.comparison import (
    equal,
    greater,
    greater_equal,
    isfinite,
    isinf,
    isnan,
    less,
    less_equal,
    not_equal,
    signbit,
)
from .ops.convert import astype, constant
from .ops.creation import (
    arange,
    empty,
    empty_like,
    eye,
    full,
    full_like,
    linspace,
    meshgrid,
    one_hot,
    ones,
    ones_like,
    tril,
    triu,
    zeros,
    zeros_like,
)
from .ops.cumulative import cumulative_prod, cumulative_sum
from .ops.einsum import einsum
from .ops.exponential import (
    cbrt,
    exp,
    exp2,
    expm1,
    hypot,
    log,
    log1p,
    log2,
    log10,
    logaddexp,
    rsqrt,
    sqrt,
)
from .ops.indexing import take, take_along_axis
from .ops.joining import chunk, concat, repeat, roll, split, stack, tile, unstack
from .ops.leaves import input, parameter
from .ops.linalg import diagonal, dot, matmul, outer, tensordot, trace, vecdot
from .ops.logical import (
    bitwise_and,
    bitwise_invert,
    bitwise_left_shift,
    bitwise_or,
    bitwise_right_shift,
    bitwise_xor,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
)
from .ops.public import dynamic as _dynamic
from .ops.public import show_only as _show_only
from .ops.reduction import all, any, count_nonzero, max, mean, min, prod, std, sum, var
from .ops.rounding import abs, ceil, copysign, floor, nextafter, round, sign, trunc
from .ops.searching import (
    argmax,
    argmin,
    argwhere,
    nonzero,
    searchsorted,
    unique_all,
    unique_counts,
    unique_inverse,
    unique_values,
)
from .ops.selection import clamp, clip, maximum, minimum, stop_gradient, where
from .ops.shape import (
    broadcast_arrays,
    broadcast_to,
    expand_dims,
    flatten,
    matrix_transpose,
    moveaxis,
    permute_dims,
    reshape,
    squeeze,
    swapaxes,
    unflatten,
)
from .ops.slicing import flip, pad
from .ops.softmax import log_softmax, logsumexp, softmax
from .ops.sorting import argsort, sort
from .ops.special import erf, erfc
from .ops.tensor import Tensor
from .ops.trigonometric import (
    acos,
    acosh,
    asin,
    asinh,
    atan,
    atan2,
    atanh,
    cos,
    cosh,
    sin,
    sinh,
    tan,
    tanh,
)

e, pi, inf, nan, newaxis = 2.718281828459045, 3.141592653589793, float("inf"), float("nan"), None

_INTERNAL = ("ModuleType", "annotations", "api", "autodiff", "codegen", "import_module", "ir",
             "kernels", "modules", "ops", "passes", "rewrite")  # fmt: skip
__all__ = sorted(n for n in globals() if not n.startswith("_") and n not in _INTERNAL)


def _eager() -> ModuleType:
    """The dynamic mode, imported when it is first asked for: a static program needs none of it."""
    from staticgrad_runtime.forks import no_fork

    with no_fork():
        return import_module(".eager", __name__)


def __getattr__(name: str) -> ModuleType:
    if name == "eager":
        return _eager()
    from .ir.hints import FUNCTIONS, missing

    raise AttributeError(missing("sg", name, FUNCTIONS), name=name, obj=modules[__name__])


_dynamic.load = _eager
_show_only(modules[__name__], (*__all__, "eager"))
for _module in (data, debug, random, tree):
    _show_only(_module, _module.__all__)
del annotations
