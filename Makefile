# Everything runs in .venv, which is made on first use from the tested versions.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
WORKERS ?= 2  # processes that share the tests
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --durations 15
READY := $(VENV)/.ready

.PHONY: demo test test-long lint bench reference results clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev]'
	touch $(READY)

demo test test-long: export OMP_NUM_THREADS ?= 1  # the models are too small to gain from more
demo: $(READY)  ## the whole pipeline on the built-in market, metrics of every stage
	$(BIN)/align3gr run --config recipes/synthetic/pipeline.yaml

test: $(READY)  ## the tests of every change
	$(PYTEST)

test-long: $(READY)  ## whole pipelines: kills, leaks, quality
	$(PYTEST) -m long

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

reference: $(READY)  ## docs/reference from the docstrings
	$(BIN)/python docs/make_reference.py

# In the order of the page; what is measured next stands among them.
RECORDS = $(sort $(wildcard experiments/results/yelp*)) $(sort $(wildcard experiments/results/ml-100k*))
results: $(READY)  ## docs/results.md from the tables of experiments/results
	$(BIN)/align3gr results $(RECORDS) --output docs/results.md

bench: $(READY)
	$(BIN)/python benchmarks/decoding.py
	$(BIN)/python benchmarks/softmax_dpo.py
	$(BIN)/python benchmarks/sft.py
	$(BIN)/python benchmarks/tokenize.py
	$(BIN)/python benchmarks/token_quality.py
	$(BIN)/python benchmarks/metrics.py
	$(BIN)/python benchmarks/serving.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
