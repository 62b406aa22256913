// Package worker is what runs as PID 1 of a worker: it builds the worker's view of the machine and keeps containerd,
// kubelet and kube-proxy running.
package worker

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"

	"larder/testbed/internal/plan"
)

// Names of the two stages as this binary's first argument.
const (
	Stage1 = "worker-stage1"
	Stage2 = "worker-stage2"
)

// Descriptors that a worker's PID 1 is started with.
const (
	// GateFD is a pipe: when it is closed, the worker's control groups and cable are ready.
	GateFD = 3
	// ControlFD listens on the socket, on the worker's disk, on which the supervisor asks.
	ControlFD = 4
)

// Boot is what a worker is told when it starts.
type Boot struct {
	Spec   plan.Spec   `json:"spec"`
	Worker plan.Worker `json:"worker"`
}

// RunStage1 waits at the gate, takes a namespace for control groups and becomes stage 2. The namespace's root is the
// group that the process is in at that moment, so the supervisor has to have moved it before. Only a thread can take
// one, and a program of many threads has to execute anew from that thread to be in it as a whole.
func RunStage1(file string) error {
	runtime.LockOSThread()
	gate := os.NewFile(GateFD, "gate")
	if _, err := io.Copy(io.Discard, gate); err != nil {
		return fmt.Errorf("waiting at the gate: %w", err)
	}
	gate.Close()
	if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
		return fmt.Errorf("taking a namespace for control groups: %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the own program: %w", err)
	}
	err = syscall.Exec(self, []string{"testbed", Stage2, file}, os.Environ())
	return fmt.Errorf("becoming stage 2: %w", err)
}
