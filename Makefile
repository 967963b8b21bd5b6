.PHONY: install test test-fast docs bench readme-picture readme-figures bench-figures parity kills lint format gpu gpu-test gpu-sanitize gpu-bench

install:
	pip install -e ".[dev]"

test:
	MDEPTH_REQUIRE_BACKENDS=cpu pytest -n 2

# After each change, in a minute and a half: what all ops must hold, and some of each room.
test-fast:
	MDEPTH_REQUIRE_BACKENDS=cpu pytest -n 2 -q -m fast

# The documentation as a site, in site/; a dead link or a page outside the navigation is an error.
docs:
	mkdocs build

bench:
	pytest benches

# The picture at the top of the README, by the first command of the README: minutes.
readme-picture:
	python benches/readme_picture.py

# RESULTS.md and the README's figures, from the files in benches/results alone.
readme-figures:
	python benches/report.py --tables

# Every figure of this machine, measured anew. It has to be idle; with DPT-Large and a training run, this takes long.
bench-figures:
	python benches/report.py
	python benches/report.py --gradient-errors
	pytest benches --save --full --ignore benches/bench_ops.py

# docs/fidelity.md: against the original repositories, whose clones lie in the folder PEERS.
parity:
	python benches/parity.py $(or $(PEERS),$(error PEERS: expected a folder with clones: make parity PEERS=folder))

# A run of twelve steps, killed at every pair of them: minutes. The tests try some of the pairs.
kills:
	MDEPTH_KILLS=all pytest tests/training/test_kills.py -k two_kills

# On a machine with a GPU, in minutes: every test that needs one, the sanitizers on a small run, the benches. The later
# ones run whatever becomes of the first. They need no more than torch, triton and pytest, and CuPy for nvrtc.
gpu:
	@failed=; for part in test sanitize bench; do $(MAKE) gpu-$$part || failed="$$failed gpu-$$part"; done; \
	test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

gpu-test:
	MDEPTH_REQUIRE_BACKENDS=cuda,triton pytest -m gpu --durations=10 tests/cuda tests/kernels

# Without torch's cache of memory, in which an address beyond a tensor would still be a valid one. Errors of calls that
# libraries make to find out what there is are not counted; races are looked for in this package's kernels alone.
SANITIZER = PATH="$$PATH:$(or $(CUDA_HOME),/usr/local/cuda)/bin" compute-sanitizer --error-exitcode 1 --report-api-errors no

gpu-sanitize:
	PYTORCH_NO_CUDA_MEMORY_CACHING=1 $(SANITIZER) --tool memcheck python benches/small_run.py
	$(SANITIZER) --tool racecheck --kernel-name kns=mdepth_ python benches/small_run.py cuda

gpu-bench:
	python benches/report.py --device cuda --minutes 3

# Where clang-format is not installed, C++ and CUDA are left out: pip install ".[dev]" brings it.
CLANG_FORMAT = find csrc tests -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu' | xargs clang-format

lint:
	ruff check .
	ruff format --check .
	mypy
	if command -v clang-format > /dev/null; then $(CLANG_FORMAT) --dry-run --Werror; fi

format:
	ruff check --fix .
	ruff format .
	if command -v clang-format > /dev/null; then $(CLANG_FORMAT) -i; fi
