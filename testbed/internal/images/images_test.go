package images

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func program(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPushedImageIsServedUnderItsNameWithoutHost(t *testing.T) {
	r, err := NewRegistry(filepath.Join(t.TempDir(), "layers"))
	if err != nil {
		t.Fatal(err)
	}
	image, err := OfProgram(program(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Push(context.Background(), "registry.testbed/team/app:v1", image); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = r.Serve(listener) }()
	defer listener.Close()
	for path, want := range map[string]int{"team/app/manifests/v1": 200, "team/app/manifests/v2": 404} {
		response, err := http.Get("http://" + listener.Addr().String() + "/v2/" + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(response.Body)
		response.Body.Close()
		if response.StatusCode != want {
			t.Errorf("%s: %d %s", path, response.StatusCode, body)
		}
	}
}

func TestArchiveOfDockerIsRead(t *testing.T) {
	image, err := OfProgram(program(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "app.tar")
	tag, err := name.NewTag("localhost/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(path, tag, image); err != nil {
		t.Fatal(err)
	}
	read, err := OfArchive(path, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	layers, err := read.Layers()
	if err != nil || len(layers) != 1 {
		t.Errorf("%d layers, %v", len(layers), err)
	}
}

func TestWhatIsNoArchiveIsRefused(t *testing.T) {
	if _, err := OfArchive(program(t), t.TempDir()); err == nil {
		t.Error("went through")
	}
}
