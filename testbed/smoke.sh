#!/usr/bin/env bash
# Checks every promise of the test bed on one of its own: each claim is a function, named as such. Takes three minutes.
#   smoke.sh [CLAIM...]
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
bin=$("$here/../scripts/testbed.sh" build) || exit 1
work=$(mktemp -d)
probe=$(dirname "$bin")/probe
export LARDER_TESTBED_DIR=$work/bed KUBECONFIG=$work/bed/kubeconfig
passed=0 failed=0

tb() { "$bin" "$@"; }
k() { timeout 120 "$bin" kubectl "$@"; }
note() { printf '     %s\n' "$*" >&2; }

# eventually SECONDS COMMAND...: until it succeeds
eventually() {
    local until=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || { note "never: $*"; return 1; }
        sleep 0.2
    done
}

not() { ! "$@"; }

says() { # says PATTERN COMMAND...
    local pattern=$1
    shift
    grep -Eq "$pattern" <<<"$("$@" 2>&1)"
}

is() { # is WANTED GOT WHAT
    [ "$1" = "$2" ] || { note "$3: wanted '$1', got '$2'"; return 1; }
}

image() {
    mkdir "$work/image"
    cp "$probe" "$work/image/probe"
    printf 'FROM scratch\nCOPY probe /probe\nENTRYPOINT ["/probe"]\n' > "$work/image/Containerfile"
    local b=(buildah --root "$work/storage" --runroot "$work/run" --storage-driver vfs)
    "${b[@]}" bud --isolation chroot -q -t localhost/smoke:1 "$work/image" >/dev/null &&
        "${b[@]}" push -q localhost/smoke:1 "docker-archive:$work/smoke.tar:localhost/smoke:1" &&
        "${b[@]}" push -q localhost/smoke:1 "oci-archive:$work/smoke-oci.tar:localhost/smoke-oci:1" &&
        tb image load "$work/smoke.tar"
}

web() { # web NAMESPACE REPLICAS: a StatefulSet that serves its own name and keeps what it has
    k apply -f - >/dev/null <<Y
apiVersion: v1
kind: Service
metadata: {name: web, namespace: $1}
spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: $1}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside, namespace: $1}
spec: {type: LoadBalancer, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: outside-local, namespace: $1}
spec: {type: LoadBalancer, externalTrafficPolicy: Local, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: web, namespace: $1}
spec:
  serviceName: peers
  replicas: $2
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000, seccompProfile: {type: RuntimeDefault}}
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: topology.kubernetes.io/zone, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: localhost/smoke:1
        args: [serve, /data]
        readinessProbe: {httpGet: {path: /, port: 8080}, periodSeconds: 1}
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
Y
    k -n "$1" rollout status statefulset/web --timeout=60s >/dev/null
}

restricted() { # a namespace in which only restricted pods may run
    k create namespace "$1" >/dev/null && k label namespace "$1" pod-security.kubernetes.io/enforce=restricted >/dev/null
}

