// Package images is the test bed's image registry, and makes images for it without any builder.
package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Registry serves images. Manifests are kept in memory, layers on disk.
type Registry struct{ handler http.Handler }

// NewRegistry makes an empty registry that keeps layers in dir.
func NewRegistry(dir string) (*Registry, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making the registry's directory: %w", err)
	}
	return &Registry{registry.New(
		registry.Logger(log.New(io.Discard, "", 0)),
		registry.WithBlobHandler(registry.NewDiskBlobHandler(dir)),
	)}, nil
}

// Serve answers on a listener until it is closed.
func (r *Registry) Serve(listener net.Listener) error {
	return (&http.Server{Handler: r.handler}).Serve(listener)
}

// Push stores an image under reference ("team/app:v1"; a host in front is left out).
func (r *Registry) Push(ctx context.Context, reference string, image v1.Image) error {
	path := reference
	if host, rest, found := strings.Cut(reference, "/"); found && strings.ContainsAny(host, ".:") {
		path = rest
	}
	// The host is never dialled: requests go straight to the handler.
	target, err := name.ParseReference("registry.invalid/"+path, name.Insecure)
	if err != nil {
		return fmt.Errorf("reading the image's name %q: %w", reference, err)
	}
	if err := remote.Write(target, image, remote.WithContext(ctx), remote.WithTransport(direct{r.handler})); err != nil {
		return fmt.Errorf("pushing %s: %w", path, err)
	}
	return nil
}

// direct is a transport without a network.
type direct struct{ handler http.Handler }

func (d direct) RoundTrip(request *http.Request) (*http.Response, error) {
	recorder := &answer{header: http.Header{}, code: http.StatusOK}
	if request.Body == nil {
		request.Body = http.NoBody
	}
	defer request.Body.Close()
	d.handler.ServeHTTP(recorder, request)
	return &http.Response{
		StatusCode: recorder.code, Status: http.StatusText(recorder.code), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: recorder.header, Body: io.NopCloser(&recorder.body), ContentLength: int64(recorder.body.Len()), Request: request,
	}, nil
}

type answer struct {
	header http.Header
	code   int
	body   bytes.Buffer
}

func (a *answer) Header() http.Header         { return a.header }
func (a *answer) WriteHeader(code int)        { a.code = code }
func (a *answer) Write(b []byte) (int, error) { return a.body.Write(b) }

// OfProgram makes an image of one static program, run as user 65532.
func OfProgram(program string) (v1.Image, error) {
	content, err := os.ReadFile(program)
	if err != nil {
		return nil, fmt.Errorf("reading the program for an image: %w", err)
	}
	entry := "/" + filepath.Base(program)
	var archive bytes.Buffer
	writer := tar.NewWriter(&archive)
	header := &tar.Header{Name: entry[1:], Mode: 0o755, Size: int64(len(content)), Typeflag: tar.TypeReg}
	if err := writer.WriteHeader(header); err != nil {
		return nil, fmt.Errorf("packing %s: %w", program, err)
	}
	if _, err := writer.Write(content); err != nil {
		return nil, fmt.Errorf("packing %s: %w", program, err)
	}
	if err := writer.Close(); err != nil {
		return nil, fmt.Errorf("packing %s: %w", program, err)
	}
	// Not compressed: it travels over memory, and compressing costs more than it saves.
	layer := static.NewLayer(archive.Bytes(), types.OCIUncompressedLayer)
	image, err := mutate.AppendLayers(mutate.MediaType(mutate.ConfigMediaType(empty.Image, types.OCIConfigJSON), types.OCIManifestSchema1), layer)
	if err != nil {
		return nil, fmt.Errorf("making an image of %s: %w", program, err)
	}
	file, err := image.ConfigFile()
	if err != nil {
		return nil, fmt.Errorf("reading the configuration of an image of %s: %w", program, err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", runtime.GOARCH
	file.Config.Entrypoint = []string{entry}
	file.Config.User = "65532:65532"
	image, err = mutate.ConfigFile(image, file)
	if err != nil {
		return nil, fmt.Errorf("configuring an image of %s: %w", program, err)
	}
	return image, nil
}

// OfArchive reads the one image of an archive as `docker save`, or `buildah push` to docker-archive: or oci-archive:,
// write it. scratch is a directory that may be filled.
func OfArchive(path, scratch string) (v1.Image, error) {
	kind, err := kindOf(path)
	if err != nil {
		return nil, err
	}
	if kind == "docker" {
		image, err := tarball.ImageFromPath(path, nil)
		if err != nil {
			return nil, fmt.Errorf("reading the image archive %s: %w", path, err)
		}
		return image, nil
	}
	if err := unpack(path, scratch); err != nil {
		return nil, err
	}
	index, err := layout.ImageIndexFromPath(scratch)
	if err != nil {
		return nil, fmt.Errorf("reading the image archive %s: %w", path, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("reading the index of the image archive %s: %w", path, err)
	}
	if len(manifest.Manifests) != 1 {
		return nil, fmt.Errorf("the image archive %s holds %d images, want one", path, len(manifest.Manifests))
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		return nil, fmt.Errorf("reading the image in %s: %w", path, err)
	}
	return image, nil
}

// kindOf tells archives apart by the file that only one kind has.
func kindOf(path string) (string, error) {
	kind := ""
	err := entries(path, func(header *tar.Header, _ io.Reader) error {
		switch filepath.Clean(header.Name) {
		case "oci-layout":
			kind = "oci"
		case "manifest.json":
			if kind == "" {
				kind = "docker"
			}
		}
		return nil
	})
	if err == nil && kind == "" {
		err = fmt.Errorf("%s is no image archive: it has neither manifest.json nor oci-layout", path)
	}
	return kind, err
}

func unpack(path, into string) error {
	return entries(path, func(header *tar.Header, content io.Reader) error {
		if header.Typeflag != tar.TypeReg {
			return nil
		}
		if !filepath.IsLocal(header.Name) {
			return fmt.Errorf("the image archive %s has an entry outside of itself: %s", path, header.Name)
		}
		to := filepath.Join(into, header.Name)
		if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
			return fmt.Errorf("unpacking %s: %w", path, err)
		}
		file, err := os.Create(to)
		if err != nil {
			return fmt.Errorf("unpacking %s: %w", path, err)
		}
		defer file.Close()
		if _, err := io.Copy(file, content); err != nil {
			return fmt.Errorf("unpacking %s: %w", path, err)
		}
		return nil
	})
}

func entries(path string, each func(*tar.Header, io.Reader) error) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the image archive: %w", err)
	}
	defer file.Close()
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the image archive %s: %w", path, err)
		}
		if err := each(header, reader); err != nil {
			return err
		}
	}
}
