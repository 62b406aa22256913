#!/usr/bin/env bash
# The chart, on the cluster of LARDER_TEST_KUBECONFIG: that it is well formed, installs, upgrades without touching an
# instance, and leaves the database when it goes. scripts/test-kubernetes.sh sets what it needs: the images there
# (LARDER_TEST_IMAGE, LARDER_TEST_SERVE_IMAGE), and the command of the cluster's test bed (LARDER_TEST_BED), without which
# what takes a client inside of the cluster is skipped.
#
# What it asks of the instances is only what the chart could break; the stories are in tests/e2e.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
cd "$root"
export KUBECONFIG=${LARDER_TEST_KUBECONFIG:?it names the cluster to test on}
bed=${LARDER_TEST_BED:-}
engine_image=${LARDER_TEST_IMAGE:-localhost/larder-{engine\}:testbed}
image=${LARDER_TEST_SERVE_IMAGE:-localhost/larder:testbed}
writer=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/writer
chart=packaging/helm/larder
namespace=${LARDER_TEST_NAMESPACE:-chart-test}
# Of a test bed that was started with --audit.
audit=${LARDER_TEST_AUDIT:-}
audited=$([ -z "$audit" ] || wc -l <"$audit")
PATH=$(scripts/helm.sh):$PATH

work=$(mktemp -d /tmp/l-XXXXXX)
trap 'rm -rf "$work"' EXIT
say() { printf '%4d s  %s\n' "$SECONDS" "$*"; }
fail() { say "FAIL: $*"; exit 1; }
# The test bed's own, where the machine has none.
kubectl=$(command -v kubectl || echo "$(dirname "$(scripts/testbed.sh build)")/kubectl")
kube() { "$kubectl" "$@"; }
k() { kube --namespace "$namespace" "$@"; }
larder() { k exec larder-0 -- larder "$@"; }
until_true() { # seconds what command...
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@"; do
        [ "$SECONDS" -lt "$deadline" ] || fail "$what"
        sleep 0.2
    done
}
refused() { # what wanted-words command...
    local what=$1 words=$2
    shift 2
    if "$@" >"$work/out" 2>&1; then fail "$what was accepted"; fi
    grep -q "$words" "$work/out" || fail "$what is refused with other words: $(cat "$work/out")"
}
# Everything of an instance's pods that a restart would change.
pods() { k get pods -l larder.io/instance -o json | jq -c '[.items[] | [.metadata.name, .metadata.uid, .status.podIP, [.status.containerStatuses[].restartCount]]] | sort'; }
endpoints() { larder instance get shop -o json | jq -c '[.endpoints, .state, ([.nodes[] | [.id, .role]] | sort)]'; }
# A client in the cluster that writes until `written` ends it, however long what happens meanwhile takes; nothing of it may be lost.
write() {
    [ -n "$bed" ] || return 0
    local at
    at=$(larder instance get shop -o json | jq -r '.endpoints.write | "\(.host) \(.port)"')
    rm -f "$work/written" "$work/writing"
    mkfifo "$work/writing"
    # shellcheck disable=SC2086
    $bed exec -- "$writer" $at <"$work/writing" >"$work/written" &
    client=$!
    exec {writing}>"$work/writing"
    printf 'Pantry-2026\n' >&"$writing"
    until_true 20 'the client does not write' grep -qs writing "$work/written"
}
# How long a gap may be leaves room for a busy machine: that nothing has moved is said by pods and roles.
written() { # longest-gap-in-ms what
    [ -n "$bed" ] || { say "SKIP: a writing client needs LARDER_TEST_BED"; return 0; }
    exec {writing}>&-
    wait "$client" || fail "the client ended with $?"
    tail -n 1 "$work/written" | jq -e --argjson gap "$1" '.lost == 0 and .acked > 100 and .worst_gap_ms <= $gap' >/dev/null ||
        fail "$2: $(tail -n 1 "$work/written")"
    say "$2: $(tail -n 1 "$work/written")"
}
# What the audit log of the test bed says that a service account has done, as lines of what a rule grants. An apply that
# makes an object is both patch and create.
# The last line may be half written.
asked() { tail -n +$((audited + 1)) "$audit" | jq -cR 'fromjson? // empty'; }
used() { # service-account
    asked | jq -r --arg user "system:serviceaccount:$1" 'select(.user.username == $user and .objectRef.resource and .responseStatus.code != 403)
        | select(.objectRef.apiGroup != "authorization.k8s.io")
        | [(if .objectRef.namespace then "namespace" else "cluster" end), (.objectRef.apiGroup // "core"),
           .objectRef.resource + (if .objectRef.subresource then "/" + .objectRef.subresource else "" end), .verb] as $call
        | $call, (if .verb == "patch" and .responseStatus.code == 201 then $call[:3] + ["create"] else empty end) | join(" ")' | sort -u
}
granted() { # scope: roles on standard input
    jq -r --arg scope "$1" 'if .kind == "List" then .items[] else . end | .rules[]
        | . as $rule | (.apiGroups[] | if . == "" then "core" else . end) as $group | $rule.resources[] as $kind | $rule.verbs[]
        | "\($scope) \($group) \($kind) \(.)"' | sort -u
}
# None unused, none missing. Kubernetes lets nobody grant what he has not: what instances' Roles hold counts as used.
check_rights() { # service-account cluster-role role namespace
    [ -n "$audit" ] || { say "SKIP: the rights of $1 need LARDER_TEST_AUDIT"; return 0; }
    { kube get clusterrole "$2" -o json | granted cluster; kube --namespace "$4" get role "$3" -o json | granted namespace; } | sort -u >"$work/granted"
    # From 1.35 on Kubernetes asks for `create` besides `get` where a port is forwarded.
    { used "$1"; cat "$work/passed-on"; used "$1" | sed -n 's|pods/portforward get|pods/portforward create|p'; } | sort -u >"$work/used"
    [ -z "$(comm -23 "$work/granted" "$work/used")" ] || fail "rights of $1 that nobody has used: $(comm -23 "$work/granted" "$work/used" | tr '\n' ',')"
    # A right on all namespaces is one on each.
    comm -13 "$work/granted" "$work/used" | while read -r scope rest; do grep -qx "cluster $rest" "$work/granted" || echo "$scope $rest"; done >"$work/beyond"
    [ ! -s "$work/beyond" ] || fail "$1 has done what nobody has granted: $(tr '\n' ',' <"$work/beyond")"
    asked | jq -r --arg user "system:serviceaccount:$1" 'select(.user.username == $user and .responseStatus.code == 403) | "\(.verb) \(.requestURI)"' >"$work/denied"
    [ ! -s "$work/denied" ] || fail "$1 has been denied: $(sort -u "$work/denied" | tr '\n' ',')"
    say "$1 has used each of its $(wc -l <"$work/granted") rights, and needed no other"
}
# A pod of the first node that no StatefulSet looks after: it has to be removed with the node. Never scheduled, so that it
# disturbs nothing. Without it pods end by themselves or not, as it happens, before somebody has to delete them.
leave_a_pod() {
    k get pods -l larder.io/instance -o json | jq --arg image "$image" '.items[0] | {
        apiVersion, kind, metadata: {name: "left-over", labels: .metadata.labels}, spec: {
            schedulingGates: [{name: "larder.io/never"}], automountServiceAccountToken: false,
            securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: "RuntimeDefault"}},
            containers: [{name: "none", image: $image, securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: ["ALL"]}}}]}}' |
        k create -f - >/dev/null
}
settings=(--set image.repository="${image%:*}" --set image.tag="${image##*:}" --set containerCluster.engineImage="$engine_image"
    --set 'containerCluster.engines={redis-7.0}' --set containerCluster.volumeSize=1GiB --set persistence.size=1Gi)

