#!/usr/bin/env bash
# Two real clusters, left up.
# usage: cluster-demo.sh NAT[,NAT]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

scripts/clusters.sh
scripts/images.sh
cargo build --quiet --locked -p culvert-relay -p kubectl-culvert
exec "$(lab_program)" cluster-demo --nat "${1:-port-restricted}" --images "${CARGO_TARGET_DIR:-target}/images"
