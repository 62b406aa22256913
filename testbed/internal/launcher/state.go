// Package launcher is the one process of a test bed that lives in the machine's own namespaces. It starts the
// supervisor, dies with it and it with this, and puts the machine back as it was.
package launcher

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"larder/testbed/internal/cgroups"
	"larder/testbed/internal/control"
	"larder/testbed/internal/jsonfile"
	"larder/testbed/internal/plan"
)

// State is what has to be known to find a running test bed, and to clean up after a killed one.
type State struct {
	// Launcher and Supervisor are process ids on the machine, valid while the lock is held.
	Launcher   int `json:"launcher"`
	Supervisor int `json:"supervisor"`
	// Inotify is the machine's limit of inotify instances before it was raised; zero when it was not.
	Inotify int       `json:"inotify"`
	Spec    plan.Spec `json:"spec"`
}

const (
	stateFile = "state.json"
	lockFile  = "lock"
	specFile  = "spec.json"
	// LogFile is where the launcher and the supervisor write what they have to say.
	LogFile = "testbed.log"
)

// inotifyWanted is enough for ten workers; each takes about ten of 128 that a machine has by default.
const inotifyWanted = 1024

const inotifyPath = "/proc/sys/fs/inotify/max_user_instances"

// ErrNotRunning says that no test bed runs in a directory.
var ErrNotRunning = errors.New("no test bed runs here")

// lock takes the directory for this process until it ends. The second value says whether somebody else has it.
func lock(dir string) (*os.File, bool, error) {
	file, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, false, fmt.Errorf("opening the lock: %w", err)
	}
	err = syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		file.Close()
		return nil, true, nil
	}
	if err != nil {
		file.Close()
		return nil, false, fmt.Errorf("taking the lock: %w", err)
	}
	return file, false, nil
}

// Running reads the state of the test bed that runs in dir, or fails with ErrNotRunning.
func Running(dir string) (State, error) {
	var state State
	if _, err := os.Stat(filepath.Join(dir, lockFile)); errors.Is(err, os.ErrNotExist) {
		return state, ErrNotRunning
	}
	file, taken, err := lock(dir)
	if err != nil {
		return state, err
	}
	if !taken {
		file.Close()
		return state, ErrNotRunning
	}
	return readState(dir)
}

func readState(dir string) (State, error) {
	state, err := jsonfile.Read[State](filepath.Join(dir, stateFile))
	if errors.Is(err, os.ErrNotExist) {
		return state, ErrNotRunning
	}
	return state, err
}

// raiseInotify makes room for many workers' watches and returns the limit from before, or zero.
func raiseInotify() (int, error) {
	data, err := os.ReadFile(inotifyPath)
	if err != nil {
		return 0, fmt.Errorf("reading the limit of inotify instances: %w", err)
	}
	before, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0, fmt.Errorf("reading the limit of inotify instances: %w", err)
	}
	if before >= inotifyWanted {
		return 0, nil
	}
	if err := os.WriteFile(inotifyPath, []byte(strconv.Itoa(inotifyWanted)), 0o644); err != nil {
		return 0, fmt.Errorf("raising the limit of inotify instances: %w", err)
	}
	return before, nil
}

func restoreInotify(before int) error {
	if before == 0 {
		return nil
	}
	data, err := os.ReadFile(inotifyPath)
	if err != nil {
		return fmt.Errorf("reading the limit of inotify instances: %w", err)
	}
	if strings.TrimSpace(string(data)) != strconv.Itoa(inotifyWanted) {
		// Somebody has set it since: theirs now.
		return nil
	}
	return os.WriteFile(inotifyPath, []byte(strconv.Itoa(before)), 0o644)
}

// clean puts back what a test bed changed on the machine and removes what it wrote, logs excepted. The lock is held
// and no process of the test bed lives.
func clean(dir string) error {
	state, err := readState(dir)
	if err != nil && !errors.Is(err, ErrNotRunning) {
		return err
	}
	if err == nil {
		if err := errors.Join(cgroups.Clear(state.Spec.Cgroups, ""), restoreInotify(state.Inotify)); err != nil {
			return err
		}
	}
	var failed error
	for _, name := range []string{
		"workers", "registry", "incoming", "etcd", "pki", "config", "kubeconfig", specFile, control.SocketFile, stateFile,
	} {
		if err := os.RemoveAll(filepath.Join(dir, name)); err != nil {
			failed = errors.Join(failed, fmt.Errorf("removing %s: %w", name, err))
		}
	}
	return failed
}
