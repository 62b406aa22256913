// Package addons is what a cloud would add to a bare cluster: volumes, load balancers' addresses, DNS.
package addons

import (
	"context"
	"log"
	"time"

	"k8s.io/client-go/tools/cache"
)

// Trigger asks a loop for a round. Asking again before it has begun asks for no second one.
type Trigger chan struct{}

// NewTrigger makes a trigger that has been pulled once.
func NewTrigger() Trigger {
	t := make(Trigger, 1)
	t.Pull()
	return t
}

// Pull asks for a round.
func (t Trigger) Pull() {
	select {
	case t <- struct{}{}:
	default:
	}
}

// Watch pulls the trigger at every change that an informer sees.
func (t Trigger) Watch(informer cache.SharedIndexInformer) error {
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { t.Pull() },
		UpdateFunc: func(any, any) { t.Pull() },
		DeleteFunc: func(any) { t.Pull() },
	})
	return err
}

// Loop runs a round for each pull until the context ends. A round looks at everything anew, so rounds may be lost or
// doubled without harm; a failed one is tried again after a second. gather is how long changes are collected.
func Loop(ctx context.Context, name string, trigger Trigger, gather time.Duration, round func(context.Context) error) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-trigger:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(gather):
		}
		if err := round(ctx); err != nil && ctx.Err() == nil {
			log.Printf("%s: %v", name, err)
			time.AfterFunc(time.Second, trigger.Pull)
		}
	}
}
