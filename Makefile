PYTHON ?= python3
VENV = .venv/bin
# As in the image: `make run` and the tests look up names as production does.
export EVENTLET_NO_GREENDNS = yes

.PHONY: run dev infrastructure check test-rules test coverage test-docker test-upgrade test-all bench lint docs client lock clean

# The whole shop on this machine, until Ctrl-C.
run: .venv/installed
	@$(VENV)/python -m dev.run

# The same with hot reload of the storefront.
dev: .venv/installed
	@$(VENV)/python -m dev.run dev

# The same without the services.
infrastructure: .venv/installed
	@$(VENV)/python -m dev.run infrastructure

# One service beside `make infrastructure`, or the gateway: `make orders`.
PROCESSES = $(patsubst services/%.py,%,$(shell grep -l '^class .*(Service):' services/*.py)) gateway
.PHONY: $(PROCESSES)
$(PROCESSES): .venv/installed
	@$(VENV)/python -m dev.run_service $@

# Lint, and the tests that need no server: a minute at most, before each commit.
check: .venv/installed
	@$(MAKE) --silent --jobs=2 --output-sync=target lint test-rules

test-rules: export PYTHONWARNINGS = ignore:::nameko.cli.commands,ignore:::nameko.containers
test-rules: .venv/installed
	@$(VENV)/nameko test -q -m "not server"

# All tests, on servers of their own, so a running shop is not affected. TESTS=tests/orders runs some,
# TESTS=frontend the frontend's.
TESTS ?=
# Hides Eventlet's deprecation warning, which appears where it is imported first.
test: export PYTHONWARNINGS = ignore:::nameko.cli.commands,ignore:::nameko.containers
test: .venv/installed
	@$(VENV)/python -m dev.test $(TESTS)

# All tests, and the lines of Python that none of them reaches.
coverage: export PYTHONWARNINGS = ignore:::nameko.cli.commands,ignore:::nameko.containers,ignore:::coverage.collector
coverage: .venv/installed
	@$(VENV)/python -m dev.test --coverage $(TESTS)

# Runs docker-compose.yml for some minutes, on an engine of its own if no Docker answers.
test-docker: export PYTHONWARNINGS = ignore:::nameko.cli.commands,ignore:::nameko.containers
test-docker: .venv/installed
	@$(VENV)/nameko test tests/docker

# An upgrade from the release FROM, which may be any commit, and the way back: old and new replicas side by side, on one
# broker and the same databases. Some minutes.
FROM ?= v0.1.0
test-upgrade: export PYTHONWARNINGS = ignore:::nameko.cli.commands,ignore:::nameko.containers
test-upgrade: export FROM := $(FROM)
test-upgrade: .venv/installed
	@$(VENV)/python -m dev.test tests/upgrade

# All tests, and a picture of every page to look at.
test-all: test
	@cd frontend && npx playwright test --project=screenshots

# Measures requests a second and each process's CPU, on a shop of its own, and code that is not ours beside it.
# SCENARIOS="floors orders" runs some, BENCH_SECONDS=20 measures each row for longer than 5 seconds, COMPARE=file.json
# prints what changed since an earlier run, PROFILE=orders shows where the CPU of a scenario goes, and CHECK=2 fails if a
# must of benchmarks/musts.py is missed by more than twice. Only by name: SCENARIOS=growth, and SCENARIOS=soak, which
# takes SOAK_MINUTES=20.
SCENARIOS ?=
bench: .venv/installed .venv-peers/installed
	@$(VENV)/python -m benchmarks $(SCENARIOS)

lint: .venv/installed
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports
	@$(VENV)/python -m dev.services
	@git ls-files '*Dockerfile' | xargs $(VENV)/hadolint
	@git grep -lE '^#!.*sh$$' | xargs $(VENV)/shellcheck
	@$(VENV)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose.yml
	@$(VENV)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(VENV)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(VENV)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/*.yml
	@PATH=$(VENV):$$PATH jactionlint --no-hints
	@$(VENV)/zizmor --quiet --offline .
	@$(VENV)/python -m dev.chart
	@$(VENV)/python -m dev.npm
	@cd frontend && npm run --silent lint

# The site of all pages and of the kit's reference, in site/html. A broken link fails it.
docs: .venv-docs/installed
	@.venv-docs/bin/python -m dev.docs

# Generates the frontend's types of the HTTP API. Run it after a change of the API.
client: export PYTHONWARNINGS = ignore:::nameko.extensions
client: .venv/installed
	@$(VENV)/python -m dev.client

.venv/installed: requirements.txt requirements-dev.txt kit/pyproject.toml
	@$(PYTHON) dev/make_venv.py

.venv-docs/installed: requirements-docs.txt
	@$(PYTHON) dev/make_venv.py .venv-docs requirements-docs.txt

.venv-peers/installed: benchmarks/peers/requirements.txt
	@$(PYTHON) dev/make_venv.py .venv-peers benchmarks/peers/requirements.txt

# Run it after a change in requirements*.in. The locks don't name the environment's package index.
lock: .venv/installed
	@$(VENV)/pip install --quiet pip-tools
	@for name in requirements requirements-dev requirements-docs benchmarks/peers/requirements; do \
		$(VENV)/pip-compile --quiet --generate-hashes --strip-extras --allow-unsafe --no-header \
		--no-emit-index-url --no-emit-find-links --no-emit-trusted-host $$name.in; done

# Deletes everything that `make` made, including the demo shop's data.
clean:
	rm -rf .venv .venv-docs .venv-peers .cache site .local .coverage* .*_cache .hypothesis kit/src/*.egg-info \
		dev/mail/node_modules gateway/docs/node_modules frontend/node_modules frontend/dist frontend/dist-new frontend/screenshots frontend/test-results
