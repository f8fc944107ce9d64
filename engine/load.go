package engine

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"sync"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/cas"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

const (
	// maxInspected is how many images of an engine are looked at to find out which layers it has.
	maxInspected = 200
	// inspecting is how many are looked at concurrently.
	inspecting = 8
	// maxMessage bounds one message of an engine that loads an image, in bytes.
	maxMessage = 1 << 20
)

// Progress is told how a load goes on.
type Progress interface {
	// Queued reports a blob that belongs to the image.
	Queued(desc ocispec.Descriptor)
	// Sent reports the number of a blob's bytes that were sent.
	Sent(desc ocispec.Descriptor, done int64)
	// Exists reports a blob that the engine has.
	Exists(desc ocispec.Descriptor)
}

// Load puts an image, all of whose blobs are in the store, into the engine under names, and verifies that it is there. Layers that the
// engine has are not sent. The error is an *Error, one of the store, or the cause of ctx's end.
func (e *Engine) Load(ctx context.Context, blobs *exporter.Blobs, a *exporter.Assembled, names []string, p Progress) error {
	l := load{engine: e, blobs: blobs, image: a, names: names, progress: p}
	known, err := l.known(ctx)
	if err == nil {
		err = l.send(ctx, known)
	}
	// An image that had the layers may have been removed meanwhile.
	if errors.As(err, new(*RefusedError)) && len(known) > 0 && ctx.Err() == nil {
		err = l.send(ctx, nil)
	}
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if errors.As(err, new(*storeError)) || err == nil {
		return err
	}
	return &Error{Endpoint: e.endpoint, Err: err}
}

// load is one image on its way into an engine.
type load struct {
	engine   *Engine
	blobs    *exporter.Blobs
	image    *exporter.Assembled
	names    []string
	progress Progress
}

// storeError is an error of the image store, not of the engine.
type storeError struct{ err error }

func (e *storeError) Error() string { return e.err.Error() }
func (e *storeError) Unwrap() error { return e.err }

// known returns the blobs of the image's layers that the engine has.
func (l *load) known(ctx context.Context) (map[digest.Digest]bool, error) {
	if l.engine.kind == containerd {
		return l.knownBlobs(ctx)
	}
	manifest := l.image.Manifests[0].Manifest
	config, err := l.blobs.Store.ReadAll(manifest.Config, 0)
	if err != nil {
		return nil, &storeError{err}
	}
	var own ocispec.Image
	if err := json.Unmarshal(config, &own); err != nil || len(own.RootFS.DiffIDs) != len(manifest.Layers) {
		return nil, &storeError{fmt.Errorf("the image's configuration does not list its %d layers", len(manifest.Layers))}
	}
	images, err := l.engine.chains(ctx, l.names)
	if err != nil {
		return nil, err
	}
	known := map[digest.Digest]bool{}
	for i, d := range own.RootFS.DiffIDs {
		has := slices.ContainsFunc(images, func(chain []digest.Digest) bool {
			if l.engine.kind == podman {
				return slices.Contains(chain, d)
			}
			return len(chain) > i && slices.Equal(chain[:i+1], own.RootFS.DiffIDs[:i+1])
		})
		blob := manifest.Layers[i].Digest
		if before, seen := known[blob]; !seen || before {
			known[blob] = has
		}
	}
	return onlyTrue(known), nil
}

func onlyTrue(set map[digest.Digest]bool) map[digest.Digest]bool {
	for d, ok := range set {
		if !ok {
			delete(set, d)
		}
	}
	return set
}

// chains returns the uncompressed layers of images of the engine: first of those that have one of the names, then of others in the order
// in which the engine lists them.
func (e *Engine) chains(ctx context.Context, names []string) ([][]digest.Digest, error) {
	var list []struct{ ID string }
	if err := e.get(ctx, "/images/json", nil, &list); err != nil {
		return nil, err
	}
	ask := slices.Clone(names)
	for _, img := range list {
		if len(ask) == maxInspected {
			break
		}
		ask = append(ask, img.ID)
	}
	var mu sync.Mutex
	var chains [][]digest.Digest
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(inspecting)
	for _, name := range ask {
		g.Go(func() error {
			img, err := e.inspect(gctx, name)
			if errors.As(err, new(*RefusedError)) {
				return nil // it is not there, or not any more
			}
			if err == nil && len(img.RootFS.Layers) > 0 {
				mu.Lock()
				chains = append(chains, img.RootFS.Layers)
				mu.Unlock()
			}
			return err
		})
	}
	return chains, g.Wait()
}

// inspected is what an engine says of an image.
type inspected struct {
	ID     string
	RootFS struct{ Layers []digest.Digest }
}

func (e *Engine) inspect(ctx context.Context, name string) (inspected, error) {
	var img inspected
	return img, e.get(ctx, "/images/"+name+"/json", nil, &img)
}

