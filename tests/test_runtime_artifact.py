"""Artifacts and manifests as data: round trips, damage, dims, the symbols of object files."""

from __future__ import annotations

import json

import llvmlite.binding as llvm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from staticgrad.codegen.target import host_target
from staticgrad_runtime import (
    Artifact,
    ArtifactError,
    BindError,
    Executable,
    Manifest,
    UnsupportedError,
)
from staticgrad_runtime.dims import (
    DimTable,
    UnboundSymbol,
    dim_text,
    evaluate,
    solve,
    symbols_of,
    validate_dim,
)
from staticgrad_runtime.symbols import object_symbols

from tests import runtime_programs as programs


def test_an_artifact_survives_its_bytes() -> None:
    artifact = programs.gather_rows()
    data = artifact.to_bytes()
    assert Artifact.from_bytes(data) == artifact
    assert Artifact.from_bytes(data).to_bytes() == data


def test_a_manifest_survives_json() -> None:
    manifest = programs.gather_rows().manifest
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert json.loads(json.dumps(manifest.to_plain())) == manifest.to_plain()


def test_every_damaged_byte_is_found() -> None:
    data = programs.x2_plus_1().to_bytes()
    for at in [*range(64), *range(64, len(data), 97)]:
        damaged = bytearray(data)
        damaged[at] ^= 0x41
        with pytest.raises(ArtifactError):
            Artifact.from_bytes(bytes(damaged))


@pytest.mark.parametrize("length", [0, 7, 43, 100])
def test_a_short_file_is_no_artifact(length: int) -> None:
    with pytest.raises(ArtifactError):
        Artifact.from_bytes(programs.x2_plus_1().to_bytes()[:length])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("version",), 99),
        (("inputs", 0, "dtype"), "float16"),
        (("inputs", 0, "buffer"), 5),
        (("inputs", 0, "buffer"), 1),
        (("inputs", 0, "shape"), ["M"]),
        (("inputs", 0, "shape"), [["-", "N", 1]]),
        (("inputs", 0, "shape"), [["//", "N"]]),
        (("inputs", 0, "shape"), [True]),
        (("inputs", 0, "shape"), [1.5]),
        (("inputs", 0, "rank"), 1),
        (("buffers", 0, "kind"), "temp"),
        (("buffers", 0, "align"), 128),
        (("buffers", 0, "size_bytes"), ["*", 4, "M"]),
        (("outputs",), []),
        (("dims",), ["N", "N"]),
        (("messages",), {"one": {"text": "x"}}),
        (("cost",), {"joules": 1}),
        (("unknown",), 1),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused(
    path: tuple[str | int, ...], value: object
) -> None:
    plain = programs.x2_plus_1().manifest.to_plain()
    place = plain
    for step in path[:-1]:
        place = place[step]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    with pytest.raises(ArtifactError):
        Manifest.from_plain(plain)


def test_a_temporary_must_not_die_before_it_is_born() -> None:
    plain = programs.with_temps().manifest.to_plain()
    plain["buffers"][2]["last"] = -1
    with pytest.raises(ArtifactError, match="dies before"):
        Manifest.from_plain(plain)


def test_a_constant_must_fill_its_shape() -> None:
    whole = programs.gather_rows()
    with pytest.raises(ArtifactError, match="needs 32"):
        Artifact(whole.manifest, whole.object_code, [b"short"])
    with pytest.raises(ArtifactError, match="blob 0 of 0"):
        Artifact(whole.manifest, whole.object_code, [])


# Dims


def test_dims_evaluate() -> None:
    values = {"N": 7, "M": 3}
    assert evaluate(["+", ["*", 2, "N"], 1, "M"], values) == 18
    assert evaluate(["//", "N", "M"], values) == 2
    assert evaluate(["%", "N", "M"], values) == 1
    assert evaluate(["max", "N", ["*", "M", "M"]], values) == 9
    assert evaluate(["min", "N", 4, "M"], values) == 3
    assert symbols_of(["+", ["*", 2, "N"], "M"]) == {"N", "M"}
    with pytest.raises(UnboundSymbol):
        evaluate("K", values)


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (3, "3"),
        ("N", "N"),
        (["+", ["*", 2, "N"], 1], "2*N + 1"),
        (["*", 2, ["+", "N", 1]], "2*(N + 1)"),
        (["//", ["+", "N", 1], 2], "(N + 1) // 2"),
        (["//", "N", ["*", 2, "M"]], "N // (2*M)"),
        (["*", ["//", "N", 2], 2], "N // 2*2"),
        (["max", "N", ["+", "M", 1]], "max(N, M + 1)"),
    ],
)
def test_dims_print(dim: object, text: str) -> None:
    assert dim_text(dim) == text  # type: ignore[arg-type]


@given(st.integers(-5, 5), st.integers(-9, 9), st.integers(0, 50))
def test_linear_dims_are_solved(slope: int, offset: int, n: int) -> None:
    dim: list[object] = ["+", ["*", slope, "N"], offset]
    value = slope * n + offset
    assert solve(dim, "N", value, {}) == (n if slope else None)
    if abs(slope) > 1:
        assert solve(dim, "N", value + 1, {}) is None


def test_what_is_not_linear_is_not_solved() -> None:
    assert solve(["*", "N", "N"], "N", 9, {}) is None
    assert solve(["//", "N", 2], "N", 4, {}) is None
    assert solve(["+", "N", "M"], "N", 4, {}) is None
    assert solve(["+", "N", "M"], "N", 4, {"M": 1}) == 3
    assert solve(["+", ["*", "M", "N"], ["//", "M", 2]], "N", 17, {"M": 5}) == 3


