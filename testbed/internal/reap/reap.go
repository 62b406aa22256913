// Package reap starts processes in a process that is PID 1 of its namespace. Such a process inherits every orphan and
// must reap it; os/exec would race with that, so all children go through here.
package reap

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Reaper owns wait4 for the whole process.
type Reaper struct {
	mu   sync.Mutex
	live map[int]*Process
}

// Process is a started child.
type Process struct {
	// PID is its number in this process's namespace.
	PID int
	// Done is closed when it has ended and was reaped.
	Done chan struct{}
	// Status says how it ended, once Done is closed.
	Status syscall.WaitStatus
}

// New starts reaping. Call it once a process.
func New() *Reaper {
	r := &Reaper{live: map[int]*Process{}}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			r.collect()
		}
	}()
	return r
}

func (r *Reaper) collect() {
	// Start holds the same lock from fork to registration, so no child ends unnoticed in between.
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &status, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if p := r.live[pid]; p != nil {
			delete(r.live, pid)
			p.Status = status
			close(p.Done)
		}
	}
}

// Command is what to start.
type Command struct {
	// Path and Args; Args[0] is the name that the program sees.
	Path string
	Args []string
	// Env is the whole environment; nil means this process's.
	Env []string
	// Log, if set, is the file that output and errors are appended to; the child's input is empty then.
	Log string
	// Files are the child's descriptors from 0 on, or from 3 on with a Log.
	Files []*os.File
	// Attr may be nil.
	Attr *syscall.SysProcAttr
	// NetNS, if set, is the network namespace in which the child starts.
	NetNS *os.File
}

// Start forks and executes.
func (r *Reaper) Start(c Command) (*Process, error) {
	path, err := exec.LookPath(c.Path)
	if err != nil {
		return nil, fmt.Errorf("starting %s: %w", c.Path, err)
	}
	all := c.Files
	if c.Log != "" {
		null, err := os.Open(os.DevNull)
		if err != nil {
			return nil, fmt.Errorf("opening the input of %s: %w", path, err)
		}
		defer null.Close()
		output, err := os.OpenFile(c.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			return nil, fmt.Errorf("opening the log of %s: %w", path, err)
		}
		defer output.Close()
		all = append([]*os.File{null, output, output}, c.Files...)
	}
	files := make([]uintptr, len(all))
	for i, f := range all {
		files[i] = f.Fd()
	}
	env := c.Env
	if env == nil {
		env = os.Environ()
	}
	attr := &syscall.ProcAttr{Env: env, Files: files, Sys: c.Attr}
	var p *Process
	register := func() error {
		r.mu.Lock()
		defer r.mu.Unlock()
		pid, err := syscall.ForkExec(path, c.Args, attr)
		if err != nil {
			return fmt.Errorf("starting %s: %w", path, err)
		}
		p = &Process{PID: pid, Done: make(chan struct{})}
		r.live[pid] = p
		return nil
	}
	if c.NetNS == nil {
		err = register()
	} else {
		err = InNetNS(c.NetNS, register)
	}
	// The descriptors in `files` are bare numbers: without this the collector might close them too early.
	runtime.KeepAlive(all)
	return p, err
}

// InNetNS runs f in a network namespace and comes back. The thread that cannot come back is given up.
func InNetNS(ns *os.File, f func() error) error {
	runtime.LockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("opening the own network namespace: %w", err)
	}
	defer own.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("entering a network namespace: %w", err)
	}
	result := f()
	if err := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); err != nil {
		// Still locked: the runtime ends the thread with the goroutine instead of reusing it elsewhere.
		return errors.Join(result, fmt.Errorf("leaving a network namespace: %w", err))
	}
	runtime.UnlockOSThread()
	return result
}

// Run starts a command, feeds it input, waits, and returns what it printed. A failure carries the output.
func (r *Reaper) Run(c Command, input string) (string, error) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		return "", err
	}
	defer null.Close()
	stdin := null
	if input != "" {
		// A memory file rather than a pipe: nothing has to be written while the child reads.
		fd, err := unix.MemfdCreate("input", unix.MFD_CLOEXEC)
		if err != nil {
			return "", fmt.Errorf("making the input of %s: %w", c.Path, err)
		}
		memory := os.NewFile(uintptr(fd), "input")
		defer memory.Close()
		if _, err := memory.WriteString(input); err != nil {
			return "", fmt.Errorf("writing the input of %s: %w", c.Path, err)
		}
		if _, err := memory.Seek(0, io.SeekStart); err != nil {
			return "", fmt.Errorf("rewinding the input of %s: %w", c.Path, err)
		}
		stdin = memory
	}
	out, in, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer out.Close()
	c.Files = []*os.File{stdin, in, in}
	p, err := r.Start(c)
	in.Close()
	if err != nil {
		return "", err
	}
	printed, err := io.ReadAll(out)
	if err != nil {
		return "", fmt.Errorf("reading the output of %s: %w", c.Path, err)
	}
	<-p.Done
	if !p.Status.Exited() || p.Status.ExitStatus() != 0 {
		return string(printed), fmt.Errorf("%s %s: %s", c.Path, Describe(p.Status), printed)
	}
	return string(printed), nil
}

// Ended says whether the process has ended and was reaped.
func (p *Process) Ended() bool {
	select {
	case <-p.Done:
		return true
	default:
		return false
	}
}

// Describe says in words how a process ended.
func Describe(status syscall.WaitStatus) string {
	if status.Signaled() {
		return "was killed by " + unix.SignalName(status.Signal())
	}
	return fmt.Sprintf("exited with %d", status.ExitStatus())
}
