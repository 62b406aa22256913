// Package network lays the cables of the test bed: a bridge in the control plane's namespace, one cable from it to each
// worker, and routes. Nothing of it is in the machine's own namespace, so addresses cannot meet others.
package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"

	"github.com/vishvananda/netlink"

	"larder/testbed/internal/plan"
)

const bridge = "br0"

// Control sets up the namespace that it is called in as the control plane's.
func Control() error {
	if err := routing(); err != nil {
		return err
	}
	if err := up("lo"); err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.NewLinkAttrs()}
	br.Name = bridge
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("making the bridge: %w", err)
	}
	if err := address(bridge, plan.ControlIP+"/24"); err != nil {
		return err
	}
	return up(bridge)
}

// Worker lays the cable to a worker whose PID 1 is pid, and routes its pods' network to it. Call it in the control
// plane's namespace.
func Worker(w plan.Worker, pid int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = w.Link()
	cable := &netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsPid(pid)}
	if err := netlink.LinkAdd(cable); err != nil {
		return fmt.Errorf("laying a cable to %s: %w", w.Name, err)
	}
	br, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("finding the bridge: %w", err)
	}
	if err := netlink.LinkSetMaster(cable, br); err != nil {
		return fmt.Errorf("plugging the cable of %s in: %w", w.Name, err)
	}
	if err := up(w.Link()); err != nil {
		return err
	}
	return route(w.PodCIDR(), []plan.Worker{w})
}

// Inside sets up the worker's end. Call it in the worker's namespace.
func Inside(w plan.Worker) error {
	if err := routing(); err != nil {
		return err
	}
	if err := up("lo"); err != nil {
		return err
	}
	if err := address("eth0", w.IP()+"/24"); err != nil {
		return err
	}
	if err := up("eth0"); err != nil {
		return err
	}
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return fmt.Errorf("finding eth0: %w", err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(plan.ControlIP)}); err != nil {
		return fmt.Errorf("setting the default route: %w", err)
	}
	return nil
}

// Cut pulls the cable of a worker (or plugs it in again) at the bridge's end: the worker goes on, alone.
func Cut(w plan.Worker, cut bool) error {
	if !cut {
		return up(w.Link())
	}
	link, err := netlink.LinkByName(w.Link())
	if err != nil {
		return fmt.Errorf("finding the cable of %s: %w", w.Name, err)
	}
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("pulling the cable of %s: %w", w.Name, err)
	}
	return nil
}

// Gone removes the cable of a worker that has lost its power. The kernel does so too, but a
// moment after the last process of the worker's namespace has ended.
func Gone(w plan.Worker) error {
	link, err := netlink.LinkByName(w.Link())
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		return fmt.Errorf("finding the cable of %s: %w", w.Name, err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("removing the cable of %s: %w", w.Name, err)
	}
	return nil
}

// Services routes ClusterIPs and load balancers' addresses over the workers given, in turn by connection.
func Services(workers []plan.Worker) error {
	for _, network := range []string{plan.ServiceCIDR, plan.LoadBalancerCIDR} {
		if err := route(network, workers); err != nil {
			return err
		}
	}
	return nil
}

// ServiceAddress routes one address of a load balancer over workers of its own; none takes that route away again.
func ServiceAddress(ip string, workers []plan.Worker) error { return route(ip+"/32", workers) }

func route(network string, via []plan.Worker) error {
	_, destination, err := net.ParseCIDR(network)
	if err != nil {
		return fmt.Errorf("reading the network %s: %w", network, err)
	}
	if len(via) == 0 {
		err := netlink.RouteDel(&netlink.Route{Dst: destination})
		if err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("removing the route to %s: %w", network, err)
		}
		return nil
	}
	r := &netlink.Route{Dst: destination}
	if len(via) == 1 {
		r.Gw = net.ParseIP(via[0].IP())
	} else {
		for _, w := range via {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: net.ParseIP(w.IP())})
		}
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("setting the route to %s: %w", network, err)
	}
	return nil
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding the interface %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("switching the interface %s on: %w", name, err)
	}
	return nil
}

func address(name, cidr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("finding the interface %s: %w", name, err)
	}
	parsed, err := netlink.ParseAddr(cidr)
	if err != nil {
		return fmt.Errorf("reading the address %s: %w", cidr, err)
	}
	if err := netlink.AddrAdd(link, parsed); err != nil {
		return fmt.Errorf("giving %s the address %s: %w", name, cidr, err)
	}
	return nil
}

// routing lets the namespace forward. A new namespace may inherit the machine's filters for reverse paths, which
// would drop answers that come back by another worker than the question went.
func routing() error {
	for file, value := range map[string]string{
		"ip_forward":                    "1",
		"conf/all/rp_filter":            "0",
		"conf/default/rp_filter":        "0",
		"fib_multipath_hash_policy":     "1",
		"fib_multipath_use_neigh":       "1",
		"conf/all/accept_redirects":     "0",
		"conf/default/accept_redirects": "0",
		"conf/all/send_redirects":       "0",
		"conf/default/send_redirects":   "0",
	} {
		path := "/proc/sys/net/ipv4/" + file
		if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
			// Not every kernel is built with multipath routes' finer settings.
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			return fmt.Errorf("setting %s: %w", path, err)
		}
	}
	return nil
}
