# README and CI call only these.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RECIPE ?= tiny
OUT ?= runs/$(RECIPE)
HOST ?= 127.0.0.1
PORT ?= 8000

.PHONY: serve test check bench load pipeline dashboards check-gpu-image contracts golden install-service install-all clean

serve: $(VENV)/service.stamp  ## run the service on the embedded default bundle
	$(BIN)/relevance serve --host $(HOST) --port $(PORT)

test: $(VENV)/all.stamp  ## every test that this machine can run
	$(BIN)/python -m pytest

check: $(VENV)/all.stamp  ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/all.stamp  ## throughput ratios, results under benchmarks/results
	$(BIN)/python -m benchmarks.throughput $(ARGS)
	$(BIN)/python -m benchmarks.extractor

load: $(VENV)/all.stamp  ## Locust for two minutes, report in runs/load: make load [HOST_URL=http://…] [ARGS=…]
	$(BIN)/python -m benchmarks.locust --out runs/load $(if $(HOST_URL),--host $(HOST_URL)) $(ARGS)

pipeline: $(VENV)/all.stamp  ## pairs to a verified bundle: make pipeline RECIPE=tiny OUT=runs/tiny
	$(BIN)/relevance pipeline --recipe $(RECIPE) --out $(OUT) $(ARGS)
	$(BIN)/relevance verify $(OUT)/export/bundle

dashboards: $(VENV)/all.stamp  ## rewrite Prometheus rules and Grafana dashboards from their code
	$(BIN)/python -m k8s.monitoring

check-gpu-image: $(VENV)/all.stamp  ## replay the gpu image's build: downloads onnxruntime-gpu
	RELEVANCE_REPLAY_GPU=1 $(BIN)/python -m pytest -q tests/deploy/test_gpu_image.py

contracts: $(VENV)/all.stamp  ## point every rerank client that we promise at a live service: installs each of them
	RELEVANCE_ALL_CLIENTS=1 $(BIN)/python -m pytest -q tests/service/test_rerank_clients.py

golden: $(VENV)/all.stamp  ## rewrite the golden files; review them as a diff
	UPDATE_GOLDEN=1 $(BIN)/python -m pytest -q -k golden

# A service-only environment holds neither torch nor transformers; `make test` adds the rest to the same one.
$(VENV)/service.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[service]'
	touch $@

# torch first: its pinned version comes as the CPU build, which everything after it then keeps.
$(VENV)/all.stamp: $(VENV)/service.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[service,training,teacher,scale,export]' --group dev
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info
