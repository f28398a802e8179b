# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
STAMP := .venv/installed
VLLM_STAMP := .venv-vllm/installed
MLFLOW_STAMP := .venv-mlflow/installed

.PHONY: demo run test test-vllm soak bench lint install stop screenshots

install: $(STAMP)  ## .venv with everything; does nothing when nothing changed

# Without a GPU torch comes from the index of CPU builds, or from a local wheel; never from the CUDA default by accident.
$(STAMP): pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check --upgrade 'pip<27'
	@command -v nvidia-smi >/dev/null || $(BIN)/pip install -q --no-deps --retries 0 --timeout 5 \
		$${PIP_FIND_LINKS:+--no-index} --index-url $(TORCH_INDEX) torch==2.13.0 || true
	$(BIN)/pip install -q --disable-pip-version-check -e '.[dev]'
	touch $(STAMP)

demo: install  ## the whole life of an adapter on real input; DEMO_EXIT=1 ends when it is done
	$(BIN)/python -m adapterhub.demo

run: install  ## the product without the demo
	$(BIN)/python -m adapterhub.embedded run

stop:  ## end a running AdapterHub of this data folder
	$(BIN)/python -m adapterhub.embedded stop

test: install $(MLFLOW_STAMP)  ## everything that needs no GPU
	$(BIN)/python -m pytest

test-vllm: install $(VLLM_STAMP)  ## the control loop and the router with two real vLLM servers on the CPU
	ADAPTERHUB_REQUIRE=vllm $(BIN)/python -m pytest tests/vllm

# The server that ended runs are mirrored to in a test; it brings a web framework and pins of its own.
$(MLFLOW_STAMP): tests/training/mlflow.txt
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/pip install -q --disable-pip-version-check -r tests/training/mlflow.txt
	touch $(MLFLOW_STAMP)

# An environment of its own: vLLM pins other releases of torch's company than the product. Our plugin is built from a
# copy, so that nothing is built among the sources.
$(VLLM_STAMP): tests/vllm/requirements.txt tests/vllm/plugin/pyproject.toml tests/vllm/plugin/vllm_cpu_base_rows.py \
		$(wildcard serving_client/vllm_plugin/*.py) serving_client/vllm_plugin/pyproject.toml
	$(PYTHON) -m venv .venv-vllm
	mkdir -p .venv-vllm/plugin && cp $(wildcard serving_client/vllm_plugin/*.*) .venv-vllm/plugin
	.venv-vllm/bin/pip install -q --disable-pip-version-check --no-deps \
		$$([ -n "$$PIP_FIND_LINKS" ] || echo --extra-index-url $(TORCH_INDEX)) \
		-r tests/vllm/requirements.txt ./tests/vllm/plugin .venv-vllm/plugin
	touch $(VLLM_STAMP)

soak: install  ## soak tests in full; date, commit and result go to docs/soak.md
	@result=failed; $(BIN)/python -m pytest --soak tests/soak && result=passed; \
	echo "| $$(date -u +%F) | $$(git rev-parse --short HEAD) | $$result |" >> docs/soak.md; test $$result = passed

screenshots: install  ## every page, wide and on a phone, light and dark, into docs/screenshots
	$(BIN)/python -m pytest -q tests/e2e/take_screenshots.py

bench: install  ## the short form of every benchmark
	$(BIN)/python benchmarks/run_all.py

lint: install  ## style, types, and scans of our code and of what we build on
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/bandit -q -r -c pyproject.toml adapterhub registry training serving_client manage.py
	$(BIN)/python .ci/audit_packages.py
