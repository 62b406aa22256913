package netpol

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"k8s.io/apimachinery/pkg/labels"
	corelisters "k8s.io/client-go/listers/core/v1"
	listers "k8s.io/client-go/listers/networking/v1"
)

// Enforcer keeps the tables of all workers as the policies say. One process does so for all of them; a worker that is
// cut off or without power keeps the rules that it has, as with an enforcer of its own.
type Enforcer struct {
	Pods       corelisters.PodLister
	Namespaces corelisters.NamespaceLister
	Policies   listers.NetworkPolicyLister
	// Workers lists those that can be reached.
	Workers func() []string
	// Apply gives a worker rules, in one transaction.
	Apply func(worker, rules string) error

	mu      sync.Mutex
	applied map[string]string
}

// Round renders and applies what has changed.
func (e *Enforcer) Round(context.Context) error {
	var failed error
	for _, worker := range e.Workers() {
		if err := e.Refresh(worker); err != nil {
			failed = errors.Join(failed, fmt.Errorf("policies of %s: %w", worker, err))
		}
	}
	return failed
}

// Refresh brings one worker's table up to date.
func (e *Enforcer) Refresh(worker string) error {
	// Held from the first look on: a table that was rendered earlier may not be applied later.
	e.mu.Lock()
	defer e.mu.Unlock()
	cluster, err := e.cluster()
	if err != nil {
		return err
	}
	rules, err := Render(cluster, worker)
	if err != nil {
		return err
	}
	if e.applied[worker] == rules {
		return nil
	}
	if err := e.Apply(worker, rules); err != nil {
		return err
	}
	if e.applied == nil {
		e.applied = map[string]string{}
	}
	e.applied[worker] = rules
	return nil
}

// Forget says that a worker has lost its rules, with its power.
func (e *Enforcer) Forget(worker string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.applied, worker)
}

func (e *Enforcer) cluster() (Cluster, error) {
	pods, err := e.Pods.List(labels.Everything())
	if err != nil {
		return Cluster{}, fmt.Errorf("listing pods: %w", err)
	}
	namespaces, err := e.Namespaces.List(labels.Everything())
	if err != nil {
		return Cluster{}, fmt.Errorf("listing namespaces: %w", err)
	}
	policies, err := e.Policies.List(labels.Everything())
	if err != nil {
		return Cluster{}, fmt.Errorf("listing network policies: %w", err)
	}
	c := Cluster{Pods: pods, Policies: policies, Namespaces: map[string]labels.Set{}}
	for _, n := range namespaces {
		c.Namespaces[n.Name] = n.Labels
	}
	return c, nil
}