# All three pods of the StatefulSet are ready, and none of them is about to go.
settled() {
    # By the condition: a worker that is lost leaves its containers' last status behind.
    eventually 60 says '^web-0=True web-1=True web-2=True $' k -n smoke get pods -l app=web -o \
        'jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type=="Ready")].status}{.metadata.deletionTimestamp} {end}'
}
moved() { # moved WORKER: all four pods of the Deployment run on others
    says '^4$' bash -c "'$bin' kubectl get pods -l app=mover --no-headers -o wide | grep -v Terminating | grep Running | grep -vc '$1'"
}
volumes() { find "$LARDER_TESTBED_DIR"/workers/*/volumes -mindepth 1 -maxdepth 1 | wc -l; }
ready_is() { says "^$2$" k get node "$1" -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}'; }
inside() { k -n smoke exec "$@"; }
lb() { k -n smoke get service "$1" -o 'jsonpath={.status.loadBalancer.ingress[0].ip}'; }
fetch() { tb exec -- "$probe" get "http://$1/"; }
pod_ip() { k -n smoke get pod "$1" -o 'jsonpath={.status.podIP}'; }
node_of() { k -n smoke get pod "$1" -o 'jsonpath={.spec.nodeName}'; }

workers_are_spread_over_zones() {
    is "zone-a zone-b zone-c" "$(k get nodes -o 'jsonpath={.items[*].metadata.labels.topology\.kubernetes\.io/zone}')" zones
}
image_of_an_archive_is_on_every_worker() {
    restricted smoke && web smoke 3 && is 3 "$(k -n smoke get pods -o 'jsonpath={.items[*].spec.nodeName}' | tr ' ' '\n' | sort -u | wc -l)" "workers in use"
}
image_of_the_registry_is_pulled() {
    tb image push "$work/smoke-oci.tar" team/smoke:v1 &&
        k run pulled --image=registry.testbed/team/smoke:v1 --image-pull-policy=Always --restart=Never -- true >/dev/null &&
        eventually 20 says Succeeded k get pod pulled -o 'jsonpath={.status.phase}'
}
image_that_is_nowhere_fails_at_once() {
    k run nowhere --image=docker.io/library/redis:7 --restart=Never >/dev/null
    eventually 10 says 'ErrImagePull|ImagePullBackOff' k get pod nowhere -o 'jsonpath={.status.containerStatuses[0].state.waiting.reason}'
}
names_and_services_lead_to_all_pods() {
    inside web-0 -- /probe lookup web.smoke.svc.cluster.local >/dev/null &&
        inside web-0 -- /probe lookup web-1.peers.smoke.svc.cluster.local >/dev/null &&
        is 3 "$(inside web-0 -- /probe get http://web.smoke 40 | sort -u | wc -l)" "pods behind the service"
}
pod_reaches_the_api_server() {
    inside web-1 -- /probe dial kubernetes.default:443
}
service_account_may_only_what_it_was_given() {
    k create serviceaccount reader >/dev/null && k create role reader --verb=get --resource=pods >/dev/null &&
        k create rolebinding reader --role=reader --serviceaccount=default:reader >/dev/null || return 1
    is yes "$(k auth can-i get pods --as=system:serviceaccount:default:reader)" "may get pods" &&
        is no "$(k auth can-i delete pods --as=system:serviceaccount:default:reader)" "may delete pods"
}
load_balancer_is_reached_from_outside_and_inside() {
    eventually 10 says 10.102 lb outside || return 1
    local ip
    ip=$(lb outside)
    eventually 5 fetch "$ip" && inside web-2 -- /probe get "http://$ip" >/dev/null
}
load_balancer_with_local_policy_keeps_to_workers_with_pods() {
    local ip i
    ip=$(lb outside-local)
    k -n smoke scale statefulset/web --replicas=1 >/dev/null
    eventually 20 says '^pod/web-0$' k -n smoke get pods -o name || return 1
    eventually 5 fetch "$ip" || return 1
    for i in $(seq 10); do is web-0 "$(fetch "$ip")" "request $i" || return 1; done
    k -n smoke scale statefulset/web --replicas=3 >/dev/null && k -n smoke rollout status statefulset/web --timeout=60s >/dev/null
}
client_outside_reaches_pods_and_node_ports() {
    fetch "$(pod_ip web-1):8080" >/dev/null || return 1
    k -n smoke patch service web --type=merge -p '{"spec":{"type":"NodePort","ports":[{"port":80,"targetPort":8080,"nodePort":31080}]}}' >/dev/null
    local n
    for n in 11 12 13; do eventually 5 fetch "10.99.0.$n:31080" || return 1; done
}
logs_exec_and_port_forward_pass_the_loopback() {
    is web-1 "$(inside web-1 -- /probe hostname)" exec || return 1
    "$bin" kubectl -n smoke port-forward pod/web-2 :8080 > "$work/forward" 2>&1 &
    local pid=$! result=1 port
    if eventually 10 grep -q "127.0.0.1:" "$work/forward"; then
        port=$(sed -n 's/.*127.0.0.1:\([0-9]*\) .*/\1/p' "$work/forward" | head -n 1)
        is web-2 "$("$probe" get "http://127.0.0.1:$port/")" port-forward && result=0
    fi
    kill "$pid"
    wait "$pid" 2>/dev/null
    return $result
}
pod_security_is_enforced() {
    says 'violates PodSecurity "restricted' k -n smoke run root --image=localhost/smoke:1 && k run root --image=localhost/smoke:1 --restart=Never -- true >/dev/null
}
network_policy_is_enforced() {
    local ip
    ip=$(pod_ip web-0)
    inside web-1 -- /probe get "http://$ip:8080" >/dev/null || return 1
    k -n smoke apply -f - >/dev/null <<'Y'
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: only-web-2}
spec:
  podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: web-0}}
  policyTypes: [Ingress]
  ingress: [{from: [{podSelector: {matchLabels: {statefulset.kubernetes.io/pod-name: web-2}}}], ports: [{port: 8080}]}]
