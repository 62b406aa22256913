// Package netpol enforces NetworkPolicies: it renders one nftables table for each worker. The rendering is a function
// of the cluster's objects.
package netpol

import (
	"fmt"
	"sort"
	"strings"

	core "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Table is the name of the table, family inet.
const Table = "testbed-netpol"

// Cluster is what rules are made from.
type Cluster struct {
	Pods       []*core.Pod
	Namespaces map[string]labels.Set
	Policies   []*networking.NetworkPolicy
}

// Render gives the input of `nft -f -` for one node: it replaces the whole table in one transaction. The rules apply
// to pods of that node; traffic between a pod and its own node passes another hook and is always let through, as
// Kubernetes demands.
func Render(c Cluster, node string) (string, error) {
	var chains, jumps strings.Builder
	pods := append([]*core.Pod(nil), c.Pods...)
	sort.Slice(pods, func(i, j int) bool { return pods[i].UID < pods[j].UID })
	for i, pod := range pods {
		if pod.Spec.NodeName != node || !addressed(pod) {
			continue
		}
		for _, d := range []direction{ingress, egress} {
			rules, isolated, err := c.rules(pod, d)
			if err != nil {
				return "", err
			}
			if !isolated {
				continue
			}
			chain := fmt.Sprintf("%s-%d", d.name, i)
			fmt.Fprintf(&chains, "  chain %s { # %s/%s\n", chain, pod.Namespace, pod.Name)
			for _, rule := range rules {
				fmt.Fprintf(&chains, "    %s return\n", rule)
			}
			chains.WriteString("    drop\n  }\n")
			fmt.Fprintf(&jumps, "    ip %s %s jump %s\n", d.self, pod.Status.PodIP, chain)
		}
	}
	// Declared, deleted and made: the deletion may not fail on a table that is not there yet.
	return fmt.Sprintf("table inet %[1]s {}\ndelete table inet %[1]s\ntable inet %[1]s {\n%s  chain forward {\n"+
		"    type filter hook forward priority filter; policy accept;\n"+
		"    ct state established,related accept\n%s  }\n}\n", Table, chains.String(), jumps.String()), nil
}

// addressed says whether a pod has an address of its own that is in use.
func addressed(pod *core.Pod) bool {
	return !pod.Spec.HostNetwork && pod.Status.PodIP != "" &&
		pod.Status.Phase != core.PodSucceeded && pod.Status.Phase != core.PodFailed
}

// direction is one of the two ways, in nftables' words.
type direction struct {
	name, self, peer string
	kind             networking.PolicyType
}

var (
	ingress = direction{"in", "daddr", "saddr", networking.PolicyTypeIngress}
	egress  = direction{"out", "saddr", "daddr", networking.PolicyTypeEgress}
)

// rules lists what a pod may receive or send, and whether any policy isolates it that way at all.
func (c Cluster) rules(pod *core.Pod, d direction) ([]string, bool, error) {
	var rules []string
	isolated := false
	for _, policy := range c.Policies {
		if policy.Namespace != pod.Namespace || !has(policy.Spec.PolicyTypes, d.kind) {
			continue
		}
		selector, err := meta.LabelSelectorAsSelector(&policy.Spec.PodSelector)
		if err != nil {
			return nil, false, fmt.Errorf("network policy %s/%s: %w", policy.Namespace, policy.Name, err)
		}
		if !selector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		isolated = true
		if d.kind == networking.PolicyTypeIngress {
			for _, r := range policy.Spec.Ingress {
				rules, err = c.rule(rules, policy.Namespace, pod, d, r.From, r.Ports)
				if err != nil {
					return nil, false, fmt.Errorf("network policy %s/%s: %w", policy.Namespace, policy.Name, err)
				}
			}
			continue
		}
		for _, r := range policy.Spec.Egress {
			rules, err = c.rule(rules, policy.Namespace, pod, d, r.To, r.Ports)
			if err != nil {
				return nil, false, fmt.Errorf("network policy %s/%s: %w", policy.Namespace, policy.Name, err)
			}
		}
	}
	return rules, isolated, nil
}

func has(kinds []networking.PolicyType, kind networking.PolicyType) bool {
	for _, k := range kinds {
		if k == kind {
			return true
		}
	}
	return false
}

// rule adds the lines for one list of peers and ports. An empty list of either means all.
func (c Cluster) rule(rules []string, namespace string, pod *core.Pod, d direction, peers []networking.NetworkPolicyPeer, list []networking.NetworkPolicyPort) ([]string, error) {
	if len(peers) == 0 && d.kind == networking.PolicyTypeEgress && named(list) {
		// What a port's name means is known of pods alone.
		peers = []networking.NetworkPolicyPeer{{NamespaceSelector: &meta.LabelSelector{}}}
	}
	if len(peers) == 0 {
		return append(rules, crossed("", ports(list, []*core.Pod{pod}))...), nil
	}
	for _, peer := range peers {
		if peer.IPBlock != nil {
			match := fmt.Sprintf("ip %s %s", d.peer, peer.IPBlock.CIDR)
			if len(peer.IPBlock.Except) > 0 {
				match += fmt.Sprintf(" ip %s != { %s }", d.peer, strings.Join(peer.IPBlock.Except, ", "))
			}
			rules = append(rules, crossed(match, ports(list, []*core.Pod{pod}))...)
			continue
		}
		selected, err := c.selected(namespace, peer)
		if err != nil {
			return nil, err
		}
		if d.kind == networking.PolicyTypeIngress {
			if len(selected) > 0 {
				rules = append(rules, crossed(fmt.Sprintf("ip %s { %s }", d.peer, addresses(selected)), ports(list, []*core.Pod{pod}))...)
			}
			continue
		}
		// A port's name means something else in each peer, so each gets lines of its own where there are names.
		if !named(list) && len(selected) > 0 {
			rules = append(rules, crossed(fmt.Sprintf("ip %s { %s }", d.peer, addresses(selected)), ports(list, nil))...)
			continue
		}
		for _, p := range selected {
			rules = append(rules, crossed(fmt.Sprintf("ip %s %s", d.peer, p.Status.PodIP), ports(list, []*core.Pod{p}))...)
		}
	}
	return rules, nil
}

// selected lists the pods that a peer means.
func (c Cluster) selected(namespace string, peer networking.NetworkPolicyPeer) ([]*core.Pod, error) {
	all := labels.Everything()
	podSelector, namespaceSelector := all, all
	var err error
	if peer.PodSelector != nil {
		if podSelector, err = meta.LabelSelectorAsSelector(peer.PodSelector); err != nil {
			return nil, err
		}
	}
	if peer.NamespaceSelector != nil {
		if namespaceSelector, err = meta.LabelSelectorAsSelector(peer.NamespaceSelector); err != nil {
			return nil, err
		}
	}
	var found []*core.Pod
	for _, pod := range c.Pods {
		if !addressed(pod) || !podSelector.Matches(labels.Set(pod.Labels)) {
			continue
		}
		if peer.NamespaceSelector == nil {
			if pod.Namespace != namespace {
				continue
			}
		} else if !namespaceSelector.Matches(c.Namespaces[pod.Namespace]) {
			continue
		}
		found = append(found, pod)
	}
	return found, nil
}

func addresses(pods []*core.Pod) string {
	seen := map[string]bool{}
	var list []string
	for _, pod := range pods {
		if !seen[pod.Status.PodIP] {
			seen[pod.Status.PodIP] = true
			list = append(list, pod.Status.PodIP)
		}
	}
	sort.Strings(list)
	return strings.Join(list, ", ")
}

func named(list []networking.NetworkPolicyPort) bool {
	for _, p := range list {
		if p.Port != nil && p.Port.Type == intstr.String {
			return true
		}
	}
	return false
}

// ports renders a list of ports; targets are the pods whose names of ports count. An empty list means all ports; a
// list of which nothing remains (names that no target has) means none, and is nil.
func ports(list []networking.NetworkPolicyPort, targets []*core.Pod) []string {
	if len(list) == 0 {
		return []string{""}
	}
	var out []string
	for _, p := range list {
		protocol := "tcp"
		if p.Protocol != nil {
			protocol = strings.ToLower(string(*p.Protocol))
		}
		switch {
		case p.Port == nil:
			out = append(out, "meta l4proto "+protocol)
		case p.Port.Type == intstr.String:
			for _, number := range lookup(targets, p.Port.StrVal, protocol) {
				out = append(out, fmt.Sprintf("%s dport %d", protocol, number))
			}
		case p.EndPort != nil:
			out = append(out, fmt.Sprintf("%s dport %d-%d", protocol, p.Port.IntVal, *p.EndPort))
		default:
			out = append(out, fmt.Sprintf("%s dport %d", protocol, p.Port.IntVal))
		}
	}
	return out
}

func lookup(targets []*core.Pod, name, protocol string) []int32 {
	var numbers []int32
	for _, pod := range targets {
		for _, container := range pod.Spec.Containers {
			for _, port := range container.Ports {
				kind := strings.ToLower(string(port.Protocol))
				if port.Name == name && (kind == protocol || kind == "" && protocol == "tcp") {
					numbers = append(numbers, port.ContainerPort)
				}
			}
		}
	}
	return numbers
}

func crossed(match string, ports []string) []string {
	lines := make([]string, 0, len(ports))
	for _, p := range ports {
		lines = append(lines, strings.TrimSpace(match+" "+p))
	}
	return lines
}
