"""A compiled program as data: object code, a manifest, and the constants.

The manifest is plain data that survives a JSON round trip; nothing in it is executed. On disk an
artifact is one file: a header (magic, version, SHA-256 of the rest), lengths, the manifest as JSON,
the constants, the object code.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import struct
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .dims import Dim, validate_dim
from .errors import ArtifactError

FORMAT_VERSION = 4
MAGIC = b"SGRAD\x00\r\n"
_LENGTHS = struct.Struct("<QQQQQ")  # blob count, then bytes: manifest, blobs, object, entry
_HEADER = struct.Struct("<8sI32s")  # magic, version, SHA-256 of all that follows

DTYPES = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "float32", "float64")  # fmt: skip
BUFFER_KINDS = ("input", "output", "state", "constant", "packed", "temp")


@dataclass(frozen=True)
class InputSpec:
    """An array that every call brings. `location` is where the user declared it, "model.py:12"."""

    name: str
    dtype: str
    shape: list[Dim]
    buffer: int
    location: str = ""


@dataclass(frozen=True)
class OutputSpec:
    """An array that every call returns; each has an output buffer of its own."""

    name: str
    dtype: str
    shape: list[Dim]
    buffer: int
    location: str = ""


@dataclass(frozen=True)
class StateSpec:
    """A state cell that the program reads, and writes if `written`; its shape is of ints."""

    id: int
    name: str
    dtype: str
    shape: list[int]
    buffer: int
    written: bool = False


@dataclass(frozen=True)
class ConstantSpec:
    """A constant; `blob` is its index among the artifact's blobs (raw C-order bytes)."""

    buffer: int
    dtype: str
    shape: list[int]
    blob: int


@dataclass(frozen=True)
class PackSpec:
    """A buffer for a packed copy of the state in the buffer `state`, which `sg_pack` fills, called
    with the pack's place in the manifest. Runs whose `rows` are not within `useful` (least, most)
    do without: they find null in the buffer table, as all do before it is filled (`packed`)."""

    buffer: int
    state: int
    rows: Dim
    useful: list[int]


@dataclass(frozen=True)
class BufferSpec:
    """Memory of the program. Temps live from step `first` to step `last`, both included. Of
    `per_thread` temps each thread has `size_bytes` of its own, from a multiple of 64 on."""

    kind: str
    size_bytes: Dim
    first: int = 0
    last: int = 0
    align: int = 64
    per_thread: bool = False


@dataclass(frozen=True)
class ConstraintSpec:
    """Two dims that must be equal when sizes are bound; `message` says why."""

    left: Dim
    right: Dim
    message: str


@dataclass(frozen=True)
class MessageSpec:
    """What an execution error of one status code says; `{element}` and `{value}` are filled in."""

    text: str
    location: str = ""


@dataclass(frozen=True)
class CostSpec:
    """Cost formulas of one run: `ns` on one thread, of which `shared_ns` is shared among several,
    who then meet `barriers` times."""

    flops: Dim = 0
    bytes: Dim = 0
    ns: Dim = 0
    shared_ns: Dim = 0
    barriers: Dim = 0


