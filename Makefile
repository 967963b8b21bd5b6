.PHONY: install test bench lint format gpu gpu-test gpu-sanitize gpu-bench

install:
	pip install -e ".[dev]"

test:
	MDEPTH_REQUIRE_BACKENDS=cpu pytest

bench:
	pytest benches

# On a machine with a GPU: every test that needs one, the sanitizer on a small run, the benches.
gpu: gpu-test gpu-sanitize gpu-bench

gpu-test:
	MDEPTH_REQUIRE_BACKENDS=cuda,triton pytest -m gpu

gpu-sanitize:
	compute-sanitizer --tool memcheck --error-exitcode 1 python benches/small_run.py
	compute-sanitizer --tool racecheck --error-exitcode 1 python benches/small_run.py

gpu-bench:
	python benches/report.py --device cuda

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .
