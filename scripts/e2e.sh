#!/usr/bin/env bash
# The tests with real clusters, and what they need: Kubernetes and the images.
# usage: e2e.sh [ARGUMENTS OF THE TEST PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

scripts/clusters.sh
scripts/packages.sh nginx haproxy
scripts/images.sh
cargo build --quiet --locked --workspace
exec cargo test --locked -p e2e --test clusters -- --nocapture --test-threads=1 "$@"
