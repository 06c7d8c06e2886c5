#!/usr/bin/env bash
# Optimised binaries, in target/release.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

require_rust
exec cargo build --release --locked -p culvert-agent -p culvert-relay -p kubectl-culvert -p e2e
