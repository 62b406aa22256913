package units

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"larder/testbed/internal/reap"
)

var reaper = reap.New()

func manager(t *testing.T) *Manager {
	t.Helper()
	m := New(reaper)
	m.Add(Unit{Name: "sleeper", Path: "sleep", Args: []string{"sleep", "600"}, Log: filepath.Join(t.TempDir(), "log")})
	t.Cleanup(func() { _ = m.Kill("sleeper") })
	return m
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never: " + what)
		}
	}
}

func TestWhatEndsByItselfIsStartedAgain(t *testing.T) {
	m := manager(t)
	if err := m.Start("sleeper"); err != nil {
		t.Fatal(err)
	}
	before := m.Status()[0]
	if err := syscall.Kill(before.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "running again", func() bool {
		s := m.Status()[0]
		return s.Running && s.PID != before.PID && s.Restarts == 1
	})
}

func TestWhatWasKilledByCommandStaysDownUntilStarted(t *testing.T) {
	m := manager(t)
	if err := m.Start("sleeper"); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill("sleeper"); err != nil {
		t.Fatal(err)
	}
	if s := m.Status()[0]; s.Running || s.Wanted {
		t.Errorf("%+v", s)
	}
	if err := m.Start("sleeper"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "running", func() bool { return m.Status()[0].Running })
}

func TestPausedProcessIsStillItselfAfterwards(t *testing.T) {
	m := manager(t)
	if err := m.Pause("sleeper", true); err == nil {
		t.Error("what does not run was paused")
	}
	if err := m.Start("sleeper"); err != nil {
		t.Fatal(err)
	}
	before := m.Status()[0].PID
	for _, paused := range []bool{true, false} {
		if err := m.Pause("sleeper", paused); err != nil {
			t.Fatal(err)
		}
		if s := m.Status()[0]; s.Paused != paused || s.PID != before || !s.Running {
			t.Errorf("%+v", s)
		}
	}
}

func TestUnknownComponentIsRefused(t *testing.T) {
	if err := manager(t).Kill("sleepr"); err == nil {
		t.Error("went through")
	}
}
