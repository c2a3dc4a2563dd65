"""What people who know other frameworks try first: it works, or the error names what serves here
and the user's line."""

from __future__ import annotations

import math
import operator
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import staticgrad as sg
from staticgrad import eager
from staticgrad.ir import hints
from staticgrad.ir.errors import ArgumentTypeError

F = sg.nn.functional
X = np.array([1.0, 2.0, 3.0])


def here() -> str:
    """The caller's line, as errors name it."""
    return f"test_hints.py:{sys._getframe(1).f_lineno}"


def message(call: Callable[[], Any], error: type[Exception] = ArgumentTypeError) -> str:
    """The text of the error that `call` raises, which names the line of its `lambda`."""
    with pytest.raises(error) as caught:
        call()
    text = str(caught.value)
    if isinstance(caught.value, sg.StaticgradError):
        assert text.count("test_hints.py:") == 1, text
        assert f"test_hints.py:{call.__code__.co_firstlineno}" in text, text
    return text


# --- labels and indices out of range --------------------------------------------------------------

LOSSES: dict[str, Callable[..., Any]] = {
    "cross_entropy": F.cross_entropy,
    "nll_loss": F.nll_loss,
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("label", [5, -3, -1, -6])
def test_a_label_out_of_range_is_named_as_it_was_given(name: str, label: int) -> None:
    loss = LOSSES[name]
    x, y = np.zeros((2, 5), "float32"), np.array([0, label])
    said = f"label {label}: the input has 5 classes"
    assert said in message(lambda: loss(eager.tensor(x), eager.tensor(y)), sg.ExecutionError)
    for classes in (5, "C"):
        a, b = sg.input("a", ("N", classes)), sg.input("b", ("N",), "int64")
        for options in ({}, {"check": "nan"}, {"mode": "reference"}):
            line, out = here(), loss(a, b)
            with pytest.raises(sg.ExecutionError) as caught:
                sg.compile([a, b], out, **options)(x, y)
            assert str(caught.value).startswith(said)
            assert line in str(caught.value)
            assert (caught.value.element, caught.value.value) == (1, label)


@pytest.mark.parametrize("name", ["C", "value", "element", "batch", "k", "i0", "2*C"])
def test_a_size_of_any_name_is_filled_in(name: str) -> None:
    a, b = sg.input("a", ("N", name)), sg.input("b", ("N",), "int64")
    run = sg.compile([a, b], F.cross_entropy(a, b))
    for classes in (6, 4):
        with pytest.raises(sg.ExecutionError, match=f"label -3: the input has {classes} classes"):
            run(np.zeros((2, classes), "float32"), np.array([0, -3]))


@pytest.mark.parametrize("dtype", ["int32", "uint8"])
def test_labels_of_any_integer_dtype_and_ignored_ones(dtype: str) -> None:
    x = np.zeros((3, 5), "float32")
    y = np.array([0, 4, 2], dtype)
    a, b = sg.input("a", ("N", 5)), sg.input("b", ("N",), dtype)
    loss = F.cross_entropy(a, b, ignore_index=2)
    run = sg.compile([a, b], [loss, sg.gradients(loss, [a])[0]])
    value, gradient = run(x, y)
    expected = (np.full((3, 5), 0.2) - np.eye(5)[[0, 4, 2]]) / 2 * np.array([[1], [1], [0]])
    np.testing.assert_allclose(value, math.log(5), rtol=1e-6)
    np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-7)
    with pytest.raises(sg.ExecutionError, match="label 5: the input has 5 classes"):
        run(x, np.array([0, 5, 0], dtype))
    if dtype == "int32":
        minus = sg.compile([a, b], F.cross_entropy(a, b, ignore_index=-1))
        np.testing.assert_allclose(minus(x, np.array([-1, 1, -1], dtype)), math.log(5), rtol=1e-6)
        with pytest.raises(sg.ExecutionError, match="label -2: the input has 5 classes"):
            minus(x, np.array([-1, 1, -2], dtype))


