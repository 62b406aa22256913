package launcher

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"larder/testbed/internal/worker"
)

// Exec becomes a command in the control plane's network, from where pods, Services and load balancers are reached.
// Everything else is the machine's: files, processes, users. It does not return but on failure.
func Exec(dir string, argv []string) error {
	state, err := Running(dir)
	if err != nil {
		return err
	}
	path, err := exec.LookPath(argv[0])
	if err != nil {
		return fmt.Errorf("finding the command: %w", err)
	}
	runtime.LockOSThread()
	if err := enter(state.Supervisor, "net", unix.CLONE_NEWNET); err != nil {
		return err
	}
	err = syscall.Exec(path, argv, os.Environ())
	return fmt.Errorf("executing %s: %w", path, err)
}

// ExecWorker runs a command inside a worker and returns its exit code.
func ExecWorker(dir, name string, argv []string) (int, error) {
	state, err := Running(dir)
	if err != nil {
		return 0, err
	}
	if _, err := state.Spec.Worker(name); err != nil {
		return 0, err
	}
	pid, err := workerPID(state.Supervisor, state.Spec.Disk(name, "boot.json"))
	if err != nil {
		return 0, fmt.Errorf("%s has no power: %w", name, err)
	}
	runtime.LockOSThread()
	// A thread that shares its root and working directory with others may not enter a mount namespace.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return 0, fmt.Errorf("preparing to enter %s: %w", name, err)
	}
	// All are opened first: once the mounts are the worker's, /proc shows its own processes.
	kinds := []struct {
		name string
		flag int
		file *os.File
	}{
		{name: "cgroup", flag: unix.CLONE_NEWCGROUP}, {name: "ipc", flag: unix.CLONE_NEWIPC}, {name: "uts", flag: unix.CLONE_NEWUTS},
		{name: "net", flag: unix.CLONE_NEWNET}, {name: "pid", flag: unix.CLONE_NEWPID}, {name: "mnt", flag: unix.CLONE_NEWNS},
	}
	for i := range kinds {
		if kinds[i].file, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kinds[i].name)); err != nil {
			return 0, fmt.Errorf("opening the namespaces of %s: %w", name, err)
		}
		defer kinds[i].file.Close()
	}
	for _, kind := range kinds {
		if err := unix.Setns(int(kind.file.Fd()), kind.flag); err != nil {
			return 0, fmt.Errorf("entering the %s namespace of %s: %w", kind.name, name, err)
		}
	}
	command := exec.Command(argv[0], argv[1:]...)
	command.Dir = "/"
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	err = command.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

func enter(pid int, kind string, flag int) error {
	file, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
	if err != nil {
		return fmt.Errorf("opening the test bed's namespace: %w", err)
	}
	defer file.Close()
	if err := unix.Setns(int(file.Fd()), flag); err != nil {
		return fmt.Errorf("entering the test bed's namespace: %w", err)
	}
	return nil
}

// workerPID finds a worker's PID 1 among the supervisor's children, by what it was told to boot.
func workerPID(supervisor int, boot string) (int, error) {
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", supervisor))
	if err != nil {
		return 0, err
	}
	for _, list := range lists {
		data, err := os.ReadFile(list)
		if err != nil {
			continue
		}
		for _, field := range strings.Fields(string(data)) {
			pid, err := strconv.Atoi(field)
			if err != nil {
				continue
			}
			command, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if err != nil {
				continue
			}
			args := strings.Split(strings.TrimRight(string(command), "\x00"), "\x00")
			if len(args) == 3 && args[1] == worker.Stage2 && args[2] == boot {
				return pid, nil
			}
		}
	}
	return 0, errors.New("none of the test bed's processes is its first one")
}
