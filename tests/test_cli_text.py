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
    "utf8": {"LC_ALL": "C.UTF-8"},
    "c": {"LANG": "C", "LC_ALL": "C"},
    "ascii": {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
}


@pytest.fixture(params=LOCALES)
def cli(request, tmp_path):
    folder = tmp_path / "模型 ตัวอย่าง"
    folder.mkdir()
    write_model(folder / "分类 แบบ.py", MODEL)
    write_model(folder / "坏.py", BROKEN)

    def run(*arguments: str, code: int = 0):
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG", "PYTHONUTF8"))}
        kept.pop("PYTHONIOENCODING", None)
        done = subprocess.run(
            [sys.executable, "-m", "staticgrad.cli", *arguments], capture_output=True, check=False,
            cwd=folder, env={**kept, **LOCALES[request.param]},
        )  # fmt: skip
        out, err = done.stdout.decode("utf-8"), done.stderr.decode("utf-8")
        assert done.returncode == code, err
        return out, err

    run.folder = folder
    return run


def test_names_pass_unharmed(cli):
    folder: Path = cli.folder
    out, _ = cli("compile", "分类 แบบ.py", "--graph", "train", "--dump-dir", "输出", "--json")
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


def test_training_and_running(cli):
    out, err = cli("train", "分类 แบบ.py", "--epochs", "1")
    assert out.startswith("分类 แบบ: 1 epoch, loss 6, ")
    assert out.endswith("checkpoint 分类 แบบ.safetensors\n")
    assert err == "epoch 1/1: loss 6, " + err.partition("loss 6, ")[2]
    out, _ = cli("run", "分类 แบบ.py", "--input", "图像=[[1,2,3]]", "--checkpoint",
                 "分类 แบบ.safetensors", "--output", "结果.npz")  # fmt: skip
    assert out == "分类 แบบ: out0 float32[1, 2] -> 结果.npz\n"
    assert (cli.folder / "结果.npz").exists()
    out, _ = cli("run", "分类 แบบ.py", "--input", "图像=[[1,2,3]]", "--json")
    assert json.loads(out)["outputs"][0]["values"] == [[6.0, 6.0]]


def test_errors(cli):
    _, err = cli("run", "坏.py", code=2)
    assert '坏.py:5 in build: ValueError: 参数错误 ผิดพลาด\n    raise ValueError("参数错误' in err
    out, err = cli("run", "坏.py", "--json", "--traceback", code=2)
    error = json.loads(out)["error"]
    assert "参数错误 ผิดพลาด" in error["message"]
    assert error["location"] == f"{cli.folder / '坏.py'}:5"
    assert 'raise ValueError("参数错误 ผิดพลาด")' in err
    _, err = cli("run", "分类 แบบ.py", "--input", "图像=[[1,2]]", code=2)
    assert "input '图像' (分类 แบบ.py:8): expected shape (N, 3), got (1, 2)" in err
    _, err = cli("run", "分类 แบบ.py", "--input", "图=1", code=2)
    assert "unknown: 图; missing: 图像; the graph takes 图像: float32[N, 3]" in err
    _, err = cli("run", "没有.py", code=2)
    assert err == "staticgrad: the model file 没有.py does not exist\n"


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
        "from staticgrad.cli import main; main(['--help'])",
        "from staticgrad.cli import main; main(['train', '--help'])",
        "from staticgrad.cli import main; main(['--version'])",
        "from staticgrad.cli import main; main(['frobnicate'])",
    ],
)
def test_what_is_not_imported(code):
    ask = f"{code}\nimport sys\nprint([m for m in {LAZY} if m in sys.modules], file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == "[]"
