# README and CI call only these.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
GPU_VENV ?= runs/gpu-venv
RECIPE ?= tiny
OUT ?= runs/$(RECIPE)
HOST ?= 127.0.0.1
# Texts of the load test: the labelled pairs where they are, else generated.
LOAD_DATA ?= $(wildcard ../shared/data/esci-mini/esci_mini.parquet)
PORT ?= 8000

.PHONY: serve test check docs docs-serve bench load peers gpu pipeline dashboards check-gpu-image contracts golden install-service install-all clean

serve: $(VENV)/service.stamp  ## run the service on the embedded default bundle
	$(BIN)/relevance serve --host $(HOST) --port $(PORT)

# Tests of models, files and manifests run side by side, a core each; those of our servers wait and measure, alone.
test: $(VENV)/all.stamp $(VENV)/docs.stamp  ## every test that this machine can run
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --dist loadfile tests/contracts tests/deploy tests/docs tests/export tests/relevance tests/training
	$(BIN)/python -m pytest tests/service $(wildcard tests/test_*.py)

check: $(VENV)/all.stamp  ## formatting, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/docs.stamp  ## the documentation site, strictly, into runs/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs-serve: $(VENV)/docs.stamp  ## the same on http://127.0.0.1:8001, anew at every change
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve --dev-addr 127.0.0.1:8001

bench: $(VENV)/all.stamp  ## throughput ratios, results under benchmarks/results
	$(BIN)/python -m benchmarks.throughput $(ARGS)
	$(BIN)/python -m benchmarks.extractor

load: $(VENV)/all.stamp  ## Locust for two minutes, report in runs/load: make load [HOST_URL=http://…] [ARGS=…]
	$(BIN)/python -m benchmarks.locust --out runs/load $(if $(HOST_URL),--host $(HOST_URL)) $(if $(LOAD_DATA),--data $(LOAD_DATA)) $(ARGS)

peers: $(VENV)/all.stamp  ## Infinity, a CrossEncoder server and ours side by side; installs them under runs/peers
	$(BIN)/python -m benchmarks.peers $(ARGS)

gpu: $(GPU_VENV)/gpu.stamp  ## the paper's Table 2 and /score on a GPU, in an environment of its own: make gpu [ARGS=…]
	$(GPU_VENV)/bin/python -m benchmarks.gpu $(ARGS)

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

install-service: $(VENV)/service.stamp  ## what the service needs, without torch

install-all: $(VENV)/all.stamp  ## what training, export and the tests need too

# A service-only environment holds neither torch nor transformers; `make test` adds the rest to the same one.
$(VENV)/service.stamp: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[service]'
	touch $@

# torch first and alone: whichever build comes here, everything after it keeps. From the package index alone it is the
# one for CUDA, gigabytes of it; TORCH_INDEX=https://download.pytorch.org/whl/cpu asks for the CPU build.
$(VENV)/all.stamp: $(VENV)/service.stamp clients/python/pyproject.toml
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[service,training,teacher,scale,export]' --group dev
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable clients/python
	touch $@

$(VENV)/docs.stamp: $(VENV)/service.stamp
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	touch $@

# onnxruntime and onnxruntime-gpu must not stand side by side, nor torch's CPU build where the GPU is measured.
$(GPU_VENV)/gpu.stamp: pyproject.toml constraints.txt
	test -x $(GPU_VENV)/bin/python || $(PYTHON) -m venv $(GPU_VENV)
	$(GPU_VENV)/bin/python -m pip install --quiet --constraint constraints.txt pip
	$(GPU_VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[service-gpu,export]' psutil
	touch $@

clean:
	rm -rf $(VENV) $(GPU_VENV) build dist *.egg-info