def test_a_table_evaluates_equal_parts_once() -> None:
    area = ["*", "M", ["+", "N", 1]]
    table = DimTable([["*", 4, "N"], 8, area, ["*", 4, "N"], "N", ["+", area, area, 7]], ["N", "M"])
    assert len(table._steps) == 5  # 4*N, N+1, the area, twice the area, and 7 to it
    assert table.evaluate({"N": 5, "M": 3}) == [20, 8, 18, 20, 5, 43]
    assert table.evaluate({"M": 1, "N": 2}) == [8, 8, 3, 8, 2, 13]


def test_a_table_tells_numbers_and_whole_numbers_apart() -> None:
    halves = DimTable([["*", 2, "N"], ["*", 2.0, "N"], ["//", "N", 2], ["//", "N", 2.0]], ["N"])
    assert [repr(v) for v in halves.evaluate({"N": 5})] == ["10", "10.0", "2", "2.0"]


@given(st.integers(0, 50), st.integers(1, 50), st.data())
def test_a_table_has_the_values_of_its_expressions(n: int, m: int, data: st.DataObject) -> None:
    leaves = st.one_of(st.sampled_from(["N", "M"]), st.integers(1, 9), st.just(0.5))
    exprs = st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(st.sampled_from(["+", "*", "max", "min"]), inner, inner, inner).map(list),
            st.tuples(st.sampled_from(["//", "%"]), inner, st.sampled_from(["M", 3, 8])).map(list),
        ),
        max_leaves=12,
    )
    dims, values = data.draw(st.lists(exprs, max_size=6)), {"N": n, "M": m}
    assert DimTable(dims, ["N", "M"]).evaluate(values) == [evaluate(dim, values) for dim in dims]


def test_a_table_names_what_divides_by_zero() -> None:
    table = DimTable(["M", ["%", 7, ["*", 2, "N"]]], ["N", "M"])
    assert table.evaluate({"N": 2, "M": 1}) == [1, 3]
    with pytest.raises(BindError, match=r"7 % \(2\*N\) divides by zero"):
        table.evaluate({"N": 0, "M": 1})


def test_only_dims_pass_validation() -> None:
    validate_dim(["+", "N", ["max", 1, 2.5]], ["N"])
    for bad in (None, True, {}, [], ["+"], ["%", 1], ["**", 2, 3], "M"):
        with pytest.raises(ArtifactError):
            validate_dim(bad, ["N"])


# Object files


@pytest.mark.parametrize(
    "triple",
    ["x86_64-unknown-linux-gnu", "aarch64-unknown-linux-gnu", "arm64-apple-macosx14.0.0",
     "x86_64-apple-macosx14.0.0", "x86_64-pc-windows-msvc", "aarch64-pc-windows-msvc"],
)  # fmt: skip
def test_symbols_of_object_files_on_every_platform(triple: str) -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    text = f"""
target triple = "{triple}"
declare i32 @outside(i32)
declare i32 @a_name_longer_than_eight(i32)
define internal i32 @hidden(i32 %x) noinline {{
  %r = call i32 @outside(i32 %x)
  ret i32 %r
}}
define i32 @sg_run(i32 %x) {{
  %a = call i32 @hidden(i32 %x)
  %b = call i32 @a_name_longer_than_eight(i32 %a)
  ret i32 %b
}}"""
    machine = llvm.Target.from_triple(triple).create_target_machine(reloc="pic", codemodel="small")
    symbols = object_symbols(machine.emit_object(llvm.parse_assembly(text)))
    assert symbols.undefined == {"outside", "a_name_longer_than_eight"}
    assert symbols.defined == {"sg_run"}


@pytest.mark.parametrize(
    "code", [b"", b"junk", b"\x7fELF" + b"\0" * 10, b"\x7fELF\x01\x01", b"\0" * 64]
)
def test_object_code_that_is_none(code: bytes) -> None:
    with pytest.raises(ArtifactError):
        object_symbols(code)


def test_foreign_symbols_are_refused_by_name() -> None:
    text = """declare i32 @puts(ptr)
define i32 @sg_run(ptr %c) {
  %r = call i32 @puts(ptr %c)
  ret i32 %r
}"""
    artifact = Artifact(programs.manifest("calls_out"), programs.compile_text(text))
    with pytest.raises(ArtifactError, match="uses puts; allowed are memcpy, memmove, memset"):
        Executable(artifact)


def test_code_for_another_machine_is_refused() -> None:
    target = host_target()
    artifact = programs.x2_plus_1()
    artifact.manifest.features = target.features + ",+antigravity"
    with pytest.raises(UnsupportedError, match="antigravity"):
        Executable(artifact)
    artifact.manifest.triple = "riscv64-unknown-linux-gnu"
    with pytest.raises(UnsupportedError, match="riscv64"):
        Executable(artifact)


def test_the_runtime_stands_alone() -> None:
    """Importing it loads neither the compiler nor LLVM."""
    import subprocess
    import sys

    code = (
        "import sys, staticgrad_runtime, staticgrad_runtime.cache, staticgrad_runtime.checkpoint\n"
    )
    code += "print([m for m in ('staticgrad', 'llvmlite', 'safetensors') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
