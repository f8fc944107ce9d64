package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/kilnbuild/kiln/registry/registrytest"
	digest "github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// trip is what every request takes in addition, of the time of a synctest bubble: that stands still while anything else happens. So the time
// that something takes says how many requests there were one after the other.
const trip = time.Second

// trips lets each request of a Client take one trip, and notes it.
type trips struct {
	mu    sync.Mutex
	calls []string
}

// RoundTrip makes a request by a connection of its own, whose goroutines end with it.
func (tr *trips) RoundTrip(r *http.Request) (*http.Response, error) {
	tr.mu.Lock()
	tr.calls = append(tr.calls, r.Method+" "+r.URL.Path)
	tr.mu.Unlock()
	if r.Body != nil {
		data, err := io.ReadAll(r.Body)
		r.Body.Close()
		if err != nil {
			return nil, err
		}
		r = r.Clone(r.Context())
		r.Body = io.NopCloser(bytes.NewReader(data))
	}
	time.Sleep(trip)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(bytes.NewReader(data))
	return resp, err
}

func (tr *trips) count(method string) int {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	n := 0
	for _, call := range tr.calls {
		if strings.HasPrefix(call, method+" ") {
			n++
		}
	}
	return n
}

// inTrips calls f with a Client of the registry at addr, and fails unless that takes so many trips.
func inTrips(t *testing.T, what, addr string, want int, f func(ctx context.Context, c *Client) error) *trips {
	t.Helper()
	tr := &trips{}
	synctest.Test(t, func(t *testing.T) {
		c := New(nil)
		h, err := c.host(addr)
		if err != nil {
			t.Fatal(err)
		}
		h.scheme, h.http.Transport = "http", tr
		began := time.Now()
		if err := f(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if got := int(time.Since(began) / trip); got != want {
			t.Errorf("%s takes %d requests one after the other, and should take %d:\n%s", what, got, want, strings.Join(tr.calls, "\n"))
		}
	})
	return tr
}

// However many layers an image has, and an index images, a push takes the same number of requests one after the other.
func TestPushTrips(t *testing.T) {
	reg := registrytest.Start(t)
	s := newStore(t)
	few, many := []int{10}, slices.Repeat([]int{10}, 100)
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64"}
	for i, sizes := range [][]int{few, many} {
		image, ref := makeImage(t, s, amd64, sizes...), fmt.Sprintf("%s/app%d:v1", reg.Host, i)
		push := func(ctx context.Context, c *Client) error { return c.Push(ctx, s, ref, image, PushOptions{}) }
		inTrips(t, "a push", reg.Host, 4, push) // HEAD, POST, PUT of blobs; PUT of the manifest
		again := inTrips(t, "a push of what is there", reg.Host, 2, push)
		if again.count("HEAD") != len(sizes)+1 || again.count("POST") != 0 {
			t.Errorf("a push of %d layers that are there asks:\n%s", len(sizes), strings.Join(again.calls, "\n"))
		}
	}
	var named ocispec.Descriptor
	for i, what := range []string{"the image", "another image"} {
		image, ref := makeImage(t, s, amd64, 10, 11, 12), reg.Host+"/named:v1"
		if i == 0 {
			if err := New(nil).Push(t.Context(), s, ref, image, PushOptions{}); err != nil {
				t.Fatal(err)
			}
		} else {
			image = makeImage(t, s, amd64, 10, 11, 13)
		}
		// CheckPush: POST and, beside it, HEAD of the manifest; DELETE. Then PUT of the manifest, or HEAD, POST and PUT of blobs before it.
		inTrips(t, "a push to the name of "+what, reg.Host, 3+3*i, func(ctx context.Context, c *Client) error {
			return errors.Join(c.CheckPush(ctx, ref), c.Push(ctx, s, ref, image, PushOptions{}))
		})
		named = image
	}
	// A push that comes while that is asked waits for the answer.
	inTrips(t, "an early push of the image", reg.Host, 2, func(ctx context.Context, c *Client) error {
		checked := make(chan error)
		go func() { checked <- c.CheckPush(ctx, reg.Host+"/named:v1") }()
		synctest.Wait()
		return errors.Join(c.Push(ctx, s, reg.Host+"/named:v1", named, PushOptions{}), <-checked)
	})
	index := registrytest.PutIndex(t, s, makeImage(t, s, amd64, 20, 30), makeImage(t, s, arm, 40))
	inTrips(t, "a push of an index", reg.Host, 5, func(ctx context.Context, c *Client) error {
		return c.Push(ctx, s, reg.Host+"/index:v1", index, PushOptions{})
	})
}

// What describes an image and is known is not asked for, unless it is something else than was asked for.
func TestResolveTrips(t *testing.T) {
	reg, s := registrytest.Start(t), newStore(t)
	index := registrytest.PutIndex(t, s, makeImage(t, s, amd64, 20, 30), makeImage(t, s, ocispec.Platform{OS: "linux", Architecture: "arm64"},
		40))
	ref := reg.Host + "/index:v1"
	if err := New(nil).Push(t.Context(), s, ref, index, PushOptions{}); err != nil {
		t.Fatal(err)
	}
	all := func(_ context.Context, d digest.Digest) []byte {
		size, err := s.Stat(d)
		if err != nil {
			return nil
		}
		data, err := s.ReadAll(ocispec.Descriptor{Digest: d, Size: size}, 0)
		if err != nil {
			t.Error(err)
		}
		return data
	}
	wrong := func(_ context.Context, d digest.Digest) []byte { return append(all(t.Context(), d), ' ') }
	pinned := reg.Host + "/index@" + string(index.Digest)
	for _, tc := range []struct {
		name, ref string
		known     Known
		trips     int
	}{
		{"a tag of which nothing is known", ref, nil, 3}, // the index, the manifest, the config
		{"a tag of which all is known", ref, all, 1},
		{"a digest of which all is known", pinned, all, 0},
		{"a tag of which something else is known", ref, wrong, 3},
		{"a digest of which something else is known", pinned, wrong, 3},
	} {
		empty := newStore(t)
		inTrips(t, "resolving "+tc.name, reg.Host, tc.trips, func(ctx context.Context, c *Client) error {
			img, err := c.ResolveKnown(ctx, tc.ref, amd64, empty, tc.known)
			if err == nil && (img.Target.Digest != index.Digest || len(img.DiffIDs) != 2 || !empty.Has(img.Desc) ||
				!empty.Has(img.Manifest.Config)) {
				t.Errorf("%s: %+v", tc.name, img)
			}
			return err
		})
	}
}
