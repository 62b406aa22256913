// Package config renders the configuration files and arguments of all components. Nothing here reads or writes.
package config

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"

	"larder/testbed/internal/plan"
)

// PauseImage is the image that holds pods' namespaces; the test bed's own registry serves it.
const PauseImage = plan.RegistryName + "/testbed/pause:1"

// Containerd renders containerd's configuration, for containerd 1.6 and later 1.x.
func Containerd() string {
	return `version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
  "io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing", "io.containerd.tracing.processor.v1.otlp",
]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "` + PauseImage + `"
  disable_apparmor = true
  # Lowering oom_score_adj needs CAP_SYS_RESOURCE, which root in a container often lacks; runc then dies with
  # "can't get final child's PID from pipe: EOF".
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
`
}

// Hosts renders the hosts.toml for every registry there is: all names lead to the test bed's registry, so that a
// name that it does not hold fails at once instead of waiting for an answer from a network that is not there.
func Hosts() string {
	// containerd 1.6 wants at least one host beside the server.
	return fmt.Sprintf("server = \"http://%[1]s:%[2]d\"\n[host.\"http://%[1]s:%[2]d\"]\n  capabilities = [\"pull\", \"resolve\"]\n",
		plan.ControlIP, plan.RegistryPort)
}

// CNI renders the network of a worker's pods: point-to-point cables, routed. A bridge would need br_netfilter to
// let policies see the traffic between two pods of one worker; routed, all of it passes the forward hook.
func CNI(w plan.Worker) string {
	return pretty(map[string]any{
		"cniVersion": "1.0.0",
		"name":       "testbed",
		"plugins": []any{
			map[string]any{
				"type":   "ptp",
				"ipMasq": false,
				"ipam": map[string]any{
					"type": "host-local",
					// On a tmpfs: leases vanish with the power, like the pods that held them.
					"dataDir": "/run/cni-ipam",
					"ranges":  []any{[]any{map[string]any{"subnet": w.PodCIDR()}}},
					"routes":  []any{map[string]any{"dst": "0.0.0.0/0"}},
				},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]any{"portMappings": true}},
		},
	})
}

// Kubelet renders the kubelet's configuration. machine is the machine's memory in bytes; what a worker may not give to
// pods is reserved for the system, since each worker believes that it has all of the machine.
func Kubelet(spec plan.Spec, w plan.Worker, machine int64) string {
	reserved := max(machine-spec.Memory, 0)
	return pretty(map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": map[string]any{
			"anonymous": map[string]any{"enabled": false},
			"webhook":   map[string]any{"enabled": true},
			"x509":      map[string]any{"clientCAFile": spec.PKI("ca.crt")},
		},
		"authorization":            map[string]any{"mode": "Webhook"},
		"tlsCertFile":              spec.PKI(w.Name + ".crt"),
		"tlsPrivateKeyFile":        spec.PKI(w.Name + ".key"),
		"containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
		"cgroupDriver":             "cgroupfs",
		"failCgroupV1":             false,
		"clusterDNS":               []string{plan.ServiceDNS},
		"clusterDomain":            plan.Domain,
		"resolvConf":               spec.Config("resolv.conf"),
		// Faster than the defaults (10 s, 40 s), so that a lost worker is noticed in seconds.
		"nodeStatusUpdateFrequency":   "2s",
		"nodeLeaseDurationSeconds":    4,
		"systemReserved":              map[string]any{"memory": fmt.Sprint(reserved)},
		"imageGCHighThresholdPercent": 100,
		// The machine's disk is everybody's: a worker does not evict pods because of it.
		"evictionHard": map[string]any{
			"memory.available": "100Mi", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%",
		},
		"logging": map[string]any{"flushFrequency": "1s"},
	})
}

// KubeletArgs are the kubelet's arguments.
func KubeletArgs(spec plan.Spec, w plan.Worker) []string {
	return []string{
		"--config=" + spec.Disk(w.Name, "kubelet.yaml"),
		"--kubeconfig=" + spec.Config(w.Name+".kubeconfig"),
		"--hostname-override=" + w.Name,
		"--node-ip=" + w.IP(),
		"--node-labels=topology.kubernetes.io/zone=" + w.Zone + ",topology.kubernetes.io/region=testbed",
		"--housekeeping-interval=30s",
	}
}

// KubeProxy renders kube-proxy's configuration.
func KubeProxy(spec plan.Spec, w plan.Worker) string {
	return pretty(map[string]any{
		"apiVersion":       "kubeproxy.config.k8s.io/v1alpha1",
		"kind":             "KubeProxyConfiguration",
		"mode":             "nftables",
		"hostnameOverride": w.Name,
		"clusterCIDR":      plan.PodCIDR,
		"detectLocalMode":  "ClusterCIDR",
		"clientConnection": map[string]any{"kubeconfig": spec.Config("kube-proxy.kubeconfig")},
		// nf_conntrack's settings are the whole machine's: zero leaves them alone.
		"conntrack": map[string]any{
			"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s",
		},
	})
}

// Credentials are the contents of PEM files.
type Credentials struct{ CA, Cert, Key []byte }

// Kubeconfig renders a kubeconfig for server ("https://host:port") with the credentials inside.
func Kubeconfig(server string, c Credentials) string {
	encode := base64.StdEncoding.EncodeToString
	return pretty(map[string]any{
		"apiVersion":      "v1",
		"kind":            "Config",
		"current-context": "testbed",
		"clusters": []any{map[string]any{"name": "testbed", "cluster": map[string]any{
			"server": server, "certificate-authority-data": encode(c.CA)}}},
		"users": []any{map[string]any{"name": "testbed", "user": map[string]any{
			"client-certificate-data": encode(c.Cert), "client-key-data": encode(c.Key)}}},
		"contexts": []any{map[string]any{"name": "testbed", "context": map[string]any{
			"cluster": "testbed", "user": "testbed"}}},
	})
}

// pretty renders JSON, which is YAML as well.
func pretty(value any) string {
	var out strings.Builder
	encoder := json.NewEncoder(&out)
	encoder.SetIndent("", "  ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		panic(fmt.Sprintf("maps of strings, numbers and lists cannot fail to encode: %v", err))
	}
	return out.String()
}
