# `make demo` and `make test` each set up what they need first; see scripts/setup.sh.

# The build cache stands outside the clone, so that the next clone starts warm.
CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/dinnerbell
export CARGO_TARGET_DIR ?= $(CACHE)/target

SEED ?=
MINUTES ?= 2

.PHONY: help demo test chaos check setup setup-demo jars

help:
	@echo "make demo    shows the job at work: in-process broker, private Postgres (ARGS='--once' stops after the last campaign)"
	@echo "make test    runs every test, on a real Kafka and a real Postgres (ARGS='name' runs those of that name)"
	@echo "make chaos   kills replicas and breaks servers for MINUTES=2, then checks every promise (SEED=, ARGS='--help')"
	@echo "make check   formatting and lints"

demo: setup-demo
	cargo run -- demo $(ARGS)

test: setup jars
	cargo test --features failpoints $(ARGS)

chaos: setup jars
	cargo test --features failpoints --test chaos -- --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

check:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features failpoints -- -D warnings
	cargo clippy --test chaos --features failpoints -- -D warnings

setup:
	@scripts/setup.sh test

setup-demo:
	@scripts/setup.sh demo

jars: setup
	@scripts/kafka-jars.sh
