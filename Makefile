PYTHON ?= python3
VENV = .venv/bin

.PHONY: run dev infrastructure test coverage test-docker test-all bench lint docs client lock clean

# The whole shop on this machine, until Ctrl-C.
run: .venv/installed
	@$(VENV)/python -m dev.run

# The same with hot reload of the storefront.
dev: .venv/installed
	@$(VENV)/python -m dev.run dev

# The same without the services, which are then run by hand, in a debugger or from an editor.
infrastructure: .venv/installed
	@$(VENV)/python -m dev.run infrastructure

# All tests, on infrastructure of their own: beside a running shop, too. TESTS=tests/orders runs some,
# TESTS=frontend the frontend's.
TESTS ?=
# Eventlet's deprecation warning, wherever it is imported first.
test: export PYTHONWARNINGS = ignore:::nameko.cli.commands,ignore:::nameko.containers
test: .venv/installed
	@$(VENV)/python -m dev.test $(TESTS)

# And what of the Python code they never reach.
coverage: export PYTHONWARNINGS = ignore:::nameko.cli.commands,ignore:::nameko.containers,ignore:::coverage.collector
coverage: .venv/installed
	@$(VENV)/python -m dev.test --coverage $(TESTS)

# docker-compose.yml for real, on an engine of its own where none answers: some minutes.
test-docker: export PYTHONWARNINGS = ignore:::nameko.cli.commands,ignore:::nameko.containers
test-docker: .venv/installed
	@$(VENV)/nameko test tests/docker

# And pictures of every page, to be looked at.
test-all: test
	@cd frontend && npx playwright test --project=screenshots

# What this machine's shop can do, on one of its own, and what each process pays for it. SCENARIOS="orders logins" runs
# some, BENCH_SECONDS=20 measures each of their rows for longer than 5 seconds.
SCENARIOS ?=
bench: .venv/installed
	@$(VENV)/python -m benchmarks $(SCENARIOS)

lint: .venv/installed
	@$(VENV)/ruff check .
	@$(VENV)/ruff format --check .
	@$(VENV)/mypy
	@$(VENV)/lint-imports
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

# The frontend's types of the HTTP API, after a change of the API.
client: export PYTHONWARNINGS = ignore:::nameko.extensions
client: .venv/installed
	@$(VENV)/python -m dev.client

.venv/installed: requirements.txt requirements-dev.txt kit/pyproject.toml
	@$(PYTHON) dev/make_venv.py

.venv-docs/installed: requirements-docs.txt
	@$(PYTHON) dev/make_venv.py .venv-docs requirements-docs.txt

# After a change in requirements*.in. The environment's package index is not written down.
lock: .venv/installed
	@$(VENV)/pip install --quiet pip-tools
	@for name in requirements requirements-dev requirements-docs; do $(VENV)/pip-compile --quiet --generate-hashes --strip-extras \
		--allow-unsafe --no-header --no-emit-index-url --no-emit-find-links --no-emit-trusted-host $$name.in; done

# Forgets all that `make` made, the demo shop's data among it.
clean:
	rm -rf .venv .venv-docs .cache site .local .coverage* .*_cache .hypothesis kit/src/*.egg-info dev/mail/node_modules \
		gateway/docs/node_modules frontend/node_modules frontend/dist frontend/dist-new frontend/screenshots frontend/test-results