# --- what can be said without installing -------------------------------------------------------------------------
helm lint --strict --quiet "$chart" --kube-version 1.34.0
[ "$(sed -n 's/^appVersion: //p' "$chart/Chart.yaml")" = "$(cargo metadata --locked --no-deps --format-version 1 | jq -r '.packages[] | select(.name == "larder") | .version')" ] ||
    fail "the chart's appVersion is not Larder's version"
for wrong in containerCluster.expose=somehow containerCluster.name=local containerCluster.engines={} containerClutser.name=x service.port=0 rbac.confirmLost=maybe 'containerCluster.pullSecrets={Not_A_Name}'; do
    if helm template larder "$chart" --kube-version 1.34.0 --set "$wrong" >/dev/null 2>&1; then fail "the schema lets $wrong pass"; fi
done
# Every value of values.yaml is in the README's table.
paths=$(helm show values "$chart" | awk '/^[a-zA-Z]/ {top=$1; sub(":.*","",top); print top} /^  [a-zA-Z]/ {leaf=$1; sub(":.*","",leaf); print top "." leaf}')
for path in $paths; do
    grep -qE "\`($path(\`|\.)|${path%%.*}\`)" "$chart/README.md" || fail "value $path is not in the chart's README"
done
# The schemas of this very API server, made strict: a field that it does not know is an error.
mkdir -p "$work/schemas"
kube get --raw /openapi/v2 | jq '.definitions
    | map_values(if .properties and (has("additionalProperties") | not) then .additionalProperties = false else . end)
    | ."io.k8s.apimachinery.pkg.util.intstr.IntOrString" = {"oneOf": [{"type": "string"}, {"type": "integer"}]}
    | {definitions: .}' >"$work/schemas/all.json"
