# Verbs for people and CI. Each works on a fresh clone: the environment is made on first use.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= demo_output
# Processes that share out the tests, a file each at a time.
WORKERS ?= 2

.PHONY: viewer demo test lint types bench docs clean
.DELETE_ON_ERROR:

# torch is pinned to the CPU build: the toolkit runs and is tested without a GPU.
$(VENV)/.runtime: pyproject.toml setup.py constraints.txt $(wildcard kernels/*.cpp kernels/*.h)
	@echo "installing what is needed into $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/python examples/demo.py $(OUT)

# Without npm, chromium or DICOM peers their tests are left out, and the last lines say so; CI has them all.
test: $(VENV)/.dev
	$(PYTHON) dropgen_rt/viewer/fetch.py --optional
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --cov --cov-report=term -rs

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# The four rooms become one package only when installed, so mypy looks at an installed copy. What only a GPU can run of the
# benchmarks is checked, too.
types: $(VENV)/.dev
	rm -rf build/types
	DROPGEN_RT_CUDA=0 $(BIN)/pip install --quiet --no-deps --constraint constraints.txt --target build/types .
	MYPYPATH=build/types $(BIN)/mypy -p dropgen_rt
	MYPYPATH=build/types:tests/gpu $(BIN)/mypy --explicit-package-bases --follow-imports=silent \
		benchmarks/gpu_monai.py benchmarks/gpu_speed.py

# niivue, for infer --report, by npm and the lock file beside it; wheels are built with it.
viewer:
	$(PYTHON) dropgen_rt/viewer/fetch.py

bench: $(VENV)/.dev
	$(BIN)/python benchmarks/stages.py --out benchmarks/results/stages.json

# Everything in docs/ is Markdown; building it means checking that what it links to exists.
docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/test_readme.py

clean:
	rm -rf build dist $(VENV) *.egg-info kernels/*.so
