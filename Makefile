# The single entry. `make help` lists what there is.
export CARGO_BUILD_JOBS ?= 2
NAT ?= port-restricted
KEEP ?=

.PHONY: help test check build demo demo-down
.DEFAULT_GOAL := help

help:      ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

test:      ## everything: packages, format, lints, dependencies, docs, unit, property and lab tests
	@scripts/test.sh

check:     ## format, lints, dependencies and docs only
	@scripts/check.sh

build:     ## optimised binaries in target/release
	@cargo build --release --locked -p culvert-agent -p culvert-relay -p e2e

demo:      ## two sites behind NAT, linked: NAT=symmetric or NAT=A,B chooses the routers, KEEP=1 leaves it up
	@scripts/demo.sh "$(NAT)" "$(KEEP)"

demo-down: ## stop a demo that was left up
	@lab="$${CARGO_TARGET_DIR:-target}/release/culvert-lab"; \
	if [ -x "$$lab" ]; then "$$lab" down; else echo "nothing is up: the demo has not been built here"; fi
