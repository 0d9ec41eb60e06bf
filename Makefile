# Everything a person does with this repository. `make help` lists it.
#
# What is built or fetched goes into $XDG_CACHE_HOME/collect-operator (~/.cache/collect-operator), never into the checkout.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/collect-operator
export CARGO_TARGET_DIR ?= $(CACHE)/target
DENY_VERSION := 0.20.2
DENY := $(CACHE)/tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny
# The real node where it can be had, else the process node.
CLUSTER ?= demo
# How large a benchmark is.
export SHARDS ?= 20000
export PARALLELISM ?= 300
export HISTORY ?= 100
NODE ?= $(if $(filter 0Linux,$(shell id -u)$(shell uname -s)),real,process)

.PHONY: help
help: ## List the targets.
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Collect a province on a local Kubernetes, from nothing to the report. SCALE=full: the whole country. KUBE_CONTEXT=name: that cluster.
	@SCALE='$(SCALE)' KUBE_CONTEXT='$(KUBE_CONTEXT)' CLUSTER='$(CLUSTER)' NODE='$(NODE)' tests/demo/demo.sh

.PHONY: test
test: ## Run every test: unit, property, API, end-to-end. Prints what it skipped and why.
	@tests/run.sh

.PHONY: bench-scale
bench-scale: ## Benchmark the operator with SHARDS=20000 played collectors, PARALLELISM=300 at once, HISTORY=100 of each task stay, against as many raw Jobs (RAW=n: n of them). BRANCHES=n: below n tasks. STOCK=1: controllers with the limits that Kubernetes ships. COLLECT_BIN_DIR: programs that are built.
	@tests/prerequisites.sh cargo go cc c++ cmake flock
	triple=$$(uname -m)-unknown-linux-gnu
	RUSTFLAGS='-C target-feature=+crt-static' cargo build --release --locked --target "$$triple" \
	  $(if $(COLLECT_BIN_DIR),,-p collect-operator -p collect-worker) -p collect-e2e --bins
	COLLECT_E2E_STOCK_CONTROLLERS='$(STOCK)' COLLECT_BIN_DIR="$${COLLECT_BIN_DIR:-$$CARGO_TARGET_DIR/$$triple/release}" "$$CARGO_TARGET_DIR/$$triple/release/bench-scale"
.PHONY: chaos
chaos: ## Collect the whole country again and again on a real node while things are killed at random. SEED, KILLS=200, MINUTES=30.
	@tests/prerequisites.sh cargo go cc c++ cmake flock npm openssl
	SEED='$(SEED)' KILLS='$(KILLS)' MINUTES='$(MINUTES)' cargo run --quiet --locked -p collect-e2e --bin chaos

.PHONY: lint
lint: ## Check formatting, clippy, generated files, chart, scripts, dependencies.
	@tests/lint.sh

.PHONY: fmt
fmt: ## Format the code.
	@cargo fmt --all
	gofmt -w tests/cluster tests/charts tests/dashboards tests/docs tests/otel tests/release deploy/images deploy/sbom

.PHONY: build
build: ## Build all programs for development.
	@tests/prerequisites.sh cargo cc c++ cmake
	cargo build --workspace --locked

.PHONY: images
images: ## Build the operator's and the worker's image as OCI archives; prints digests and sizes. IMAGE_REPO, IMAGE_TAG, DIST.
	@deploy/build-images.sh operator worker

.PHONY: release
release: ## Make all files of a release and their checksums; nothing is sent anywhere. VERSION, DIST=folder, RELEASE_URL, SIGN_KEY=file.
	@VERSION='$(VERSION)' DIST='$(DIST)' RELEASE_URL='$(RELEASE_URL)' SIGN_KEY='$(SIGN_KEY)' deploy/release.sh

.PHONY: release-test
release-test: ## Make a release of the working tree twice and check every file with the tools of those who get it.
	@tests/prerequisites.sh cargo go cc c++ cmake flock git ssh-keygen
	deploy/programs.sh compile
	KUBE="$$(tests/cluster/build.sh kube)"
	COLLECT_BIN_DIR="$$(deploy/programs.sh folder)"
	export KUBE COLLECT_BIN_DIR
	cd tests/release
	CGO_ENABLED=0 GOTOOLCHAIN=local go test -trimpath -count=1 -v ./...

