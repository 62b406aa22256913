package launcher

import (
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"larder/testbed/internal/cgroups"
	"larder/testbed/internal/control"
	"larder/testbed/internal/jsonfile"
	"larder/testbed/internal/plan"
	"larder/testbed/internal/supervisor"
)

// Options are what a test bed is to be.
type Options struct {
	Dir     string
	Workers int
	Zones   int
	// Port is the API server's on the machine's loopback; zero takes a free one.
	Port int
	// Memory is what pods may request on one worker, in bytes.
	Memory int64
	// Audit has the API server write down what service accounts ask of it.
	Audit bool
	// UntilEOF ends the test bed when standard input ends, as it does when a test that holds the other end is killed.
	UntilEOF bool
}

// stopWait is how long the supervisor may take to end by itself.
const stopWait = 10 * time.Second

// Run is the test bed, in the foreground, until SIGTERM or SIGINT, or the supervisor's end. It leaves nothing behind.
func Run(o Options) (err error) {
	// The parent-death signal of the supervisor hangs on this thread.
	runtime.LockOSThread()
	if err := Check(); err != nil {
		return err
	}
	if err := checkDir(o.Dir); err != nil {
		return err
	}
	workers, err := plan.Workers(o.Workers, o.Zones)
	if err != nil {
		return err
	}
	held, err := lockSoon(o.Dir)
	if err != nil {
		return err
	}
	defer held.Close()
	if err := clean(o.Dir); err != nil {
		return fmt.Errorf("cleaning up after an earlier test bed: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(o.Dir, "logs")); err != nil {
		return fmt.Errorf("removing earlier logs: %w", err)
	}
	groups, err := cgroups.Find(groupName(o.Dir))
	if err != nil {
		return err
	}
	api, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", o.Port))
	if err != nil {
		return fmt.Errorf("listening for clients of the API server: %w", err)
	}
	defer api.Close()
	commands, err := control.Listen(o.Dir)
	if err != nil {
		return err
	}
	defer commands.Close()
	spec := plan.Spec{
		Dir: o.Dir, Workers: workers, APIPort: api.Addr().(*net.TCPAddr).Port, Cgroups: groups, Memory: o.Memory, Audit: o.Audit,
	}
	state := State{Launcher: os.Getpid(), Spec: spec}
	// Written before anything is changed, so that whoever finds it can put it back.
	if err := jsonfile.Write(filepath.Join(o.Dir, stateFile), state); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, clean(o.Dir)) }()
	if state.Inotify, err = raiseInotify(); err != nil {
		return err
	}
	file := filepath.Join(o.Dir, specFile)
	if err := jsonfile.Write(file, spec); err != nil {
		return err
	}
	command, err := start(file, api.(*net.TCPListener), commands)
	if err != nil {
		return err
	}
	state.Supervisor = command.Process.Pid
	if err := jsonfile.Write(filepath.Join(o.Dir, stateFile), state); err != nil {
		_ = command.Process.Kill()
		_ = command.Wait()
		return err
	}
	return wait(command, o.UntilEOF)
}

// lockSoon takes the lock for as long as the test bed lives. Others hold it for an instant to see whether one runs.
func lockSoon(dir string) (*os.File, error) {
	for deadline := time.Now().Add(time.Second); ; time.Sleep(20 * time.Millisecond) {
		held, taken, err := lock(dir)
		if err != nil {
			return nil, err
		}
		if !taken {
			return held, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("a test bed already runs in %s", dir)
		}
	}
}

// start makes the supervisor's namespaces and hands it the sockets, which were made in the machine's.
func start(file string, api *net.TCPListener, commands *net.UnixListener) (*exec.Cmd, error) {
	first, err := api.File()
	if err != nil {
		return nil, fmt.Errorf("handing over the API server's socket: %w", err)
	}
	defer first.Close()
	second, err := commands.File()
	if err != nil {
		return nil, fmt.Errorf("handing over the control socket: %w", err)
	}
	defer second.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("finding the own program: %w", err)
	}
	command := exec.Command(self, supervisor.Stage, file)
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.ExtraFiles = []*os.File{first, second}
	command.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
		Pdeathsig:  syscall.SIGKILL,
		Setsid:     true,
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("starting the supervisor: %w", err)
	}
	return command, nil
}

// wait returns when the supervisor has ended, by itself or because it was told to.
func wait(command *exec.Cmd, untilEOF bool) error {
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	if untilEOF {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			stop <- syscall.SIGTERM
		}()
	}
	ended := make(chan error, 1)
	go func() { ended <- command.Wait() }()
	select {
	case err := <-ended:
		if err == nil {
			err = errors.New("it was told to")
		}
		return fmt.Errorf("the supervisor ended: %w", err)
	case <-stop:
	}
	_ = command.Process.Signal(syscall.SIGTERM)
	select {
	case <-ended:
	case <-time.After(stopWait):
		_ = command.Process.Kill()
		<-ended
	}
	return nil
}

// groupName is different for each directory, so that test beds do not meet.
func groupName(dir string) string {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(dir))
	return fmt.Sprintf("larder-testbed-%08x", hash.Sum32())
}

// checkDir makes the directory and refuses places that workers see otherwise than the machine.
func checkDir(dir string) error {
	for _, hidden := range []string{"/run", "/var/run", "/var/lib", "/var/log", "/etc", "/proc", "/sys", "/dev"} {
		if dir == hidden || strings.HasPrefix(dir, hidden+"/") {
			return fmt.Errorf("a test bed cannot lie in %s: its workers have a %s of their own", dir, hidden)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("making the test bed's directory: %w", err)
	}
	return nil
}

// Check says what this machine lacks.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("namespaces and cables need root: run it as root")
	}
	var missing []string
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "nft"} {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	for _, plugin := range []string{"ptp", "portmap", "host-local", "loopback"} {
		if _, err := os.Stat(filepath.Join("/usr/lib/cni", plugin)); err != nil {
			missing = append(missing, "/usr/lib/cni/"+plugin)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("finding the own program: %w", err)
	}
	for _, program := range []string{"pause", "coredns"} {
		path := filepath.Join(filepath.Dir(self), program)
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, path)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("this machine lacks %s: scripts/testbed-setup.sh installs it", strings.Join(missing, ", "))
	}
	return nil
}
