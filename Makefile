# The ten commands. `make help` lists them; `make run` and `make test` need nothing else first.

SHELL := /bin/bash
# Some services and containers run without HOME.
export HOME ?= $(shell getent passwd $$(id -u) | cut -d: -f6)
# Where rustup puts cargo, so that a toolchain installed by `setup` is found at once.
export PATH := $(or $(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH)

DATA ?= larder-data
LISTEN ?= 127.0.0.1:7300
WORKERS ?= 3
ZONES ?= 1
ENGINES := $(CURDIR)/target/engines
# Engines that tests use, unpacked below target/engines by scripts/engines.sh.
export LARDER_TEST_ENGINES := $(ENGINES)

.DEFAULT_GOAL := help
.PHONY: help setup engines build run stop test check unit e2e conformance sim-long chaos stories sequences bench images deny fmt clean \
	bench-changes bench-slots \
	test-kubernetes bench-kubernetes testbed-setup testbed-build testbed-up testbed-larder testbed-down testbed-check \
	testbed-smoke

help: ## List the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## Install what is missing: system packages, Rust, engines (says what; sudo where not root)
	@scripts/setup.sh

engines: setup ## Unpack the pinned engines for tests below target/engines
	@scripts/engines.sh $(ENGINES)

build: setup ## Build the release binary
	cargo build --release --locked --package larder

run: build ## Start Larder on this machine (DATA=folder LISTEN=addr:port STOP=1 to stop instances on exit)
	@scripts/engines.sh $(ENGINES) || echo "engines: the extra engines could not be fetched; Larder offers what the system has" >&2
	@echo 'For the commands below, in another terminal first: export PATH="$(CURDIR)/target/release:$$PATH"'
	@LARDER_ENGINE_DIRS="$(ENGINES)" exec target/release/larder serve --data "$(DATA)" --listen "$(LISTEN)" $(if $(STOP),--stop-instances)

stop: ## Stop every process of DATA that outlived `run`: keeper, agents, relays, servers. Data stays
	target/release/larder keeper --data "$(DATA)" --stop

test: engines ## Run every check that CI runs
	@scripts/test.sh

test-kubernetes: engines testbed-setup ## Tests on a real Kubernetes: a test bed of its own, or that of LARDER_TEST_KUBECONFIG=FILE
	@scripts/test-kubernetes.sh

check: setup ## Formatting, lints, layering
	@scripts/test.sh lint

unit: engines ## Unit and component tests
	@scripts/test.sh unit

e2e: engines ## End-to-end stories on real servers
	@scripts/test.sh e2e

conformance: engines ## The suite that every backend passes, on sim and local (Kubernetes: test-kubernetes)
	cargo build --locked --package larder
	LARDER_TEST_BINARY=$(CURDIR)/target/debug/larder cargo test --locked -p larder-cluster -p larder-cluster-local --test sim_conformance --test conformance

sim-long: setup ## 10,000 seeded fault runs of election and planner in the simulator
	LARDER_SIM_SEEDS=10000 cargo test --locked -p larder-cluster -p larder-reconcile --test election_sim --test sim_fleet -- --nocapture

chaos: engines ## 50 random kills of serve during random operations, long form
	cargo build --locked --package larder
	LARDER_CHAOS_KILLS=50 cargo test --locked -p larder-e2e --test chaos -- --nocapture

stories: engines ## The stories of changes once on each engine
	cargo build --locked -p larder -p larder-agent
	for engine in redis-6.2 redis-7.0 valkey-8.0 valkey-9.1; do echo "== $$engine"; LARDER_TEST_ENGINE=$$engine \
		cargo test --locked -p larder-e2e --test changes --test scale --test chains --test accounts --test read_write \
		--test cluster --no-fail-fast -- --test-threads=3 || exit 1; done

sequences: engines ## 100 random sequences of changes and kills on real servers
	cargo build --locked -p larder -p larder-agent
	LARDER_SEQUENCES=50 cargo test --locked -p larder-e2e --test sequences -- --nocapture

bench: build ## Measure the figures of docs/measurements.md
	cargo run --locked --release -p larder-e2e --bin figures -- target/release/larder

bench-changes: build ## Measure what planned changes cost a writing client: 20 runs of each (10 of upgrades) on two engines (half an hour)
	cargo run --locked --release -p larder-e2e --bin figures-changes -- target/release/larder

bench-slots: engines setup ## Measure moves of slots against `redis-cli --cluster reshard` and the engine alone
	cargo build --locked --release -p larder-agent --example agent
	cargo bench --locked -p larder-agent --bench slot_moves

bench-kubernetes: engines testbed-setup ## Measure starts and write gaps of instances in pods, on a test bed of its own
	@scripts/test-kubernetes.sh figures

images: build engines ## Build the images of all engines and of the control plane into target/images (buildah, no registry)
	@scripts/images.sh

testbed-setup: ## Install what the test bed needs and is missing: containerd, runc, CNI plugins, Go (says what)
	@scripts/testbed-setup.sh

testbed-build: testbed-setup ## Build the test bed's program into its cache (once per version, minutes)
	@scripts/testbed.sh build

testbed-up: testbed-setup ## Start a real Kubernetes here (WORKERS=3 ZONES=1); kubeconfig at target/testbed/kubeconfig
	@scripts/testbed.sh up --workers $(WORKERS) --zones $(ZONES) --audit

testbed-larder: engines testbed-setup ## Install Larder by its chart on the test bed, or upgrade it there; says how to reach it
	@scripts/testbed-larder.sh

testbed-down: ## End it; nothing stays on the machine but its logs
	@scripts/testbed.sh down

testbed-check: testbed-setup ## Formatting, vet and unit tests of the test bed
	@scripts/testbed-check.sh

testbed-smoke: testbed-setup ## Check every promise of the test bed on one of its own (three minutes)
	@testbed/smoke.sh

deny: setup ## Licences and advisories of dependencies (installs cargo-deny when missing)
	@command -v cargo-deny >/dev/null || cargo install --locked cargo-deny
	cargo deny check licenses bans sources

fmt: ## Format
	cargo fmt --all

clean: ## Remove build results (not DATA)
	cargo clean
