// Package engine puts images into container engines on this machine or another: into those that have Docker's API, which are Docker and
// podman, and into the storage of podman. It does not know how an image was built. What an engine answers is not trusted: answers are
// bounded, and quoted as text.
package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/reach"
)

const (
	// maxAnswer bounds an answer of an engine that is read as a whole, in bytes: lists of images are the largest.
	maxAnswer = 16 << 20
	// maxRefusal bounds how much of the answer to a request that failed is read, in bytes.
	maxRefusal = 16 << 10
	// silence is how long an engine may say nothing while it reads, unpacks or stores an image.
	silence = 30 * time.Minute
)

// kind is a kind of engine. They differ in what they know of the layers that they have.
type kind int

const (
	// classic is Docker with a storage driver such as overlay2: it finds a layer by the chain of uncompressed layers up to it.
	classic kind = iota
	// containerd is Docker with the image store of containerd: it finds a layer by the digest of its blob.
	containerd
	// podman finds a layer by the digest of its uncompressed form.
	podman
)

// Engine is a container engine that answers.
type Engine struct {
	endpoint Endpoint
	kind     kind
	base     *url.URL
	http     *http.Client
	patience fetch.Patience
	// api is the version of the API that the engine speaks: 1.47 is {1, 47}.
	api [2]int
}

// Error is an engine that cannot be used.
type Error struct {
	Endpoint Endpoint
	// Advice says what to do about it; "" without advice.
	Advice string
	Err    error
}

func (e *Error) Error() string {
	s := "use the engine at " + fetch.Quote(e.Endpoint.Host)
	if e.Endpoint.From != "" {
		s += ", which " + e.Endpoint.From + " names"
	}
	s += ": " + e.Err.Error()
	if e.Advice != "" {
		s += "; " + e.Advice
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// RefusedError is an answer of an engine that says why it does not do something.
type RefusedError struct {
	// Status is that of HTTP; 200 where the engine had begun to answer.
	Status int
	// Text is what the engine says.
	Text string
}

func (e *RefusedError) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("the engine answered %d %s", e.Status, http.StatusText(e.Status))
	}
	return "the engine says: " + e.Text
}

// Open asks the engine at an endpoint what it is. The error is an *Error, or the cause of ctx's end.
func Open(ctx context.Context, at Endpoint) (*Engine, error) {
	e := &Engine{endpoint: at, patience: fetch.Patience{FirstByte: silence, Answer: fetch.Usual().Answer, Idle: silence}}
	err := e.connect()
	if err == nil {
		err = e.identify(ctx)
	}
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, &Error{Endpoint: at, Advice: advice(at, err), Err: err}
	}
	return e, nil
}

// connect sets how the engine is asked.
func (e *Engine) connect() error {
	addr, err := e.endpoint.parse()
	if err != nil {
		return err
	}
	e.http = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	if addr.socket != "" {
		e.base, e.http.Transport = &url.URL{Scheme: "http", Host: "engine"}, fetch.Socket(addr.socket)
		return nil
	}
	config, err := e.endpoint.tls.config()
	if err != nil {
		return err
	}
	e.base = &url.URL{Scheme: "http", Host: addr.host}
	if config != nil {
		e.base.Scheme = "https"
	}
	e.http.Transport = fetch.NewTransports(config).Way(reach.Anywhere)
	return nil
}

// podmanSocket is where podman listens for root; other users have it in $XDG_RUNTIME_DIR.
const podmanSocket = "podman/podman.sock"

// advice says what to do about an engine that does not answer.
func advice(at Endpoint, err error) string {
	refused, isRefused := errors.AsType[*RefusedError](err)
	switch {
	case isRefused && refused.Status == http.StatusBadRequest && !at.tls.use:
		return "if it speaks TLS, set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the directory of ca.pem, cert.pem and key.pem"
	case fetch.IsTLS(err) && at.tls.use:
		return fmt.Sprintf("the directory of ca.pem, cert.pem and key.pem is %s", at.tls.dir)
	case errors.Is(err, fs.ErrPermission):
		return "the user may not connect to it: docker's socket is for root and the group docker"
	case !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED):
		return ""
	}
	for _, dir := range []string{os.Getenv("XDG_RUNTIME_DIR"), "/run"} {
		socket := dir + "/" + podmanSocket
		if info, err := os.Stat(socket); err == nil && dir != "" && info.Mode().Type() == fs.ModeSocket && at.Host != "unix://"+socket {
			return "podman's is at DOCKER_HOST=unix://" + socket
		}
	}
	return "start it, or set DOCKER_HOST"
}

