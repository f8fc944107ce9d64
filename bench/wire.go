package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"time"
)

// wire stands between builders and the registry. It counts what is sent, and keeps each request back for a while, as distance does.
type wire struct {
	host string // what builders call the registry

	mu    sync.Mutex
	delay time.Duration
	start time.Time
	traffic
	log []string // of requests; nil unless they are wanted
}

// traffic is what went over a wire: requests, and the bytes of their bodies and of those of the answers.
type traffic struct{ requests, sent, fetched int64 }

// startWire starts a wire to the registry at an address.
func startWire(registry string) (*wire, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	w := &wire{host: l.Addr().String()}
	forward := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(&url.URL{Scheme: "http", Host: registry})
			r.Out.Host = r.In.Host // so that uploads go on here
		},
		Transport:  &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 100},
		BufferPool: &buffers{},
	}
	go http.Serve(l, w.through(forward)) // until the end of the process
	return w, nil
}

// buffers are of 256 KiB, so that a wire takes little of the processors.
type buffers struct{ sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.Pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 256<<10)
}

func (b *buffers) Put(p []byte) { b.Pool.Put(&p) }

// reset forgets what was counted, and keeps requests back for this long from now on.
func (w *wire) reset(delay time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delay, w.start, w.traffic, w.log = delay, time.Now(), traffic{}, w.log[:0]
}

func (w *wire) counted() traffic {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.traffic
}

// writeLog writes the requests since the last reset: when each began and ended, in milliseconds, and what it sent and fetched, in bytes.
func (w *wire) writeLog(to io.Writer) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := io.WriteString(to, strings.Join(w.log, ""))
	return err
}

func (w *wire) through(next http.Handler) http.Handler {
	return http.HandlerFunc(func(res http.ResponseWriter, req *http.Request) {
		w.mu.Lock()
		delay, start := w.delay, w.start
		w.requests++
		w.mu.Unlock()
		began := time.Since(start)
		time.Sleep(delay)
		body := &countingBody{ReadCloser: req.Body}
		req.Body = body
		answer := &countingAnswer{ResponseWriter: res}
		defer func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.sent += body.n
			w.fetched += answer.n
			if w.log != nil {
				w.log = append(w.log, fmt.Sprintf("%6d %6d %9d %9d %d %s %s\n", began.Milliseconds(), time.Since(start).Milliseconds(),
					body.n, answer.n, answer.status, req.Method, req.URL.RequestURI()))
			}
		}()
		next.ServeHTTP(answer, req)
	})
}

type countingBody struct {
	io.ReadCloser
	n int64
}

func (b *countingBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.n += int64(n)
	return n, err
}

type countingAnswer struct {
	http.ResponseWriter
	n      int64
	status int
}

func (a *countingAnswer) WriteHeader(status int) {
	a.status = status
	a.ResponseWriter.WriteHeader(status)
}

func (a *countingAnswer) Write(p []byte) (int, error) {
	n, err := a.ResponseWriter.Write(p)
	a.n += int64(n)
	return n, err
}

// Unwrap is for http.ResponseController.
func (a *countingAnswer) Unwrap() http.ResponseWriter { return a.ResponseWriter }