def test_a_gradient_alone_refuses_a_negative_label_beside_an_index_that_counts_from_the_end() -> (
    None
):
    """The look-up of the loss is gone, its gradient's stays; an index of equal values is read."""
    a, b = sg.input("a", ("N", 5)), sg.input("b", ("N",), "int64")
    (gradient,) = sg.gradients(F.nll_loss(a, b, reduction="sum", ignore_index=1000), [a])
    picked = sg.take_along_axis(a, sg.expand_dims(b, axis=1), axis=1)
    run = sg.compile([a, b], [gradient, picked])
    x = np.arange(10, dtype="float32").reshape(2, 5)
    assert run(x, np.array([1, 4]))[0].tolist() == [[0, -1, 0, 0, 0], [0, 0, 0, 0, -1]]
    with pytest.raises(sg.ExecutionError, match="label -1: the input has 5 classes"):
        run(x, np.array([1, -1]))


def test_tables_and_one_hot_name_the_index_as_it_was_given() -> None:
    table = eager.ones(4, 2)
    said = message(lambda: F.embedding(eager.tensor([1, -2]), table), sg.ExecutionError)
    assert "index -2 is out of range for a table of 4 rows" in said
    said = message(lambda: F.one_hot(eager.tensor([1, 3]), 3), sg.ExecutionError)
    assert "class 3 is out of range for 3 classes" in said


def test_an_index_out_of_range_in_the_dynamic_mode_says_the_sizes_of_the_call() -> None:
    said = message(lambda: sg.take(eager.tensor([1.0, 2.0]), eager.tensor([7])), sg.ExecutionError)
    assert "index 7 is out of range for an axis of size 2 (operands float32[2], int64[1])" in said
    said = message(lambda: eager.tensor([1.0, 2.0])[eager.tensor([0, -3])], sg.ExecutionError)
    assert "index -3 is out of range for an axis of size 2" in said


def test_kinds_of_indices_under_vmap_and_forward_derivatives() -> None:
    x, y = np.arange(30.0).reshape(2, 3, 5), np.array([[0, 4, 2], [1, 1, 3]])
    loss = sg.vmap(F.nll_loss)
    np.testing.assert_allclose(loss(x, y), [-np.mean([0, 9, 12]), -np.mean([16, 21, 28])])
    one = sg.vmap(lambda y: F.nll_loss(x[0], y))  # the indices alone are batched
    np.testing.assert_allclose(one(y), [-np.mean([0, 9, 12]), -np.mean([1, 6, 13])])
    for run in (loss, sg.jit(sg.grad(lambda x, y: sg.sum(sg.vmap(F.nll_loss)(x, y))))):
        with pytest.raises(sg.ExecutionError, match="label -1: the input has 5 classes"):
            run(x, y - 1)
    tangent = sg.jvp(lambda x: F.nll_loss(x, y[0]), (x[0],), (np.ones((3, 5)),))[1]
    np.testing.assert_allclose(tangent, -1.0)


def test_the_kind_of_an_index_is_part_of_the_graphs_text() -> None:
    a, b = sg.input("a", ("N", 5)), sg.input("b", ("N",), "int64")
    graph = sg.Graph([a, b], F.cross_entropy(a, b))
    again = sg.Graph.from_text(graph.to_text())
    assert 'kind="label"' in graph.to_text()
    assert again.to_text() == graph.to_text()
    x, y = np.zeros((2, 5), "float32"), np.array([0, -1])
    with pytest.raises(sg.ExecutionError, match="label -1"):
        sg.compile(list(again.inputs), again.outputs[0])(x, y)


def test_fit_names_the_call_that_failed_not_the_one_that_compiled() -> None:
    model = sg.nn.Sequential(sg.nn.Linear(2, 2))
    x, y = np.ones((4, 2), "float32"), np.array([0, 1, 0, 1])
    options: dict[str, Any] = {"loss": "cross_entropy", "progress": False}
    model.fit(x, y, **options)
    for check in (None, "nan"):
        said = message(lambda c=check: model.fit(x, y + 1, check=c, **options), sg.ExecutionError)
        assert "label 2: the input has 2 classes" in said
    said = message(lambda: model.fit(x[:, :1], y, **options), sg.BindError)
    assert "the inner sizes: D1 is 1, 2 is 2" in said
    fresh = sg.nn.Sequential(sg.nn.Linear(3, 2))
    assert "the inner sizes" in message(lambda: fresh.fit(x, y, **options), sg.ShapeError)


# --- NumPy and Python numbers on static tensors ---------------------------------------------------

