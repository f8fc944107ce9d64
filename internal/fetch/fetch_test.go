package fetch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/reach"
)

const hang = 5 * time.Minute

func TestTransient(t *testing.T) {
	at := func(err error) error { return fmt.Errorf("x: %w", &ConnectionError{Host: "h", Doing: "ask", Err: err}) }
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"stalled":              {at(ErrStalled), true},
		"EOF":                  {at(io.EOF), true},
		"reset":                {at(syscall.ECONNRESET), true},
		"refused":              {at(syscall.ECONNREFUSED), false},
		"unknown name":         {at(&net.DNSError{IsNotFound: true}), false},
		"no answer for a name": {at(&net.DNSError{IsTimeout: true}), true},
		"out of reach":         {at(&reach.Error{Host: "h"}), false},
		"plain http":           {at(ErrPlainHTTP), false},
		"a redirection":        {at(&RedirectError{errors.New("x")}), false},
		"503":                  {&StatusError{Status: 503}, true},
		"501":                  {&StatusError{Status: 501}, false},
		"404":                  {&StatusError{Status: 404}, false},
		"the disk":             {syscall.ENOSPC, false},
		"EOF of a file":        {io.ErrUnexpectedEOF, false},
	} {
		if got := Transient(tt.err); got != tt.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	for value, want := range map[string]time.Duration{
		"": -1, "x": -1, "-1": -1, "0": 0, "7": 7 * time.Second, "999999": maxRetryAfter,
		"Wed, 21 Oct 2015 07:28:00 GMT": 0, "Fri, 21 Oct 2415 07:28:00 GMT": maxRetryAfter,
	} {
		if got := retryAfter(value); got != want {
			t.Errorf("%q: %s, want %s", value, got, want)
		}
	}
}

// TestTries counts what is tried until it is given up.
func TestTries(t *testing.T) {
	lost := &ConnectionError{Err: io.EOF}
	for name, tt := range map[string]struct {
		errs []error // the last one is repeated
		want int
	}{
		"broken for ever": {[]error{lost}, MaxTries},
		"silent for ever": {[]error{&ConnectionError{Err: ErrStalled}}, MaxStalls},
		"silent once":     {[]error{&ConnectionError{Err: ErrStalled}, nil}, 2},
		"404":             {[]error{&StatusError{Status: 404}}, 1},
	} {
		n := 0
		err := Patience{Pause: time.Millisecond}.Retry(t.Context(), func() error {
			n++
			return tt.errs[min(n, len(tt.errs))-1]
		})
		if n != tt.want || !errors.Is(err, tt.errs[len(tt.errs)-1]) {
			t.Errorf("%s: %d tries, %v", name, n, err)
		}
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cause := errors.New("enough")
	err := Patience{Pause: hang}.Retry(ctx, func() error { cancel(cause); return lost })
	if err != cause {
		t.Errorf("after the end: %v", err)
	}
}

// source is a body that may fail, or end the request that it is of.
type source struct {
	io.Reader
	err error
}

func (s source) Read(p []byte) (int, error) {
	if s.err != nil {
		return 0, s.err
	}
	return s.Reader.Read(p)
}

func (s source) Close() error { return nil }

// TestSilence has servers that are silent at each point of a request, for clients that wait long at that point and not at the others, and
// the other way round.
func TestSilence(t *testing.T) {
	const short = 300 * time.Millisecond
	var at atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		wait := func(point string) {
			if at.Load() == point {
				select {
				case <-r.Context().Done():
				case <-time.After(3 * short):
				}
			}
		}
		wait("before the body is read")
		io.Copy(io.Discard, r.Body)
		wait("after the body is read")
		w.(http.Flusher).Flush()
		wait("before the first byte")
		w.Write([]byte("x"))
		w.(http.Flusher).Flush()
		wait("after the first byte")
		w.Write([]byte("y"))
	}))
	defer srv.Close()
	for point, first := range map[string]bool{
		"before the body is read": false, "after the body is read": true, "before the first byte": true, "after the first byte": false,
	} {
		for _, patient := range []bool{true, false} {
			p := Patience{FirstByte: short, Idle: hang}
			if first == patient {
				p = Patience{FirstByte: hang, Idle: short}
			}
			at.Store(point)
			body := io.Reader(strings.NewReader(strings.Repeat("x", 32<<20))) // more than sockets hold
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, srv.URL, source{Reader: body})
			if err != nil {
				t.Fatal(err)
			}
			req.ContentLength = 32 << 20
			resp, err := p.Do(&http.Client{Transport: NewTransports(nil).Way(reach.Anywhere)}, req)
			var got []byte
			if err == nil {
				got, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if patient && (err != nil || string(got) != "xy") || !patient && !errors.Is(err, ErrStalled) {
				t.Errorf("silent %s, waited for %v: %q, %v", point, patient, got, err)
			}
		}
	}
}

// TestOwnError holds that what reading a request's own body fails with is not taken for the server's failure.
func TestOwnError(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }))
	defer srv.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, srv.URL, source{err: syscall.EIO})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Usual().Do(http.DefaultClient, req); err != syscall.EIO {
		t.Errorf("got %v", err)
	}
}
