"""Compiles the C++ kernels of this folder: once, when the app is set up, never while it serves.

    python -m app.engine.kernels.cpu.build [--all | --check]

Needs nothing but Python and a C++ compiler. A library's name holds the instruction set and a
digest of all that it is made from; what is there already is left alone. `--all` makes one for each
instruction set that this kind of machine may have, for an image that runs elsewhere; `--check`
says by its exit status whether this machine's is there.
"""

import argparse
import hashlib
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).parent
COMPILED = FOLDER / "compiled"
COMPILERS = ("g++", "clang++", "c++")
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi")
# What a CPU must have (names as in /proc/cpuinfo and, after -m, of compilers), the best first.
X86_64 = {
    "avx512": ("avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"),
    "avx2": ("avx2", "fma"),
    "baseline": (),
}
OTHERS: dict[str, tuple[str, ...]] = {"baseline": ()}  # NEON belongs to it on aarch64
CPU_INFO = Path("/proc/cpuinfo")
TIMEOUT_S = 600


class BuildFailed(Exception):
    """The kernels could not be compiled; the message says why and what to do."""


def instruction_sets() -> dict[str, tuple[str, ...]]:
    """Those that this kind of machine may have, with the features that each needs."""
    return X86_64 if platform.machine().lower() in ("x86_64", "amd64") else OTHERS


def usable_instruction_sets() -> list[str]:
    """Those that this very CPU has, the best first."""
    text = CPU_INFO.read_text(encoding="utf-8") if CPU_INFO.is_file() else ""
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return [name for name, features in instruction_sets().items() if set(features) <= set(flags)]


def library_path(instruction_set: str) -> Path:
    """Where the library for an instruction set is, or would be."""
    digest = hashlib.sha256()
    for path in sorted((*FOLDER.glob("*.h"), *FOLDER.glob("*.cpp"), Path(__file__))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return COMPILED / f"kernels-{instruction_set}-{digest.hexdigest()[:16]}.so"


def build(names: Sequence[str]) -> list[Path]:
    """Compile what is missing, side by side; raise BuildFailed. Older libraries are removed."""
    features = instruction_sets()
    targets = {name: library_path(name) for name in names}
    missing = {name: path for name, path in targets.items() if not path.is_file()}
    if missing:
        compiler = find_compiler()
        COMPILED.mkdir(exist_ok=True)
        with ThreadPoolExecutor() as pool:
            jobs = [
                pool.submit(compile_library, compiler, features[name], path)
                for name, path in missing.items()
            ]
        for job in jobs:
            job.result()
    for path in COMPILED.glob("kernels-*.so"):
        if path != library_path(path.name.split("-")[1]):
            path.unlink()
    return list(missing.values())


def find_compiler() -> str:
    """The first C++ compiler on PATH."""
    for name in COMPILERS:
        if path := shutil.which(name):
            return path
    raise BuildFailed(
        f"no C++ compiler was found ({', '.join(COMPILERS)}): install one (Debian: apt-get "
        "install g++), then run this again; without it torch computes, more slowly"
    )


def compile_library(compiler: str, features: Sequence[str], target: Path) -> None:
    """Compile into place at once, so that nobody loads half a library."""
    partial = target.with_suffix(".partial")
    flags = [*FLAGS, *(f"-m{feature}" for feature in features)]
    command = [compiler, *flags, str(FOLDER / "kernels.cpp"), "-o", str(partial)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise BuildFailed(f"{' '.join(command)}: not done after {TIMEOUT_S} s") from error
    if done.returncode != 0:
        raise BuildFailed(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")
    partial.replace(target)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile the C++ kernels for CPUs.")
    parser.add_argument("--all", action="store_true", help="for CPUs other than this one, too")
    parser.add_argument("--check", action="store_true", help="compile nothing; 1: not there")
    options = parser.parse_args()
    names = list(instruction_sets()) if options.all else usable_instruction_sets()[:1]
    if options.check:
        sys.exit(not all(library_path(name).is_file() for name in names))
    try:
        made = build(names)
    except BuildFailed as error:
        sys.exit(f"error: {error}")
    for path in made:
        sys.stdout.write(f"compiled {path}\n")


if __name__ == "__main__":
    main()
