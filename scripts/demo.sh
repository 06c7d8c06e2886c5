#!/usr/bin/env bash
# Builds what the demo needs, installs what is missing, runs it.
# usage: demo.sh NAT[,NAT] [KEEP]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

require_root
nats=${1:-port-restricted}
for nat in ${nats//,/ }; do
  case $nat in
    public | full-cone | port-restricted | symmetric | udp-blocked | poisoned) ;;
    *)
      echo "no NAT is called $nat; there are public, full-cone, port-restricted, symmetric, udp-blocked and poisoned" >&2
      exit 2
      ;;
  esac
done
scripts/packages.sh cc nft ip setpriv nsenter ${2:+ping}
echo "building (a few minutes the first time)"
cargo build --release --locked -p culvert-agent -p culvert-relay -p e2e
exec "${CARGO_TARGET_DIR:-target}/release/culvert-lab" demo --nat "$nats" ${2:+--keep}
