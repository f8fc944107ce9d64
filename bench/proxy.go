package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
)

// proxy is an HTTP proxy that fetches each address once, so that what is measured does not depend on the network. It knows plain
// HTTP, as package sources speak it.
type proxy struct {
	url string
	dir string
	mu  sync.Mutex // what is fetched is fetched alone
}

// startProxy starts it on an address that steps in a network name space of their own reach as well.
func startProxy(dir string) (*proxy, error) {
	host := "127.0.0.1"
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if ip, ok := a.(*net.IPNet); ok && ip.IP.To4() != nil && ip.IP.IsGlobalUnicast() {
			host = ip.IP.String()
			break
		}
	}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		return nil, err
	}
	p := &proxy{url: "http://" + l.Addr().String(), dir: dir}
	go http.Serve(l, p) // until the end of the process
	return p, os.MkdirAll(dir, 0o755)
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet || !r.URL.IsAbs() {
		http.Error(w, "this proxy gets plain http and nothing else", http.StatusNotImplemented)
		return
	}
	name, err := p.get(r)
	if missing, ok := errors.AsType[statusError](err); ok {
		http.Error(w, err.Error(), int(missing))
		return
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	http.ServeFile(w, &http.Request{Method: r.Method, URL: r.URL, Header: http.Header{}}, name)
}

type statusError int

func (e statusError) Error() string { return http.StatusText(int(e)) }

// get returns the file of what is at an address.
func (p *proxy) get(r *http.Request) (string, error) {
	name := filepath.Join(p.dir, fmt.Sprintf("%x", sha256.Sum256([]byte(r.URL.String()))))
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, err := os.Stat(name); err == nil {
		return name, nil
	}
	res, err := http.Get(r.URL.String())
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return "", statusError(res.StatusCode)
	}
	f, err := os.CreateTemp(p.dir, "get-")
	if err != nil {
		return "", err
	}
	_, err = io.Copy(f, res.Body)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return name, err
}
