"""The benchmark's side of a worker: starting it, asking it, and what to do when it dies."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_LINES_OF_ERROR = 3
# Variables that bound the threads of the libraries below the frameworks.
_THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
    "STATICGRAD_NUM_THREADS",
)  # fmt: skip


class WorkerError(Exception):
    """A request that failed, or a worker that died or took too long."""


def environment(threads: int, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """What a worker's process sees."""
    found = {**os.environ, **dict.fromkeys(_THREAD_VARIABLES, str(threads))}
    for name in ("JAX_ENABLE_X64", "JAX_COMPILATION_CACHE_DIR", "STATICGRAD_ENTRY",
                 "STATICGRAD_VECTOR_BITS", "STATICGRAD_CACHE", "PYTHONPATH"):  # fmt: skip
        found.pop(name, None)
    found.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed package has its bytecode
    found["JAX_PLATFORMS"] = "cpu"
    if threads == 1:
        flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
        found["XLA_FLAGS"] = f"{found.get('XLA_FLAGS', '')} {flags}".strip()
    return {**found, **(extra or {})}


class WorkerProcess:
    """A running worker. Raises WorkerError where it does not start."""

    def __init__(
        self, framework: str, python: str, threads: int, *, timeout_s: float,
        extra: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        self.framework = framework
        self.threads = threads
        self._timeout_s = timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed by `stop`)
        command = [python, "-m", "benchmarks.worker", framework, str(threads)]
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
                cwd=ROOT, env=environment(threads, extra), text=True, encoding="utf-8",
            )  # fmt: skip
        except OSError as error:
            self._errors.close()
            raise WorkerError(f"{python}: {error.strerror}") from None
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        try:
            self.versions: dict[str, str] = self._answer("start")["versions"]
        except WorkerError:
            self.stop()
            raise

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, request: str, **fields: Any) -> dict[str, Any]:
        """The answer to a request. Raises WorkerError."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"request": request, **fields}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise WorkerError(self._last_words(request)) from None
        return self._answer(request)

    def kill(self) -> None:
        """Ends the process at once; `stop` then cleans up."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Ends the process: nicely if it is waiting, else by force."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._errors.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # the end

    def _answer(self, request: str) -> dict[str, Any]:
        try:
            line = self._answers.get(timeout=self._timeout_s)
        except queue.Empty:
            self._process.kill()
            raise WorkerError(f"{request}: no answer in {self._timeout_s:g} s") from None
        if not line:
            raise WorkerError(self._last_words(request))
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            raise WorkerError(without_paths(found["error"]))
        return found

    def _last_words(self, request: str) -> str:
        """Why it died, from the end of what it printed."""
        code = self._process.wait()
        self._errors.seek(0)
        text = self._errors.read().decode("utf-8", "replace").strip()
        last = " / ".join(text.splitlines()[-_LINES_OF_ERROR:])
        return without_paths(f"{request}: the process ended with {code}: {last}")


def without_paths(text: str) -> str:
    """A message without the user's directories: results are for others to read."""
    for directory, name in ((str(ROOT), "."), (tempfile.gettempdir(), "TMP"),
                            (os.path.expanduser("~"), "~")):  # fmt: skip
        if len(directory) > 1:
            text = text.replace(directory, name)
    return text
