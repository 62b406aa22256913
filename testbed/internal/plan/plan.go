// Package plan says what a test bed consists of: names, zones, addresses and places of files. Nothing here acts.
package plan

import (
	"fmt"
	"path/filepath"
)

// Addresses of the network that exists only inside the test bed's namespaces.
const (
	// ControlIP is the control plane's address on the bridge that all workers hang on.
	ControlIP = "10.99.0.1"
	// BridgeCIDR is the network of the bridge.
	BridgeCIDR = "10.99.0.0/24"
	// PodCIDR is what all pods' addresses are taken from; worker i has 10.100.i.0/24 of it.
	PodCIDR = "10.100.0.0/16"
	// ServiceCIDR is what ClusterIPs are taken from.
	ServiceCIDR = "10.101.0.0/16"
	// ServiceAPI is the ClusterIP of the API server.
	ServiceAPI = "10.101.0.1"
	// ServiceDNS is the ClusterIP of the cluster's DNS.
	ServiceDNS = "10.101.0.10"
	// LoadBalancerCIDR is the pool of addresses for Services of type LoadBalancer.
	LoadBalancerCIDR = "10.102.0.0/24"
	// APIPort is where the API server listens in the control plane's namespace.
	APIPort = 6443
	// RegistryPort is where the image registry listens in the control plane's namespace.
	RegistryPort = 5000
	// RegistryName is the host part of images that are pulled from the test bed's registry.
	RegistryName = "registry.testbed"
	// Domain is the cluster's DNS domain.
	Domain = "cluster.local"
	// MaxWorkers is bounded by the third byte of pod networks and the last of the bridge's.
	MaxWorkers = 40
)

// Worker is one node of the cluster.
type Worker struct {
	// Index counts from 1 and gives the addresses.
	Index int `json:"index"`
	// Name is the node's name.
	Name string `json:"name"`
	// Zone is the value of its label topology.kubernetes.io/zone.
	Zone string `json:"zone"`
}

// IP is the worker's address on the bridge.
func (w Worker) IP() string { return fmt.Sprintf("10.99.0.%d", 10+w.Index) }

// PodCIDR is the network of the worker's pods.
func (w Worker) PodCIDR() string { return fmt.Sprintf("10.100.%d.0/24", w.Index) }

// Link is the name of the bridge's end of the worker's cable.
func (w Worker) Link() string { return fmt.Sprintf("worker%d", w.Index) }

// Workers lists n workers spread over zones in turn.
func Workers(n, zones int) ([]Worker, error) {
	if n < 1 || n > MaxWorkers {
		return nil, fmt.Errorf("want 1 to %d workers, not %d", MaxWorkers, n)
	}
	if zones < 1 || zones > n || zones > 26 {
		return nil, fmt.Errorf("want 1 to %d zones for %d workers, not %d", min(n, 26), n, zones)
	}
	workers := make([]Worker, n)
	for i := range workers {
		workers[i] = Worker{
			Index: i + 1,
			Name:  fmt.Sprintf("worker-%d", i+1),
			Zone:  fmt.Sprintf("zone-%c", 'a'+i%zones),
		}
	}
	return workers, nil
}

// Spec is one test bed, as its processes hand it to each other.
type Spec struct {
	// Dir is the absolute path of everything that it writes.
	Dir string `json:"dir"`
	// Workers are all that it will ever have, powered on or off.
	Workers []Worker `json:"workers"`
	// APIPort is the port on the machine's loopback that leads to the API server.
	APIPort int `json:"api_port"`
	// Cgroups are the directories, one per hierarchy, below which the workers' groups are made.
	Cgroups []Cgroup `json:"cgroups"`
	// Memory is what pods may request on one worker, in bytes.
	Memory int64 `json:"memory"`
	// Audit has the API server write down what service accounts ask of it.
	Audit bool `json:"audit"`
}

// Cgroup is one hierarchy of control groups.
type Cgroup struct {
	// Mount is the name of its directory below /sys/fs/cgroup; empty for the unified hierarchy (version 2).
	Mount string `json:"mount"`
	// Options are the mount's options: controllers, or the name of a hierarchy without any.
	Options string `json:"options"`
	// Path is the test bed's own group.
	Path string `json:"path"`
}

// Worker finds a worker by name.
func (s Spec) Worker(name string) (Worker, error) {
	for _, w := range s.Workers {
		if w.Name == name {
			return w, nil
		}
	}
	return Worker{}, fmt.Errorf("no worker is called %q", name)
}

// Kubeconfig is for clients on the machine, through its loopback.
func (s Spec) Kubeconfig() string { return filepath.Join(s.Dir, "kubeconfig") }

// PKI is where keys and certificates lie.
func (s Spec) PKI(file string) string { return filepath.Join(s.Dir, "pki", file) }

// Logs is where every process of the test bed writes its log.
func (s Spec) Logs(file string) string { return filepath.Join(s.Dir, "logs", file) }

// Config is where rendered configuration of the control plane lies.
func (s Spec) Config(file string) string { return filepath.Join(s.Dir, "config", file) }

// Disk is the directory of a worker: what a power cycle leaves as it was.
func (s Spec) Disk(worker, part string) string {
	return filepath.Join(s.Dir, "workers", worker, part)
}

// Volumes is the directory of a worker's volumes, as seen from outside.
func (s Spec) Volumes(worker string) string { return s.Disk(worker, "volumes") }

// VolumesInside is where a worker sees its own volumes.
const VolumesInside = "/var/lib/testbed-volumes"