jq -r '.definitions | to_entries[] | .key as $key | .value["x-kubernetes-group-version-kind"][]? | [$key, .group, .version, .kind] | join("|")' "$work/schemas/all.json" |
    while IFS='|' read -r key group version kind; do
        printf '{"$ref": "all.json#/definitions/%s"}\n' "$key" >"$work/schemas/${kind,,}${group:+-${group%%.*}}-$version.json"
    done
conform() {
    helm template larder "$chart" --namespace "$namespace" --kube-version 1.34.0 "$@" |
        kubeconform -strict -summary -schema-location "$work/schemas/{{.ResourceKind}}{{.KindSuffix}}.json" ||
        fail "the API server does not know what the chart makes with: $*"
}
conform
conform "${settings[@]}" --set adminPassword.existingSecret=a,storeKey.existingSecret=b,persistence.existingClaim=c,serviceAccount.create=false,serviceAccount.name=d \
    --set 'networkPolicy.from[0].podSelector.matchLabels.app=x,image.pullSecrets={p},tolerations[0].operator=Exists,nodeSelector.disk=fast,service.annotations.a=b,podLabels.a=b,podAnnotations.a=b' \
    --set 'config=[retention],rbac.confirmLost=true,rbac.countNodePorts=true,containerCluster.pullSecrets={q}'
# Instances beside the control plane come from the same registry; elsewhere its Secrets are not.
pulled_by() { helm template larder "$chart" --namespace "$namespace" --kube-version 1.34.0 --set 'image.pullSecrets={p}' "$@" | sed -n 's/^ *pull_secrets = //p'; }
[ "$(pulled_by) $(pulled_by --set containerCluster.namespace=x) $(pulled_by --set 'containerCluster.pullSecrets={q}')" = '["p"] [] ["q"]' ] ||
    fail "instances pull by $(pulled_by)"
say "the chart is well formed"

