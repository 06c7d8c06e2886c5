#!/usr/bin/env bash
# Builds what the demo needs, installs what is missing, runs it.
# usage: demo.sh NAT[,NAT] [KEEP]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

scripts/packages.sh cc nft conntrack ip sysctl setpriv
echo "building (a few minutes the first time)"
cargo build --release --locked --quiet -p culvert-agent -p culvert-relay -p e2e
if [ -n "${2:-}" ]; then exec target/release/culvert-lab demo --nat "$1" --keep; fi
exec target/release/culvert-lab demo --nat "$1"
