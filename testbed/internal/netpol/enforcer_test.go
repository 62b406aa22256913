package netpol

import (
	"testing"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	listers "k8s.io/client-go/listers/networking/v1"
	"k8s.io/client-go/tools/cache"
)

// watched is a lister that says when it is asked.
type watched struct {
	corelisters.PodLister
	asked func()
}

func (w watched) List(selector labels.Selector) ([]*core.Pod, error) {
	w.asked()
	return w.PodLister.List(selector)
}

func TestNoTableIsRenderedBesideAnother(t *testing.T) {
	empty := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
	rounds, applied := 0, 0
	e := &Enforcer{
		Namespaces: corelisters.NewNamespaceLister(empty), Policies: listers.NewNetworkPolicyLister(empty),
		Apply: func(string, string) error { applied++; return nil },
	}
	e.Pods = watched{corelisters.NewPodLister(empty), func() {
		rounds++
		if e.mu.TryLock() {
			t.Error("an older table could be applied after a newer one")
			e.mu.Unlock()
		}
	}}
	for range 2 {
		if err := e.Refresh("worker-1"); err != nil {
			t.Fatal(err)
		}
	}
	if rounds != 2 || applied != 1 {
		t.Errorf("rendered %d times, applied %d times", rounds, applied)
	}
	e.Forget("worker-1")
	if err := e.Refresh("worker-1"); err != nil || applied != 2 {
		t.Errorf("applied %d times, %v", applied, err)
	}
}
