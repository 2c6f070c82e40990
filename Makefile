# The commands of this project. `make demo` and `make test` are all that a newcomer needs.
CARGO ?= cargo
SHELL := /bin/bash

.PHONY: help demo test check bench instructions fuzz envoy tools fmt

help: ## say what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

demo: ## build everything and show the main job behind a real Envoy (Ctrl-C ends it)
	@echo "==> building Pointsman: four minutes or more the first time; the last step alone takes a minute or two"
	@$(CARGO) build --release --locked
	@echo "==> looking for Envoy"
	@envoy="$$(scripts/get-envoy)" && exec ./target/release/pointsman demo --envoy "$$envoy" $(DEMO_ARGS)

test: envoy tools ## run every test, fetching what the tests need
	@ENVOY_BIN="$$(scripts/get-envoy)" PROMTOOL_BIN="$$(scripts/get-promtool)" PROMETHEUS_BIN="$$(scripts/get-prometheus)" \
	  KUBE_APISERVER_BIN="$$(scripts/get-kube kube-apiserver)" ETCD_BIN="$$(scripts/get-kube etcd)" HELM_BIN="$$(scripts/get-kube helm)" \
	  $(CARGO) test --locked

check: ## formatting, lints, documentation, dependency policy
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --no-deps --document-private-items
	$(CARGO) check --locked --manifest-path fuzz/Cargo.toml --target-dir target
	scripts/cargo-deny check bans licenses sources

bench: ## measure the whole picker beside an echo, behind Envoy and step by step; writes docs/benchmarks.md
	@ENVOY_BIN="$$(scripts/get-envoy)" scripts/bench

# ONLY=TEXT takes the workloads with TEXT in their name, ACCEPT=1 writes what is found into the table.
instructions: ## count instructions and allocations of the hot path and hold them against a table
	@valgrind="$$(scripts/get-valgrind)" && $(CARGO) bench --locked --bench instructions -- \
	  --valgrind "$$valgrind" $(if $(ONLY),--only '$(ONLY)') $(if $(ACCEPT),--accept)

# Seconds for each fuzz target, and the targets; see fuzz/README.md.
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?= json_body sse metrics_text config endpoints_file extproc_message http_answer kubernetes_objects
fuzz: export RUSTC_BOOTSTRAP = 1
fuzz: ## run every fuzz target for FUZZ_SECONDS seconds
	@command -v cargo-fuzz >/dev/null || $(CARGO) install cargo-fuzz --locked
	@fuzz/seed-corpus
	$(CARGO) fuzz build
	@set -e; for target in $(FUZZ_TARGETS); do \
	  echo "==> $$target for $(FUZZ_SECONDS) s"; \
	  dict=""; [ ! -f fuzz/dict/$$target.dict ] || dict="-dict=fuzz/dict/$$target.dict"; \
	  $(CARGO) fuzz run $$target -- -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=10 -print_final_stats=1 $$dict; \
	done

envoy: ## fetch the Envoy that the tests and the demo use
	@scripts/get-envoy >/dev/null

tools: ## fetch promtool, Prometheus, kube-apiserver, etcd and Helm
	@scripts/get-promtool >/dev/null
	@scripts/get-prometheus >/dev/null
	@scripts/get-kube kube-apiserver >/dev/null
	@scripts/get-kube etcd >/dev/null
	@scripts/get-kube helm >/dev/null

fmt: ## format the code
	$(CARGO) fmt --all