TRACED: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "jit": lambda fn: sg.jit(fn)(X),
    "grad": lambda fn: sg.grad(fn)(X),
    "vmap": lambda fn: sg.vmap(fn)(X),
    "declared": lambda fn: fn(sg.input("x", (3,))),
}


@pytest.mark.parametrize("how", TRACED)
@pytest.mark.parametrize(
    ("function", "serves"),
    [
        (np.sin, "np.sin can't be used on a static tensor: use sg.sin"),
        (np.sum, "use sg.sum"),
        (np.mean, "use sg.mean"),
        (np.absolute, "use sg.abs"),
        (lambda x: np.dot(x, x), "use sg.dot"),
        (lambda x: np.concatenate([x, x]), "use sg.concat"),
        (lambda x: np.linalg.det(x), "np.det can't be used on a static tensor: use the functions"),
        (lambda x: np.divmod(x, 2), "np.divmod can't be used"),
        (lambda x: np.add(x, x, out=np.ones(3)), "array = array op tensor"),
    ],
)
def test_numpys_functions_name_those_that_serve(how: str, function: Any, serves: str) -> None:
    with pytest.raises(ArgumentTypeError) as caught:
        TRACED[how](function)
    assert serves in str(caught.value)
    assert "test_hints.py:" in str(caught.value)


@pytest.mark.parametrize(
    "function",
    [
        float, int, math.sin, bool, lambda x: np.array([x, x]), lambda x: sg.constant([x, x]),
        lambda x: f"{x:.3f}", lambda x: x.item(), lambda x: x.tolist(), lambda x: x.numpy(),
        lambda x: range(x), lambda x: np.zeros(3).__iadd__(np.asarray(x)),
    ],
)  # fmt: skip
def test_values_are_asked_for(function: Callable[[Any], Any]) -> None:
    y = sg.sum(sg.input("x", (3,)))
    for how, speaks in (
        (lambda: function(y), "while the graph is being declared"),
        (lambda: sg.jit(lambda x: function(sg.sum(x)))(X), "of the program that is being traced"),
    ):
        with pytest.raises(ArgumentTypeError) as caught:
            how()
        assert speaks in str(caught.value)
        assert "test_hints.py:" in str(caught.value)


def test_formats_without_a_format_show_the_tensor() -> None:
    x = sg.input("x", ("N",))
    assert f"{x}" == repr(x) == "Tensor('x', float32[N], input)"
    assert f"{eager.tensor(1.5):.2f}" == "1.50"


def test_assignment_says_how_values_change() -> None:
    x = sg.input("x", (3,))
    said = message(lambda: x.__setitem__(0, 1.0))
    assert "sg.where(mask, new, x)" in said and "dynamic mode" in said
    p = sg.parameter(np.zeros(3, "float32"))
    said = message(lambda: p.__setitem__(0, 1.0))
    assert "dynamic mode" in said
    with eager.no_grad():
        p[1] = 2.0
    assert p.numpy().tolist() == [0, 2, 0]


def test_numpy_reads_shapes_of_static_tensors() -> None:
    x = sg.ones((2, 3))
    assert (np.shape(x), np.ndim(x), np.size(x)) == ((2, 3), 2, 6)


LEFT = {
    "array": np.array([1, 2, 3]), "0-d": np.array(2), "int64": np.int64(2), "uint8": np.uint8(2),
    "float array": np.array([1.0, 2.0, 3.0]), "float32": np.float32(2), "float64": np.float64(2),
    "0-d float": np.array(2.0), "bool": np.True_,
}  # fmt: skip
ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow",
              "lt", "le", "gt", "ge", "eq", "ne")  # fmt: skip
BITS = ("and_", "or_", "xor", "lshift", "rshift")


@pytest.mark.parametrize("left", LEFT)
def test_operators_with_numpys_arrays_and_numbers_on_the_left(left: str) -> None:
    a = LEFT[left]
    integer = a.dtype.kind in "iu"
    b = np.array([3, 1, 2], "int64" if integer else "float32")
    for name in (*ARITHMETIC, *BITS) if integer else ARITHMETIC:
        op = getattr(operator, name)
        if left == "bool" and name in ("sub", "floordiv", "mod", "pow"):
            expected = op(a.astype("float32"), b)
        else:
            expected = op(a, b)
        x = sg.input("x", (3,), b.dtype)
        static = op(a, x)
        assert isinstance(static, sg.Tensor), name
        found = sg.compile([x], static)(b)
        np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=name)
        dynamic = op(a, eager.tensor(b))
        assert isinstance(dynamic, eager.Tensor), name
        assert dynamic.dtype == static.dtype
        np.testing.assert_array_equal(dynamic.numpy(), found, err_msg=name)
    matrix = sg.input("m", (3, 2))
    if a.ndim:
        product = a.astype("float32") @ matrix
        assert isinstance(product, sg.Tensor) and product.shape == (2,)


def test_numpys_numbers_on_the_left_of_an_argument_that_is_a_number() -> None:
    for a in (np.float64(3), np.array(3.0), np.float32(3)):
        assert sg.jit(lambda x, a=a: a - x)(1.0) == 2.0
        assert sg.jit(lambda x, a=a: a > x)(1.0)
    array = X.copy()
    assert "array = array op tensor" in message(lambda: operator.iadd(array, sg.input("x", (3,))))


# --- names ----------------------------------------------------------------------------------------


def test_every_hint_names_what_exists() -> None:
    tables = (
        hints.FUNCTIONS, hints.LAYERS, hints.OPTIMISERS, hints.TENSOR, hints.MODEL, hints.KEYWORDS,
    )  # fmt: skip
    for text in (t for table in tables for t in table.values()):
        for path in re.findall(r"\bsg((?:\.\w+)+)", text):
            found: Any = sg
            for name in path[1:].split("."):
                found = getattr(found, name)
        for name in re.findall(r"\bx\.(\w+)", text):
            assert hasattr(sg.Tensor, name), text
        for name in re.findall(r"\bmodel\.(\w+)", text):
            assert hasattr(sg.nn.Module, name), text


def test_a_hint_is_for_a_name_that_is_missing() -> None:
    for table, owner in (
        (hints.FUNCTIONS, sg), (hints.LAYERS, sg.nn), (hints.OPTIMISERS, sg.optim),
        (hints.MODEL, sg.nn.Module),
    ):  # fmt: skip
        assert [name for name in table if name in dir(owner)] == []
    static = set(hints.TENSOR) & set(dir(sg.Tensor))
    assert not static


@pytest.mark.parametrize(
    ("owner", "name", "serves"),
    [
        (sg, "concatenate", "sg has no attribute 'concatenate': use sg.concat"),
        (sg, "array", "use sg.eager.tensor for values at once, sg.constant in a graph"),
        (sg, "no_grad", "use sg.eager.no_grad"),
        (sg, "nothing", "sg has no attribute 'nothing'"),
        (eager, "cat", "sg.eager has no attribute 'cat': use sg.concat"),
        (eager, "manual_seed", "use sg.random.seed"),
        (eager, "jit", "use sg.jit, which serves both modes"),
        (eager, "nothing", "sg.eager has no attribute 'nothing'"),
        (sg.nn, "Dense", "use sg.nn.Linear(in_features, out_features)"),
        (sg.ones(3), "at", "use sg.where(mask, new, x)"),
        (sg.ones(3), "nothing", "a static tensor has no attribute 'nothing'"),
        (eager.ones(3), "norm", "use sg.sqrt(sg.sum(x * x))"),
        (sg.nn.Linear(2, 2), "summary", "'Linear' object has no attribute 'summary': use print"),
        (sg.nn.Linear(2, 2), "compile", "use model.fit(xs, ys, loss=.., optimizer=.., metrics=..)"),
    ],
)
def test_unknown_names(owner: Any, name: str, serves: str) -> None:
    assert serves in message(lambda: getattr(owner, name), AttributeError)
    assert not hasattr(owner, name)
    assert name not in dir(owner)


