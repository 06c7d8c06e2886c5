#!/usr/bin/env bash
# The product's images as OCI archives, without a container engine: static programs, and what Debian has for the agent.
# usage: images.sh [FOLDER]
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

require_rust
out=${1:-${CARGO_TARGET_DIR:-target}/images}
scripts/packages.sh cc musl-gcc apt-get dpkg-deb
target=$(uname -m)-unknown-linux-musl
if ! rustup target list --installed | grep -qx "$target" && ! step "static target of Rust" rustup target add "$target"; then
  # Names are then looked up by what glibc can do without its plugins: addresses and /etc/hosts.
  target=$(uname -m)-unknown-linux-gnu
  export RUSTFLAGS="-C target-feature=+crt-static"
  echo "building for $target instead"
fi

step "static programs (several minutes the first time)" cargo build --profile image --locked --target "$target" -p culvert-operator -p culvert-relay -p culvert-agent
# The package lists tell which version of what goes in.
compgen -G "/var/lib/apt/lists/*_Packages*" >/dev/null || step "package lists" apt-get update
"$(lab_program)" images --programs "${CARGO_TARGET_DIR:-target}/$target/image" --out "$out"
