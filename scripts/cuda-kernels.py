#!/usr/bin/env python3
"""Compiles the CUDA source of every kernel with NVRTC, without a GPU, as the program does, and prints what comes of it.

    python3 -m venv nvrtc
    nvrtc/bin/pip install nvidia-cuda-{nvrtc,runtime,nvcc,crt,cccl}==13.0.* nvidia-cuda-{nvrtc,runtime,nvcc,cccl}-cu12==12.9.*
    nvrtc/bin/python scripts/cuda-kernels.py [SOURCES]

SOURCES is a directory of sources that the project's test wrote already (its variable is SHARNN_CUDA_SOURCES); else it is run.

Both compilers are asked, 12.9 and 13.0, each with the options that the program gives it. The f32 kernels are compiled for the oldest
device that a compiler knows from compute capability 7.0 on (CUDA 13 begins with 7.5), all of them for 8.0 and 9.0; the persistent ones
are for these alone. The exit code is 1
if a kernel does not compile, if one spills registers, if it wants more shared memory than a block can have, or if one of the LSTM in
bfloat16 has no instruction of the tensor cores. Shared memory that a kernel is given when it is launched is not in its code: the first
line of its source says how much that is, `// dynamic shared memory: N`, in bytes.
"""

import ctypes
import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent

# Each compiler's package, the packages with its headers, and its library's version.
PACKAGES = {"12.9": ("cuda_nvrtc", ["cuda_runtime", "cuda_nvcc", "cuda_cccl"], 12), "13.0": ("cu13", ["cu13"], 13)}

# Bytes of shared memory that a block can have, by capability.
SHARED = {70: 96 << 10, 75: 64 << 10, 80: 163 << 10, 90: 227 << 10}

# Whatever CubeCL's sources include: Burn's products take some of it, the project's own kernels the first two.
HEADERS = """cuda_runtime.h cuda_bf16.h cuda_fp16.h cuda_fp8.h cuda_fp6.h cuda_fp4.h mma.h cooperative_groups.h
    cooperative_groups/memcpy_async.h cuda/pipeline cuda/barrier cuda/ptx""".split()


def packages():
    """The directory of NVIDIA's packages."""
    try:
        import nvidia
    except ImportError:
        sys.exit("NVIDIA's packages are missing: see the top of this script for how to install them")
    return pathlib.Path(list(nvidia.__path__)[0])


def write_sources(directory):
    """Has the project's own test write the sources."""
    command = "cargo test --quiet -p sharnn-core --no-default-features --features cuda --lib cuda_source".split()
    subprocess.run(command, cwd=ROOT, env=dict(os.environ, SHARNN_CUDA_SOURCES=str(directory)), stdout=sys.stderr, check=True)


class Nvrtc:
    """As much of a compiler as is needed."""

    def __init__(self, version, nvidia, scratch):
        self.version = version
        package, headers, major = PACKAGES[version]
        libraries = nvidia / package / "lib"
        if not libraries.is_dir():
            sys.exit(f"NVRTC {version} is missing: see the top of this script for how to install it")
        # It looks for this one where the system does, and there are no packages.
        ctypes.CDLL(str(libraries / f"libnvrtc-builtins.so.{version}"))
        self.library = ctypes.CDLL(str(libraries / f"libnvrtc.so.{major}"))
        self.include = scratch / version / "include"
        self.gather([nvidia / package / "include" for package in headers])

    def gather(self, directories):
        """Puts headers in one directory, as a toolkit has them: the program names no other."""
        self.include.mkdir(parents=True)
        for directory in directories:
            for entry in directory.glob("*"):
                place = self.include / entry.name
                if not place.exists():
                    place.symlink_to(entry)

    def architectures(self):
        count = ctypes.c_int()
        self.library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self.library.nvrtcGetSupportedArchs(numbers)
        return set(numbers)

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        text = ctypes.create_string_buffer(size.value)
        getattr(self.library, f"nvrtcGet{what}")(program, text)
        return text.value.decode()

    def options(self, architecture):
        """As CubeCL has them, and what makes the assembler tell what a kernel takes."""
        specific = "a" if architecture >= 90 else ""
        options = [f"--gpu-architecture=sm_{architecture}{specific}", f"--include-path={self.include}", "-lineinfo"]
        cccl = self.include / "cccl"
        if cccl.exists():
            options.append(f"--include-path={cccl}")
        return [*options, "--ptxas-options=-v"]

    def compile(self, source, architecture):
        """The assembly, nothing where there is none, and what the compiler had to say."""
        program = ctypes.c_void_p()
        self.library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), None, 0, None, None)
        options = self.options(architecture)
        argv = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self.library.nvrtcCompileProgram(program, len(options), argv)
        ptx = None if failed else self.text(program, "PTX")
        log = self.text(program, "ProgramLog")
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        return ptx, log