# --- install -----------------------------------------------------------------------------------------------------
kube create namespace "$namespace" >/dev/null
kube label namespace "$namespace" pod-security.kubernetes.io/enforce=restricted >/dev/null
head -c 32 /dev/urandom | base64 >"$work/secret.key"
k create secret generic store-key --from-file=secret.key="$work/secret.key" >/dev/null
settings+=(--set storeKey.existingSecret=store-key)
helm install larder "$chart" --namespace "$namespace" "${settings[@]}" --wait --timeout 120s >"$work/notes"
say "installed and ready"
helm test larder --namespace "$namespace" --timeout 60s >"$work/out" 2>&1 || fail "helm test: $(cat "$work/out")"
say "helm test has passed"
if k describe pod larder-0 | grep 'La1-' >/dev/null; then fail "the pod's description shows the password"; fi
if k logs larder-0 | grep -E 'WARN|ERROR'; then fail 'the first start warns of something'; fi
login() { larder login --server http://127.0.0.1:7300 --user admin --password-file /etc/larder/admin/password >/dev/null; }
login
[ "$(larder container-cluster list -o json | jq -c 'map([.name, .reachable, .problem, .engines])')" = '[["kubernetes",true,null,["redis-7.0"]]]' ] ||
    fail "not bound as the values say: $(larder container-cluster list -o json)"
[ "$(larder engine list -o json | jq -c 'map([.name, .container_clusters])')" = '[["redis-7.0",["kubernetes"]]]' ] || fail "engine list: $(larder engine list -o json)"
refused 'an engine without an image' 'engine-not-found.*redis-7.0' larder instance create other --engine valkey-8.0 --architecture standalone --generate-password
refused 'an instance on a machine that runs none' container-cluster-not-found larder instance create other --engine redis-7.0 --architecture standalone --generate-password --container-cluster local
refused 'a server binary of the pod' engine-unusable larder engine add /opt/larder/bin/larder

# --- an instance, and the control plane's end --------------------------------------------------------------------
printf 'Pantry-2026\n' | k exec -i larder-0 -- larder instance create shop --engine redis-7.0 --architecture read-write \
    --read-only-nodes 2 --memory 128MiB --password-stdin --wait --timeout 120s >/dev/null
say "an instance runs"
worker=$(larder container-cluster workers kubernetes -o json | jq -r '.[0].name')
refused 'marking a worker without the right to' 'container-cluster-unusable.*rbac.confirmLost' larder container-cluster confirm-lost kubernetes "$worker" --yes
before=$(pods) shown=$(endpoints)
write
k delete pod larder-0 --grace-period=0 --force >/dev/null 2>&1
until_true 60 'the control plane does not come back' k wait --for=condition=Ready pod/larder-0 --timeout=5s >/dev/null 2>&1
written 2000 'the control plane was killed under a writing client'
login
[ "$(pods)" = "$before" ] || fail "the end of the control plane has touched pods: $before, now $(pods)"
[ "$(endpoints)" = "$shown" ] || fail "the end of the control plane has changed the instance: $shown, now $(endpoints)"

# --- upgrades move no instance -----------------------------------------------------------------------------------
if [ -n "$bed" ]; then
    # The same image by another name is another image for everybody who looks at names.
    for worker in $(kube get nodes -o name | cut -d/ -f2); do
        for one in "$image" "${engine_image//\{engine\}/redis-7.0}"; do
            $bed exec --worker "$worker" -- ctr -n k8s.io images tag --force "$one" "${one%:*}:next" >/dev/null
        done
    done
    changed=(--set image.tag=next --set containerCluster.engineImage="${engine_image%:*}:next")
else
    changed=()
fi
write
helm upgrade larder "$chart" --namespace "$namespace" "${settings[@]}" "${changed[@]}" --set logLevel=debug,containerCluster.volumeSize=2GiB,rbac.confirmLost=true \
    --set 'containerCluster.engines={redis-7.0,valkey-8.0}' --set-string 'config=[retention]
events_days = 7' --wait --timeout 120s >/dev/null
written 2000 'the release was upgraded under a writing client'
login
[ "$(pods)" = "$before" ] || fail "the upgrade has touched pods: $before, now $(pods)"
[ "$(endpoints)" = "$shown" ] || fail "the upgrade has changed the instance: $shown, now $(endpoints)"
[ "$(larder engine list -o json | jq 'length')" = 2 ] || fail "the upgrade has not bound anew: $(larder engine list -o json)"
larder record list -o json | jq -e '[.[] | select(.user == "larder" and .action == "container-cluster-bind")] | length == 2' >/dev/null ||
    fail "the bindings are not in the records: $(larder record list -o json)"
refused 'marking a worker that is ready' worker-not-lost larder container-cluster confirm-lost kubernetes "$worker" --yes
# An upgrade that takes an instance's engine away is not followed.
helm upgrade larder "$chart" --namespace "$namespace" "${settings[@]}" --set 'containerCluster.engines={valkey-8.0}' --wait --timeout 120s >/dev/null
login
told() { k logs larder-0 | grep 'engine .redis-7.0. runs instance .shop.' >/dev/null; }
until_true 20 'the refusal is not told' told
[ "$(larder engine list -o json | jq 'length')" = 2 ] || fail "an engine that an instance runs on was taken away"
[ "$(pods)" = "$before" ] || fail "that upgrade has touched pods: $before, now $(pods)"
say "upgrades have moved nothing"
# The next pod of a node is of the new image.
if [ -n "$bed" ]; then
    next=${engine_image//\{engine\}/redis-7.0} next=${next%:*}:next
    wished() { [ "$(k get statefulsets -l larder.io/instance -o json | jq -r '[.items[].spec.template.spec.containers[0].image] | unique | join(" ")')" = "$next" ]; }
    until_true 60 'the new image does not reach the nodes' wished
    [ "$(pods)" = "$before" ] || fail "the new image has touched pods: $before, now $(pods)"
    replica=$(larder instance get shop -o json | jq -r '[.nodes[] | select(.role == "replica") | .id][0]')
    k delete pod -l "larder.io/node=$replica" >/dev/null
    is_next() {
        k get pods -l "larder.io/node=$replica" -o json | jq -e --arg image "$next" \
            '.items[0] | .spec.containers[0].image == $image and any(.status.conditions[]?; .type == "Ready" and .status == "True")' >/dev/null
    }
    until_true 90 'a pod that was made again is not of the new image' is_next
    runs() { [ "$(larder instance get shop -o json | jq -r .state)" = running ]; }
    until_true 60 'the instance does not run with one pod of the new image' runs
    say "a pod that was made again is of the new image"
fi

# --- rights ------------------------------------------------------------------------------------------------------
k get roles -l larder.io/instance -o json | granted namespace >"$work/passed-on"
agents=$(k get serviceaccounts -l larder.io/instance -o jsonpath='{.items[0].metadata.name}')
if [ -n "$audit" ]; then
    used "$namespace:$agents" >"$work/used"
    [ "$(cat "$work/used")" = "$(cat "$work/passed-on")" ] || fail "the agents' rights are not what they use: $(diff "$work/passed-on" "$work/used" | tr '\n' ',')"
    say "agents have used each of their $(wc -l <"$work/passed-on") rights, and needed no other"
fi

# --- away --------------------------------------------------------------------------------------------------------
leave_a_pod
larder instance delete shop --permanent --yes --wait --timeout 120s >/dev/null
[ -z "$(k get all,pvc,secrets,configmaps,roles,leases -l larder.io/instance -o name)" ] || fail "left of the instance: $(k get all,pvc -l larder.io/instance -o name)"
check_rights "$namespace:larder" "$namespace-larder" larder "$namespace"
password=$(k get secret larder-admin -o jsonpath='{.data.password}')
helm uninstall larder --namespace "$namespace" --wait >/dev/null
[ "$(k get pvc,secrets -l app.kubernetes.io/instance=larder -o name | sort | tr '\n' ' ')" = 'persistentvolumeclaim/larder-data secret/larder-admin ' ] ||
    fail "the volume and the password should be all that is left: $(k get pvc,secrets -o name)"
helm install larder "$chart" --namespace "$namespace" "${settings[@]}" --wait --timeout 120s >/dev/null
login
[ "$(k get secret larder-admin -o jsonpath='{.data.password}')" = "$password" ] || fail "there is another password after the second installation"
[ "$(larder record list -o json | jq '[.[] | select(.action == "instance-create")] | length')" -ge 1 ] || fail "the second installation does not know the first one's history"
helm uninstall larder --namespace "$namespace" --wait >/dev/null
say "installed again on the same volume, and gone"

# --- a control plane elsewhere, bound with the least rights ---------------------------------------------------------
kube delete namespace "$namespace" --wait=false >/dev/null
namespace=$namespace-outside
sed "s/^\( *namespace\): larder$/\1: $namespace/; /^kind: Namespace$/,/^---/ s/^  name: larder$/  name: $namespace/" packaging/kubernetes/bind.yaml >"$work/bind.yaml"
kube apply -f "$work/bind.yaml" >/dev/null
has_token() { [ -n "$(k get secret larder-token -o jsonpath='{.data.token}')" ]; }
until_true 20 'the service account gets no token' has_token
server=$(kube config view --minify -o jsonpath='{.clusters[0].cluster.server}')
jq -n --arg server "$server" --arg ca "$(k get secret larder-token -o jsonpath='{.data.ca\.crt}')" \
    --arg token "$(k get secret larder-token -o jsonpath='{.data.token}' | base64 -d)" '{
        apiVersion: "v1", kind: "Config", "current-context": "larder",
        clusters: [{name: "larder", cluster: {server: $server, "certificate-authority-data": $ca}}],
        users: [{name: "larder", user: {token: $token}}],
        contexts: [{name: "larder", context: {cluster: "larder", user: "larder"}}]}' >"$work/kubeconfig"
mkdir "$work/data"
# Without a keeper there is nothing of it on this machine but one process.
printf 'default_container_cluster = "east"\nlisten = "127.0.0.1:0"\n[local]\nenabled = false\n' >"$work/config.toml"
outside=$(realpath "${CARGO_TARGET_DIR:-target}")/debug/larder
LARDER_ADMIN_PASSWORD=Pantry-2026 "$outside" serve --data "$work/data" --config "$work/config.toml" >"$work/serve.out" 2>"$work/serve.log" &
serve=$!
trap 'kill "$serve" 2>/dev/null || true; rm -rf "$work"' EXIT
until_true 20 'the control plane outside does not start' grep -q 'running at' "$work/serve.out"
LARDER_SERVER=$(grep -o 'http://[0-9.:]*' "$work/serve.out" | head -n 1)
export LARDER_SERVER LARDER_CONFIG=$work/cli.json
printf 'Pantry-2026\n' | "$outside" login --server "$LARDER_SERVER" --user admin --password-stdin >/dev/null
bind() { "$outside" container-cluster bind east --kubeconfig "$work/kubeconfig" --namespace "$namespace" --image "$engine_image" --engine redis-7.0 --volume-size 1GiB --pull-secret registry; }
refused 'a pull secret that is not there' "there is no Secret .registry." bind
k create secret generic registry >/dev/null
refused 'a pull secret of another type' 'not of type kubernetes.io/dockerconfigjson' bind
k delete secret registry >/dev/null
echo '{"auths": {}}' >"$work/registry.json"
k create secret docker-registry registry --from-file=.dockerconfigjson="$work/registry.json" >/dev/null
bind >/dev/null
printf 'Pantry-2026\n' | "$outside" instance create shop --engine redis-7.0 --architecture read-write --memory 128MiB --password-stdin --wait --timeout 120s >/dev/null
k get roles -l larder.io/instance -o json | granted namespace >"$work/passed-on"
# By what pods pull changes when the next ones are made, and makes none.
pulling() { k get "$1" -l larder.io/instance -o json | jq -c "[.items[] | .spec${2:-}.imagePullSecrets // [] | map(.name)] | unique"; }
[ "$(pulling pods)" = '[["registry"]]' ] || fail "pods do not pull as the binding says: $(pulling pods)"
before=$(pods)
"$outside" container-cluster set east --pull-secret '' >/dev/null
[ "$("$outside" container-cluster get east -o json | jq -c '[.pull_secrets, .problem]')" = '[[],null]' ] || fail "the pull secret is still shown: $("$outside" container-cluster get east -o json)"
"$outside" instance update shop --name kiosk >/dev/null
taken_back() { [ "$(pulling statefulsets .template.spec)" = '[[]]' ]; }
until_true 20 'a change of the instance does not take the pull secret back' taken_back
[ "$(pods)" = "$before" ] || fail "that has touched pods: $before, now $(pods)"
"$outside" instance failover kiosk --wait >/dev/null
leave_a_pod
"$outside" instance delete kiosk --permanent --yes --wait --timeout 120s >/dev/null
"$outside" container-cluster unbind east 2>/dev/null
check_rights "$namespace:larder" larder larder "$namespace"
kill "$serve" && wait "$serve" || true
kube delete -f "$work/bind.yaml" --ignore-not-found --wait=false >/dev/null
say "bound from outside with the rights of packaging/kubernetes/bind.yaml, used and unbound"
