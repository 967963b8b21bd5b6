.PHONY: install test bench lint format

install:
	pip install -e ".[dev]"

test:
	MDEPTH_REQUIRE_BACKENDS=cpu pytest

bench:
	pytest benches

lint:
	ruff check .
	ruff format --check .
	mypy

format:
	ruff check --fix .
	ruff format .
