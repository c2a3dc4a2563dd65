"""The layers' import arrows, what importing staticgrad costs, and the public names."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import staticgrad as sg
from staticgrad.ir.errors import UnsupportedError

ROOT = Path(__file__).resolve().parents[1]
COMPILER, RUNTIME = ROOT / "compiler", ROOT / "runtime"

# layer -> the other layers of the compiler that its files may import. `docs/architecture.md`
# explains the order; `test_the_arrows_have_no_cycle` holds it.
ALLOWED: dict[str, set[str]] = {
    "ir": set(),
    "kernels": {"ir"},
    "ops": {"kernels", "ir"},
    "autodiff": {"ops", "kernels", "ir"},
    "rewrite": {"ops", "kernels", "ir"},
    "passes": {"rewrite", "ops", "kernels", "ir"},
    "codegen": {"kernels", "ir"},
    "inspect": {"ops", "kernels", "ir"},
    "api": {"inspect", "codegen", "passes", "rewrite", "autodiff", "ops", "kernels", "ir"},
    "nn": {"optim", "autodiff", "api", "ops", "ir"},
    "optim": {"autodiff", "api", "ops", "ir"},
    "eager": {"autodiff", "api", "ops", "ir"},
    "compare": {"eager", "api", "passes", "autodiff", "ops", "ir"},
    "cli": {"compare", "nn", "optim", "api", "inspect", "codegen", "passes", "rewrite", "autodiff",
            "ops", "kernels", "ir"},
}  # fmt: skip

# file -> module of a layer that it may not import otherwise, and why it does.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("passes/lowering/by_rows.py", "codegen.sharing"): "which steps threads share at all",
    ("passes/lowering/by_rows.py", "codegen.target"): "what a core's cache holds",
    ("passes/lowering/prepack.py", "codegen.gemm_prepacked"): "how large a packed matrix is",
    ("passes/lowering/prepack.py", "codegen.target"): "the tiles that it is packed for",
    ("passes/lowering/lower.py", "codegen.target"): "kernels are chosen for a target's vectors",
    ("passes/lowering/manifest.py", "codegen.target"): "the manifest names the target",
    ("passes/lowering/manifest.py", "codegen.sharing"): "lifetimes last to the end of a phase",
    ("passes/nontemporal.py", "codegen.target"): "how large the third cache is",
    ("passes/lowering/scalar_loops.py", "codegen.sharing"): "what a step costs at least",
    ("passes/schedule.py", "codegen.sharing"): "an order is judged by what threads hold at once",
    ("passes/scratch.py", "codegen.sharing"): "threads' own memory is one for all of a phase",
    ("passes/lowering/matmul.py", "codegen.gemm"): "how much workspace a product's tiles want",
    ("passes/lowering/matmul.py", "codegen.gemm_vector"): "which products have kernels without",
    ("passes/lowering/matmul_blocks.py", "codegen.gemm"): "how long a block of k is",
    ("passes/lowering/matmul_blocks.py", "codegen.gemm_vector"): "which are products of vectors",
    ("passes/lowering/custom.py", "codegen.gemm"): "how much workspace a product's tiles want",
    ("passes/lowering/convolution.py", "codegen.conv"): "how much workspace a convolution wants",
    ("passes/lowering/convolution.py", "codegen.conv_depthwise_window"): "which have functions",
}

# The compiler meets the runtime in these modules; a layer that isn't listed meets it nowhere.
RUNTIME_MODULES: dict[str, set[str] | None] = {
    "ir": {"errors", "state", "checkpoint"},  # parameters in a text; large constants beside it
    "ops": {"state", "arrays", "philox_native", "forks"},  # first values of parameters
    "nn": {"state", "arrays"},
    "optim": {"state", "arrays"},
    "eager": {"state", "forks"},
    "compare": {"executable"},  # to count its calls
    "passes": {"artifact", "environment"},
    # A call's words; alignment; parts; the machine that generates the runtime's own code too.
    "codegen": {"context", "arena", "interrupt", "objects", "loader", "forks"},
    "api": None,  # the driver: all of them
    "cli": None,
    "": {"forks"},  # what is imported when it is first asked for
}


def imports_of(path: Path, root: Path) -> Iterator[str]:
    """The modules that a file imports, in functions too, as absolute names. What `from a import b`
    names is `a.b` where that is a module, else `a`."""
    package = list(path.relative_to(root).parent.parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = [*base, *(node.module.split(".") if node.module else [])]
            for alias in node.names:
                inner = (COMPILER if module[0] == "staticgrad" else RUNTIME).joinpath(*module)
                is_module = (inner / alias.name).is_dir() or (inner / f"{alias.name}.py").exists()
                yield ".".join([*module, alias.name] if is_module else module)


def compiler_files() -> list[Path]:
    return sorted((COMPILER / "staticgrad").rglob("*.py"))


def layer_of(path: Path) -> str | None:
    """The folder of the file; None for `staticgrad/__init__.py`, which re-exports."""
    parts = path.relative_to(COMPILER / "staticgrad").parts
    return parts[0] if len(parts) > 1 else None


def test_every_folder_is_a_layer() -> None:
    found = {layer_of(p) for p in compiler_files()} - {None}
    assert found == set(ALLOWED)


def test_the_arrows_have_no_cycle() -> None:
    left = {layer: set(below) for layer, below in ALLOWED.items()}
    while left:
        lowest = [layer for layer, below in left.items() if not below & set(left)]
        assert lowest, f"a cycle among {sorted(left)}"
        for layer in lowest:
            del left[layer]


@pytest.mark.parametrize("layer", ALLOWED)
def test_imports_point_one_way(layer: str) -> None:
    wrong = []
    for path in compiler_files():
        if layer_of(path) != layer:
            continue
        file = path.relative_to(COMPILER / "staticgrad").as_posix()
        for module in imports_of(path, COMPILER):
            parts = module.split(".")
            if parts[0] == "staticgrad" and len(parts) > 1:
                inside = parts[1] in ALLOWED[layer] | {layer}
                if not inside and (file, ".".join(parts[1:3])) not in EXCEPTIONS:
                    wrong.append(f"{file} imports {module}")
    assert not wrong


def test_every_exception_is_needed() -> None:
    used = set()
    for path in compiler_files():
        file = path.relative_to(COMPILER / "staticgrad").as_posix()
        for module in imports_of(path, COMPILER):
            used.add((file, ".".join(module.split(".")[1:3])))
    assert set(EXCEPTIONS) <= used


def test_the_compiler_meets_the_runtime_in_few_modules() -> None:
    wrong = []
    for path in compiler_files():
        layer = layer_of(path)
        modules = RUNTIME_MODULES.get(layer or "", set())
        for module in imports_of(path, COMPILER):
            parts = module.split(".")
            if parts[0] == "staticgrad_runtime" and modules is not None and (
                len(parts) < 2 or parts[1] not in modules
            ):  # fmt: skip
                wrong.append(f"{path.relative_to(COMPILER)} imports {module}")
    assert not wrong


def test_the_runtime_never_imports_the_compiler() -> None:
    files = sorted((RUNTIME / "staticgrad_runtime").rglob("*.py"))
    assert files
    wrong = [
        f"{path.name} imports {module}"
        for path in files
        for module in imports_of(path, RUNTIME)
        if module.split(".")[0] == "staticgrad"
    ]
    assert not wrong


def in_fresh_process(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_staticgrad_leaves_the_heavy_packages_out() -> None:
    heavy = ("networkx", "llvmlite", "matplotlib", "tqdm", "safetensors", "sklearn", "scipy")
    code = f"import sys, staticgrad; print([m for m in {heavy!r} if m in sys.modules])"
    assert in_fresh_process(code) == "[]"


def test_the_dynamic_mode_is_imported_when_it_is_asked_for() -> None:
    code = """
