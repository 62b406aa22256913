package config

import (
	"fmt"

	"larder/testbed/internal/pki"
	"larder/testbed/internal/plan"
)

// EtcdURL is where etcd serves the API server, inside the control plane's namespace.
const EtcdURL = "http://127.0.0.1:2379"

// Etcd are etcd's arguments.
func Etcd(dataDir string) []string {
	return []string{"--data-dir=" + dataDir, "--client-url=" + EtcdURL}
}

// APIServer are the API server's arguments.
func APIServer(spec plan.Spec) []string {
	arguments := []string{
		"--etcd-servers=" + EtcdURL,
		"--bind-address=0.0.0.0",
		"--advertise-address=" + plan.ControlIP,
		fmt.Sprintf("--secure-port=%d", plan.APIPort),
		"--service-cluster-ip-range=" + plan.ServiceCIDR,
		"--tls-cert-file=" + spec.PKI("apiserver.crt"),
		"--tls-private-key-file=" + spec.PKI("apiserver.key"),
		"--client-ca-file=" + spec.PKI("ca.crt"),
		"--kubelet-client-certificate=" + spec.PKI("apiserver-kubelet.crt"),
		"--kubelet-client-key=" + spec.PKI("apiserver-kubelet.key"),
		"--kubelet-certificate-authority=" + spec.PKI("ca.crt"),
		"--kubelet-preferred-address-types=InternalIP",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=" + spec.PKI("sa.pub"),
		"--service-account-signing-key-file=" + spec.PKI("sa.key"),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--allow-privileged=true",
		"--profiling=false",
		"--enable-aggregator-routing=true",
		"--default-not-ready-toleration-seconds=2",
		"--default-unreachable-toleration-seconds=2",
		"--cert-dir=" + spec.Config("apiserver"),
	}
	if spec.Audit {
		arguments = append(arguments,
			"--audit-policy-file="+spec.Config("audit.yaml"),
			"--audit-log-path="+spec.Logs("audit.log"),
			"--audit-log-maxsize=200",
			"--audit-log-maxbackup=1",
		)
	}
	return arguments
}

// AuditPolicy has every request of a service account written down, but for those of Kubernetes' own: who, what, and what
// was answered. Not its content, in which there are secrets. Watches are told of when they begin.
const AuditPolicy = `apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: None
    userGroups: ["system:serviceaccounts:kube-system"]
  - level: Metadata
    userGroups: ["system:serviceaccounts"]
  - level: None
`

// ControllerManager are the controller manager's arguments.
func ControllerManager(spec plan.Spec) []string {
	return []string{
		"--kubeconfig=" + spec.Config("controller-manager.kubeconfig"),
		"--leader-elect=false",
		"--use-service-account-credentials=true",
		"--root-ca-file=" + spec.PKI("ca.crt"),
		"--service-account-private-key-file=" + spec.PKI("sa.key"),
		"--cluster-signing-cert-file=" + spec.PKI("ca.crt"),
		"--cluster-signing-key-file=" + spec.PKI("ca.key"),
		"--profiling=false",
		"--node-monitor-period=1s",
		"--node-monitor-grace-period=6s",
		// With few workers a lost one is a large part of its zone, and eviction would nearly stop.
		"--node-eviction-rate=10",
		"--secondary-node-eviction-rate=10",
		"--bind-address=127.0.0.1",
		"--cert-dir=" + spec.Config("controller-manager"),
	}
}

// Scheduler are the scheduler's arguments.
func Scheduler(spec plan.Spec) []string {
	return []string{
		"--kubeconfig=" + spec.Config("scheduler.kubeconfig"),
		"--leader-elect=false",
		"--profiling=false",
		"--bind-address=127.0.0.1",
		"--cert-dir=" + spec.Config("scheduler"),
	}
}

// Certificates lists every certificate of the cluster but the authority's.
func Certificates(spec plan.Spec) []pki.Request {
	requests := []pki.Request{
		{
			File: "apiserver", User: "kube-apiserver",
			Names: []string{"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + plan.Domain},
			IPs:   []string{"127.0.0.1", plan.ControlIP, plan.ServiceAPI},
		},
		{File: "apiserver-kubelet", User: "kube-apiserver-kubelet-client", Groups: []string{"system:masters"}},
		{File: "admin", User: "testbed-admin", Groups: []string{"system:masters"}},
		{File: "controller-manager", User: "system:kube-controller-manager"},
		{File: "scheduler", User: "system:kube-scheduler"},
		{File: "kube-proxy", User: "system:kube-proxy"},
	}
	for _, w := range spec.Workers {
		requests = append(requests, pki.Request{
			File: w.Name, User: "system:node:" + w.Name, Groups: []string{"system:nodes"},
			Names: []string{w.Name}, IPs: []string{w.IP()},
		})
	}
	return requests
}
