package launcher

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"
)

// downWait is how long a test bed may take to end before it is killed.
const downWait = 30 * time.Second

// Down ends the test bed in dir, or cleans up after one that was killed. Where there is none it does nothing.
func Down(dir string) error {
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	signal := syscall.SIGTERM
	deadline := time.Now().Add(downWait)
	for sent := syscall.Signal(0); ; time.Sleep(20 * time.Millisecond) {
		held, taken, err := lock(dir)
		if err != nil {
			return err
		}
		if !taken {
			defer held.Close()
			return clean(dir)
		}
		state, err := readState(dir)
		if err != nil && !errors.Is(err, ErrNotRunning) {
			return err
		}
		// It is being started, or it has cleaned up and is about to end, where there is no state.
		if err == nil && sent != signal {
			if err := syscall.Kill(state.Launcher, signal); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("telling the test bed to end: %w", err)
			}
			sent = signal
		}
		if time.Now().After(deadline) {
			if signal == syscall.SIGKILL {
				return fmt.Errorf("the test bed in %s does not end, process %d", dir, state.Launcher)
			}
			signal, deadline = syscall.SIGKILL, time.Now().Add(downWait)
		}
	}
}
