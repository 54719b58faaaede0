"""Kernels compiled ahead of time: what each uses of the machine, without a GPU.

An AheadCase is one kernel with one set of types, constants and tiles. The compiler does not check the limits
of the hardware; `Resources.problems` does.
"""

from __future__ import annotations

import ast
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from crossearth_sar.kernels.tiles import SHARED_LIMIT, Tiles

CHIPS = {
    "sm_80": "sm_80",
    "sm_86": "sm_86",
    "sm_89": "sm_86",
    "sm_90": "sm_90",
    "sm_100": "sm_90",
    "sm_120": "sm_86",
}
"""What is compiled for -> the row of tiles and limits that it runs with (`kernels.tiles.current_arch`)."""
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)")
_MMA = ("UTCHMMA", "HGMMA", "HMMA")


@dataclass(frozen=True, kw_only=True)
class AheadCase:
    """One kernel to compile.

    Attributes:
        name: of the case, unique within a module's list, such as "grouped_up bf16 128x256x64 w8 s3".
        kernel: the @triton.jit function.
        signature: type of every argument that is no constexpr, by name: "*bf16", "*i32", "i32", "fp32".
        constexprs: value of every constexpr argument, by name; None for a pointer that is absent.
        tiles: num_warps and num_stages are read from it; the block sizes are in constexprs.
        dtype: "bf16" | "fp16" | "fp32", the operands'.
        divisible_by_16: arguments besides the pointers (always aligned) that are multiples of 16.
        wants_mma: whether the kernel must use the tensor cores.
        options: more for the compiler, above what tiles say.
    """

    name: str
    kernel: Any
    signature: Mapping[str, str]
    constexprs: Mapping[str, Any]
    tiles: Tiles
    dtype: str
    divisible_by_16: tuple[str, ...] = ()
    wants_mma: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a compiled kernel uses. mma is "UTCHMMA" (tcgen05), "HGMMA" (wgmma), "HMMA" or "none"."""

    registers: int
    shared_bytes: int
    spill_bytes: int
    mma: str
    has_async_copy: bool

    @property
    def has_mma(self) -> bool:
        return self.mma != "none"

    def problems(self, case: AheadCase, chip: str) -> list[str]:
        """What of this would fail or crawl on `chip`; empty if nothing."""
        found, limit = [], SHARED_LIMIT[CHIPS[chip]]
        if self.spill_bytes:
            found.append(f"{self.spill_bytes} bytes spilled per thread")
        if self.shared_bytes > limit:
            found.append(f"{self.shared_bytes} bytes of shared memory, {chip} has {limit}")
        if case.wants_mma and not self.has_mma:
            found.append("no tensor core instruction")
        return found


def compile_case(case: AheadCase, chip: str) -> Resources:
    """Compiles `case` for one of CHIPS and reads the machine code."""
    names = list(case.kernel.arg_names)
    given = {*case.signature, *case.constexprs}
    assert given == set(names), f"{case.name}: {sorted(given ^ set(names))} given or missing"
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    aligned = [
        name for name, kind in case.signature.items() if kind.startswith("*") or name in case.divisible_by_16
    ]
    source = ASTSource(
        fn=case.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in case.constexprs.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": case.tiles.num_warps, "num_stages": case.tiles.num_stages, **case.options}
    compiled = triton.compile(
        source, target=GPUTarget("cuda", int(chip.removeprefix("sm_")), 32), options=options
    )
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _USAGE.search(_cuobjdump("--dump-resource-usage", file.name))
        sass = _cuobjdump("-sass", file.name)
    assert usage is not None, f"{case.name}: cuobjdump lists no kernel"
    registers, stack, _, local = map(int, usage.groups())
    return Resources(
        registers=registers,
        shared_bytes=compiled.metadata.shared,
        spill_bytes=stack + local,
        mma=next((name for name in _MMA if re.search(rf" {name}\b", sass)), "none"),
        has_async_copy="LDGSTS" in sass or "UTMALDG" in sass,
    )


def case_digest(case: AheadCase) -> str:
    """A short hash of what is compiled: the code without comments and docstrings, types, constants, options.

    Two equal digests compile to the same thing under one version of Triton, wherever the code stands.
    """
    options = {"num_warps": case.tiles.num_warps, "num_stages": case.tiles.num_stages, **case.options}
    tables: tuple[Mapping[str, Any], ...] = (case.signature, case.constexprs, options)
    parts = [_code_of(case.kernel, set()), sorted(case.divisible_by_16), *(sorted(t.items()) for t in tables)]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def _code_of(function: Any, seen: set[str]) -> str:
    """The syntax tree of a @triton.jit function and of those of this package that it calls."""
    tree = ast.parse(function.src)
    code = ""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    for name in sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - seen):
        value = function.fn.__globals__.get(name)
        if isinstance(value, triton.JITFunction) and value.fn.__module__.startswith("crossearth_sar."):
            code += _code_of(value, seen | {name})
        elif isinstance(value, tl.constexpr):
            code += f"{name}={value.value!r};"
    return code + ast.dump(tree)


def _cuobjdump(flag: str, cubin: str) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    return subprocess.run([str(tool), flag, cubin], capture_output=True, text=True, check=True).stdout
