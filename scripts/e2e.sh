#!/usr/bin/env bash
# The tests with real clusters, and what they need: Kubernetes and the images.
# usage: e2e.sh [ARGUMENTS OF THE TEST PROGRAM]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# listed ARGUMENTS: the tests that the test program would run.
listed() { cargo test --locked -p e2e --test clusters -- --list "$@" | sed -n 's/: test$//p'; }

require_root
require_rust
require_go
scripts/packages.sh cc
chosen=$(listed "$@")
if [ -z "$chosen" ]; then
  modules=$(listed | sed -n 's/::.*/::/p' | sort -u | paste -sd ' ')
  echo "no test matches: $*; there are ${modules// /, }" >&2
  exit 2
fi

scripts/clusters.sh
scripts/packages.sh nginx haproxy
scripts/images.sh
echo "building the programs (a few minutes the first time)"
cargo build --quiet --locked --workspace
exec cargo test --locked -p e2e --test clusters -- --nocapture --test-threads=1 "$@"