.PHONY: crds
crds: ## Generate the custom resource definitions from src/api, for crds/ and the chart.
	@cargo run --quiet --locked -p collect-api --example crds -- crds
	mkdir -p charts/collect-operator/files/crds
	rm -f charts/collect-operator/files/crds/*.yaml
	cp crds/*.yaml charts/collect-operator/files/crds/

.PHONY: docs
docs: ## Write what is generated in docs/: the tables of concepts, the metrics and the plugin's commands from the code, the API reference from crds/, the rights from the chart.
	@tests/prerequisites.sh cargo go
	cargo run --quiet --locked -p collect-core --example tables -- docs/concepts
	UPDATE=1 cargo test --quiet --locked -p collect-operator the_metrics_reference_is_current
	UPDATE=1 cargo test --quiet --locked -p collect-cli the_reference_of_the_plugin_is_current
	cd tests/docs
	CGO_ENABLED=0 GOTOOLCHAIN=local go run -trimpath -tags grpcnotrace . write

.PHONY: docs-check
docs-check: ## Check that the documentation names only what exists: links, YAML, fields, commands, reasons; and that what is generated is current.
	@tests/prerequisites.sh go
	cd tests/docs
	CGO_ENABLED=0 GOTOOLCHAIN=local go test -trimpath -tags grpcnotrace -count=1 ./...

.PHONY: dashboards
dashboards: ## Copy dashboards and alert rules into the chart.
	@mkdir -p charts/collect-operator/files/alerts charts/collect-operator/files/dashboards
	rm -f charts/collect-operator/files/alerts/*.yaml charts/collect-operator/files/dashboards/*.json
	cp deploy/alerts/*.rules.yaml charts/collect-operator/files/alerts/
	cp deploy/dashboards/*.json charts/collect-operator/files/dashboards/

.PHONY: dashboards-check
dashboards-check: ## Check dashboards, alert rules and runbooks against each other and the metrics reference, with Prometheus' own parser.
	@tests/prerequisites.sh go promtool amtool
	cd tests/dashboards
	CGO_ENABLED=0 GOTOOLCHAIN=local go test -trimpath -count=1 ./...

.PHONY: chart-test
chart-test: ## Render the chart with the real helm and check what comes out.
	@tests/prerequisites.sh go cc
	HELM="$$(tests/cluster/build.sh kube) helm"
	export HELM
	cd tests/charts
	CGO_ENABLED=0 GOTOOLCHAIN=local go test -trimpath -tags grpcnotrace -count=1 ./...

.PHONY: cargo-deny
cargo-deny: $(DENY) ## Check licences, banned crates and sources of the dependencies.
	@"$(DENY)" --log-level error --all-features check bans licenses sources

$(DENY):
	@tests/prerequisites.sh cargo cc
	echo "building cargo-deny $(DENY_VERSION) into $(CACHE)/tools (minutes, once)" >&2
	cargo install cargo-deny --version $(DENY_VERSION) --locked --debug --no-default-features --quiet --root "$(CACHE)/tools/cargo-deny-$(DENY_VERSION)" --target-dir "$(CACHE)/tools/build"
	rm -rf "$(CACHE)/tools/build"

.PHONY: cluster-up
cluster-up: ## Start a local Kubernetes. CLUSTER=demo, NODE=real|process|scripted|none.
	@tests/prerequisites.sh go cc flock
	tests/cluster/cluster up --name '$(CLUSTER)' --node '$(NODE)'

.PHONY: cluster-status
cluster-status: ## Show the local Kubernetes and what it runs. CLUSTER=demo.
	@tests/cluster/cluster status --name '$(CLUSTER)'

.PHONY: cluster-down
cluster-down: ## Take a local Kubernetes down; nothing is left. CLUSTER=demo, or CLUSTER=--all.
	@tests/cluster/cluster down $(if $(filter --all,$(CLUSTER)),--all,--name '$(CLUSTER)')

.PHONY: clean
clean: ## Take all local clusters down and remove what was built (not what was fetched, nor the Kubernetes programs).
	@tests/cluster/cluster down --all || true
	rm -rf "$(CARGO_TARGET_DIR)" "$(CACHE)/dist" target
