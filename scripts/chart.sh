#!/usr/bin/env bash
# Checks charts/culvert: the kinds are copies of crds/, it lints, every set of values renders, and the schema refuses what
# is wrong. Helm is the argument, CULVERT_HELM, that which scripts/clusters.sh has built, or in PATH; kubectl likewise.
#   scripts/chart.sh --update     copies the kinds
#   scripts/chart.sh --server     has the API server of $KUBECONFIG, an empty one, check everything rendered and the examples
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

chart=charts/culvert
copies=$chart/files/crds

fail() {
  echo "chart: $*" >&2
  exit 1
}

if [ "${1:-}" = --update ]; then
  mkdir -p "$copies"
  rm -f "$copies"/*.yaml
  cp crds/*.yaml "$copies"/
  exit 0
fi

server=
if [ "${1:-}" = --server ]; then
  server=1
  shift
fi

diff -r crds "$copies" || fail "its kinds are not those of crds/: run scripts/chart.sh --update"

# tool NAME: that of the built Kubernetes, or in PATH.
tool() {
  local built
  built=$(kit_program "$1")
  if [ -n "$built" ]; then echo "$built"; else command -v "$1" || true; fi
}

helm=${1:-${CULVERT_HELM:-$(tool helm)}}
[ -n "$helm" ] || fail "there is no helm: set CULVERT_HELM to one"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export HELM_CACHE_HOME=$scratch/cache HELM_CONFIG_HOME=$scratch/config HELM_DATA_HOME=$scratch/data

render() { "$helm" template culvert "$chart" --namespace culvert --kube-version 1.31.0 "$@"; }

# renders WHAT COUNT PATTERN VALUES...: the pattern is on that many lines of what these values give.
renders() {
  local what=$1 count=$2 pattern=$3 found
  shift 3
  render --set mesh.clusterName=berlin "$@" >"$scratch/out" 2>"$scratch/err" || fail "$what: $(cat "$scratch/err")"
  found=$(grep -cE -- "$pattern" "$scratch/out" || true)
  [ "$found" = "$count" ] || fail "$what: /$pattern/ is on $found lines, not on $count"
}

# refuses WHAT WORDS VALUES...: these values are refused with these words.
refuses() {
  local what=$1 words=$2
  shift 2
  if render "$@" >/dev/null 2>"$scratch/err"; then fail "$what is accepted"; fi
  grep -qF -- "$words" "$scratch/err" || fail "$what: '$words' is not in: $(cat "$scratch/err")"
}

"$helm" lint --strict --quiet "$chart" --set mesh.clusterName=berlin || fail "helm lint --strict"
[ "$(wc -l <"$chart/values.yaml")" -le 150 ] || fail "values.yaml is longer than 150 lines"

digest=sha256:$(printf '%064d' 7)
kinds=$(find crds -name '*.yaml' | wc -l)
renders "every kind" "$kinds" '^kind: CustomResourceDefinition'
renders "kept kinds and Mesh" "$((kinds + 1))" 'helm.sh/resource-policy: keep'
renders "kinds that go" 0 'helm.sh/resource-policy' --set crds.keep=false
renders "no kinds" 0 '^kind: CustomResourceDefinition' --set crds.enabled=false
renders "first Mesh" 1 'helm.sh/hook: post-install'
renders "Mesh where its kind is served" 0 'helm.sh/hook: post-install' --api-versions culvert.dev/v1alpha1/Mesh
renders "no Mesh" 0 '^kind: Mesh$' --set mesh.create=false
renders "Mesh with everything" 1 'portGuessing: Fast' --set 'mesh.podCIDRs={10.1.0.0/16},mesh.listenPort=20443,mesh.mtu=1400,mesh.traversal.portGuessing=Fast' \
  --set 'externalRelays[0].url=https://relay.example.com,externalRelays[0].stunPort=0' --set 'relays[0].name=main,relays[0].exposure.type=NodePort,relays[0].exposure.host=relay.example.com'
renders "image by tag" 1 'image: example.com/x/agent:v9$' --set image.registry=example.com/x,image.tag=v9,cleanup.enabled=false
renders "image by digest" 1 "image: example.com/agent@$digest\$" --set "agent.image.repository=example.com/agent,agent.image.digest=$digest,cleanup.enabled=false"
renders "pull secrets" 4 '^ *- name: regcred' --set 'image.pullSecrets[0].name=regcred'
renders "pull secrets of relays" 1 'CULVERT_IMAGE_PULL_SECRETS, value: "a,b"' --set 'image.pullSecrets[0].name=a,image.pullSecrets[1].name=b'
renders "rights on pods" 3 '^ *resources: \[pods\]'
renders "fewer rights on pods" 2 '^ *resources: \[pods\]' --set operator.watchPods=false
renders "one operator" 0 '^kind: PodDisruptionBudget' --set operator.replicas=1
renders "token" 1 '^ *token: "cvt1.abc"' --set-string join.token=$'cvt1.abc\n'
renders "no token" 0 'name: culvert-join'
renders "a token of null" 0 'name: culvert-join' --set join.token=null
renders "test of links" 1 'args: \[ping, "10.2.0.5"' --set test.target=10.2.0.5
renders "test of status" 1 'args: \[check,' --set fullnameOverride=links
renders "no policies" 0 '^kind: (NetworkPolicy|ValidatingAdmissionPolicy)' --set networkPolicy.create=false,admissionPolicy.create=false
renders "nobody is privileged" 0 'privileged"?: true|^ *- "?SYS_|allowPrivilegeEscalation"?: true'

refuses "no cluster name" "mesh.clusterName is missing"
refuses "a misspelt value" "additional properties 'relay_s' not allowed" --set mesh.clusterName=a,relay_s=1
for name in Berlin -a a- a_b "a b" "$(printf 'a%063d' 0)" $'a\n'; do
  refuses "the cluster name '$name'" "mesh.clusterName must be lower-case letters, digits and -" --set-string "mesh.clusterName=$name"
done
refuses "a NodePort without host" "missing property 'host'" --set 'mesh.clusterName=a,relays[0].name=main,relays[0].exposure.type=NodePort'
refuses "a bad digest" "/agent/image/digest" --set mesh.clusterName=a,agent.image.digest=sha256:12
for token in hello cvt1. cvt2.hello 'cvt1.hello!' 'cvt1.hello hello' "x$(printf '%070000d' 0)"; do
  refuses "a token that is none" "join.token is no token (cut off?): give the file" --set mesh.clusterName=a --set-string "join.token=$token"
  if grep -qE 'hello|0000' "$scratch/err"; then fail "a token that is none is shown: $(head -c 400 "$scratch/err")"; fi
done
refuses "an old Kubernetes" "1.30" --set mesh.clusterName=a --kube-version 1.30.9
if [ -n "$server" ]; then
  kubectl=${CULVERT_KUBECTL:-$(tool kubectl)}
  [ -n "$kubectl" ] || fail "there is no kubectl: set CULVERT_KUBECTL to one"
  create() { "$kubectl" create --dry-run=server --validate=strict --recursive --filename "$1" >/dev/null; }
  check() { create "$1" || fail "the API server refuses $2"; }
  "$kubectl" apply --server-side --force-conflicts --filename crds >/dev/null
  "$kubectl" wait --for=condition=Established --timeout=60s --filename crds >/dev/null
  "$kubectl" get namespace culvert >/dev/null 2>&1 || "$kubectl" create namespace culvert >/dev/null
  for values in "" "test.target=10.2.0.5,join.token=cvt1.abc,relays[0].name=main,relays[0].exposure.type=LoadBalancer,mesh.mtu=1400"; do
    render --set crds.enabled=false,mesh.clusterName=berlin --set "$values" >"$scratch/rendered.yaml"
    check "$scratch/rendered.yaml" "the chart with '$values'"
  done
  sed 's/hostNetwork: true/hostNetwrok: true/' "$scratch/rendered.yaml" >"$scratch/misspelt.yaml"
  if create "$scratch/misspelt.yaml" 2>"$scratch/err"; then fail "the API server accepts a misspelt field"; fi
  grep -qF 'unknown field "spec.template.spec.hostNetwrok"' "$scratch/err" || fail "a misspelt field: $(cat "$scratch/err")"
  sed -n '/^  daemonset.json: |$/,/^---$/p' "$scratch/rendered.yaml" | sed '1d;$d' >"$scratch/daemonset.json"
  check "$scratch/daemonset.json" "the DaemonSet that cleans up"
  check examples "an example"
fi
echo "chart: good"
