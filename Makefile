# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
STAMP := .venv/installed
VLLM_STAMP := .venv-vllm/installed
MLFLOW_STAMP := .venv-mlflow/installed
CLIENTS_STAMP := .venv-clients/installed
SBOM_STAMP := .venv-sbom/installed
LOCKS := $(wildcard requirements/*.lock)

.PHONY: demo demo-gpu run test test-slow test-bare test-vllm soak bench lint install stop screenshots lock sbom

install: $(STAMP)  ## .venv with everything; does nothing when nothing changed

# Without a GPU torch comes from the index of CPU builds, or from a local wheel; never from the CUDA default by accident.
# Its version is that of the lock file, the hash is not: each index has a build of its own.
$(STAMP): pyproject.toml $(LOCKS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=...")'
	$(PYTHON) .ci/lock.py --check
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements/dev.lock
	@torch=$$(grep -o '^torch==[^ ]*' requirements/cuda.lock); \
	{ ! command -v nvidia-smi >/dev/null && $(BIN)/pip install -q --no-deps --retries 0 --timeout 5 \
		$${PIP_FIND_LINKS:+--no-index} --index-url $(TORCH_INDEX) "$$torch"; } \
	|| $(BIN)/pip install -q --require-hashes --no-deps -r requirements/cuda.lock
	$(BIN)/pip install -q --no-deps --no-build-isolation -e .
	touch $(STAMP)

lock:  ## requirements/*.lock from pyproject.toml; LOCK=--upgrade takes the newest versions
	@test -x $(BIN)/uv || { $(PYTHON) -m venv .venv && $(BIN)/pip install -q "$$(grep -o 'uv==[0-9.]*' pyproject.toml)"; }
	$(BIN)/python .ci/lock.py $(LOCK)
	$(BIN)/uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		-o tests/clients/requirements.txt tests/clients/requirements.in

demo: install  ## the whole life of an adapter on real input; DEMO_EXIT=1 ends when it is done
	$(BIN)/python -m adapterhub.demo

# The servers' environment is another one: VLLM_PYTHON has vLLM and the wheel of serving_client/vllm_plugin.
VLLM_PYTHON ?= python3
demo-gpu: install  ## the whole product over four vLLM servers on one GPU, in one piece; figures in build/demo-gpu
	mkdir -p build/demo-gpu
	$(BIN)/python benchmarks/whole_product.py --home $(CURDIR)/build/demo-gpu/home --vllm-python $(VLLM_PYTHON) \
		--out build/demo-gpu/figures.json --log build/demo-gpu/log.json

run: install  ## the product without the demo
	$(BIN)/python -m adapterhub.embedded run

stop:  ## end a running AdapterHub of this data folder
	$(BIN)/python -m adapterhub.embedded stop

# Each test belongs to one of these three; docs/testing.md says what each holds. ARGS goes to pytest.
test: install  ## a verdict in 8 minutes on two cores: nearly all tests
	$(BIN)/python -m pytest -q -m 'not slow and not vllm' $(ARGS)

# A file stays with one worker here: what its tests share is a whole product, which takes a minute to start.
test-slow: install $(MLFLOW_STAMP) $(CLIENTS_STAMP) $(SBOM_STAMP)  ## the rest: soaks in short form, long fuzzing, real trainings, documented pipelines
	$(BIN)/python -m pytest -q --timeout 600 --dist loadfile --no-loadscope-reorder -m 'slow and not vllm' $(ARGS)

# A machine without nginx, Chromium, openssl, npm and Docker: the tests that look for them are left out, and say so.
test-bare: install  ## the tests that look for tools, with a PATH that has none
	PATH="$(CURDIR)/$(BIN)" ADAPTERHUB_REQUIRE= $(BIN)/python -m pytest -q -m 'not vllm' tests/test_front.py \
		tests/test_compose_proxy.py tests/test_tools.py tests/test_layout.py tests/e2e/test_browser.py \
		tests/e2e/test_every_page.py tests/embedded $(ARGS)

test-vllm: install $(VLLM_STAMP)  ## the control loop and the router with two real vLLM servers on the CPU
	ADAPTERHUB_REQUIRE=vllm $(BIN)/python -m pytest -q -n 0 --timeout 900 -m vllm tests/vllm $(ARGS)

# The server that ended runs are mirrored to in a test; it brings a web framework and pins of its own.
$(MLFLOW_STAMP): tests/training/mlflow.txt
	$(PYTHON) -m venv .venv-mlflow
	.venv-mlflow/bin/pip install -q --disable-pip-version-check -r tests/training/mlflow.txt
	touch $(MLFLOW_STAMP)

# The packages that applications reach the router with: OpenAI's SDK, what is built on it, and lm-eval.
$(CLIENTS_STAMP): tests/clients/requirements.txt
	$(PYTHON) -m venv .venv-clients
	.venv-clients/bin/pip install -q --disable-pip-version-check --require-hashes --no-deps -r tests/clients/requirements.txt
	touch $(CLIENTS_STAMP)

# What lists the packages of an image; pyproject.toml says why it is not in .venv.
$(SBOM_STAMP): requirements/sbom.lock
	$(PYTHON) -m venv .venv-sbom
	.venv-sbom/bin/pip install -q --disable-pip-version-check --require-hashes --no-deps -r requirements/sbom.lock
	touch $(SBOM_STAMP)

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

soak: install  ## soak tests in full, and 5,000 calls of the API; date, commit and result go to docs/soak.md
	@result=failed; $(BIN)/python -m pytest -n 0 --timeout 3600 --soak tests/soak tests/api/test_schema.py && result=passed; \
	echo "| $$(date -u +%F) | $$(git rev-parse --short HEAD) | $$result |" >> docs/soak.md; test $$result = passed

screenshots: install  ## every page, wide and on a phone, light and dark, into docs/screenshots
	$(BIN)/python -m pytest -q -n 0 --timeout 1800 tests/e2e/take_screenshots.py

bench: install  ## the short form of every benchmark
	$(BIN)/python benchmarks/run_all.py

sbom: install $(SBOM_STAMP)  ## the packages of each image with their licences, as CycloneDX, into build/sbom
	$(BIN)/python .ci/image_packages.py build/sbom

lint: install  ## style, types, what is declared and locked, and scans of our code and of what we build on
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python .ci/lock.py --check
	$(BIN)/deptry . --no-ansi --extend-exclude '(benchmarks|\.ci)'
	$(BIN)/deptry tests benchmarks .ci --no-ansi --exclude '\.venv' --ignore DEP002,DEP004
	$(BIN)/lint-imports --no-cache
	$(BIN)/djlint --lint templates
	$(BIN)/python .ci/house.py
	$(BIN)/python .ci/lint_migrations.py
	$(BIN)/bandit -q -r -c pyproject.toml adapterhub registry training serving_client manage.py
	$(BIN)/python .ci/audit_packages.py
