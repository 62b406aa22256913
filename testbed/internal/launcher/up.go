package launcher

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"larder/testbed/internal/control"
	"larder/testbed/internal/plan"
)

// Up starts a test bed in the background and returns when all workers and DNS are ready. On failure nothing stays.
func Up(o Options, limit time.Duration) (plan.Spec, error) {
	var none plan.Spec
	if err := Check(); err != nil {
		return none, err
	}
	if err := checkDir(o.Dir); err != nil {
		return none, err
	}
	if _, err := Running(o.Dir); err == nil {
		return none, fmt.Errorf("a test bed already runs in %s", o.Dir)
	}
	self, err := os.Executable()
	if err != nil {
		return none, fmt.Errorf("finding the own program: %w", err)
	}
	output, err := os.Create(filepath.Join(o.Dir, LogFile))
	if err != nil {
		return none, fmt.Errorf("making the log: %w", err)
	}
	defer output.Close()
	command := exec.Command(self, "run", "--dir", o.Dir, "--workers", strconv.Itoa(o.Workers), "--zones", strconv.Itoa(o.Zones),
		"--port", strconv.Itoa(o.Port), "--memory", strconv.FormatInt(o.Memory, 10),
		"--audit="+strconv.FormatBool(o.Audit))
	command.Stdout, command.Stderr = output, output
	// A session of its own: the end of the terminal or of the caller is not its end.
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := command.Start(); err != nil {
		return none, fmt.Errorf("starting the test bed: %w", err)
	}
	ended := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(ended)
	}()
	ready := make(chan error, 1)
	go func() { ready <- waitReady(o.Dir, limit) }()
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(stop)
	select {
	case <-stop:
		err = errors.Join(errors.New("stopped while it was being started"), Down(o.Dir))
	case <-ended:
		err = fmt.Errorf("the test bed ended while it was being started; the end of its log:\n%s", tail(filepath.Join(o.Dir, LogFile)))
	case err = <-ready:
		if err != nil {
			err = fmt.Errorf("%w; the end of its log:\n%s", err, tail(filepath.Join(o.Dir, LogFile)))
			_ = Down(o.Dir)
		}
	}
	if err != nil {
		return none, err
	}
	state, err := Running(o.Dir)
	return state.Spec, err
}

func waitReady(dir string, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		left := time.Until(deadline)
		// The socket is there before the supervisor takes connections, and waits until it does.
		_, err := control.Ask(dir, control.Request{Op: control.OpReady, Seconds: max(int(left.Seconds()), 1)}, left+5*time.Second)
		if err == nil || time.Until(deadline) <= 0 {
			return err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func tail(path string) string {
	const most = 2000
	data, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(data[max(len(data)-most, 0):])
}
