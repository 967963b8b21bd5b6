"""Every inner loop of the CPU kernels that asks for vectors gets them.

`#pragma omp simd` is a wish: where GCC does not see how, it says nothing and writes a scalar loop, right and five times
slower. Here it is asked, with the flags of the build.
"""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """What compiles each source of csrc/cpu for AVX2."""
    folder = tmp_path_factory.mktemp("configured")
    pybind11 = subprocess.run([sys.executable, "-m", "pybind11", "--cmakedir"], capture_output=True, text=True)
    command = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release", "-DMDEPTH_CUDA=0",
        "-DCMAKE_EXPORT_COMPILE_COMMANDS=1", f"-Dpybind11_DIR={pybind11.stdout.strip()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    entries = json.loads((folder / "compile_commands.json").read_text())
    found = {}
    for entry in entries:
        if "MDEPTH_ISA=avx2" in entry["command"]:
            found[Path(entry["file"])] = shlex.split(entry["command"])
    if not found:
        pytest.skip("gcc: no AVX2 kernels on this processor")
    (compiler,) = {words[0] for words in found.values()}
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout
    if "Free Software Foundation" not in version:
        pytest.skip(f"gcc: another compiler, {version.splitlines()[0]}")
    return found


def vectorised_lines(command, folder):
    """Lines that GCC names as vectorised loops, by file."""
    words = [*command, "-fopt-info-vec-optimized"]
    words[words.index("-o") + 1] = str(folder / "kernels.o")
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = {}
    for file, line in re.findall(r"(\S+?):(\d+):\d+: optimized: loop vectorized", done.stderr):
        lines.setdefault(Path(file).name, set()).add(int(line))
    return lines


@pytest.fixture(scope="module")
def vectorised(commands, tmp_path_factory):
    found = {}
    for path, command in commands.items():
        for name, lines in vectorised_lines(command, tmp_path_factory.mktemp(path.stem)).items():
            found.setdefault(name, set()).update(lines)
    return found


def scalar_loops(path, vectorised):
    """The loops of `path` that ask for vectors and got none."""
    lines = path.read_text().splitlines()
    inlined = {}
    for number, line in enumerate(lines, 1):
        if line.startswith("MDEPTH_HD"):
            inlined[re.search(r"(\w+)\(", line)[1]] = range(number, block_end(lines, number) + 1)
    scalar = []
    for number, line in enumerate(lines, 1):
        if "#pragma omp simd" not in line:
            continue
        first = next(n for n in range(number + 1, number + 4) if "for (" in lines[n - 1])
        last = block_end(lines, first)
        # A loop is named by a line of its body, or of a function of the same file that was inlined there.
        places = set(range(first, last + 2))
        for name in re.findall(r"(\w+)\(", "\n".join(lines[first - 1 : last])):
            places |= set(inlined.get(name, ()))
        if not places & vectorised:
            scalar.append(f"{path.name}:{first}: {lines[first - 1].strip()}")
    return scalar


def block_end(lines, number):
    """The line where the braces that open on a line, or on the next one, are closed again."""
    depth = lines[number - 1].count("{") - lines[number - 1].count("}")
    while depth > 0:
        number += 1
        depth += lines[number - 1].count("{") - lines[number - 1].count("}")
    return number


FILES = [path for path in sorted((ROOT / "csrc" / "cpu").iterdir()) if "#pragma omp simd" in path.read_text()]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_inner_loops_are_vectorised(path, vectorised):
    assert scalar_loops(path, vectorised.get(path.name, set())) == []


def test_a_scalar_loop_is_seen(commands, tmp_path):
    """A prefix sum, which no vector can hold."""
    original = ROOT / "csrc" / "cpu" / "edge_aware_smoothness.cpp"
    loop = "for (int i = 0; i < n; ++i) weight[i] = exp_negative(weight[i]);"
    text = original.read_text()
    assert loop in text
    source = tmp_path / original.name
    source.write_text(text.replace(loop, loop.replace("weight[i] =", "weight[i] = weight[i - 1] +")))
    words = [str(source) if word == str(original) else word for word in commands[original]]
    words.insert(1, f"-I{original.parent}")
    (seen,) = scalar_loops(source, vectorised_lines(words, tmp_path)[source.name])
    assert "weight[i - 1]" in seen
