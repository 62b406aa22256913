package addons

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sort"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	listers "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"

	"larder/testbed/internal/plan"
)

// Balancer gives Services of type LoadBalancer an address and routes it to workers; kube-proxy does the rest there.
type Balancer struct {
	Client   kubernetes.Interface
	Services listers.ServiceLister
	Slices   discoverylisters.EndpointSliceLister
	// Route sets the workers over which an address is reached; none means over all.
	Route func(ip string, workers []string) error
	// routed are the addresses that have a route of their own.
	routed map[string]bool
}

// Round gives addresses and sets routes.
func (b *Balancer) Round(ctx context.Context) error {
	services, err := b.Services.List(labels.Everything())
	if err != nil {
		return fmt.Errorf("listing services: %w", err)
	}
	// The oldest first, so that who gets which address does not depend on the order of a map.
	sort.Slice(services, func(i, j int) bool {
		a, b := services[i], services[j]
		if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
			return a.CreationTimestamp.Before(&b.CreationTimestamp)
		}
		return a.UID < b.UID
	})
	taken := map[string]bool{}
	for _, s := range services {
		for _, address := range s.Status.LoadBalancer.Ingress {
			taken[address.IP] = true
		}
	}
	var failed error
	routed := map[string]bool{}
	for _, s := range services {
		if s.Spec.Type != core.ServiceTypeLoadBalancer || s.Spec.LoadBalancerClass != nil || s.DeletionTimestamp != nil {
			if s.Spec.Type != core.ServiceTypeLoadBalancer && len(s.Status.LoadBalancer.Ingress) > 0 {
				failed = errors.Join(failed, b.publish(ctx, s, ""))
			}
			continue
		}
		if len(s.Status.LoadBalancer.Ingress) == 0 {
			ip, err := Free(taken, s.Spec.LoadBalancerIP)
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("service %s/%s: %w", s.Namespace, s.Name, err))
				continue
			}
			taken[ip] = true
			failed = errors.Join(failed, b.publish(ctx, s, ip))
			continue
		}
		if s.Spec.ExternalTrafficPolicy != core.ServiceExternalTrafficPolicyLocal {
			continue
		}
		ip := s.Status.LoadBalancer.Ingress[0].IP
		routed[ip] = true
		nodes, err := b.nodes(s)
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		failed = errors.Join(failed, b.Route(ip, nodes))
	}
	for ip := range b.routed {
		if routed[ip] {
			continue
		}
		if err := b.Route(ip, nil); err != nil {
			// Still there, so that the next round removes it.
			routed[ip] = true
			failed = errors.Join(failed, err)
		}
	}
	b.routed = routed
	return failed
}

func (b *Balancer) publish(ctx context.Context, s *core.Service, ip string) error {
	s = s.DeepCopy()
	s.Status.LoadBalancer.Ingress = nil
	if ip != "" {
		mode := core.LoadBalancerIPModeVIP
		s.Status.LoadBalancer.Ingress = []core.LoadBalancerIngress{{IP: ip, IPMode: &mode}}
	}
	if _, err := b.Client.CoreV1().Services(s.Namespace).UpdateStatus(ctx, s, meta.UpdateOptions{}); err != nil {
		return fmt.Errorf("telling service %s/%s its address: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// nodes lists the workers that have a ready endpoint of a service: with the policy Local no other takes its traffic.
func (b *Balancer) nodes(s *core.Service) ([]string, error) {
	slices, err := b.Slices.EndpointSlices(s.Namespace).List(labels.SelectorFromSet(labels.Set{discovery.LabelServiceName: s.Name}))
	if err != nil {
		return nil, fmt.Errorf("listing the endpoints of %s/%s: %w", s.Namespace, s.Name, err)
	}
	seen := map[string]bool{}
	for _, slice := range slices {
		for _, e := range slice.Endpoints {
			if e.NodeName != nil && (e.Conditions.Ready == nil || *e.Conditions.Ready) {
				seen[*e.NodeName] = true
			}
		}
	}
	nodes := make([]string, 0, len(seen))
	for node := range seen {
		nodes = append(nodes, node)
	}
	sort.Strings(nodes)
	return nodes, nil
}

// Free finds the lowest address of the pool that is not taken, or the one asked for.
func Free(taken map[string]bool, asked string) (string, error) {
	pool, err := netip.ParsePrefix(plan.LoadBalancerCIDR)
	if err != nil {
		return "", fmt.Errorf("reading the pool of addresses: %w", err)
	}
	if asked != "" {
		ip, err := netip.ParseAddr(asked)
		if err != nil || !pool.Contains(ip) {
			return "", fmt.Errorf("the address %q is not of the pool %s", asked, pool)
		}
		if taken[asked] {
			return "", fmt.Errorf("the address %s is taken", asked)
		}
		return asked, nil
	}
	// Neither the first nor the last: they look like a network's and a broadcast address.
	for ip := pool.Addr().Next(); pool.Contains(ip.Next()); ip = ip.Next() {
		if !taken[ip.String()] {
			return ip.String(), nil
		}
	}
	return "", fmt.Errorf("no address of the pool %s is free", pool)
}
