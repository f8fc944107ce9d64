package fetch

import (
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/internal/gunzip"
	"github.com/kilnbuild/kiln/internal/inflate"
)

// sentBody is the body of a request. The timer runs while the transport is not reading it: then it waits for the server.
type sentBody struct {
	io.ReadCloser
	timer    *time.Timer
	patience Patience

	mu   sync.Mutex
	err  error     // of the source
	done bool      // the answer has come, though the transport may still read
	last time.Time // of the last read
}

func (b *sentBody) Read(p []byte) (int, error) {
	b.timer.Stop()
	n, err := b.ReadCloser.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.last = time.Now()
	if err != nil && err != io.EOF {
		b.err = err
	}
	wait := b.patience.Idle
	if err != nil {
		wait = b.patience.FirstByte // all of it is sent
	}
	if !b.done {
		b.timer.Reset(wait)
	}
	return n, err
}

// answered ends the use of the timer and returns the error that ended the reading of the source, or nil.
func (b *sentBody) answered() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done = true
	b.timer.Stop()
	return b.err
}

// ended returns when the body was read last.
func (b *sentBody) ended() time.Time {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last.IsZero() {
		return time.Now()
	}
	return b.last
}

// receivedBody is the body of an answer. Only the time spent waiting for the server counts, not what its reader takes to go on.
type receivedBody struct {
	io.ReadCloser
	ctx    context.Context // of the request: it holds the cause of its end
	cancel context.CancelCauseFunc
	host   string
	limit  time.Duration // until the first byte Patience.FirstByte, then idle
	idle   time.Duration
	spent  time.Duration // waited of the limit
	got    int           // received in that time
	begun  bool
}

func (b *receivedBody) Read(p []byte) (int, error) {
	timer := time.AfterFunc(b.limit-b.spent, func() { b.cancel(ErrStalled) })
	start := time.Now()
	n, err := b.ReadCloser.Read(p)
	timer.Stop()
	b.spent += time.Since(start)
	b.got += n
	if n > 0 && !b.begun || b.got >= MinProgress {
		b.begun, b.limit, b.spent, b.got = true, b.idle, 0, 0
	}
	if err != nil && err != io.EOF {
		if cause := context.Cause(b.ctx); cause != nil {
			err = cause
		}
		if b.ctx.Err() == nil || errors.Is(err, ErrStalled) {
			err = &ConnectionError{Host: b.host, Doing: "read from", Err: err}
		}
	}
	return n, err
}

func (b *receivedBody) Close() error {
	err := b.ReadCloser.Close()
	b.cancel(nil)
	return err
}

// Drain reads the rest of a short answer, so that its connection can be used again, and closes it.
func Drain(resp *http.Response) {
	_, _ = io.CopyN(io.Discard, resp.Body, maxDiagnosis) // what cannot be read costs a connection only
	resp.Body.Close()
}

// Encoded reports whether the body of an answer is compressed although the request did not ask for it, as some servers and caches do.
func Encoded(resp *http.Response) bool {
	asked := resp.Request != nil && strings.Contains(resp.Request.Header.Get("Accept-Encoding"), "gzip")
	return !asked && Compressed(resp)
}

// Compressed reports whether the body of an answer is compressed for the transfer (RFC 9110, 8.4). It is false for a part of a body, and
// where the Content-Type says that the file itself is compressed: such servers describe the file twice.
func Compressed(resp *http.Response) bool {
	switch strings.ToLower(strings.TrimSpace(resp.Header.Get("Content-Encoding"))) {
	case "gzip", "x-gzip":
	default:
		return false
	}
	switch mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";"); strings.ToLower(strings.TrimSpace(mediaType)) {
	case "application/gzip", "application/x-gzip", "application/x-tgz", "application/x-gtar-compressed":
		return false
	}
	return resp.StatusCode != http.StatusPartialContent
}

// Decode undoes the compression of an answer that Encoded reports. The length is unknown then.
func Decode(resp *http.Response) {
	if Encoded(resp) {
		Decompress(resp)
	}
}

// Decompress undoes the compression of an answer that Compressed reports. The length is unknown then.
func Decompress(resp *http.Response) {
	if !Compressed(resp) {
		return
	}
	resp.Body = &decodedBody{from: resp.Body, host: resp.Request.URL.Host}
	resp.ContentLength = -1
	resp.Header.Del("Content-Encoding")
	resp.Header.Del("Content-Length")
}

type decodedBody struct {
	from io.ReadCloser
	host string
	zip  *gunzip.Reader // nil before the first read
}

func (b *decodedBody) Read(p []byte) (n int, err error) {
	if b.zip == nil {
		if b.zip, err = gunzip.NewReader(b.from); err != nil {
			if err == io.EOF {
				return 0, err // an empty body
			}
			return 0, b.failure(err)
		}
	}
	if n, err = b.zip.Read(p); err != nil && err != io.EOF {
		err = b.failure(err)
	}
	return n, err
}

func (b *decodedBody) failure(err error) error {
	own := errors.Is(err, gzip.ErrHeader) || errors.Is(err, gzip.ErrChecksum) || errors.Is(err, io.ErrUnexpectedEOF)
	if _, corrupt := errors.AsType[inflate.CorruptError](err); corrupt {
		own = true
	}
	if _, ok := errors.AsType[*ConnectionError](err); ok || !own {
		return err
	}
	return &ConnectionError{Host: b.host, Doing: "decompress the answer of", Err: err}
}

func (b *decodedBody) Close() error { return b.from.Close() }
