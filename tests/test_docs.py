"""The documentation is true: examples run, generated parts are current, names and links exist."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import staticgrad as sg
from staticgrad import cli
from staticgrad.api import control, custom_derivatives, jacobian, transforms, vmap
from staticgrad.cli import console
from staticgrad.ir.dtype import ALL

ROOT = Path(__file__).resolve().parents[1]
README, GUIDE = ROOT / "README.md", ROOT / "docs" / "guide.md"
FAST_CALLS = ROOT / "docs" / "fast-calls.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "README.md"]

TRAIN = 'pip install -e ".[samples]" && staticgrad train samples/digits_mlp.py'
TEST = 'pip install -e ".[test]" && pytest'


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text_of(page), re.DOTALL)


def run(arguments: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, encoding="utf-8",
        timeout=300, cwd=cwd, env={**os.environ, "PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip


def test_generated_parts_are_current(tmp_path: Path) -> None:
    done = run([str(ROOT / "docs" / "generate.py"), "--check"], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_runs(tmp_path: Path) -> None:
    """All of its Python, in order, in one fresh process."""
    program = tmp_path / "readme.py"
    program.write_text("\n".join(blocks(README, "python")), encoding="utf-8")
    done = run([str(program)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^loss 0\.\d+, accuracy 100%$", done.stdout, re.MULTILINE)
    assert "matmul: " in done.stdout and "readme.py:" in done.stdout  # the error, with its line


def test_the_guide_prints_what_it_shows(tmp_path: Path) -> None:
    """All of its Python, in order, in one fresh process."""
    program = tmp_path / "guide.py"
    program.write_text("\n".join(blocks(GUIDE, "python")), encoding="utf-8")
    done = run([str(program)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "".join(blocks(GUIDE, "text"))


def test_the_page_on_fast_calls_runs_and_has_the_rows_of_its_script(tmp_path: Path) -> None:
    program = tmp_path / "calls.py"
    program.write_text("\n".join(blocks(FAST_CALLS, "python")), encoding="utf-8")
    done = run([str(program)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(\d+ ns\n){3}", done.stdout)
    names = "from call_figures import *; print([n for n, _ in program_cases() + function_cases()])"
    done = run(["-c", names], ROOT / "docs")
    assert done.returncode == 0, done.stderr
    listed = re.findall(r"^\| (.*) \| [\d.]+ (?:ns|µs) \|$", text_of(FAST_CALLS), re.MULTILINE)
    assert listed == ast.literal_eval(done.stdout)


def test_the_guide_names_every_transform() -> None:
    named = re.findall(r"\b[a-z_]+\b", text_of(GUIDE))
    modules = (control, custom_derivatives, jacobian, transforms, vmap)
    public = {"jit", *(name for module in modules for name in module.__all__)}
    assert sorted(public - {"jacfwd", "jacrev"} - {*named}) == []


def test_the_readme_speaks_of_kernels_that_its_report_has() -> None:
    (report,) = (block for block in blocks(README, "text") if "kernels, " in block)
    named = re.findall(r"`(matmul_\w+)`", text_of(README))
    assert named and all(f" {name} " in report for name in named)


def test_the_readme_opens_with_its_two_commands() -> None:
    first, second, *_ = (block.strip() for block in blocks(README, "sh"))
    assert (first, second) == (TRAIN, TEST)
    assert TEST.replace("install", "install -q") in text_of(ROOT / ".ci" / "run")


def command_lines() -> list[str]:
    lines = [line for page in PAGES for block in blocks(page, "sh") for line in block.splitlines()]
    return [line.split("&& ")[-1] for line in lines if "staticgrad " in line]


@pytest.mark.parametrize("line", command_lines())
def test_commands_are_accepted(line: str) -> None:
    program, *arguments = shlex.split(line)
    assert program == "staticgrad"
    options = cli._parser().parse_args(arguments)
    assert callable(options.run)
    model = getattr(options, "model", None)
    assert model is None or (ROOT / model).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_files_exist(page: Path) -> None:
    text = text_of(page)
    linked = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    missing = [link for link in linked if "://" not in link and not (page.parent / link).exists()]
    places = [ROOT, ROOT / "compiler", ROOT / "compiler" / "staticgrad", ROOT / "runtime"]
    files = re.findall(r"`((?:[a-z_]+/)+[\w.]*)`", text)
    kept = [f for f in files if not f.startswith("build/")]  # that is where results are written
    missing += [f for f in kept if not any((place / f).exists() for place in places)]
    assert not missing


def names_in(pattern: str) -> list[str]:
    """The names in backticks of one paragraph of the README; `Conv1d/2d` stands for two."""
    paragraph = re.search(pattern + r".*?\n\n", text_of(README), re.DOTALL)
    assert paragraph
    names = []
    for name in re.findall(r"`([\w./]+)`", paragraph[0]):
        both = re.fullmatch(r"(\w+)1d/2d", name)
        names += [f"{both[1]}1d", f"{both[1]}2d"] if both else [name]
    return names


@pytest.mark.parametrize(("pattern", "module"), [("Layers", "nn"), ("Optimisers", "optim")])
def test_layers_and_optimisers_are_there(pattern: str, module: str) -> None:
    names = [n for n in names_in(rf"\*\*{pattern}\*\*") if not n.startswith("sg.")]
    assert len(names) >= 5
    assert [n for n in names if n not in getattr(sg, module).__all__] == []


def test_the_readme_names_every_dtype() -> None:
    paragraph = re.search(r"\*\*Dtypes\*\*: (.*?)\. ", text_of(README), re.DOTALL)
    assert paragraph
    said = " ".join(paragraph[1].split())
    assert said == "bool, int8 to int64, uint8 to uint64, float32, float64"
    sizes = [str(2**n) for n in range(3, 7)]
    named = ["bool", *(f"int{n}" for n in sizes), *(f"uint{n}" for n in sizes)]
    assert [str(d) for d in ALL] == [*named, "float32", "float64"]


def test_the_readme_names_every_exit_code() -> None:
    said = re.search(r"Exit codes: (.*?)\.\n", text_of(README), re.DOTALL)
    assert said
    codes = {int(n) for n in re.findall(r"\b\d+\b", said[1])}
    constants = {v for n, v in vars(console).items() if n.isupper() and type(v) is int}
    assert codes <= constants | {0}
