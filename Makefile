# The few commands that a person types. Each does its own set-up.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

.DEFAULT_GOAL := help
.PHONY: help demo test lint setup

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Update a disk image end to end, then roll it back (no root)
	$(CARGO) build --release --bins -p payload -p gptprio -p omaha-server -p update-engine
	tests/demo/demo.sh $(TARGET_DIR)/release

test: setup ## Build everything and run all tests
	$(CARGO) build --workspace --bins
	$(CARGO) test --workspace --no-fail-fast

lint: setup ## Formatting, clippy and documentation, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps

setup: ## Install missing Debian packages (says which and why)
	@.ci/setup
