package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"larder/testbed/internal/units"
)

// Request is what the supervisor asks of a worker. Op is "start", "kill", "pause", "resume", "status" or "import".
type Request struct {
	Op string `json:"op"`
	// Unit is the component that is meant.
	Unit string `json:"unit,omitempty"`
	// Path is the image archive to import.
	Path string `json:"path,omitempty"`
}

// Reply is the worker's answer.
type Reply struct {
	Error  string         `json:"error,omitempty"`
	Status []units.Status `json:"status,omitempty"`
}

// Link is the supervisor's end of a worker's control socket. Requests are answered one after the other.
type Link struct {
	mu      sync.Mutex
	conn    net.Conn
	encoder *json.Encoder
	decoder *json.Decoder
}

// NewLink takes over a connected socket.
func NewLink(file *os.File) (*Link, error) {
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("using a worker's control socket: %w", err)
	}
	return &Link{conn: conn, encoder: json.NewEncoder(conn), decoder: json.NewDecoder(conn)}, nil
}

// Ask sends one request and waits for its answer. It ends with an error when the worker ends.
func (l *Link) Ask(r Request) (Reply, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var reply Reply
	if err := l.encoder.Encode(r); err != nil {
		return reply, fmt.Errorf("asking for %s: %w", r.Op, err)
	}
	if err := l.decoder.Decode(&reply); err != nil {
		return reply, fmt.Errorf("waiting for the answer to %s: %w", r.Op, err)
	}
	if reply.Error != "" {
		return reply, errors.New(reply.Error)
	}
	return reply, nil
}

// Close hangs up.
func (l *Link) Close() { _ = l.conn.Close() }

// answer serves requests until the supervisor hangs up.
func answer(file *os.File, handle func(Request) Reply) error {
	conn, err := net.FileConn(file)
	if err != nil {
		return fmt.Errorf("using the control socket: %w", err)
	}
	encoder, decoder := json.NewEncoder(conn), json.NewDecoder(conn)
	for {
		var r Request
		if err := decoder.Decode(&r); err != nil {
			return fmt.Errorf("reading a request: %w", err)
		}
		if err := encoder.Encode(handle(r)); err != nil {
			return fmt.Errorf("answering a request: %w", err)
		}
	}
}