class Compiled:
    """What one compiler makes of one kernel for one architecture."""

    def __init__(self, ptx, log, source):
        number = lambda pattern, text=log: int((re.search(pattern, text) or [0, 0])[1])
        self.registers = number(r"Used (\d+) registers")
        self.spilled = number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads")
        self.static = number(r"(\d+) bytes smem")
        self.dynamic = number(r"// dynamic shared memory: (\d+)", source.split("\n", 1)[0])
        self.tensor = len(re.findall(r"\b(?:wmma\.mma|mma|wgmma\.mma_async)\.sync", ptx))

    def faults(self, name, architecture):
        if not self.registers:
            yield "nothing is said of its registers"
        if self.spilled:
            yield f"{self.spilled} bytes of registers are spilled"
        if self.static + self.dynamic > SHARED[architecture]:
            yield f"{self.static} + {self.dynamic} bytes of shared memory, where a block has {SHARED[architecture]}"
        # The last step backward comes before any product.
        if name.startswith("lstm") and name.endswith("bf16") and "backward_last" not in name and not self.tensor:
            yield "no tensor core instruction"


def capability(architecture):
    return f"{architecture // 10}.{architecture % 10}"


def rows(path, compilers):
    """One row an architecture, each with what all compilers that know it say; and faults."""
    name, source = path.stem, path.read_text()
    oldest = {compiler: min(arch for arch in compiler.architectures() if arch >= 70) for compiler in compilers}
    older = set() if name.endswith("bf16") or "persistent" in name else set(oldest.values())
    for architecture in sorted(older | {80, 90}):
        cells = []
        for compiler in compilers:
            if architecture < oldest[compiler]:
                cells.append(None)
                continue
            ptx, log = compiler.compile(source, architecture)
            if ptx is None:
                yield architecture, None, f"does not compile with {compiler.version}:\n{log}"
                continue
            compiled = Compiled(ptx, log, source)
            cells.append(compiled)
            for fault in compiled.faults(name, architecture):
                yield architecture, None, f"{fault} ({compiler.version})"
        if any(cells):
            yield architecture, cells, None


def both(cells, what):
    """A number of each compiler, once where they agree."""
    numbers = ["-" if cell is None else str(what(cell)) for cell in cells]
    return numbers[0] if len(set(numbers)) == 1 else " / ".join(numbers)


def main():
    nvidia = packages()
    failures = 0
    with tempfile.TemporaryDirectory() as directory:
        directory = pathlib.Path(directory)
        compilers = [Nvrtc(version, nvidia, directory) for version in PACKAGES]
        sources = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else directory
        if sources == directory:
            write_sources(directory)
        paths = sorted(sources.glob("*.cu"))
        if not paths:
            sys.exit(f"there are no sources in {sources}")
        includes = "".join(f"#include <{header}>\n" for header in HEADERS)
        for compiler in compilers:
            ptx, log = compiler.compile(includes + 'extern "C" __global__ void nothing() {}\n', 90)
            if ptx is None:
                print(f"the headers of CUDA {compiler.version} do not compile:\n{log}", file=sys.stderr)
                failures += 1
            else:
                isa = re.search(r"^\.version (\S+)", ptx, re.M)[1]
                print(f"NVRTC {compiler.version} writes PTX {isa}; all {len(HEADERS)} headers that CubeCL may include compile.")
        print("\nWhere the compilers differ: 12.9 / 13.0.\n")
        print("| kernel | capability | registers | spilled bytes | shared memory, static + dynamic | of | tensor core instructions |")
        print("|---|---|---|---|---|---|---|")
        for path in paths:
            for architecture, cells, fault in rows(path, compilers):
                if fault:
                    print(f"{path.stem} for {capability(architecture)}: {fault}", file=sys.stderr)
                    failures += 1
                    continue
                columns = [
                    both(cells, lambda cell: cell.registers),
                    both(cells, lambda cell: cell.spilled),
                    both(cells, lambda cell: f"{cell.static} + {cell.dynamic}"),
                    SHARED[architecture],
                    both(cells, lambda cell: cell.tensor),
                ]
                print("|", " | ".join(map(str, [path.stem, capability(architecture), *columns])), "|", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
