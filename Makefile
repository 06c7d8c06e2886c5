# The single entry. `make help` lists what there is.
export CARGO_BUILD_JOBS ?= 2
NAT ?= port-restricted
TESTS ?=
KEEP ?=

.PHONY: help test check e2e build images demo demo-down cluster-demo cluster-down
.DEFAULT_GOAL := help

help:      ## list the targets
	@sed -n 's/^\([a-z0-9-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 20

test:      ## everything: packages, format, lints, dependencies, docs, unit, property, lab and cluster tests
	@scripts/test.sh

check:     ## format, lints, dependencies and docs only
	@scripts/check.sh

e2e:       ## the tests with real Kubernetes clusters only; TESTS=linked:: chooses among them
	@scripts/e2e.sh $(TESTS)

build:     ## optimised binaries in target/release
	@scripts/build.sh

images:    ## the container images as OCI archives in target/images, without a container engine
	@scripts/images.sh

demo:      ## two sites behind NAT, linked: NAT=symmetric or NAT=A,B chooses the routers, KEEP=1 leaves it up
	@scripts/demo.sh "$(NAT)" "$(KEEP)"

demo-down: ## remove the demo that was left up, of hosts or of clusters
	@scripts/demo-down.sh

cluster-demo: ## two real Kubernetes clusters behind NAT, linked and left up; NAT= as for demo
	@scripts/cluster-demo.sh "$(NAT)"

cluster-down: ## the same: remove every trace of cluster-demo
	@scripts/demo-down.sh
