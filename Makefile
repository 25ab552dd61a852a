# `make demo` and `make test` each set up what they need first; see scripts/setup.sh.

# The build cache stands outside the clone, so that the next clone starts warm.
CACHE := $(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME),$(HOME)/.cache)/dinnerbell
export CARGO_TARGET_DIR ?= $(CACHE)/target

SEED ?=
MINUTES ?= 2

.PHONY: help demo test chaos mutants check bench profile instructions fuzz deny setup setup-demo jars

help:
	@echo "make demo    shows the job at work: in-process broker, private Postgres (ARGS='--once' stops after the last campaign)"
	@echo "make test    runs every test, on a real Kafka and a real Postgres (ARGS='name' runs those of that name)"
	@echo "make chaos   kills replicas and breaks servers for MINUTES=2, then checks every promise (SEED=, ARGS='--help')"
	@echo "make mutants takes the guards of delivery away, one by one, and shows that tests notice (ARGS='name' for one)"
	@echo "make check   formatting, lints, and that the mutants still find their guards"
	@echo "make bench   every bench against its bar, into $(BENCH_REPORT) (ARGS='--workload fan-out --runs 3' chooses, and leaves the stages out)"
	@echo "make profile a flame graph of the job under load, into $(FLAMES)"
	@echo "make instructions  instructions a row from decode to encode, and a message decoded, without servers (callgrind)"
	@echo "make fuzz    random bytes against decoder and stored chunks, each for two minutes (ARGS=600: seconds; needs nightly)"
	@echo "make deny    licenses, sources and bans of dependencies (needs cargo-deny)"

demo: setup-demo
	cargo run -- demo $(ARGS)

test: setup jars
	cargo test --features failpoints $(ARGS)

chaos: setup jars
	cargo test --features failpoints --test chaos -- --minutes $(MINUTES) $(if $(SEED),--seed $(SEED)) $(ARGS)

mutants: setup jars
	scripts/mutants.sh $(ARGS)

check:
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --all-targets --features failpoints -- -D warnings
	cargo clippy --test chaos --features failpoints -- -D warnings
	scripts/mutants.sh --check

# Without a sanitizer the targets build on a plain nightly in minutes; what they look for are panics, wrong values and
# memory without bound; views and texts that are made unchecked are checked by assertions. Not optimised (-D), for those
# assertions, and because cargo-fuzz compiles each crate in one unit, which takes Arrow the better part of an hour. What is found
# on the way stays in the cache; fuzz/corpus is only read.
fuzz: export CARGO_TARGET_DIR = $(CACHE)/fuzz
fuzz:
	mkdir -p $(CACHE)/fuzz/corpus/decode $(CACHE)/fuzz/corpus/stored_batch
	cargo +nightly fuzz run -D -s none decode $(CACHE)/fuzz/corpus/decode fuzz/corpus/decode -- -max_total_time=$(or $(ARGS),120) -max_len=4200 -rss_limit_mb=2048
	cargo +nightly fuzz run -D -s none stored_batch $(CACHE)/fuzz/corpus/stored_batch fuzz/corpus/stored_batch -- -max_total_time=$(or $(ARGS),120) -max_len=8192 -rss_limit_mb=2048

deny:
	cargo deny check bans licenses sources
	cargo deny --manifest-path fuzz/Cargo.toml check sources

# Release builds: the first one compiles DataFusion and takes a while.
BENCH_REPORT := target/bench-report.md
FLAMES := target/fan-out.svg

bench: setup jars
	@mkdir -p target
	cargo bench --bench end_to_end -- --report $(CURDIR)/$(BENCH_REPORT) $(ARGS)
ifeq ($(ARGS),)
	cargo bench --bench stages >target/bench-stages.txt
	@{ printf '\nStages:\n\n'; awk -f scripts/criterion-table.awk target/bench-stages.txt; \
	   printf '\n'; grep '^|' target/bench-stages.txt; } >>$(BENCH_REPORT)
endif
	@echo "$(BENCH_REPORT)"

# Needs perf (linux-perf) and inferno (cargo install inferno).
profile: setup jars
	@mkdir -p target
	cargo bench --bench end_to_end -- --workload fan-out --runs 1 --perf $(CURDIR)/target/fan-out.perf
	perf script -i target/fan-out.perf | inferno-collapse-perf | inferno-flamegraph --title 'dinnerbell, fan-out' >$(FLAMES)
	@echo "$(FLAMES)"

# Instruction counts where perf has no counters: what ten commits of 100,000 rows cost, and a hundred batches of 1,000 plain
# messages, beside the start of the process. Needs valgrind.
instructions:
	@mkdir -p target
	cargo bench --bench stages --no-run
	bench=$$(cargo bench --bench stages --no-run 2>&1 | sed -n 's/.*(\(.*\)).*/\1/p' | tail -n 1); \
	for run in 'null-sinks 3' 'null-sinks 13' 'decode 10' 'decode 110'; do \
	  set -- $$run; \
	  valgrind --tool=callgrind --callgrind-out-file=target/callgrind.$$1.$$2 "$$bench" --$$1 $$2 || exit 1; \
	done
	callgrind_annotate target/callgrind.null-sinks.13 | head -n 60
	@awk '/^summary:|^totals:/ { total[FILENAME] = $$2 } END { at = "target/callgrind."; \
	  printf "instructions a row, decode to encode: %.0f\n", (total[at "null-sinks.13"] - total[at "null-sinks.3"]) / 1e6; \
	  printf "instructions a plain message decoded: %.0f\n", (total[at "decode.110"] - total[at "decode.10"]) / 1e5 }' \
	  target/callgrind.null-sinks.3 target/callgrind.null-sinks.13 target/callgrind.decode.10 target/callgrind.decode.110

setup:
	@scripts/setup.sh test

setup-demo:
	@scripts/setup.sh demo

jars: setup
	@scripts/kafka-jars.sh
