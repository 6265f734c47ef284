# `make demo` shows skep; `make test` runs every test. Both install what is missing (Debian or Ubuntu, by package name).
# Everything is built as the calling user; only what makes namespaces runs as root.

CARGO ?= $(shell command -v cargo || echo $(HOME)/.cargo/bin/cargo)
SUDO  := $(if $(filter 0,$(shell id -u)),,sudo)
ARGS  ?=
SKEP  := target/debug/skep

.PHONY: demo test test-engine test-upgrade soak bench build lint deny tools test-vm ebpf help

demo: tools build ## three hosts on this machine, a service, a port on every node, names, a cut (ARGS="--once --json")
	@$(SUDO) $(SKEP) demo $(ARGS)

build: tools
	@$(CARGO) build --locked --quiet

test: tools ## every test; what needs root runs as root
	@config/run-tests

test-engine: tools ## the tests that run containers, on a current Docker Engine (FILTER="swarm:: agent:: ports::")
	@config/test-engine $(FILTER)

test-upgrade: tools ## three nodes from the release before to this one and back, under load (SKEP_PREVIOUS_COMMIT=b71afbd)
	@config/test-upgrade

soak: tools ## ten minutes of tasks that come, go and die under load, a host cut in the middle (SKEP_SOAK_SECONDS=60 for a short one)
	@config/soak

lint: ## formatting and clippy
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings

deny: ## licences, bans and sources of every dependency
	@command -v cargo-deny >/dev/null || $(CARGO) install cargo-deny --locked
	$(CARGO) deny check licenses bans sources

test-vm: tools build ## kernel WireGuard and the eBPF datapath on an older kernel, in an emulated Debian
	@tests/vm/run

bench: tools ## what the mesh costs, as ratios beside peers: tests/bench/RESULTS.md
	@config/run-bench

ebpf: ## builds the kernel programs again (ebpf/skep.o is kept in git; nothing else needs this)
	@config/install-ebpf-tools
	@ebpf/build

tools: ## installs what building, the demo and the tests need
	@config/install-tools

help:
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'
