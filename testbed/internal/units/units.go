// Package units keeps programs running as a machine's service manager would: what ends by itself is started again, what
// was killed by command stays down until it is started by command.
package units

import (
	"errors"
	"fmt"
	"log"
	"sync"
	"syscall"
	"time"

	"larder/testbed/internal/reap"
)

// Unit is one program.
type Unit struct {
	// Name is what commands call it.
	Name string
	// Path, Args (Args[0] included) and Env as for reap.Command.
	Path string
	Args []string
	Env  []string
	// Log is the file that its output is appended to.
	Log string
	// Before runs before each start, for example to wait for another unit.
	Before func() error
}

// Status is what is known of a unit.
type Status struct {
	Name     string `json:"name"`
	PID      int    `json:"pid,omitempty"`
	Running  bool   `json:"running"`
	Wanted   bool   `json:"wanted"`
	Paused   bool   `json:"paused,omitempty"`
	Restarts int    `json:"restarts,omitempty"`
}

// Manager holds units.
type Manager struct {
	reaper *reap.Reaper
	mu     sync.Mutex
	units  map[string]*unit
	order  []string
}

type unit struct {
	Unit
	process  *reap.Process
	wanted   bool
	paused   bool
	looping  bool
	restarts int
}

// pause between the end of a unit and its next start: long enough not to spin, short enough not to be noticed.
const pause = time.Second

// New makes a manager without units.
func New(reaper *reap.Reaper) *Manager {
	return &Manager{reaper: reaper, units: map[string]*unit{}}
}

// Add makes a unit known, stopped.
func (m *Manager) Add(u Unit) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[u.Name] = &unit{Unit: u}
	m.order = append(m.order, u.Name)
}

// find gives the unit of a name. It is asked with the lock held.
func (m *Manager) find(name string) (*unit, error) {
	u := m.units[name]
	if u == nil {
		return nil, fmt.Errorf("no component is called %q here, only %v", name, m.order)
	}
	return u, nil
}

// Start wants a unit to run, and returns when its process has been started, or could not be: then it stays stopped. For a
// unit that runs, that is being started, or that waits for its next start, it returns at once.
func (m *Manager) Start(name string) error {
	m.mu.Lock()
	u, err := m.find(name)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	u.wanted = true
	if u.looping {
		m.mu.Unlock()
		return nil
	}
	u.looping = true
	m.mu.Unlock()
	started := make(chan error, 1)
	go m.keep(u, started)
	return <-started
}

// keep starts the unit again and again while it is wanted.
func (m *Manager) keep(u *unit, started chan<- error) {
	for first := true; ; first = false {
		err := m.launch(u)
		if first {
			if err != nil {
				m.mu.Lock()
				u.wanted, u.looping = false, false
				m.mu.Unlock()
				started <- err
				return
			}
			started <- nil
		}
		if err == nil {
			<-u.process.Done
			log.Printf("%s %s", u.Name, reap.Describe(u.process.Status))
		} else {
			log.Printf("%v", err)
		}
		if m.given(u) {
			return
		}
		time.Sleep(pause)
		if m.given(u) {
			return
		}
		m.mu.Lock()
		u.restarts++
		m.mu.Unlock()
	}
}

// given says whether a unit is given up, since nobody wants it to run any more, and takes note of it.
func (m *Manager) given(u *unit) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if u.wanted {
		return false
	}
	u.process, u.looping = nil, false
	return true
}

func (m *Manager) launch(u *unit) error {
	if u.Before != nil {
		if err := u.Before(); err != nil {
			return fmt.Errorf("before starting %s: %w", u.Name, err)
		}
	}
	p, err := m.reaper.Start(reap.Command{
		Path: u.Path, Args: u.Args, Env: u.Env, Log: u.Log,
		Attr: &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		return err
	}
	m.mu.Lock()
	u.process, u.paused = p, false
	killed := !u.wanted
	m.mu.Unlock()
	if killed {
		// Killed by command while it was being started.
		_ = syscall.Kill(p.PID, syscall.SIGKILL)
	}
	return nil
}

// Kill ends a unit's process at once, without a word of warning, and returns when it has ended. It stays down.
func (m *Manager) Kill(name string) error {
	m.mu.Lock()
	u, err := m.find(name)
	if err != nil {
		m.mu.Unlock()
		return err
	}
	u.wanted = false
	p := u.process
	m.mu.Unlock()
	if p == nil || p.Ended() {
		return nil
	}
	if err := syscall.Kill(p.PID, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("killing %s: %w", name, err)
	}
	<-p.Done
	return nil
}

// Pause stops a unit's process where it is, or lets it go on: a program that hangs, or a machine that is too slow.
func (m *Manager) Pause(name string, paused bool) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	u, err := m.find(name)
	if err != nil {
		return err
	}
	if !u.running() {
		return fmt.Errorf("%s does not run", name)
	}
	signal := syscall.SIGCONT
	if paused {
		signal = syscall.SIGSTOP
	}
	if err := syscall.Kill(u.process.PID, signal); err != nil {
		return fmt.Errorf("sending %s to %s: %w", signal, name, err)
	}
	u.paused = paused
	return nil
}

// running is asked with the manager's lock held.
func (u *unit) running() bool { return u.process != nil && !u.process.Ended() }

// Status lists all units in the order in which they were added.
func (m *Manager) Status() []Status {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := make([]Status, 0, len(m.order))
	for _, name := range m.order {
		u := m.units[name]
		s := Status{Name: name, Wanted: u.wanted, Restarts: u.restarts}
		if u.running() {
			s.Running, s.PID, s.Paused = true, u.process.PID, u.paused
		}
		list = append(list, s)
	}
	return list
}
