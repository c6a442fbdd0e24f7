PYTHON ?= python

.PHONY: check lint types layering test test-slow

check: lint types layering

lint:
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

layering:
	$(PYTHON) -m pytest -q tests/test_layering.py

test:
	bash tools/run_tests.sh

test-slow:
	bash tools/run_tests.sh -m slow
