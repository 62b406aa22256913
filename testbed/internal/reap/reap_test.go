package reap

import (
	"strings"
	"sync"
	"testing"
)

func TestOutputAndInputOfManyAtOnceArrive(t *testing.T) {
	r := New()
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
