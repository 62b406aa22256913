package supervisor

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"k8s.io/client-go/informers"

	"larder/testbed/internal/addons"
	"larder/testbed/internal/config"
	"larder/testbed/internal/images"
	"larder/testbed/internal/netpol"
	"larder/testbed/internal/network"
	"larder/testbed/internal/plan"
	"larder/testbed/internal/reap"
)

// startRegistry fills the registry with the test bed's own images and returns what serves it. They are made of the
// programs that lie beside this one.
func (s *Supervisor) startRegistry(ctx context.Context) func() error {
	return func() error {
		registry, err := images.NewRegistry(filepath.Join(s.spec.Dir, "registry"))
		if err != nil {
			return err
		}
		// First the small one, which every pod waits for.
		for _, i := range []struct{ program, reference string }{{"pause", config.PauseImage}, {"coredns", addons.DNSImage}} {
			image, err := images.OfProgram(filepath.Join(filepath.Dir(s.self), i.program))
			if err != nil {
				return err
			}
			if err := registry.Push(ctx, i.reference, image); err != nil {
				return err
			}
		}
		// Packing held both programs in memory, several times; they lie on disk by now.
		debug.FreeOSMemory()
		listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", plan.ControlIP, plan.RegistryPort))
		if err != nil {
			return fmt.Errorf("listening as image registry: %w", err)
		}
		s.mu.Lock()
		s.registry = registry
		s.mu.Unlock()
		return registry.Serve(listener)
	}
}

// startAddons waits for the API server, installs what a bare cluster lacks, and runs the loops until the context ends.
func (s *Supervisor) startAddons(ctx context.Context) error {
	s.waitForAPI(ctx)
	for begin := time.Now(); ; time.Sleep(200 * time.Millisecond) {
		// Refused in a cluster's first second: its own namespaces and priority classes are still being made.
		err := addons.Install(ctx, s.client, len(s.spec.Workers))
		if err == nil {
			break
		}
		if time.Since(begin) > time.Minute {
			return err
		}
	}
	factory := informers.NewSharedInformerFactory(s.client, 0)
	core, net, discovery := factory.Core().V1(), factory.Networking().V1(), factory.Discovery().V1()
	storage := &addons.Storage{
		Client: s.client, Claims: core.PersistentVolumeClaims().Lister(), Volumes: core.PersistentVolumes().Lister(), Spec: s.spec,
	}
	balancer := &addons.Balancer{
		Client: s.client, Services: core.Services().Lister(), Slices: discovery.EndpointSlices().Lister(), Route: s.routeAddress,
	}
	policies := &netpol.Enforcer{
		Pods: core.Pods().Lister(), Namespaces: core.Namespaces().Lister(), Policies: net.NetworkPolicies().Lister(),
		Workers: s.reachableNames, Apply: s.applyRules,
	}
	volumes := addons.NewTrigger()
	for _, watch := range []error{
		volumes.Watch(core.PersistentVolumeClaims().Informer()), volumes.Watch(core.PersistentVolumes().Informer()),
		s.lb.Watch(core.Services().Informer()), s.lb.Watch(discovery.EndpointSlices().Informer()),
		s.netpol.Watch(core.Pods().Informer()), s.netpol.Watch(core.Namespaces().Informer()),
		s.netpol.Watch(net.NetworkPolicies().Informer()),
	} {
		if watch != nil {
			return fmt.Errorf("watching the cluster: %w", watch)
		}
	}
	factory.Start(ctx.Done())
	factory.WaitForCacheSync(ctx.Done())
	s.mu.Lock()
	s.policies = policies
	s.mu.Unlock()
	go addons.Loop(ctx, "volumes", volumes, 20*time.Millisecond, storage.Round)
	go addons.Loop(ctx, "load balancers", s.lb, 20*time.Millisecond, balancer.Round)
	addons.Loop(ctx, "network policies", s.netpol, 50*time.Millisecond, policies.Round)
	return nil
}

// applyRules gives a worker nftables rules in its own network namespace.
func (s *Supervisor) applyRules(name, rules string) error {
	process := s.power(s.workers[name])
	if process == nil {
		return nil
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", process.PID))
	if err != nil {
		return fmt.Errorf("opening the network namespace of %s: %w", name, err)
	}
	defer ns.Close()
	_, err = s.reaper.Run(reap.Command{Path: "nft", Args: []string{"nft", "-f", "-"}, NetNS: ns}, rules)
	return err
}

// routeAddress sets the workers over which one load balancer's address is reached, of those that can be.
func (s *Supervisor) routeAddress(ip string, names []string) error {
	var via []plan.Worker
	for _, w := range s.reachable() {
		for _, name := range names {
			if w.Name == name {
				via = append(via, w)
			}
		}
	}
	return network.ServiceAddress(ip, via)
}
