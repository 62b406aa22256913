package control

import (
	"strings"
	"testing"
	"time"

	"larder/testbed/internal/units"
)

// serve answers requests in a directory of its own until the test ends; OpImport is only answered once `release` is closed.
func serve(t *testing.T, release <-chan struct{}) string {
	t.Helper()
	dir := t.TempDir()
	listener, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		_ = Serve(listener, func(r Request) Reply {
			switch r.Op {
			case OpImport:
				<-release
				return Reply{}
			case OpStatus:
				return Reply{Units: []units.Status{{Name: "containerd", Paused: true}}}
			default:
				return Reply{Error: "no request is called " + r.Op}
			}
		})
	}()
	return dir
}

func TestRequestThatHangsHoldsUpNoOther(t *testing.T) {
	release := make(chan struct{})
	dir := serve(t, release)
	imported := make(chan error, 1)
	go func() {
		_, err := Ask(dir, Request{Op: OpImport}, time.Minute)
		imported <- err
	}()
	reply, err := Ask(dir, Request{Op: OpStatus}, 10*time.Second)
	if err != nil || len(reply.Units) != 1 || !reply.Units[0].Paused {
		t.Errorf("%+v, %v", reply, err)
	}
	select {
	case err := <-imported:
		t.Errorf("answered before it was done: %v", err)
	default:
	}
	close(release)
	if err := <-imported; err != nil {
		t.Error(err)
	}
}

func TestRequestEndsAtItsLimit(t *testing.T) {
	release := make(chan struct{})
	defer close(release)
	if _, err := Ask(serve(t, release), Request{Op: OpImport}, 50*time.Millisecond); err == nil {
		t.Error("went through")
	}
}

func TestRefusalIsAnError(t *testing.T) {
	_, err := Ask(serve(t, nil), Request{Op: "dance"}, 10*time.Second)
	if err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("%v", err)
	}
}

func TestNobodyThereIsAnErrorAtOnce(t *testing.T) {
	if _, err := Ask(t.TempDir(), Request{Op: OpStatus}, time.Minute); err == nil {
		t.Error("went through")
	}
}