@dataclass
class Manifest:
    """What the runtime must know of a program; see the classes of its fields."""

    name: str
    triple: str
    cpu: str
    features: str
    dims: list[str] = field(default_factory=list)
    inputs: list[InputSpec] = field(default_factory=list)
    outputs: list[OutputSpec] = field(default_factory=list)
    single: bool = False
    state: list[StateSpec] = field(default_factory=list)
    constants: list[ConstantSpec] = field(default_factory=list)
    packs: list[PackSpec] = field(default_factory=list)
    buffers: list[BufferSpec] = field(default_factory=list)
    constraints: list[ConstraintSpec] = field(default_factory=list)
    messages: dict[int, MessageSpec] = field(default_factory=dict)
    cost: CostSpec = field(default_factory=CostSpec)
    kernels: list[dict[str, Any]] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    version: int = FORMAT_VERSION

    def to_plain(self) -> dict[str, Any]:
        """Dicts, lists, strings and numbers only, as JSON holds them."""
        plain = dataclasses.asdict(self)
        plain["messages"] = {str(code): message for code, message in plain["messages"].items()}
        return plain

    @classmethod
    def from_plain(cls, plain: Any) -> Manifest:
        """The manifest of `to_plain`'s result; ArtifactError for anything else."""
        if not isinstance(plain, dict) or plain.get("version") != FORMAT_VERSION:
            raise ArtifactError(f"not a manifest of format version {FORMAT_VERSION}")
        try:
            values = dict(plain)
            for name, spec in _SPECS.items():
                values[name] = [spec(**item) for item in values[name]]
            values["messages"] = {
                int(code): MessageSpec(**message) for code, message in values["messages"].items()
            }
            values["cost"] = CostSpec(**values["cost"])
            manifest = cls(**values)
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise ArtifactError(f"not a manifest: {error}") from error
        manifest.validate()
        return manifest

    def to_json(self) -> str:
        return json.dumps(vars(self), default=vars, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        try:
            plain = json.loads(text)
        except ValueError as error:
            raise ArtifactError(f"a manifest that is no JSON: {error}") from error
        return cls.from_plain(plain)

    def validate(self) -> None:
        """Refuses a manifest whose parts do not fit each other, with an ArtifactError."""
        owners: dict[int, str] = {}
        groups = (("input", self.inputs), ("output", self.outputs), ("state", self.state),
                  ("constant", self.constants))  # fmt: skip
        for kind, specs in groups:
            for spec in specs:
                self._validate_array(kind, spec)
                if spec.buffer in owners:
                    raise ArtifactError(
                        f"buffer {spec.buffer} belongs to a {owners[spec.buffer]} and a {kind}"
                    )
                owners[spec.buffer] = kind
        for pack in self.packs:
            self._validate_pack(pack)
            owners[pack.buffer] = "packed"
        for index, buffer in enumerate(self.buffers):
            if buffer.kind not in BUFFER_KINDS or (buffer.kind == "temp") == (index in owners):
                raise ArtifactError(f"buffer {index} of kind {buffer.kind!r} has no owner")
            if buffer.kind == "temp" and buffer.last < buffer.first:
                raise ArtifactError(f"buffer {index} dies before it is born")
            if buffer.per_thread and buffer.kind != "temp":
                raise ArtifactError(f"buffer {index} of kind {buffer.kind!r} is per thread")
            if buffer.align not in (1, 2, 4, 8, 16, 32, 64):
                raise ArtifactError(f"buffer {index}: alignment {buffer.align} is not supported")
            validate_dim(buffer.size_bytes, self.dims)
        for constraint in self.constraints:
            validate_dim(constraint.left, self.dims)
            validate_dim(constraint.right, self.dims)
        for formula in (self.cost.flops, self.cost.bytes, self.cost.ns, self.cost.shared_ns,
                        self.cost.barriers):  # fmt: skip
            validate_dim(formula, self.dims)
        if self.single and len(self.outputs) != 1:
            raise ArtifactError(f"a single output, but {len(self.outputs)} are listed")
        if len({spec.name for spec in self.inputs}) != len(self.inputs):
            raise ArtifactError("two inputs have the same name")
        if len(set(self.dims)) != len(self.dims):
            raise ArtifactError("a symbol is listed twice")

    def _validate_pack(self, pack: PackSpec) -> None:
        count = len(self.buffers)
        kinds = [self.buffers[b].kind for b in (pack.buffer, pack.state) if 0 <= b < count]
        if kinds != ["packed", "state"] or any(s.buffer == pack.state for s in self.written):
            raise ArtifactError(f"buffer {pack.buffer} is no copy of state that is only read")
        if not isinstance(self.buffers[pack.buffer].size_bytes, int):
            raise ArtifactError(f"buffer {pack.buffer}: a packed copy of unknown size")
        if len(pack.useful) != 2:
            raise ArtifactError(f"buffer {pack.buffer} is useful for rows {pack.useful!r}")
        validate_dim(pack.rows, self.dims)

    @property
    def written(self) -> list[StateSpec]:
        return [spec for spec in self.state if spec.written]

    def _validate_array(
        self, kind: str, spec: InputSpec | OutputSpec | StateSpec | ConstantSpec
    ) -> None:
        if spec.dtype not in DTYPES:
            raise ArtifactError(f"{kind} of dtype {spec.dtype!r}")
        if len(spec.shape) > 64:
            raise ArtifactError(f"{kind} of rank {len(spec.shape)}; NumPy has at most 64 axes")
        if not 0 <= spec.buffer < len(self.buffers) or self.buffers[spec.buffer].kind != kind:
            raise ArtifactError(f"{kind} in buffer {spec.buffer}, which is no {kind} buffer")
        for dim in spec.shape:
            if kind in ("state", "constant") and not isinstance(dim, int):
                raise ArtifactError(f"{kind} with the symbolic dim {dim!r}")
            if isinstance(dim, float):
                raise ArtifactError(f"{kind} with the dim {dim!r}")
            validate_dim(dim, self.dims)


_SPECS: dict[str, Any] = {
    "inputs": InputSpec,
    "outputs": OutputSpec,
    "state": StateSpec,
    "constants": ConstantSpec,
    "packs": PackSpec,
    "buffers": BufferSpec,
    "constraints": ConstraintSpec,
}


@dataclass
class Artifact:
    """A compiled program: what an `Executable` is made of.

    `object_code` defines `sg_run`; `entry_code`, the same for all programs of a target, defines
    `sg_call` and `sg_entry`, and may be empty (calls then take the checked path through ctypes).
    """

    manifest: Manifest
    object_code: bytes
    blobs: list[bytes] = field(default_factory=list)
    entry_code: bytes = b""

    def __post_init__(self) -> None:
        self.manifest.validate()
        for spec in self.manifest.constants:
            if not 0 <= spec.blob < len(self.blobs):
                raise ArtifactError(f"a constant names blob {spec.blob} of {len(self.blobs)}")
            expected = math.prod(spec.shape) * np.dtype(spec.dtype).itemsize
            if len(self.blobs[spec.blob]) != expected:
                raise ArtifactError(
                    f"constant blob {spec.blob} has {len(self.blobs[spec.blob])} bytes, "
                    f"its shape {spec.shape} of {spec.dtype} needs {expected}"
                )

    def to_bytes(self) -> bytes:
        """The on-disk form; equal artifacts give equal bytes."""
        manifest = self.manifest.to_json().encode()
        count = len(self.blobs)
        blobs = struct.pack(f"<{count}Q", *map(len, self.blobs)) + b"".join(self.blobs)
        parts = (manifest, blobs, self.object_code, self.entry_code)
        body = _LENGTHS.pack(count, *map(len, parts)) + b"".join(parts)
        return _HEADER.pack(MAGIC, FORMAT_VERSION, hashlib.sha256(body).digest()) + body

    @classmethod
    def from_bytes(cls, data: bytes) -> Artifact:
        """Reads `to_bytes`' result; ArtifactError where a byte of it differs."""
        if len(data) < _HEADER.size + _LENGTHS.size:
            raise ArtifactError("not an artifact: too short")
        magic, version, digest = _HEADER.unpack_from(data)
        if magic != MAGIC:
            raise ArtifactError("not an artifact: wrong magic")
        if version != FORMAT_VERSION:
            raise ArtifactError(f"artifact of format version {version}, expected {FORMAT_VERSION}")
        body = memoryview(data)[_HEADER.size :]
        if hashlib.sha256(body).digest() != digest:
            raise ArtifactError("artifact is damaged: its digest differs")
        count, *sizes = _LENGTHS.unpack_from(body)
        if _LENGTHS.size + sum(sizes) != len(body) or sizes[1] < 8 * count:
            raise ArtifactError("artifact is damaged: its parts do not add up")
        parts, at = [], _LENGTHS.size
        for size in sizes:
            parts.append(body[at : at + size])
            at += size
        manifest = Manifest.from_json(bytes(parts[0]).decode())
        lengths = struct.unpack_from(f"<{count}Q", parts[1])
        if sum(lengths) + 8 * count != sizes[1]:
            raise ArtifactError("artifact is damaged: its constants do not add up")
        blobs, at = [], 8 * count
        for length in lengths:
            blobs.append(bytes(parts[1][at : at + length]))
            at += length
        return cls(manifest, bytes(parts[2]), blobs, bytes(parts[3]))