def test_the_dynamic_package_has_the_functions_of_arrays_and_the_dtypes() -> None:
    x = eager.tensor([1.0, 4.0], requires_grad=True)
    y = eager.exp(eager.sqrt(x))
    y.sum().backward()
    np.testing.assert_allclose(y.detach().numpy(), np.exp([1, 2]), rtol=1e-6)
    np.testing.assert_allclose(x.grad.numpy(), np.exp([1, 2]) / [2, 4], rtol=1e-6)
    joined = eager.concat([x, x.detach()])
    assert isinstance(joined, eager.Tensor) and joined.requires_grad
    for made in (eager.sin(np.ones(3)), eager.concat([np.ones(2), np.ones(3)]), eager.exp(1.0)):
        assert isinstance(made, eager.Tensor)
    assert eager.exp is eager.exp and eager.exp.__name__ == "exp"
    assert eager.float32 is sg.float32
    assert isinstance(eager.exp(sg.input("x", (3,))), sg.Tensor)
    assert {"exp", "tensor", "float32"} <= set(dir(eager))
    for name in dir(eager):
        getattr(eager, name)
    assert not {"jit", "compile", "nn"} & set(dir(eager))


# --- keywords -------------------------------------------------------------------------------------

MATRIX = np.array([[1.0, 5.0, 2.0], [4.0, 3.0, 6.0]], "float32")
ALIKE = ("sum", "prod", "mean", "all", "any", "argmax", "argmin", "logsumexp")


@pytest.mark.parametrize("name", ALIKE)
def test_dim_and_keepdim_in_both_modes(name: str) -> None:
    given = MATRIX > 2 if name in ("all", "any") else MATRIX
    function = getattr(sg, name)
    x = sg.input("x", ("N", 3), given.dtype)
    expected = sg.compile([x], function(x, axis=1, keepdims=True))(given)
    t = eager.tensor(given)
    for found in (
        sg.compile([x], function(x, dim=1, keepdim=True))(given),
        sg.compile([x], getattr(x, name)(dim=1, keepdim=True))(given),
        function(t, dim=1, keepdim=True).numpy(),
        getattr(t, name)(dim=1, keepdim=True).numpy(),
        getattr(eager, name)(given, dim=1, keepdim=True).numpy(),
    ):
        np.testing.assert_array_equal(found, expected)
    for both in ({"dim": 1, "axis": 1}, {"axis": 1, "keepdim": True, "keepdims": True}):
        for where in (x, t):
            assert "give one of them" in message(lambda w=where, b=both: function(w, **b))
            assert "give one of them" in message(lambda w=where, b=both: getattr(w, name)(**b))


def test_dim_where_pytorch_means_something_else() -> None:
    for x in (sg.input("x", ("N", 3)), eager.tensor(MATRIX)):
        assert "argmax(axis=..) the places" in message(lambda x=x: x.max(dim=1))
        assert "argmin(axis=..) the places" in message(lambda x=x: sg.min(x, dim=1))
        assert "argsort(axis=..)" in message(lambda x=x: sg.sort(x, dim=1))
        assert "correction=1 or correction=0" in message(lambda x=x: x.std(dim=1))
        assert x.var(dim=1, correction=1).shape == (x.shape[0],)
    found = eager.tensor(MATRIX).var(dim=1, correction=1)
    np.testing.assert_allclose(found.numpy(), MATRIX.var(axis=1, ddof=1), rtol=1e-6)


@pytest.mark.parametrize(
    "name", ["softmax", "log_softmax", "softmin", "glu", "normalize", "cosine_similarity"]
)
def test_axis_serves_for_dim_in_nn_functional(name: str) -> None:
    function = getattr(sg.nn.functional, name)
    given = np.arange(8, dtype=np.float32).reshape(2, 4) + 1
    count = 2 if name == "cosine_similarity" else 1
    x, t = sg.input("x", ("N", 4)), eager.tensor(given)
    expected = sg.compile([x], function(*[x] * count, dim=0))(given)
    np.testing.assert_array_equal(sg.compile([x], function(*[x] * count, axis=0))(given), expected)
    np.testing.assert_array_equal(function(*[t] * count, axis=0).numpy(), expected)
    for where in (x, t):
        both = message(lambda w=where: function(*[w] * count, dim=0, axis=0))
        assert f"{name}: axis= is dim=; give one of them" in both
    layer = sg.nn.Softmax(axis=0)
    np.testing.assert_array_equal(layer(t).numpy(), sg.nn.functional.softmax(t, dim=0).numpy())


