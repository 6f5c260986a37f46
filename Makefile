# The few commands that a person types. Each does its own set-up.

CARGO ?= cargo
TARGET_DIR := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)

.DEFAULT_GOAL := help
.PHONY: help demo demo-fleet test fleet-chaos simulate exhaustive vm-test vm-series bench-payload fuzz stage0 uefi lint setup

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: setup ## Update a disk image end to end, then roll it back (no root)
	$(CARGO) build --release --bins -p payload -p gptprio -p omaha-server -p update-engine
	tests/demo/demo.sh $(TARGET_DIR)/release

demo-fleet: setup ## Five machines reboot two at a time, one fails, the others wait (no root)
	$(CARGO) build --workspace --bins
	$(TARGET_DIR)/debug/demo_fleet

test: setup ## Build everything and run all tests
	CARGO="$(CARGO)" tests/run-all.sh

fleet-chaos: setup ## Twenty machines, three etcd nodes, STEPS faults (default 2000)
	FLEET_STEPS=$(or $(STEPS),2000) $(CARGO) test -p system-tests --test reboot_fleet -- --nocapture no_fault

simulate: setup ## SEEDS fleets of ten thousand machines with faults (default 1000)
	LOCKSMITH_SIM_SEEDS=$(or $(SEEDS),1000) $(CARGO) test --release -p locksmith --test simulation -- --ignored --nocapture

exhaustive: setup ## Every order of events of a few machines, with faults
	$(CARGO) test --release -p locksmith --lib exhaustive -- --ignored --nocapture

vm-test: setup ## Virtual machines that boot, update and fall back: a short selection
	$(CARGO) test -p vm-lab -- --nocapture

vm-series: setup ## All of it, N times (default 20); PARTS="updates troubles tables cuts kexec uefi"
	$(CARGO) build --workspace --bins
	$(TARGET_DIR)/debug/vm_series $(or $(N),20) $(PARTS)

bench-payload: setup ## Deltas and full payloads against other tools; IMAGES, PAIRS, PEERS, CORPUS, JSON
	tests/corpus/make-corpus.sh
	$(CARGO) build --release -p payload -p system-tests --bin payload --bin bench_payload
	$(TARGET_DIR)/release/bench_payload

fuzz: setup ## Mutated inputs for a parser, or all; TARGET, RUNS (default 1000000)
	$(CARGO) run --release -p payload --features fuzzing --example fuzz -- "$(or $(TARGET),all)" $(or $(RUNS),1000000)

HOST := $(shell rustc -vV | sed -n 's/^host: //p')
ARCH = $(firstword $(subst -, ,$(HOST)))

stage0: setup ## Boot selector as an initramfs; MODULES="A.ko B.ko", SETTINGS=gptprio.conf, ARCH=aarch64
	$(call has-target,$(STAGE0_TARGET))
	mkdir -p $(TARGET_DIR)/stage0
	$(CARGO) build --release -p gptprio --bin gptprio
	RUSTFLAGS='-C target-feature=+crt-static' $(CARGO) build --profile dist --target $(STAGE0_TARGET) \
		-p gptprio --no-default-features --features init --bin gptprio-init
	cp $(TARGET_DIR)/$(STAGE0_TARGET)/dist/gptprio-init $(TARGET_DIR)/stage0/
	$(TARGET_DIR)/release/gptprio initramfs --init $(TARGET_DIR)/stage0/gptprio-init \
		$(addprefix --module ,$(MODULES)) $(addprefix --settings ,$(SETTINGS)) \
		$(TARGET_DIR)/stage0/initramfs.cpio

uefi: setup ## Boot selector as a program of UEFI firmware, target/uefi/BOOTX64.EFI; ARCH=aarch64
	$(call has-target,$(ARCH)-unknown-uefi)
	mkdir -p $(TARGET_DIR)/uefi
	$(CARGO) build --profile dist --target $(ARCH)-unknown-uefi -p gptprio-uefi
	cp $(TARGET_DIR)/$(ARCH)-unknown-uefi/dist/gptprio-uefi.efi $(TARGET_DIR)/uefi/$(UEFI_PROGRAM)

STAGE0_TARGET := $(if $(filter $(ARCH)-%,$(HOST)),$(HOST),$(ARCH)-unknown-linux-gnu)
UEFI_PROGRAM := BOOT$(if $(filter aarch64,$(ARCH)),AA64,X64).EFI

# Whether Rust's library for the target $(1) is there.
define has-target
$(if $(filter x86_64 aarch64,$(ARCH)),,$(error ARCH is x86_64 or aarch64, not $(ARCH)))
@folder=$$(rustc --print target-libdir --target $(1)) && test -d "$$folder" || { \
	echo "The target is missing; install it: rustup target add $(1)" >&2; exit 1; }
endef

lint: setup ## Formatting, clippy and documentation, warnings are errors
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --features gptprio/init -- -D warnings
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps

setup: ## Install missing Debian packages (says which and why)
	@.ci/setup
