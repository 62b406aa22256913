package supervisor

import (
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"larder/testbed/internal/cgroups"
	"larder/testbed/internal/network"
	"larder/testbed/internal/plan"
	"larder/testbed/internal/reap"
	"larder/testbed/internal/worker"
)

type workerState struct {
	plan.Worker
	// power is held while the worker is being switched on or off.
	power sync.Mutex
	// The rest is guarded by the supervisor's mutex; process is nil without power.
	process *reap.Process
	link    *worker.Link
	cut     bool
}

func (s *Supervisor) find(name string) (*workerState, error) {
	state := s.workers[name]
	if state == nil {
		_, err := s.spec.Worker(name)
		return nil, err
	}
	return state, nil
}

// reachable lists the workers that have power and a cable.
func (s *Supervisor) reachable() []plan.Worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []plan.Worker
	for _, w := range s.spec.Workers {
		if state := s.workers[w.Name]; state.process != nil && !state.cut {
			list = append(list, w)
		}
	}
	return list
}

func (s *Supervisor) reachableNames() []string {
	var names []string
	for _, w := range s.reachable() {
		names = append(names, w.Name)
	}
	return names
}

// reroute tells everything that leads to workers which of them can be reached now.
func (s *Supervisor) reroute() error {
	// One at a time: an older list may not be the last to be written.
	s.routes.Lock()
	defer s.routes.Unlock()
	s.lb.Pull()
	s.netpol.Pull()
	return network.Services(s.reachable())
}

// powerOn boots a worker with the disk that it had. One that has power already is left alone.
func (s *Supervisor) powerOn(name string) error {
	state, err := s.find(name)
	if err != nil {
		return err
	}
	state.power.Lock()
	defer state.power.Unlock()
	s.mu.Lock()
	on := state.process != nil
	s.mu.Unlock()
	if on {
		return nil
	}
	// Left over from before the power went: the kubelet would take seconds over each dead pod's group.
	if err := cgroups.Clear(s.spec.Cgroups, name); err != nil {
		return err
	}
	boot, err := json.Marshal(worker.Boot{Spec: s.spec, Worker: state.Worker})
	if err != nil {
		return fmt.Errorf("writing what %s boots: %w", name, err)
	}
	if err := os.MkdirAll(s.spec.Disk(name, ""), 0o755); err != nil {
		return fmt.Errorf("making the disk of %s: %w", name, err)
	}
	file := s.spec.Disk(name, "boot.json")
	if err := os.WriteFile(file, boot, 0o600); err != nil {
		return fmt.Errorf("writing what %s boots: %w", name, err)
	}
	process, link, err := s.boot(state.Worker, file)
	if err != nil {
		return fmt.Errorf("powering %s on: %w", name, err)
	}
	s.mu.Lock()
	state.process, state.link, state.cut = process, link, false
	policies := s.policies
	s.mu.Unlock()
	go s.mourn(state, process)
	if policies != nil {
		// Before its first pod can run.
		policies.Forget(name)
		if err := policies.Refresh(name); err != nil {
			return fmt.Errorf("policies of %s: %w", name, err)
		}
	}
	return s.reroute()
}

// mourn takes note when a worker loses its power by itself: its PID 1 could not boot, or somebody killed it.
func (s *Supervisor) mourn(state *workerState, process *reap.Process) {
	<-process.Done
	s.mu.Lock()
	mine := state.process == process
	if mine {
		state.process, state.link, state.cut = nil, nil, false
	}
	s.mu.Unlock()
	if !mine {
		return
	}
	log.Printf("%s %s", state.Name, reap.Describe(process.Status))
	if err := s.reroute(); err != nil {
		log.Print(err)
	}
}

// boot starts a worker's PID 1, and lets it go on once its groups and its cable are ready.
func (s *Supervisor) boot(w plan.Worker, file string) (*reap.Process, *worker.Link, error) {
	gate, open, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer gate.Close()
	defer open.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a control socket: %w", err)
	}
	own, its := os.NewFile(uintptr(pair[0]), "link"), os.NewFile(uintptr(pair[1]), "link")
	defer own.Close()
	defer its.Close()
	output, err := os.OpenFile(s.spec.Logs(w.Name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, nil, fmt.Errorf("opening its log: %w", err)
	}
	defer output.Close()
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, nil, err
	}
	defer null.Close()
	process, err := s.reaper.Start(reap.Command{
		Path: s.self, Args: []string{"testbed", worker.Stage1, file},
		Files: []*os.File{null, output, output, gate, its},
		Attr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
			Setsid:     true,
		},
	})
	if err != nil {
		return nil, nil, err
	}
	ready := func() error {
		if err := cgroups.Move(s.spec.Cgroups, w.Name, process.PID); err != nil {
			return err
		}
		return network.Worker(w, process.PID)
	}
	if err := ready(); err != nil {
		_ = syscall.Kill(process.PID, syscall.SIGKILL)
		<-process.Done
		return nil, nil, err
	}
	link, err := worker.NewLink(own)
	if err != nil {
		_ = syscall.Kill(process.PID, syscall.SIGKILL)
		<-process.Done
		return nil, nil, err
	}
	open.Close()
	return process, link, nil
}

// powerOff takes a worker's power: every process of it ends at once, without a word to anybody.
func (s *Supervisor) powerOff(name string) error {
	state, err := s.find(name)
	if err != nil {
		return err
	}
	state.power.Lock()
	defer state.power.Unlock()
	s.mu.Lock()
	process, link, policies := state.process, state.link, s.policies
	s.mu.Unlock()
	if process == nil {
		return nil
	}
	if err := syscall.Kill(process.PID, syscall.SIGKILL); err != nil {
		return fmt.Errorf("powering %s off: %w", name, err)
	}
	<-process.Done
	if link != nil {
		link.Close()
	}
	s.mu.Lock()
	state.process, state.link, state.cut = nil, nil, false
	s.mu.Unlock()
	if policies != nil {
		policies.Forget(name)
	}
	if err := network.Gone(state.Worker); err != nil {
		return err
	}
	return s.reroute()
}

// cut pulls a worker's cable, or plugs it in again.
func (s *Supervisor) cut(name string, cut bool) error {
	state, err := s.find(name)
	if err != nil {
		return err
	}
	state.power.Lock()
	defer state.power.Unlock()
	s.mu.Lock()
	on := state.process != nil
	s.mu.Unlock()
	if !on {
		return fmt.Errorf("%s has no power", name)
	}
	if err := network.Cut(state.Worker, cut); err != nil {
		return err
	}
	s.mu.Lock()
	state.cut = cut
	s.mu.Unlock()
	return s.reroute()
}

// ask sends a request to a worker.
func (s *Supervisor) ask(name string, r worker.Request) (worker.Reply, error) {
	state, err := s.find(name)
	if err != nil {
		return worker.Reply{}, err
	}
	s.mu.Lock()
	link := state.link
	s.mu.Unlock()
	if link == nil {
		return worker.Reply{}, fmt.Errorf("%s has no power", name)
	}
	reply, err := link.Ask(r)
	if err != nil {
		return reply, fmt.Errorf("%s: %w", name, err)
	}
	return reply, nil
}
