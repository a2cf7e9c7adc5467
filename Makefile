# Two commands do it all on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test lint clean

demo: .venv/demo
	$(BIN)/python examples/demo.py $(if $(MODEL),--model "$(MODEL)") $(if $(VIDEO),--video "$(VIDEO)") $(if $(TEXT),--text "$(TEXT)")

test: .venv/test
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: .venv/lint
	$(BIN)/ruff check src modeling_tests examples training
	$(BIN)/mypy

# One marker file per extra, remade when the project's dependencies change.
.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP) --editable ".[$*]"
	touch $@

clean:
	rm -rf .venv build *.egg-info src/*.egg-info
