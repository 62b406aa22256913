package reap

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// One for all tests: two would take each other's children.
var reaper = New()

func TestOutputAndInputOfManyAtOnceArrive(t *testing.T) {
	r := reaper
	var wait sync.WaitGroup
	for range 20 {
		wait.Add(1)
		go func() {
			defer wait.Done()
			out, err := r.Run(Command{Path: "cat", Args: []string{"cat"}}, "hello")
			if err != nil || out != "hello" {
				t.Errorf("%q, %v", out, err)
			}
		}()
	}
	wait.Wait()
	_, err := r.Run(Command{Path: "sh", Args: []string{"sh", "-c", "echo oops; exit 3"}}, "")
	if err == nil || !strings.Contains(err.Error(), "exited with 3") || !strings.Contains(err.Error(), "oops") {
		t.Errorf("%v", err)
	}
	if _, err := r.Run(Command{Path: "no-such-program", Args: []string{"x"}}, ""); err == nil {
		t.Error("a program that is not there was started")
	}
}

func TestLogIsAppendedToAndFurtherFilesFollow(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	if err := os.WriteFile(log, []byte("before\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	third, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	p, err := reaper.Start(Command{
		Path: "sh", Args: []string{"sh", "-c", "cat; echo out; echo err >&2; readlink /proc/self/fd/3"}, Log: log, Files: []*os.File{third},
	})
	if err != nil {
		t.Fatal(err)
	}
	<-p.Done
	data, err := os.ReadFile(log)
	if err != nil || string(data) != "before\nout\nerr\n/dev/null\n" || !p.Ended() {
		t.Errorf("%q, %v", data, err)
	}
}