Y
    eventually 5 not inside web-1 -- /probe get "http://$ip:8080" || return 1
    inside web-2 -- /probe get "http://$ip:8080" >/dev/null || return 1
    # Probes come from the pod's own worker, and go on.
    ready=$(k -n smoke get pod web-0 -o 'jsonpath={.status.conditions[?(@.type=="Ready")].status}')
    is True "$ready" "ready behind the policy" || return 1
    k -n smoke delete networkpolicy only-web-2 >/dev/null
    eventually 5 inside web-1 -- /probe get "http://$ip:8080"
}
volume_outlives_its_pod() {
    inside web-0 -- /probe write /data/note kept && k -n smoke delete pod web-0 --wait=true >/dev/null &&
        k -n smoke rollout status statefulset/web --timeout=60s >/dev/null && is kept "$(inside web-0 -- /probe read /data/note)" note
}
volume_grows() {
    k -n smoke patch pvc data-web-0 --type=merge -p '{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}' >/dev/null
    eventually 10 says 2Gi k -n smoke get pvc data-web-0 -o 'jsonpath={.status.capacity.storage}'
}
disruption_budget_stops_a_drain() {
    k -n smoke create poddisruptionbudget web --selector=app=web --min-available=3 >/dev/null
    local node said
    node=$(node_of web-1)
    said=$(timeout 10 "$bin" kubectl drain "$node" --ignore-daemonsets --force --timeout=3s 2>&1)
    k uncordon "$node" >/dev/null
    k -n smoke delete poddisruptionbudget web >/dev/null
    grep -q "would violate the pod's disruption budget" <<<"$said" || { note "$said"; return 1; }
}
worker_without_power_is_noticed_and_comes_back_with_its_data() {
    local node begin
    node=$(node_of web-0)
    k create deployment mover --image=localhost/smoke:1 --replicas=4 -- /probe sleep >/dev/null
    k rollout status deployment/mover --timeout=60s >/dev/null || return 1
    begin=$SECONDS
    tb worker off "$node" || return 1
    ! tb exec --worker "$node" -- true 2>/dev/null || { note "it still has power"; return 1; }
    eventually 30 ready_is "$node" Unknown || return 1
    note "$node not ready after $((SECONDS - begin)) s"
    eventually 40 moved "$node" || return 1
    note "its pods run elsewhere after $((SECONDS - begin)) s"
    begin=$SECONDS
    tb worker on "$node" || return 1
    eventually 30 ready_is "$node" True || return 1
    note "ready again after $((SECONDS - begin)) s"
    settled || return 1
    is kept "$(inside web-0 -- /probe read /data/note)" note && k delete deployment mover --now >/dev/null
}
pods_of_a_cut_worker_go_on_alone() {
    local node
    node=$(node_of web-1)
    tb worker cut "$node" || return 1
    eventually 30 ready_is "$node" Unknown || return 1
    # Past the cable: from inside of the worker.
    is "web-1" "$(tb exec --worker "$node" -- "$probe" get "http://$(pod_ip web-1):8080/")" "its pod answers" || return 1
    ! fetch "$(pod_ip web-1):8080" >/dev/null 2>&1 || { note "it answers from outside as well"; return 1; }
    tb worker join "$node" && eventually 30 ready_is "$node" True && settled
}
killed_kubelet_leaves_its_pods_running() {
    local node ip
    node=$(node_of web-2) ip=$(pod_ip web-2)
    tb kill kubelet "$node" && eventually 30 ready_is "$node" Unknown && is web-2 "$(fetch "$ip:8080")" "its pod answers" &&
        tb start kubelet "$node" && eventually 30 ready_is "$node" True && settled
}
killed_containerd_comes_back_to_its_pods() {
    local node ip id
    settled || return 1
    node=$(node_of web-2) ip=$(pod_ip web-2)
    id=$(k -n smoke get pod web-2 -o 'jsonpath={.status.containerStatuses[0].containerID}')
    tb kill containerd "$node" && is web-2 "$(fetch "$ip:8080")" "its pod answers" && tb start containerd "$node" &&
        eventually 30 ready_is "$node" True && eventually 30 k -n smoke exec web-2 -- /probe true &&
        is "$id" "$(k -n smoke get pod web-2 -o 'jsonpath={.status.containerStatuses[0].containerID}')" "the same container"
}
worker_whose_first_process_is_killed_can_be_powered_on_again() {
    local node pid
    settled || return 1
    node=$(node_of web-1)
    pid=$(pgrep -f "worker-stage2 $LARDER_TESTBED_DIR/workers/$node/boot.json" | head -n 1)
    kill -9 "$pid" || return 1
    eventually 10 says "$node .* off" tb status && eventually 30 ready_is "$node" Unknown || return 1
    says "$node is not ready" tb ready --timeout 1s || { note "it counts as switched off"; return 1; }
    tb worker on "$node" && eventually 30 ready_is "$node" True && settled
}
paused_containerd_holds_up_no_other_command() {
    local node loading begin=$SECONDS
    node=$(node_of web-2)
    tb pause containerd "$node" || return 1
    tb image load "$work/smoke.tar" 2>/dev/null &
    loading=$!
    says 'containerd \(paused\)' timeout 10 "$bin" status && timeout 10 "$bin" pause kubelet "$node" &&
        timeout 10 "$bin" resume kubelet "$node" && kill -0 "$loading" || { note "after $((SECONDS - begin)) s"; return 1; }
    timeout 10 "$bin" resume containerd "$node" && wait "$loading" && eventually 30 ready_is "$node" True && settled
}
killed_control_plane_comes_back_as_it_was() {
    local c uid address
    address=$(lb outside)
    uid=$(k get namespace smoke -o 'jsonpath={.metadata.uid}')
    for c in scheduler controller-manager apiserver etcd; do tb kill $c || return 1; done
    ! timeout 5 "$bin" kubectl get nodes >/dev/null 2>&1 || { note "the API still answers"; return 1; }
    fetch "$address" >/dev/null || { note "services do not go on without it"; return 1; }
    for c in etcd apiserver controller-manager scheduler; do tb start $c || return 1; done
    eventually 60 k get nodes && is "$uid" "$(k get namespace smoke -o 'jsonpath={.metadata.uid}')" "the same objects" && tb ready
}
paused_etcd_stops_the_api_but_not_the_services() {
    local address
    address=$(lb outside)
    tb pause etcd || return 1
    ! timeout 5 "$bin" kubectl get nodes >/dev/null 2>&1 || { note "the API still answers"; return 1; }
    fetch "$address" >/dev/null || { note "services do not go on without it"; return 1; }
    tb resume etcd && eventually 60 k get nodes && tb ready
}
deleted_claim_takes_its_data_along() {
    says '^3$' volumes || return 1
    k delete namespace smoke --wait=true >/dev/null
    eventually 20 says '^0$' volumes
}
machine() { # what a test bed could leave behind
    mount | sort
    ip -o link show | sed 's/ mtu.*//' | sort
    ls /run/netns /var/run/netns 2>/dev/null
    # Its own: others may come and go beside it.
    find /sys/fs/cgroup -name "${group:-none}" 2>/dev/null
    nft list tables 2>/dev/null
    sysctl fs.inotify.max_user_instances kernel.panic kernel.panic_on_oops vm.overcommit_memory net.ipv4.ip_forward
    ls /etc/cni/net.d /var/lib/kubelet /var/lib/cni 2>/dev/null
}
processes() { pgrep -f "$work/bed|$bin " | grep -vw $$; }
down_leaves_nothing_behind() {
    tb down || return 1
    is "" "$(processes)" processes && is "$before" "$(machine)" "the machine" && is "lock logs testbed.log" "$(cd "$LARDER_TESTBED_DIR" && echo *)" files
}
killed_launcher_takes_everything_along() {
    tb up --workers 1 >/dev/null || return 1
    kill -9 "$(sed -n 's/.*"launcher": \([0-9]*\).*/\1/p' "$LARDER_TESTBED_DIR/state.json")"
    eventually 10 not processes || return 1
    tb down && is "$before" "$(machine)" "the machine"
}
abort_of_the_owner_ends_it() {
    # As a test that is killed: the pipe's other end is gone.
    mkfifo "$work/owner"
    "$bin" run --until-eof --workers 1 < "$work/owner" > "$work/run.log" 2>&1 &
    local pid=$!
    exec 7> "$work/owner"
    eventually 60 tb ready --timeout 1s || return 1
    exec 7>&-
    eventually 20 not kill -0 "$pid" || return 1
    wait "$pid" && is "$before" "$(machine)" "the machine"
}

