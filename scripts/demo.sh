#!/usr/bin/env bash
# Builds what the demo needs, installs what is missing, runs it.
# usage: demo.sh NAT[,NAT] [KEEP]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

nats=${1-port-restricted}
require_nat "$nats"
require_root
require_rust
[ -z "${2:-}" ] || require_no_demo
scripts/packages.sh cc nft ip setpriv nsenter ${2:+ping}
echo "building (a few minutes the first time)"
cargo build --release --locked -p culvert-agent -p culvert-relay -p e2e
exec "${CARGO_TARGET_DIR:-target}/release/culvert-lab" demo --nat "$nats" ${2:+--keep}
