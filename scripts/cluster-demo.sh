#!/usr/bin/env bash
# Two real clusters, left up.
# usage: cluster-demo.sh NAT[,NAT]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

nats=${1-port-restricted}
require_nat "$nats"
require_root
require_rust
require_no_demo
scripts/clusters.sh
scripts/images.sh
echo "building the relay and kubectl-culvert (a few minutes the first time)"
cargo build --quiet --locked -p culvert-relay -p kubectl-culvert
target=${CARGO_TARGET_DIR:-target}
exec "$target/debug/culvert-lab" cluster-demo --nat "$nats" --images "$target/images"
