# Sourced by the other scripts.
export CARGO_BUILD_JOBS=${CARGO_BUILD_JOBS:-2}
[ -z "${CI:-}" ] || export CARGO_INCREMENTAL=0
export PATH=$PATH:/usr/sbin:/sbin

# Fails for anybody but root, before anything is built.
require_root() {
  [ "$(id -u)" = 0 ] && return
  echo "the lab makes network namespaces and TUN devices: run as root" >&2
  return 1
}

# require_nat NAT: fails unless it names one router for both sites, or two with a comma between.
require_nat() {
  local names='public|full-cone|port-restricted|symmetric|udp-blocked|poisoned'
  [[ $1 =~ ^($names)(,($names))?$ ]] && return
  echo "NAT takes one name or two, such as full-cone,symmetric; there are ${names//|/, }, and not '$1'" >&2
  return 2
}

# Whether a demo was left up: its namespaces are there.
demo_is_up() { compgen -G "/run/netns/culvert-demo-*" >/dev/null; }

# Fails when a demo was left up, before anything is built.
require_no_demo() {
  demo_is_up || return 0
  echo "a demo is up already; stop it first: make cluster-down (or make demo-down)" >&2
  return 1
}

# step NAME COMMAND...: runs it, prints how long it took, and its output only when it fails.
step() {
  local name=$1 start=$SECONDS log
  shift
  log=$(mktemp)
  printf '%s ... ' "$name"
  if "$@" >"$log" 2>&1; then
    echo "ok ($((SECONDS - start)) s)"
    rm -f "$log"
  else
    echo "FAILED ($((SECONDS - start)) s)"
    cat "$log"
    rm -f "$log"
    return 1
  fi
}

# Prints the path of cargo-deny; builds it once, into a cache outside the checkout.
tool_cargo_deny() {
  local version=0.20.2 root=${XDG_CACHE_HOME:-$HOME/.cache}/culvert/tools
  if ! "$root/bin/cargo-deny" --version 2>/dev/null | grep -qx "cargo-deny $version"; then
    echo "building cargo-deny $version, once" >&2
    cargo install --quiet --locked cargo-deny --version "$version" --root "$root" >&2
  fi
  echo "$root/bin/cargo-deny"
}

# Fails without Rust, which everything is built with.
require_rust() {
  export PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
  command -v cargo >/dev/null && return
  echo "Culvert is written in Rust: install Rust with rustup, https://rustup.rs, and open a new shell" >&2
  return 1
}

# Fails without Go, which real clusters are built with.
require_go() {
  export PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null && return
  echo "real clusters are built from Go modules: install Go 1.26 or newer, https://go.dev/dl" >&2
  return 1
}

# kit_program NAME: prints the path of a program of the newest Kubernetes that scripts/clusters.sh has built, or nothing.
kit_program() {
  local found newest=
  for found in "${XDG_CACHE_HOME:-$HOME/.cache}"/culvert/kubernetes-*/bin/"$1"; do
    # A folder whose name has a dot is still being filled.
    [[ $found != */kubernetes-*.*/bin/* && -x $found ]] || continue
    if [ -z "$newest" ] || [ "$found" -nt "$newest" ]; then newest=$found; fi
  done
  echo "$newest"
}

# Builds the lab's own program the way tests are built, and prints its path.
lab_program() {
  echo "building the lab (a few minutes the first time)" >&2
  cargo build --quiet --locked -p e2e >&2
  echo "${CARGO_TARGET_DIR:-target}/debug/culvert-lab"
}
