// Package control is how commands speak to a running test bed: one request and one answer in JSON for each connection
// to a unix socket in its directory.
package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"larder/testbed/internal/units"
)

// Request names an operation and what it is about.
type Request struct {
	// Op is one of the constants below.
	Op string `json:"op"`
	// Worker is the worker that is meant; empty for the control plane.
	Worker string `json:"worker,omitempty"`
	// Component is the program that is meant.
	Component string `json:"component,omitempty"`
	// Path is an absolute path on the machine.
	Path string `json:"path,omitempty"`
	// Reference is an image's name.
	Reference string `json:"reference,omitempty"`
	// Seconds bounds the wait of OpReady.
	Seconds int `json:"seconds,omitempty"`
}

// Operations.
const (
	OpStatus    = "status"
	OpReady     = "ready"
	OpOff       = "worker off"
	OpOn        = "worker on"
	OpCut       = "worker cut"
	OpJoin      = "worker join"
	OpKill      = "kill"
	OpStart     = "start"
	OpPause     = "pause"
	OpResume    = "resume"
	OpImageLoad = "image load"
	OpImagePush = "image push"
)

// Reply is the answer; an empty Error means that it was done.
type Reply struct {
	Error  string  `json:"error,omitempty"`
	Status *Status `json:"status,omitempty"`
}

// Status is what the test bed knows of itself.
type Status struct {
	Control []units.Status `json:"control"`
	Workers []Worker       `json:"workers"`
	// API says whether the API server answers; without it nobody is known to be ready.
	API bool `json:"api"`
}

// Worker is the status of one worker.
type Worker struct {
	Name  string         `json:"name"`
	Zone  string         `json:"zone"`
	IP    string         `json:"ip"`
	On    bool           `json:"on"`
	Cut   bool           `json:"cut"`
	Ready bool           `json:"ready"`
	Units []units.Status `json:"units,omitempty"`
}

// SocketFile is the socket's name in the test bed's directory.
const SocketFile = "control.sock"

// socket gives a path to the socket of at most 108 bytes, which is all that the kernel takes, however long the
// directory's is. Close the file after use.
func socket(dir string) (*os.File, string, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, "", fmt.Errorf("opening the test bed's directory: %w", err)
	}
	return file, fmt.Sprintf("/proc/self/fd/%d/%s", file.Fd(), SocketFile), nil
}

// Listen makes the socket in dir.
func Listen(dir string) (*net.UnixListener, error) {
	if err := os.Remove(filepath.Join(dir, SocketFile)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("removing an old control socket: %w", err)
	}
	file, path, err := socket(dir)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening on the control socket: %w", err)
	}
	listener.SetUnlinkOnClose(false)
	return listener, os.Chmod(filepath.Join(dir, SocketFile), 0o600)
}

// Ask sends one request to the test bed in dir and waits for the answer.
func Ask(dir string, r Request, limit time.Duration) (Reply, error) {
	var reply Reply
	file, path, err := socket(dir)
	if err != nil {
		return reply, err
	}
	defer file.Close()
	conn, err := net.DialTimeout("unix", path, limit)
	if err != nil {
		return reply, fmt.Errorf("no test bed runs in %s: %w", dir, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return reply, err
	}
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return reply, fmt.Errorf("asking the test bed for %q: %w", r.Op, err)
	}
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return reply, fmt.Errorf("waiting for the test bed's answer to %q: %w", r.Op, err)
	}
	if reply.Error != "" {
		return reply, errors.New(reply.Error)
	}
	return reply, nil
}

// Serve answers requests, several at a time, until the listener is closed.
func Serve(listener net.Listener, handle func(Request) Reply) error {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return fmt.Errorf("taking a connection to the control socket: %w", err)
		}
		go func() {
			defer conn.Close()
			var r Request
			if json.NewDecoder(conn).Decode(&r) != nil {
				return
			}
			_ = json.NewEncoder(conn).Encode(handle(r))
		}()
	}
}
