"""`staticgrad doctor`: what this machine is, and whether compiled programs are right on it."""

from __future__ import annotations

import argparse
import platform
import time
import warnings
from typing import Any

import numpy as np

from .console import MismatchError, Result

_EXAMPLES = """\
examples:
  staticgrad doctor
  staticgrad doctor --json

Ends with 4 where compiled values are wrong, with 3 where this CPU is not supported.
"""

_PACKAGES = ("numpy", "llvmlite", "networkx", "safetensors", "tqdm")
_RTOL = 1e-5


def add_parser(verbs: Any, common: argparse.ArgumentParser) -> None:
    parser = verbs.add_parser(
        "doctor",
        parents=[common],
        help="show the host, the versions and the cache, and test the compiler",
        description="Shows what programs are compiled for and where they are kept, and tests one.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> Result:
    """Collects the figures, then compiles and compares a small training step."""
    fields = {
        "host": _host(),
        "versions": _versions(),
        "cache": _cache(),
        "self_test": _self_test(),
    }
    return Result(fields, _text(fields))


def _host() -> dict[str, Any]:
    from staticgrad_runtime.environment import portable_entry
    from staticgrad_runtime.layout import native_interface
    from staticgrad_runtime.workers import thread_count, usable_cpus

    from staticgrad.codegen.target import host_target

    t = host_target()
    portable = portable_entry() or native_interface() is None
    return {
        "cpu": _cpu_model() or t.cpu,
        "llvm_cpu": t.cpu,
        "triple": t.triple,
        "cores": usable_cpus(),
        "threads": thread_count(),
        "vector_bits": t.vector_bits,
        "vector_registers": t.vector_registers,
        "l1_bytes": t.l1_bytes,
        "l2_bytes": t.l2_bytes,
        "l3_bytes": t.l3_bytes,
        "entry": "portable" if portable else "native",
    }


def _cpu_model() -> str | None:
    """The name that Linux gives the CPU."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            lines = file.read().splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else None


def _versions() -> dict[str, str]:
    from importlib import metadata

    import llvmlite.binding as llvm

    from staticgrad import __version__

    found = {"staticgrad": __version__, "python": platform.python_version()}
    found["platform"] = platform.platform()
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    found["llvm"] = ".".join(map(str, llvm.llvm_version_info))
    return found


def _cache() -> dict[str, Any]:
    from staticgrad_runtime.cache import DIRECTORY, DiskCache

    from .console import shown

    cache = DiskCache.default()
    if cache is None:
        return {"directory": None, "variable": None, "usable": False, "trouble": None,
                "size_bytes": 0, "limit_bytes": 0}  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the report itself tells what is wrong
        usable = _is_usable(cache)
    return {
        "directory": shown(cache.root),
        "variable": DIRECTORY if cache.asked else None,
        "usable": usable,
        "trouble": None if usable else cache.trouble,
        "size_bytes": cache.size_bytes(),
        "limit_bytes": cache.limit_bytes,
    }


def _is_usable(cache: Any) -> bool:
    """Whether an entry that is stored comes back."""
    key, content = "d0c" + 61 * "0", b"staticgrad doctor"
    stored = cache.store(key, content) and cache.load(key) == content
    cache.remove(key)
    return bool(stored)


def _self_test() -> dict[str, Any]:
    """A training step with a matrix product, a reduction and math functions, against NumPy's."""
    from staticgrad.api.compile import compile
    from staticgrad.autodiff.reverse import gradients
    from staticgrad.ops.exponential import exp, log
    from staticgrad.ops.leaves import input, parameter
    from staticgrad.ops.reduction import sum

    rng = np.random.default_rng(0)
    start = rng.standard_normal((33, 17)).astype(np.float32)
    array = rng.standard_normal((65, 33)).astype(np.float32)
    results = []
    began = time.perf_counter()
    for mode in ("native", "reference"):
        x, w = input("x", ("N", 33)), parameter(start, "w")
        loss = sum(log(1.0 + exp(x @ w))) / 65.0
        (gradient,) = gradients(loss, [w])
        step = compile([x], [loss], [(w, w - 0.1 * gradient)], mode=mode, cache=False)
        (value,) = step(array)
        results.append((value, w.numpy()))
    seconds = time.perf_counter() - began
    errors = [np.abs(came - exact).max() / np.abs(exact).max() for came, exact in zip(*results)]
    error = float(np.max(errors))
    if not error <= _RTOL:
        raise MismatchError(
            f"self-test: compiled values differ from NumPy's by {error:.1e}, allowed is {_RTOL:.0e}"
        )
    return {"passed": True, "relative_error": error, "seconds": seconds}


def _text(fields: dict[str, Any]) -> str:
    host, cache, test = fields["host"], fields["cache"], fields["self_test"]
    kib = [f"L{i} {host[f'l{i}_bytes'] // 1024:,} KiB" for i in (1, 2, 3)]
    versions = ", ".join(f"{k} {v}" for k, v in fields["versions"].items() if k != "platform")
    if cache["directory"] is None:
        cached = "off (STATICGRAD_CACHE=0)"
    else:
        used, limit = cache["size_bytes"] / 2**20, cache["limit_bytes"] / 2**20
        asked = f" ({cache['variable']})" if cache["variable"] else ""
        cached = f"{cache['directory']}{asked}, {used:.1f} of {limit:,.0f} MiB"
        if not cache["usable"]:
            cached += f", NOT USABLE ({cache['trouble']}): every process compiles anew"
    lines = {
        "CPU": f"{host['cpu']} ({host['llvm_cpu']}, {host['triple']}), {host['cores']} cores",
        "threads": f"{host['threads']} (STATICGRAD_NUM_THREADS changes it)",
        "vectors": f"{host['vector_bits']} bits, {host['vector_registers']} registers",
        "caches": ", ".join(kib),
        "versions": versions,
        "platform": fields["versions"]["platform"],
        "entry": host["entry"],
        "cache": cached,
        "self-test": f"passed (relative error {test['relative_error']:.1e}, "
        f"{1e3 * test['seconds']:.0f} ms)",
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:{width}}  {value}" for name, value in lines.items())
