# Two commands suffice on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
LOWEST := .venv-lowest/bin
SERVE := .venv-serve/bin
PIP := -m pip install --quiet --disable-pip-version-check
# What depends most on the libraries: model, generation, processing, pipeline and trainer.
LOWEST_TESTS := $(patsubst %,modeling_tests/test_%.py,modeling_llava_st original_checkpoint_llava_st loss_llava_st generation_llava_st \
	decode_loop_llava_st grammar_logits_llava_st shared_media_llava_st session_llava_st streaming_llava_st \
	processing_llava_st processing_reference_llava_st image_processing_llava_st video_processing_llava_st pipeline_llava_st \
	training_collator training_trainer training_trl training_grpo locking)

.PHONY: demo test test-app test-lowest test-serve lint format api mutation clean

demo: .venv/demo
	$(BIN)/python examples/demo.py $(if $(MODEL),--model "$(MODEL)") $(if $(VIDEO),--video "$(VIDEO)") $(if $(TEXT),--text "$(TEXT)")

test: .venv/test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(ARGS)

# The web page in Chromium.
test-app: .venv/browser build/chromium/chromium
	$(BIN)/python -m pytest -m browser modeling_tests/test_app_page.py $(ARGS)

build/chromium/chromium: modeling_tests/browser.py | .venv/browser
	$(BIN)/python -m modeling_tests.browser build/chromium

# The lowest version of every dependency that pyproject.toml allows, in an environment of its own.
test-lowest: .venv-lowest/test
	OMP_NUM_THREADS=1 $(LOWEST)/python -m pytest -n 2 $(LOWEST_TESTS) $(ARGS)

# vLLM for CPU and the plug-in, in an environment of its own; about 35 minutes on two cores.
test-serve: .venv-serve/serve
	OMP_NUM_THREADS=1 $(SERVE)/python -m pytest -p no:xdist modeling_tests/serving $(ARGS)

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The API reference from the docstrings.
api: .venv/lint
	$(BIN)/python docs/make_api.py

# Mutation tests of the modules listed under [tool.mutmut] in pyproject.toml; MUTANTS selects some, for example "*loss_llava_st*".
mutation: .venv/mutation
	OMP_NUM_THREADS=1 $(BIN)/mutmut run --max-children 2 $(MUTANTS)
	$(BIN)/python -m modeling_tests.mutation_report

# One marker file per extra, remade when the project's dependencies change. uv takes a quarter of the time of pip, which the demo uses
# because it needs no configuration of its own where packages come through a proxy.
.venv/demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --editable ".[demo]"
	touch $@

.venv/%: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python $(PIP) uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --editable ".[$*]"
	touch $@

.venv-lowest/%: pyproject.toml
	test -x $(LOWEST)/python || $(PYTHON) -m venv .venv-lowest
	test -x $(LOWEST)/uv || $(LOWEST)/python $(PIP) uv
	$(LOWEST)/uv pip install --quiet --upgrade --python $(LOWEST)/python --resolution lowest-direct --editable ".[$*]"
	touch $@

.venv-serve/serve: pyproject.toml modeling_tests/serving/overrides.txt
	test -x $(SERVE)/python || $(PYTHON) -m venv .venv-serve
	test -x $(SERVE)/uv || $(SERVE)/python $(PIP) uv
	$(SERVE)/uv pip install --quiet --python $(SERVE)/python --override modeling_tests/serving/overrides.txt --editable ".[serve-cpu]"
	touch $@

clean:
	rm -rf .venv .venv-lowest .venv-serve mutants build *.egg-info src/*.egg-info
