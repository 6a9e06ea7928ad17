# The targets that people and CI use. You need Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Each test process uses one torch thread, so two processes fill two cores.
TEST_PROCESSES ?= 2

.PHONY: help install demo test lint schema format bench bench-check docs docs-serve up fuzz lock sbom clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/'

install: $(STAMP)  ## create .venv and install the pinned packages

$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: install  ## search on real text with two workers, fit the winner, predict three posts
	$(BIN)/hpo run studies/quickstart.toml --workers 2 --out best.json --fit model
	$(BIN)/hpo predict model studies/new_posts.csv --show

test: install  ## run every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_PROCESSES) --dist worksteal

lint: install  ## check style, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

schema: install  ## write the JSON schema of study files again
	$(BIN)/python -m sparse_evidence.hpo.study.schema > studies/study.schema.json.new
	mv studies/study.schema.json.new studies/study.schema.json

format: install  ## format and fix with ruff
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: install  ## measure speed, write benchmarks/results.json
	$(BIN)/python -m benchmarks

bench-check: install  ## measure again, and fail if a ratio is much worse than before on such a machine
	$(BIN)/python -m benchmarks epoch encode service scaling --check

docs: install  ## build the documentation site, build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: install  ## show the documentation site while you write it, http://127.0.0.1:8000
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

up:  ## start Postgres, the dashboard and workers in containers (passwords: docker-compose.yml)
	docker compose --profile $$(nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu) up --build --detach

fuzz: install  ## try 10,000 study files and 10,000 tables in every state (FUZZ_EXAMPLES)
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-10000} OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/acceptance/test_fuzz.py

lock: install  ## write the installed packages to requirements.lock, and those of the product with hashes
	$(BIN)/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+cpu$$//' > requirements.lock
	$(BIN)/uv pip compile pyproject.toml --quiet --no-config --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --constraint requirements.lock --extra s3 --extra mlflow --extra lora \
	  --custom-compile-command 'make lock' --output-file requirements.hashed.lock

sbom: install  ## write what the image holds to sbom.json (CycloneDX)
	$(BIN)/cyclonedx-py requirements requirements.hashed.lock --pyproject pyproject.toml --output-reproducible \
	  --output-file sbom.json

clean:  ## remove .venv (the embedded database under .hpo/ stays)
	rm -rf $(VENV)
