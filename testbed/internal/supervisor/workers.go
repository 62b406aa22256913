package supervisor

import (
	"errors"
	"fmt"
	"log"
	"os"
	"sync"
	"syscall"
	"time"

	"larder/testbed/internal/cgroups"
	"larder/testbed/internal/control"
	"larder/testbed/internal/jsonfile"
	"larder/testbed/internal/network"
	"larder/testbed/internal/plan"
	"larder/testbed/internal/reap"
	"larder/testbed/internal/worker"
)

// askLimit is how long a worker may take over one request: less than whoever asked the test bed waits, who so hears which
// worker it was.
const askLimit = 4*time.Minute + 30*time.Second

type workerState struct {
	plan.Worker
	// switching is held while the worker is being switched on or off, by command or by its own end.
	switching sync.Mutex
	// The rest is guarded by the supervisor's mutex. process is nil without power.
	process *reap.Process
	// wanted says whether the worker was switched on last, or off; it need not have got there.
	wanted bool
	cut    bool
}

func (s *Supervisor) find(name string) (*workerState, error) {
	state := s.workers[name]
	if state == nil {
		_, err := s.spec.Worker(name)
		return nil, err
	}
	return state, nil
}

// power is a worker's PID 1, or nil.
func (s *Supervisor) power(state *workerState) *reap.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return state.process
}

// list gives the workers whose state fits.
func (s *Supervisor) list(fits func(*workerState) bool) []plan.Worker {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []plan.Worker
	for _, w := range s.spec.Workers {
		if fits(s.workers[w.Name]) {
			list = append(list, w)
		}
	}
	return list
}

// reachable lists the workers that have power and a cable.
func (s *Supervisor) reachable() []plan.Worker {
	return s.list(func(state *workerState) bool { return state.process != nil && !state.cut })
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

// want notes that a worker is to have power, or none.
func (s *Supervisor) want(state *workerState, on bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	state.wanted = on
}

// powerOn boots a worker with the disk that it had. One that has power already is left alone.
func (s *Supervisor) powerOn(name string) error {
	state, err := s.find(name)
	if err != nil {
		return err
	}
	state.switching.Lock()
	defer state.switching.Unlock()
	s.want(state, true)
	if before := s.power(state); before != nil {
		if !before.Ended() {
			return nil
		}
		// It has just ended by itself, and mourn has not come to it yet.
		log.Printf("%s %s", name, reap.Describe(before.Status))
		if err := s.lost(state, before); err != nil {
			return err
		}
	}
	// Left over from before the power went: the kubelet would take seconds over each dead pod's group.
	if err := cgroups.Clear(s.spec.Cgroups, name); err != nil {
		return err
	}
	if err := os.MkdirAll(s.spec.Disk(name, ""), 0o755); err != nil {
		return fmt.Errorf("making the disk of %s: %w", name, err)
	}
	process, err := s.boot(state.Worker)
	if err != nil {
		return fmt.Errorf("powering %s on: %w", name, err)
	}
	s.mu.Lock()
	state.process, state.cut = process, false
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

// boot starts a worker's PID 1, and lets it go on once its groups and its cable are ready.
func (s *Supervisor) boot(w plan.Worker) (*reap.Process, error) {
	file := s.spec.Disk(w.Name, "boot.json")
	if err := jsonfile.Write(file, worker.Boot{Spec: s.spec, Worker: w}); err != nil {
		return nil, err
	}
	gate, open, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer gate.Close()
	// It opens the gate, whatever came of it: by then a worker that was not to go on has been killed.
	defer open.Close()
	// Only the worker keeps it: whoever asks one that has ended is refused at once.
	requests, err := control.Listen(s.spec.Disk(w.Name, ""))
	if err != nil {
		return nil, err
	}
	defer requests.Close()
	its, err := requests.File()
	if err != nil {
		return nil, fmt.Errorf("handing over the control socket: %w", err)
	}
	defer its.Close()
	process, err := s.reaper.Start(reap.Command{
		Path: s.self, Args: []string{"testbed", worker.Stage1, file},
		Log: s.spec.Logs(w.Name + ".log"), Files: []*os.File{gate, its},
		Attr: &syscall.SysProcAttr{
			Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
			Setsid:     true,
		},
	})
	if err != nil {
		return nil, err
	}
	err = cgroups.Move(s.spec.Cgroups, w.Name, process.PID)
	if err == nil {
		err = network.Worker(w, process.PID)
	}
	if err != nil {
		_ = syscall.Kill(process.PID, syscall.SIGKILL)
		<-process.Done
		return nil, errors.Join(err, network.Gone(w))
	}
	return process, nil
}

// mourn takes note when a worker loses its power by itself: its PID 1 could not boot, or somebody killed it.
func (s *Supervisor) mourn(state *workerState, process *reap.Process) {
	<-process.Done
	state.switching.Lock()
	defer state.switching.Unlock()
	if s.power(state) != process {
		// Switched off by command, or on again.
		return
	}
	log.Printf("%s %s", state.Name, reap.Describe(process.Status))
	if err := s.lost(state, process); err != nil {
		log.Printf("%s: %v", state.Name, err)
	}
}

// powerOff takes a worker's power: every process of it ends at once, without a word to anybody.
func (s *Supervisor) powerOff(name string) error {
	state, err := s.find(name)
	if err != nil {
		return err
	}
	state.switching.Lock()
	defer state.switching.Unlock()
	s.want(state, false)
	process := s.power(state)
	if process == nil {
		return nil
	}
	if err := syscall.Kill(process.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("powering %s off: %w", name, err)
	}
	return s.lost(state, process)
}

// lost follows from the end of a worker's PID 1, which it waits for: the worker has no power, no rules and no cable, and
// nothing leads to it. Call it with state.switching held, or it could take a later boot's cable.
func (s *Supervisor) lost(state *workerState, process *reap.Process) error {
	s.mu.Lock()
	// At once: until its last process has ended, nobody should reach for it.
	state.process, state.cut = nil, false
	policies := s.policies
	s.mu.Unlock()
	<-process.Done
	if policies != nil {
		policies.Forget(state.Name)
	}
	return errors.Join(network.Gone(state.Worker), s.reroute())
}

// cut pulls a worker's cable, or plugs it in again.
func (s *Supervisor) cut(name string, cut bool) error {
	state, err := s.find(name)
	if err != nil {
		return err
	}
	state.switching.Lock()
	defer state.switching.Unlock()
	if s.power(state) == nil {
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

// ask sends a request to a worker and waits for the answer, no longer than limit.
func (s *Supervisor) ask(name string, r control.Request, limit time.Duration) (control.Reply, error) {
	state, err := s.find(name)
	if err != nil {
		return control.Reply{}, err
	}
	if s.power(state) == nil {
		return control.Reply{}, fmt.Errorf("%s has no power", name)
	}
	reply, err := control.Ask(s.spec.Disk(name, ""), r, limit)
	if err != nil {
		return reply, fmt.Errorf("%s: %w", name, err)
	}
	return reply, nil
}
