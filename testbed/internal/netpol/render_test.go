package netpol

import (
	"strings"
	"testing"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func pod(namespace, name, node, ip string, ports ...core.ContainerPort) *core.Pod {
	return &core.Pod{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, UID: types.UID(name), Labels: map[string]string{"app": name}},
		Spec:       core.PodSpec{NodeName: node, Containers: []core.Container{{Ports: ports}}},
		Status:     core.PodStatus{PodIP: ip, Phase: core.PodRunning},
	}
}

func cluster(policies ...*networking.NetworkPolicy) Cluster {
	return Cluster{
		Pods: []*core.Pod{
			pod("a", "db", "n1", "10.100.1.2", core.ContainerPort{Name: "client", ContainerPort: 6379, Protocol: "TCP"}),
			pod("a", "web", "n2", "10.100.2.2"),
			pod("b", "web", "n2", "10.100.2.3"),
		},
		Namespaces: map[string]labels.Set{"a": {"team": "a"}, "b": {"team": "b"}},
		Policies:   policies,
	}
}

func selector(app string) *meta.LabelSelector {
	return &meta.LabelSelector{MatchLabels: map[string]string{"app": app}}
}

func policy(spec networking.NetworkPolicySpec) *networking.NetworkPolicy {
	spec.PodSelector = *selector("db")
	return &networking.NetworkPolicy{ObjectMeta: meta.ObjectMeta{Namespace: "a", Name: "p"}, Spec: spec}
}

func render(t *testing.T, c Cluster, node string) string {
	t.Helper()
	text, err := Render(c, node)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestWithoutPoliciesNothingIsFiltered(t *testing.T) {
	if text := render(t, cluster(), "n1"); strings.Contains(text, "jump") || strings.Contains(text, "drop") {
		t.Error(text)
	}
}

func TestIsolatedPodTakesOnlyWhatAPolicyNames(t *testing.T) {
	port := intstr.FromString("client")
	text := render(t, cluster(policy(networking.NetworkPolicySpec{
		PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress},
		Ingress: []networking.NetworkPolicyIngressRule{{
			From:  []networking.NetworkPolicyPeer{{PodSelector: selector("web")}},
			Ports: []networking.NetworkPolicyPort{{Port: &port}},
		}},
	})), "n1")
	for _, want := range []string{"ip daddr 10.100.1.2 jump in-0", "ip saddr { 10.100.2.2 } tcp dport 6379 return", "drop"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if strings.Contains(text, "10.100.2.3") {
		t.Errorf("a pod of another namespace is let in:\n%s", text)
	}
	if strings.Contains(text, "saddr 10.100.1.2") {
		t.Errorf("what the pod sends is filtered too:\n%s", text)
	}
}

func TestRulesAreOnThePodsOwnNodeAlone(t *testing.T) {
	p := policy(networking.NetworkPolicySpec{PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress}})
	if text := render(t, cluster(p), "n2"); strings.Contains(text, "jump") {
		t.Error(text)
	}
}

func TestNamespacesAreSelectedByLabel(t *testing.T) {
	text := render(t, cluster(policy(networking.NetworkPolicySpec{
		PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress},
		Ingress: []networking.NetworkPolicyIngressRule{{From: []networking.NetworkPolicyPeer{
			{NamespaceSelector: &meta.LabelSelector{MatchLabels: map[string]string{"team": "b"}}},
		}}},
	})), "n1")
	if !strings.Contains(text, "ip saddr { 10.100.2.3 } return") {
		t.Error(text)
	}
}

func TestNamedPortThatNobodyHasLetsNothingThrough(t *testing.T) {
	port := intstr.FromString("nothing")
	text := render(t, cluster(policy(networking.NetworkPolicySpec{
		PolicyTypes: []networking.PolicyType{networking.PolicyTypeEgress},
		Egress: []networking.NetworkPolicyEgressRule{{
			To:    []networking.NetworkPolicyPeer{{PodSelector: selector("web")}},
			Ports: []networking.NetworkPolicyPort{{Port: &port}},
		}},
	})), "n1")
	if strings.Contains(text, "return") || !strings.Contains(text, "ip saddr 10.100.1.2 jump out-0") {
		t.Error(text)
	}
}

func TestBlockOfAddressesHasItsExceptions(t *testing.T) {
	port, end := intstr.FromInt32(6379), int32(6389)
	text := render(t, cluster(policy(networking.NetworkPolicySpec{
		PolicyTypes: []networking.PolicyType{networking.PolicyTypeEgress},
		Egress: []networking.NetworkPolicyEgressRule{{
			To:    []networking.NetworkPolicyPeer{{IPBlock: &networking.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.99.0.0/24"}}}},
			Ports: []networking.NetworkPolicyPort{{Port: &port, EndPort: &end}},
		}},
	})), "n1")
	if !strings.Contains(text, "ip daddr 10.0.0.0/8 ip daddr != { 10.99.0.0/24 } tcp dport 6379-6389 return") {
		t.Error(text)
	}
}