claim() {
    if "$1"; then printf 'ok   %s\n' "$1"; passed=$((passed + 1)); else printf 'FAIL %s\n' "$1"; failed=$((failed + 1)); fi
}
finish() { tb down; rm -rf "$work"; }

before=$(machine)
trap finish EXIT
tb up --workers 3 --zones 3 >/dev/null || exit 1
group=$(grep -o 'larder-testbed-[0-9a-f]*' "$LARDER_TESTBED_DIR/state.json" | head -n 1)
image || { echo "cannot build an image for pods" >&2; exit 1; }
for name in "${@:-}"; do [ -z "$name" ] || claim "$name"; done
if [ $# = 0 ]; then
    for name in workers_are_spread_over_zones image_of_an_archive_is_on_every_worker image_of_the_registry_is_pulled \
        image_that_is_nowhere_fails_at_once names_and_services_lead_to_all_pods pod_reaches_the_api_server service_account_may_only_what_it_was_given \
        load_balancer_is_reached_from_outside_and_inside load_balancer_with_local_policy_keeps_to_workers_with_pods \
        client_outside_reaches_pods_and_node_ports logs_exec_and_port_forward_pass_the_loopback pod_security_is_enforced \
        network_policy_is_enforced volume_outlives_its_pod volume_grows disruption_budget_stops_a_drain \
        worker_without_power_is_noticed_and_comes_back_with_its_data pods_of_a_cut_worker_go_on_alone \
        killed_kubelet_leaves_its_pods_running killed_containerd_comes_back_to_its_pods \
        worker_whose_first_process_is_killed_can_be_powered_on_again paused_containerd_holds_up_no_other_command \
        killed_control_plane_comes_back_as_it_was \
        paused_etcd_stops_the_api_but_not_the_services deleted_claim_takes_its_data_along down_leaves_nothing_behind killed_launcher_takes_everything_along abort_of_the_owner_ends_it; do
        claim "$name"
    done
fi
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
