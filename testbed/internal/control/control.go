// Package control is how commands speak to a running test bed, and the test bed to its workers: one request and one
// answer in JSON for each connection to a unix socket in the directory of the one that is asked. A request that takes
// long holds up no other.
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
	// Worker is the worker that is meant; empty for the control plane, and where a worker itself is asked.
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
	// OpImport is the part of OpImageLoad that each worker does.
	OpImport = "import"
)

// Reply is the answer; an empty Error means that it was done.
type Reply struct {
	Error string `json:"error,omitempty"`
	// Status is the test bed's answer to OpStatus.
	Status *Status `json:"status,omitempty"`
	// Units are a worker's answer to OpStatus.
	Units []units.Status `json:"units,omitempty"`
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

// SocketFile is the socket's name in the directory of the test bed, or of a worker.
const SocketFile = "control.sock"

// socket gives a path to the socket of at most 108 bytes, which is all that the kernel takes, however long the
// directory's is. Close the file after use.
func socket(dir string) (*os.File, string, error) {
	file, err := os.Open(dir)
	if err != nil {
		return nil, "", fmt.Errorf("opening the directory of the control socket: %w", err)
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

// Inherited takes over a listening socket that this process was started with.
func Inherited(fd uintptr, name string) (net.Listener, error) {
	file := os.NewFile(fd, name)
	defer file.Close()
	listener, err := net.FileListener(file)
	if err != nil {
		return nil, fmt.Errorf("taking over the %s socket: %w", name, err)
	}
	return listener, nil
}

// Ask sends one request to the test bed, or the worker, in dir and waits for the answer, no longer than limit. Past that,
// and when the one that was asked ends, it fails; what was asked for may be done all the same.
func Ask(dir string, r Request, limit time.Duration) (Reply, error) {
	var reply Reply
	file, path, err := socket(dir)
	if err != nil {
		return reply, err
	}
	defer file.Close()
	conn, err := net.DialTimeout("unix", path, limit)
	if err != nil {
		return reply, fmt.Errorf("no test bed, or worker of one, runs in %s: %w", dir, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(limit)); err != nil {
		return reply, err
	}
	if err := json.NewEncoder(conn).Encode(r); err != nil {
		return reply, fmt.Errorf("asking for %q: %w", r.Op, err)
	}
	if err := json.NewDecoder(conn).Decode(&reply); err != nil {
		return reply, fmt.Errorf("waiting for the answer to %q: %w", r.Op, err)
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
