"""Writes what is generated in the documentation: `python docs/generate.py`.

    README.md              the report of its model
    docs/guide.md          what its code prints
    docs/architecture.md   the dumps of the smallest model, and the table of passes
    docs/operations.md     the reference of all operations
    docs/images/           the pictures

`--check` writes nothing: it prints the difference, and exits with 1 if there is one. A generated
part stands between `<!-- generated: NAME -->` and `<!-- end -->`, or is a text block below the code
that prints it; the rest is written by hand. The README's report is as this machine printed it; its
times and bytes (workspace, whose size depends on the CPU) are not compared.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from pathlib import Path

os.environ["STATICGRAD_NUM_THREADS"] = "1"  # a plan has workspace for each thread
os.environ["STATICGRAD_CACHE"] = "0"  # what the report tells of compile time is of a first time

from examples import with_outputs
from picture import DARK, LIGHT, overview
from reference import operations
from stages import Stages, run_example

ROOT = Path(__file__).resolve().parents[1]
_PART = re.compile(r"(<!-- generated: ([a-z_]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_CODE = re.compile(r"```python\n(.*?)```", re.DOTALL)
_OF_THE_HOST = re.compile(r"^compile: .*$|bytes [\d,]+", re.MULTILINE)


def with_parts(text: str, parts: dict[str, str]) -> str:
    """`text` with its generated parts replaced. Raises KeyError for a part that nobody makes."""
    return _PART.sub(lambda m: f"{m[1]}{parts[m[2]].strip()}\n{m[3]}", text)


def code_blocks(text: str) -> list[str]:
    """The Python code of a page, block by block."""
    return _CODE.findall(text)


def documents() -> dict[Path, str]:
    """Every generated file and every page with generated parts, as they should be."""
    readme, architecture = ROOT / "README.md", ROOT / "docs" / "architecture.md"
    guide, images = ROOT / "docs" / "guide.md", ROOT / "docs" / "images"
    readme_text = readme.read_text(encoding="utf-8")
    architecture_text = architecture.read_text(encoding="utf-8")
    smallest = Stages(code_blocks(architecture_text)[0])  # first: state is numbered from 1
    loop = Stages.loop(code_blocks(architecture_text)[1])
    example = run_example(code_blocks(readme_text)[0])
    return {
        readme: with_parts(readme_text, {"report": example.report}),
        architecture: with_parts(architecture_text, smallest.parts() | loop),
        ROOT / "docs" / "operations.md": operations(),
        images / "overview-light.svg": overview(example, LIGHT),
        images / "overview-dark.svg": overview(example, DARK),
        images / "smallest.svg": smallest.picture(),
        guide: with_outputs(guide.read_text(encoding="utf-8"), "guide.py"),
    }


def comparable(path: Path, text: str) -> str:
    """`text` without what differs from machine to machine."""
    return _OF_THE_HOST.sub("(the host's)", text) if path.name == "README.md" else text


def main() -> int:
    parser = argparse.ArgumentParser(description="Writes the generated documentation.")
    parser.add_argument("--check", action="store_true", help="only compare, and print differences")
    check = parser.parse_args().check
    stale = False
    for path, text in documents().items():
        known = path.read_text(encoding="utf-8") if path.exists() else ""
        old, new = comparable(path, known), comparable(path, text)
        if old == new:
            continue
        stale = True
        name = str(path.relative_to(ROOT))
        if check:
            lines = difflib.unified_diff(
                old.splitlines(), new.splitlines(), name, f"{name}, generated", lineterm=""
            )
            print("\n".join(lines))
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
            print(f"wrote {name}")
    if check and stale:
        print("to bring the documentation up to date: python docs/generate.py")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