import sys, staticgrad as sg
before = "staticgrad.eager" in sys.modules
print(before, sg.eager.tensor(1.0), "eager" in dir(sg))
"""
    assert in_fresh_process(code) == "False tensor(1.) True"


def test_compiling_and_calling_needs_llvmlite_alone() -> None:
    code = """
import sys
import numpy as np
import staticgrad as sg

x = sg.input("x", ("N",))
assert sg.compile([x], x + 1, cache=False)(np.zeros(2, "float32")).tolist() == [1, 1]
print([m for m in ("networkx", "matplotlib", "tqdm", "safetensors") if m in sys.modules])
"""
    assert in_fresh_process(code) == "[]"


def test_the_runtime_imports_alone() -> None:
    code = "import sys, staticgrad_runtime; print('staticgrad' in sys.modules)"
    assert in_fresh_process(code) == "False"


# --- public names ---------------------------------------------------------------------------------


def public_callables() -> list[str]:
    places = {
        "sg": (sg, sg.__all__),
        "sg.nn": (sg.nn, sg.nn.__all__),
        "sg.nn.functional": (sg.nn.functional, sg.nn.functional.__all__),
        "sg.optim": (sg.optim, sg.optim.__all__),
        "sg.optim.lr_scheduler": (sg.optim.lr_scheduler, sg.optim.lr_scheduler.__all__),
        "sg.random": (sg.random, sg.random.__all__),
    }
    return [
        f"{place}.{name}"
        for place, (module, names) in places.items()
        for name in names
        if callable(getattr(module, name))
    ]


@pytest.mark.parametrize("name", public_callables())
def test_public_functions_have_a_docstring_of_their_own(name: str) -> None:
    found = sg
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    text = found.__doc__  # a class does not inherit one in this sense: `__doc__` is its own
    assert text and len(text.strip()) > 10
    if inspect.isfunction(found):
        assert found.__name__ == name.rsplit(".", 1)[1]


# The functions of the Python array API standard 2023.12 (extensions left out), by its categories.
ARRAY_API = {
    "element-wise": """
        abs acos acosh add asin asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_invert
        bitwise_or bitwise_right_shift bitwise_xor ceil clip conj copysign cos cosh divide equal exp
        expm1 floor floor_divide greater greater_equal hypot imag isfinite isinf isnan less
        less_equal log log1p log2 log10 logaddexp logical_and logical_not logical_or logical_xor
        maximum minimum multiply negative not_equal positive pow real remainder round sign signbit
        sin sinh square sqrt subtract tan tanh trunc""",
    "statistical": "cumulative_sum max mean min prod std sum var",
    "utility": "all any",
    "manipulation": """
        broadcast_arrays broadcast_to concat expand_dims flip moveaxis permute_dims repeat reshape
        roll squeeze stack tile unstack""",
    "searching": "argmax argmin nonzero searchsorted where",
    "sorting": "argsort sort",
    "set": "unique_all unique_counts unique_inverse unique_values",
    "indexing": "take take_along_axis",
    "linear algebra": "matmul matrix_transpose tensordot vecdot",
    "creation": """
        arange empty empty_like eye full full_like linspace meshgrid ones ones_like tril triu zeros
        zeros_like""",
    "constants": "e inf nan newaxis pi",
    "data types": "bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float32 float64 astype",
}  # fmt: skip

# Present, so that the name is found and says why: their results' shapes depend on the data.
REFUSED = ("nonzero", "unique_all", "unique_counts", "unique_inverse", "unique_values")


@pytest.mark.parametrize("category", ARRAY_API)
def test_the_array_api_standard_is_covered(category: str) -> None:
    missing = [n for n in ARRAY_API[category].split() if n not in sg.__all__]
    assert not missing


@pytest.mark.parametrize("name", REFUSED)
def test_data_dependent_shapes_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=rf"{name}: the shape of its result depends on"):
        getattr(sg, name)(sg.input("x", ("N",)))


@pytest.mark.parametrize("name", ["complex64", "complex128", "float16", "bfloat16"])
def test_complex_and_half_are_refused_by_name(name: str) -> None:
    with pytest.raises(UnsupportedError, match=name):
        sg.input("x", ("N",), dtype=name)


@pytest.mark.parametrize("device", ["cuda", "gpu", "tpu", "cuda:0"])
def test_other_devices_are_refused_by_name(device: str) -> None:
    with pytest.raises(UnsupportedError, match=device):
        sg.nn.Linear(2, 3).to(device)


def test_the_cpu_is_a_device() -> None:
    layer = sg.nn.Linear(2, 3)
    assert layer.to("cpu") is layer
    assert sg.zeros((2,), device="cpu").device == "cpu"
