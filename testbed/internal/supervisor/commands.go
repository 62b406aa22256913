package supervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"larder/testbed/internal/addons"
	"larder/testbed/internal/control"
	"larder/testbed/internal/images"
)

// handle carries one command out.
func (s *Supervisor) handle(r control.Request) control.Reply {
	var reply control.Reply
	var err error
	switch r.Op {
	case control.OpStatus:
		reply.Status = s.status()
	case control.OpReady:
		err = s.waitReady(time.Duration(r.Seconds) * time.Second)
	case control.OpOff:
		err = s.powerOff(r.Worker)
	case control.OpOn:
		err = s.powerOn(r.Worker)
	case control.OpCut, control.OpJoin:
		err = s.cut(r.Worker, r.Op == control.OpCut)
	case control.OpKill, control.OpStart, control.OpPause, control.OpResume:
		err = s.component(r)
	case control.OpImageLoad:
		err = s.loadImage(r.Path)
	case control.OpImagePush:
		err = s.pushImage(r.Path, r.Reference)
	default:
		err = fmt.Errorf("no command is called %q", r.Op)
	}
	if err != nil {
		reply.Error = err.Error()
	}
	return reply
}

// component kills, starts, pauses or resumes a program of the control plane, or of a worker.
func (s *Supervisor) component(r control.Request) error {
	if r.Worker != "" {
		_, err := s.ask(r.Worker, control.Request{Op: r.Op, Component: r.Component}, askLimit)
		return err
	}
	name := r.Component
	if name != "etcd" && !strings.HasPrefix(name, "kube-") {
		name = "kube-" + name
	}
	switch r.Op {
	case control.OpKill:
		return s.control.Kill(name)
	case control.OpStart:
		return s.control.Start(name)
	default:
		return s.control.Pause(name, r.Op == control.OpPause)
	}
}

// statusLimit is how long a part of the status may take before it is left out: what hangs is not to hide the rest.
const statusLimit = 2 * time.Second

func (s *Supervisor) status() *control.Status {
	ctx, cancel := context.WithTimeout(context.Background(), statusLimit)
	defer cancel()
	status := &control.Status{Control: s.control.Status(), Workers: make([]control.Worker, len(s.spec.Workers))}
	var wait sync.WaitGroup
	for i, w := range s.spec.Workers {
		line := &status.Workers[i]
		s.mu.Lock()
		state := s.workers[w.Name]
		*line = control.Worker{Name: w.Name, Zone: w.Zone, IP: w.IP(), On: state.process != nil, Cut: state.cut}
		s.mu.Unlock()
		if !line.On {
			continue
		}
		wait.Add(1)
		go func() {
			defer wait.Done()
			if reply, err := s.ask(w.Name, control.Request{Op: control.OpStatus}, statusLimit); err == nil {
				line.Units = reply.Units
			}
		}()
	}
	ready, err := s.readyNodes(ctx)
	wait.Wait()
	status.API = err == nil
	for i := range status.Workers {
		status.Workers[i].Ready = ready[status.Workers[i].Name]
	}
	return status
}

func (s *Supervisor) readyNodes(ctx context.Context) (map[string]bool, error) {
	nodes, err := s.client.CoreV1().Nodes().List(ctx, meta.ListOptions{})
	if err != nil {
		return nil, fmt.Errorf("listing nodes: %w", err)
	}
	ready := map[string]bool{}
	for _, node := range nodes.Items {
		for _, condition := range node.Status.Conditions {
			if condition.Type == core.NodeReady && condition.Status == core.ConditionTrue {
				ready[node.Name] = true
			}
		}
	}
	return ready, nil
}

// waitReady returns when all workers that are switched on are ready, and DNS is.
func (s *Supervisor) waitReady(limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	last := errors.New("nothing was looked at")
	for {
		if last = s.notReady(ctx); last == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not ready in time: %w", last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (s *Supervisor) notReady(ctx context.Context) error {
	ready, err := s.readyNodes(ctx)
	if err != nil {
		return err
	}
	for _, w := range s.list(func(state *workerState) bool { return state.wanted }) {
		if !ready[w.Name] {
			return fmt.Errorf("%s is not ready", w.Name)
		}
	}
	dns, err := s.client.AppsV1().Deployments(meta.NamespaceSystem).Get(ctx, addons.DNSName, meta.GetOptions{})
	if err != nil {
		return fmt.Errorf("looking at DNS: %w", err)
	}
	if dns.Status.AvailableReplicas < 1 {
		return errors.New("no pod of DNS is available")
	}
	return nil
}

// loadImage imports an archive into every worker that has power.
func (s *Supervisor) loadImage(path string) error {
	// A copy where every worker sees it: a worker has other directories than the machine at some places.
	copied, err := s.copy(path)
	if err != nil {
		return err
	}
	defer os.Remove(copied)
	var wait sync.WaitGroup
	var mu sync.Mutex
	var failed error
	for _, w := range s.list(func(state *workerState) bool { return state.process != nil }) {
		wait.Add(1)
		go func() {
			defer wait.Done()
			if _, err := s.ask(w.Name, control.Request{Op: control.OpImport, Path: copied}, askLimit); err != nil {
				mu.Lock()
				failed = errors.Join(failed, err)
				mu.Unlock()
			}
		}()
	}
	wait.Wait()
	return failed
}

func (s *Supervisor) copy(path string) (string, error) {
	from, err := os.Open(path)
	if err != nil {
		return "", fmt.Errorf("opening the image archive: %w", err)
	}
	defer from.Close()
	to, err := os.CreateTemp(filepath.Join(s.spec.Dir, "incoming"), "*.tar")
	if err != nil {
		return "", fmt.Errorf("copying the image archive: %w", err)
	}
	defer to.Close()
	if _, err := io.Copy(to, from); err != nil {
		return "", errors.Join(fmt.Errorf("copying the image archive: %w", err), os.Remove(to.Name()))
	}
	return to.Name(), nil
}

// pushImage stores an archive's image in the registry.
func (s *Supervisor) pushImage(path, reference string) error {
	s.mu.Lock()
	registry := s.registry
	s.mu.Unlock()
	if registry == nil {
		return errors.New("the registry is still being started: try again")
	}
	scratch, err := os.MkdirTemp(filepath.Join(s.spec.Dir, "incoming"), "image")
	if err != nil {
		return fmt.Errorf("making a directory for the image: %w", err)
	}
	defer os.RemoveAll(scratch)
	image, err := images.OfArchive(path, scratch)
	if err != nil {
		return err
	}
	return registry.Push(context.Background(), reference, image)
}
