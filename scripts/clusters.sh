#!/usr/bin/env bash
# Makes ready what real clusters need: programs of Debian, and Kubernetes built from its Go modules (10 minutes, once).
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

require_root
require_rust
scripts/packages.sh cc nft iptables conntrack ip sysctl setpriv nsenter containerd runc cni-plugins
require_go
# Bridges hand packets to netfilter, and containers have layers: loaded by the kernel's own tools where they are modules.
modprobe -a br_netfilter overlay tun 2>/dev/null || true
lab=$(lab_program)
"$lab" tools