def test_a_models_forward_may_say_dim() -> None:
    class Pooled(sg.nn.Module):
        def forward(self, x: Any) -> Any:
            return sg.concat([x.mean(dim=1, keepdim=True), x], dim=1)

    x = sg.input("x", ("N", 3))
    static = sg.compile([x], Pooled()(x))(MATRIX)
    np.testing.assert_array_equal(Pooled()(eager.tensor(MATRIX)).numpy(), static)
    expected = np.concatenate([MATRIX.mean(axis=1, keepdims=True), MATRIX], axis=1)
    np.testing.assert_allclose(static, expected, rtol=1e-6)


def test_a_wrong_call_names_the_line_and_keras_keywords_what_serves() -> None:
    model = sg.nn.Linear(2, 1)
    x, y = np.ones((4, 2), "float32"), np.ones((4, 1), "float32")
    assert "progress=True or" in message(lambda: model.fit(x, y, loss="mse", verbose=0))
    assert "progress=True or" in message(lambda: model.evaluate(x, y, verbose=0))
    assert "unexpected keyword argument 'no'" in message(lambda: sg.sin(eager.ones(2), no=1))
    assert "missing 1 required" in message(lambda: sg.matmul(x))
    assert "Sequential(*layers)" in message(lambda: sg.nn.Sequential([model]))


def test_a_type_error_from_inside_of_a_users_function_stays_what_it_is() -> None:
    def broken(x: Any) -> Any:
        return len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="object of type 'int' has no len") as caught:
        sg.jit(broken)(1.0)
    assert not isinstance(caught.value, sg.StaticgradError)


# --- programs and models --------------------------------------------------------------------------


def test_a_program_called_without_its_arrays_is_the_subject() -> None:
    x = sg.input("x", (3,))
    with pytest.raises(sg.BindError, match=r"the program takes 1 input \(x\), got 0: x missing"):
        sg.compile([x], x + 1.0)()


def test_two_inputs_of_one_name() -> None:
    a, b = sg.input("x", ("N", 3)), sg.input("x", ("N", 3))
    with pytest.raises(sg.GraphError, match="the input of that name is another one"):
        sg.compile([a], b * 2.0)


def test_predict_of_one_sample_that_is_no_row() -> None:
    model = sg.nn.Linear(2, 2)
    x = np.ones((5, 2), "float32")
    assert "the first of an array x is x[:1]" in message(lambda: model.predict(x[0]), sg.ShapeError)
    assert model.predict(x[:1]).shape == (1, 2)
    assert model.predict(x[0][None]).shape == (1, 2)
    assert sg.nn.Embedding(4, 3).predict(np.array([1, 2])).shape == (2, 3)
    assert sg.nn.ReLU().predict(np.ones(40, "float32")).shape == (40,)


def test_predict_joins_rows_of_samples_only() -> None:
    class Total(sg.nn.Module):
        def forward(self, x: Any) -> Any:
            return x * 2.0, sg.sum(x, axis=0)

    x = np.ones((5, 2), "float32")
    rows, total = Total().predict(x)
    assert rows.shape == (5, 2) and total.tolist() == [5, 5]
    said = message(lambda: Total().predict(x, batch_size=2), sg.ShapeError)
    assert "float32[2], without a row for each sample" in said


def test_param_groups_show_the_rate() -> None:
    optimizer = sg.optim.SGD(sg.nn.Linear(2, 2).parameters(), lr=0.5)
    assert "'lr': 0.5" in repr(optimizer.param_groups)
    optimizer.param_groups[0]["lr"] = 0.25
    assert "'lr': 0.25" in str(optimizer.param_groups)


def test_explain_cache_counts_and_names_python_numbers() -> None:
    scaled = sg.jit(lambda x, k: x * k)
    scaled(2.0, 3)
    assert ": 1 trace\n" in scaled.explain_cache()
    assert "(x: float, k: int) -> (float32[])" in scaled.explain_cache()
    scaled(X, True)
    assert ": 2 traces\n" in scaled.explain_cache()
    assert "(x: float64[3], k: bool)" in scaled.explain_cache()


def test_hints_are_imported_when_a_name_is_missing_not_before() -> None:
    code = "import sys, staticgrad as sg, staticgrad.eager\nh = 'staticgrad.ir.hints'\n"
    code += "print(h in sys.modules, hasattr(sg, 'concatenate'), h in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "True"]
