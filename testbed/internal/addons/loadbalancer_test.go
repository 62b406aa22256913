package addons

import (
	"context"
	"errors"
	"testing"

	core "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	listers "k8s.io/client-go/listers/core/v1"
	discoverylisters "k8s.io/client-go/listers/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

func TestRouteThatCouldNotBeRemovedIsTriedAgain(t *testing.T) {
	services := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	slices := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{cache.NamespaceIndex: cache.MetaNamespaceIndexFunc})
	service := &core.Service{
		ObjectMeta: meta.ObjectMeta{Namespace: "a", Name: "web"},
		Spec:       core.ServiceSpec{Type: core.ServiceTypeLoadBalancer, ExternalTrafficPolicy: core.ServiceExternalTrafficPolicyLocal},
		Status: core.ServiceStatus{LoadBalancer: core.LoadBalancerStatus{
			Ingress: []core.LoadBalancerIngress{{IP: "10.102.0.1"}},
		}},
	}
	node := "worker-2"
	for indexer, object := range map[cache.Indexer]any{
		services: service,
		slices: &discovery.EndpointSlice{
			ObjectMeta: meta.ObjectMeta{Namespace: "a", Name: "web-1", Labels: map[string]string{discovery.LabelServiceName: "web"}},
			Endpoints:  []discovery.Endpoint{{NodeName: &node}},
		},
	} {
		if err := indexer.Add(object); err != nil {
			t.Fatal(err)
		}
	}
	routes := map[string][]string{}
	var broken error
	b := &Balancer{
		Services: listers.NewServiceLister(services), Slices: discoverylisters.NewEndpointSliceLister(slices),
		Route: func(ip string, workers []string) error {
			if broken == nil {
				routes[ip] = workers
			}
			return broken
		},
	}
	if err := b.Round(context.Background()); err != nil || len(routes["10.102.0.1"]) != 1 {
		t.Fatalf("%v, %v", routes, err)
	}
	if err := services.Delete(service); err != nil {
		t.Fatal(err)
	}
	broken = errors.New("no route today")
	if err := b.Round(context.Background()); !errors.Is(err, broken) {
		t.Fatalf("%v", err)
	}
	broken = nil
	if err := b.Round(context.Background()); err != nil || len(routes["10.102.0.1"]) != 0 {
		t.Errorf("%v, %v", routes, err)
	}
}
