"""Text is text: names and paths of any script, whatever the locale; and what imports cost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .cli_help import write_model

MODEL = """\
\"\"\"分类器 — ตัวอย่าง\"\"\"

import numpy as np
import staticgrad as sg


def build():
    图像 = sg.input("图像", ("N", 3))  # 输入
    น้ำหนัก = sg.parameter(np.ones((3, 2), "float32"), name="น้ำหนัก")
    ผลลัพธ์ = 图像 @ น้ำหนัก
    损失 = sg.sum(ผลลัพธ์)
    return sg.Program(
        train=sg.Graph([图像], [损失], updates=[(น้ำหนัก, น้ำหนัก * 0.5)]),
        predict=sg.Graph([图像], ผลลัพธ์),
        train_batches=lambda rng: [(np.ones((1, 3), "float32"),)],
    )
"""
BROKEN = """\
import staticgrad as sg


def build():
    raise ValueError("参数错误 ผิดพลาด")
"""
LOCALES = {
    "c": {"LANG": "C", "LC_ALL": "C"},
    "ascii": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"},
}
# Several commands in one process: starting Python takes longer than any of them.
COMMANDS = """\
import sys
from staticgrad.cli import main

command = []
for word in sys.argv[1:]:
    if word != "//":
        command.append(word)
        continue
    code = main(command)
    sys.stdout.write(f"\\1{code}\\0")
    sys.stderr.write("\\0")
    command = []
"""


@pytest.fixture(params=LOCALES)
def commands(request, tmp_path):
    """`commands(lists of words)` -> (exit code, standard output, standard error) of each."""
    folder = tmp_path / "模型 ตัวอย่าง"
    folder.mkdir()
    write_model(folder / "分类 แบบ.py", MODEL)
    write_model(folder / "坏.py", BROKEN)
    unwanted = ("LC_", "LANG", "PYTHONUTF8", "PYTHONIOENCODING")
    env = {k: v for k, v in os.environ.items() if not k.startswith(unwanted)}

    def run(*lists: list[str]) -> list[tuple[int, str, str]]:
        words = [word for command in lists for word in (*command, "//")]
        done = subprocess.run(
            [sys.executable, "-c", COMMANDS, *words], capture_output=True, check=False,
            cwd=folder, env={**env, **LOCALES[request.param]},
        )  # fmt: skip
        outs = done.stdout.decode("utf-8").split("\0")[:-1]
        errs = done.stderr.decode("utf-8").split("\0")[:-1]
        assert len(outs) == len(lists), done.stderr.decode("utf-8")
        parts = [out.split("\1") for out in outs]
        return [(int(code), out, err) for (out, code), err in zip(parts, errs)]

    run.folder = folder
    return run


def test_names_pass_unharmed(commands):
    folder: Path = commands.folder
    ((code, out, _),) = commands(
        ["compile", "分类 แบบ.py", "--graph", "train", "--dump-dir", "输出", "--json"]
    )
    assert code == 0
    found = json.loads(out)
    assert found["model"] == "分类 แบบ"
    assert found["dump_dir"] == "输出"
    assert any("分类 แบบ.py" in k["locations"] for k in found["report"]["kernels"])
    text = (folder / "输出" / "00_declared.txt").read_text(encoding="utf-8")
    assert "%图像" in text
    assert "น้ำหนัก" in text
    assert str(folder / "分类 แบบ.py") in text
    for path in (folder / "输出").iterdir():
        path.read_bytes().decode("utf-8")


def test_training_and_running(commands):
    trained, written, shown = commands(
        ["train", "分类 แบบ.py", "--epochs", "1"],
        ["run", "分类 แบบ.py", "--input", "图像=[[1,2,3]]", "--checkpoint",
         "分类 แบบ.safetensors", "--output", "结果.npz"],
        ["run", "分类 แบบ.py", "--input", "图像=[[1,2,3]]", "--json"],
    )  # fmt: skip
    assert trained[0] == 0, trained
    assert trained[1].startswith("分类 แบบ: 1 epoch, loss 6, ")
    assert trained[1].endswith("checkpoint 分类 แบบ.safetensors\n")
    assert trained[2].startswith("epoch 1/1: loss 6, ")
    assert written[1] == "分类 แบบ: out0 float32[1, 2] -> 结果.npz\n"
    assert (commands.folder / "结果.npz").exists()
    assert json.loads(shown[1])["outputs"][0]["values"] == [[6.0, 6.0]]


def test_errors(commands):
    raised, traced, shape, name, missing = commands(
        ["run", "坏.py"],
        ["run", "坏.py", "--json", "--traceback"],
        ["run", "分类 แบบ.py", "--input", "图像=[[1,2]]"],
        ["run", "分类 แบบ.py", "--input", "图=1"],
        ["run", "没有.py"],
    )
    assert [r[0] for r in (raised, traced, shape, name, missing)] == [2, 2, 2, 2, 2]
    line = 'raise ValueError("参数错误 ผิดพลาด")'
    assert f"坏.py:5 in build: ValueError: 参数错误 ผิดพลาด\n    {line}" in raised[2]
    error = json.loads(traced[1])["error"]
    assert "参数错误 ผิดพลาด" in error["message"]
    assert error["location"] == f"{commands.folder / '坏.py'}:5"
    assert line in traced[2]
    assert "input '图像' (分类 แบบ.py:8): expected shape (N, 3), got (1, 2)" in shape[2]
    assert "unknown: 图; missing: 图像; the graph takes 图像: float32[N, 3]" in name[2]
    assert missing[2] == "staticgrad: the model file 没有.py does not exist\n"


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX systems only")
def test_a_name_that_is_no_text(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "staticgrad.cli", "run", b"\xff.py", "--json"],
        capture_output=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2
    assert json.loads(done.stdout.decode("utf-8"))["error"]["message"].startswith("the model file")
    assert b"\\udcff.py" in done.stderr


LAZY = ("llvmlite", "networkx", "matplotlib", "tqdm", "safetensors", "sklearn", "scipy")


@pytest.mark.parametrize(
    "code",
    [
        "import staticgrad",
        "from staticgrad.cli import main\n"
        "for word in ('--help', '--version', 'nothing'): main([word])\nmain(['train', '--help'])",
    ],
)
def test_what_is_not_imported(code):
    ask = f"{code}\nimport sys\nprint([m for m in {LAZY} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"
