# Start with `make demo` or `make test`; both create .venv first if needed.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
DEMO   ?= demo
SECONDS ?= 60
SETUP  := $(VENV)/.installed
# Python compiles what it imports, once; all packages together would take 0.5 GB and half of the time.
export PYTHONDONTWRITEBYTECODE :=
PIP    := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile
INTEGRATIONS := build/integrations/.installed
DOCS   := build/docs/.installed
MKDOCS := NO_MKDOCS_2_WARNING=true PYTHONPATH=build/docs:scripts $(BIN)/python -m mkdocs
VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' bids_app/__init__.py)

.PHONY: setup demo test test-slow test-nightly test-gpu container-test lint types lock image release-image image-facts boutiques metadata options docs docs-serve release-check fuzz audit clean

setup: $(SETUP)

$(SETUP): pyproject.toml setup.py requirements/constraints.txt $(wildcard bids_app/model/csrc/*)
	$(PYTHON) -m venv $(VENV)
	$(PIP) -c requirements/constraints.txt torch
	$(PIP) -c requirements/constraints.txt -e ".[dev]"
	touch $@

$(INTEGRATIONS): requirements/integrations.txt | setup
	$(PIP) --no-deps --upgrade --target build/integrations --requirement $<
	touch $@

$(DOCS): requirements/docs.txt | setup
	$(PIP) --no-deps --upgrade --target build/docs --requirement $<
	touch $@

demo: setup
	$(BIN)/neurostorm-phantom $(DEMO)/dataset --participants 2 --seed 1
	$(BIN)/neurostorm $(DEMO)/dataset $(DEMO)/out participant --model demo --work-dir $(DEMO)/work
	@echo "Reports: $(abspath $(DEMO))/out/sub-01.html and $(abspath $(DEMO))/out/sub-02.html"

test: setup lint types
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

test-slow: setup $(INTEGRATIONS) $(DOCS)
	$(BIN)/pytest -m slow --timeout 3600

# All tests that need neither a GPU nor a container, the fast ones included.
test-nightly: setup $(INTEGRATIONS) $(DOCS)
	$(BIN)/pytest -m "not gpu and not container" --timeout 3600

test-gpu: setup
	$(BIN)/pytest -m gpu

container-test: setup
	$(BIN)/pytest -m container --timeout 3600

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

lock: setup
	{ echo "# Exact versions used in the tests; written by \`make lock\`. See requirements/README.md."; \
	  $(BIN)/pip list --format=freeze | grep -viE '^(neurostorm|pip|setuptools|wheel)=' | sed 's/+cpu//'; } > requirements/constraints.new
	mv requirements/constraints.new requirements/constraints.txt
	$(BIN)/python scripts/lock_container.py

# The registry is asked for the digest of the base image, so that the label and the provenance have it.
BASE := debian:bookworm-slim
SOURCE_URL ?= $(shell sed -n 's/^Repository = "\(.*\)"/\1/p' pyproject.toml)
LABELS = --build-arg VERSION=$(VERSION) --build-arg REVISION=$$(git rev-parse HEAD) \
  --build-arg CREATED=$$(date -u +%Y-%m-%dT%H:%M:%SZ) --build-arg SOURCE_URL=$(SOURCE_URL)

image:
	docker build --tag neurostorm:$(VERSION) $(LABELS) $(BUILD_ARGS) .

release-image:
	digest=$$(docker buildx imagetools inspect $(BASE) --format '{{.Manifest.Digest}}') && test -n "$$digest" && \
	docker build --tag neurostorm:$(VERSION) $(LABELS) \
	  --build-arg BASE_IMAGE=$(BASE)@$$digest --build-arg BASE_DIGEST=$$digest $(BUILD_ARGS) .

# Copies the software bills of materials and the provenance out of the image.
image-facts:
	mkdir -p dist/image
	docker run --rm --entrypoint tar neurostorm:$(VERSION) -C /opt/neurostorm/share/neurostorm -c . | tar -x -C dist/image

boutiques: setup
	$(BIN)/neurostorm --bids-exec-spec cpu > boutiques.new && mv boutiques.new boutiques.json
	$(BIN)/neurostorm --bids-exec-spec cuda > boutiques.new && mv boutiques.new boutiques-cuda.json
	$(BIN)/python scripts/write_nipoppy.py

# Metadata for archives, catalogues and package managers; see docs/integrations.md.
metadata: setup
	$(BIN)/python scripts/write_metadata.py

# Updates the table of options in docs/usage.md.
options: setup
	$(BIN)/python -m bids_app.cli.options_table docs/usage.md

# The documentation as a site in build/site, without a network; a dead link or anchor stops it.
docs: setup $(DOCS)
	$(MKDOCS) build --strict
	@echo "Open $(abspath build/site/index.html)"

docs-serve: setup $(DOCS)
	$(MKDOCS) serve

release-check: setup
	$(BIN)/python scripts/release_check.py

fuzz: setup
	$(PIP) --no-deps --upgrade --target build/fuzz "atheris>=2.3"
	cd tests/fuzz && for target in sidecars filters adapters headers; do \
	  PYTHONPATH=../../build/fuzz ../../$(BIN)/python $$target.py -max_total_time=$(SECONDS) || exit 1; done

# Checks the packages of the image against a database of known vulnerabilities.
audit: setup
	$(PYTHON) -m venv $(VENV)-audit && $(VENV)-audit/bin/pip install --quiet --disable-pip-version-check pip-audit
	$(VENV)-audit/bin/pip-audit --strict --require-hashes --disable-pip --requirement requirements/container.lock

clean:
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