// identify finds out which kind of engine it is.
func (e *Engine) identify(ctx context.Context) error {
	resp, err := e.do(ctx, http.MethodGet, "/_ping", nil, nil)
	if err != nil {
		return err
	}
	fetch.Drain(resp)
	if !e.parseVersion(resp.Header.Get("Api-Version")) {
		return fetch.Invalid("it does not answer as an engine with Docker's API does")
	}
	if resp.Header.Get("Libpod-Api-Version") != "" {
		e.kind = podman
		return nil
	}
	e.kind = classic
	var info struct{ DriverStatus [][]string }
	if err := e.get(ctx, "/info", nil, &info); err != nil {
		return err
	}
	for _, pair := range info.DriverStatus {
		if len(pair) == 2 && pair[0] == "driver-type" && strings.HasPrefix(pair[1], "io.containerd.") {
			e.kind = containerd
		}
	}
	return nil
}

// parseVersion reads a version of the API, such as "1.47".
func (e *Engine) parseVersion(s string) bool {
	major, minor, ok := strings.Cut(s, ".")
	var err, minorErr error
	e.api[0], err = strconv.Atoi(major)
	e.api[1], minorErr = strconv.Atoi(minor)
	return ok && err == nil && minorErr == nil
}

// atLeast reports whether the engine's API is of a version or a later one.
func (e *Engine) atLeast(major, minor int) bool {
	return slices.Compare(e.api[:], []int{major, minor}) >= 0
}

// Name is what the engine is called: "docker" or "podman".
func (e *Engine) Name() string {
	if e.kind == podman {
		return "podman"
	}
	return "docker"
}

// TakesIndexes reports whether the engine can hold an image for several platforms under one name.
func (e *Engine) TakesIndexes() bool { return e.kind == containerd }

// KeepsBlobs reports whether the engine keeps layers as they come, compressed or not, and pushes them like that.
func (e *Engine) KeepsBlobs() bool { return e.kind == containerd }

// do makes a request, whose answer has a status of success. body may be nil.
func (e *Engine) do(ctx context.Context, method, path string, query url.Values, body io.ReadCloser) (*http.Response, error) {
	u := *e.base
	u.Path, u.RawQuery = path, query.Encode()
	r := (&http.Request{Method: method, URL: &u, Host: u.Host, Header: http.Header{"User-Agent": {fetch.UserAgent}}}).WithContext(ctx)
	patience := e.patience.Prompt()
	if body != nil {
		r.Body, r.ContentLength = body, -1
		r.Header.Set("Content-Type", "application/x-tar")
		patience = e.patience
	}
	resp, err := patience.Do(e.http, r)
	if c, ok := errors.AsType[*fetch.ConnectionError](err); ok {
		return nil, c.Err // its host is the endpoint, which the caller names
	}
	if err != nil {
		return nil, err
	}
	if resp.StatusCode/100 != 2 {
		return nil, refused(resp)
	}
	return resp, nil
}

// refused returns the error of an answer, and closes its body.
func refused(resp *http.Response) error {
	defer resp.Body.Close()
	e := &RefusedError{Status: resp.StatusCode}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	var answer struct{ Message string }
	if err == nil && json.Unmarshal(data, &answer) == nil {
		e.Text = fetch.Quote(answer.Message)
	}
	return e
}

// get reads a JSON document.
func (e *Engine) get(ctx context.Context, path string, query url.Values, v any) error {
	resp, err := e.do(ctx, http.MethodGet, path, query, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	if err != nil {
		return err
	}
	if len(data) > maxAnswer {
		return fetch.Invalid("the answer to %s is larger than %d MiB", path, maxAnswer>>20)
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fetch.Invalid("the answer to %s is not what Docker's API has there: %w", path, err)
	}
	return nil
}