// listed is an image in the list of an engine with containerd's store.
type listed struct {
	ID        string
	Manifests []struct {
		ID        digest.Digest
		Kind      string
		Available bool
	}
}

// whole returns the manifests of the engine whose blobs are all there. Engines say so since version 1.47 of the API.
func (e *Engine) whole(ctx context.Context) (map[digest.Digest]bool, error) {
	found := map[digest.Digest]bool{}
	if !e.atLeast(1, 47) {
		return found, nil
	}
	var list []listed
	err := e.get(ctx, "/images/json", url.Values{"manifests": {"1"}}, &list)
	for _, img := range list {
		for _, m := range img.Manifests {
			if m.Kind == "image" && m.Available {
				found[m.ID] = true
			}
		}
	}
	return found, err
}

// knownBlobs returns the layers of the images that both the engine and kiln have.
func (l *load) knownBlobs(ctx context.Context) (map[digest.Digest]bool, error) {
	manifests, err := l.engine.whole(ctx)
	if err != nil {
		return nil, err
	}
	known := map[digest.Digest]bool{}
	for d := range manifests {
		if _, err := cas.ParseDigest(string(d)); err != nil {
			return nil, fetch.Invalid("it lists an image %q: %w", fetch.Quote(string(d)), err)
		}
		size, err := l.blobs.Store.Stat(d)
		if err != nil {
			continue
		}
		data, err := l.blobs.Store.ReadAll(ocispec.Descriptor{Digest: d, Size: size}, 0)
		var m ocispec.Manifest
		if err != nil || json.Unmarshal(data, &m) != nil {
			continue // then its layers are sent
		}
		for _, layer := range m.Layers {
			known[layer.Digest] = true
		}
	}
	return known, nil
}

// send sends the image without the blobs that are known, and verifies that the engine has it.
func (l *load) send(ctx context.Context, known map[digest.Digest]bool) error {
	seen := map[digest.Digest]bool{}
	for _, m := range l.image.Manifests {
		for _, layer := range m.Manifest.Layers {
			switch {
			case seen[layer.Digest]:
			case known[layer.Digest]:
				l.progress.Exists(layer)
			default:
				l.progress.Queued(layer)
			}
			seen[layer.Digest] = true
		}
	}
	sending := exporter.Sending{Omit: known, Sent: func(d ocispec.Descriptor, n int64) {
		if seen[d.Digest] {
			l.progress.Sent(d, n)
		}
	}}
	archived := exporter.Archived{Assembled: l.image, Archive: exporter.Archive{Names: l.names, DockerManifest: len(l.image.Manifests) == 1}}
	r, w := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		err := l.blobs.SendArchive(ctx, w, []exporter.Archived{archived}, sending)
		if err != nil && !errors.Is(err, io.ErrClosedPipe) {
			err = &storeError{err}
		}
		_ = w.CloseWithError(err) // it cannot fail
	}()
	resp, err := l.engine.do(ctx, http.MethodPost, "/images/load", url.Values{"quiet": {"1"}}, r)
	if err == nil {
		err = readMessages(resp.Body)
		resp.Body.Close()
	}
	r.Close()
	<-written
	if err != nil {
		return err
	}
	return l.verify(ctx)
}

// readMessages reads what an engine says while it loads an image, one JSON document in each line, and returns the error that it reports.
func readMessages(r io.Reader) error {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxMessage)
	for lines.Scan() {
		var message struct {
			Error       string
			ErrorDetail struct{ Message string }
		}
		if err := json.Unmarshal(lines.Bytes(), &message); err != nil {
			continue // podman ends some with text
		}
		if text := message.ErrorDetail.Message; text != "" {
			return &RefusedError{http.StatusOK, fetch.Quote(text)}
		}
		if message.Error != "" {
			return &RefusedError{http.StatusOK, fetch.Quote(message.Error)}
		}
	}
	return lines.Err()
}

// verify asks the engine whether it has the image, under all names.
func (l *load) verify(ctx context.Context) error {
	want := l.image.Desc.Digest
	if l.engine.kind != containerd {
		want = l.image.Manifests[0].Manifest.Config.Digest
	}
	names := l.names
	if len(names) == 0 {
		names = []string{string(want)}
	}
	for _, name := range names {
		img, err := l.engine.inspect(ctx, name)
		if err != nil {
			return err
		}
		if img.ID != string(want) {
			return &RefusedError{http.StatusOK, fmt.Sprintf("%s is %s, and was loaded as %s", name, fetch.Quote(img.ID), want)}
		}
	}
	if l.engine.kind != containerd || !l.engine.atLeast(1, 47) {
		return nil
	}
	whole, err := l.engine.whole(ctx)
	for _, m := range l.image.Manifests {
		if err == nil && !whole[m.Desc.Digest] {
			err = &RefusedError{http.StatusOK, fmt.Sprintf("the image %s is not complete", m.Desc.Digest)}
		}
	}
	return err
}
