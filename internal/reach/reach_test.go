package reach

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/kilnbuild/kiln/internal/kilntest"
)

func TestOf(t *testing.T) {
	for scope, addrs := range map[Scope]string{
		Internet: "93.184.216.34 1.1.1.1 203.0.113.1 2606:4700::1111 64:ff9b::101:101 2002:101:101:: ::ffff:1.1.1.1 172.32.0.1 100.128.0.1 169.253.0.1 " +
			"64:ff9b:1:808:8:800:: 64:ff9b:1:8:8:808:: 64:ff9b:1::8:808:800:0 64:ff9b:1::8.8.8.8",
		Private: "10.0.0.1 172.16.0.1 192.168.1.1 100.64.0.1 198.18.0.1 192.0.0.8 fd12::1 fec0::1 ::ffff:10.0.0.1 64:ff9b::10.0.0.1 64:ff9b:1::10.0.0.1 " +
			"2002:a00:1:: ::10.0.0.1 ::ffff:0:10.0.0.1 64:ff9b:1:a00:0:100:808:808 64:ff9b:1:a:0:1:808:808 64:ff9b:1:0:a:0:108:808",
		Machine: "127.0.0.1 127.9.9.9 ::1 0.0.0.0 0.1.2.3 :: ::ffff:127.0.0.1 ::127.0.0.1 64:ff9b::127.0.0.1 2002:7f00:1:: ::ffff:0:127.0.0.1 64:ff9b:1::7f00:1 " +
			"64:ff9b:1:: 64:ff9b:1:7f00:0:100:808:808",
		Link: "169.254.169.254 169.254.170.2 fe80::1 fe80::1%eth0 fd00:ec2::254 fd00:ec2::23 fd20:ce::254 100.100.100.200 168.63.129.16 192.0.0.192 " +
			"::ffff:169.254.169.254 64:ff9b::a9fe:a9fe 224.0.0.1 ff02::1 255.255.255.255 240.0.0.1 " +
			"64:ff9b:1:a9fe:a9:fe00:808:808 64:ff9b:1:a9:fe:a9fe:808:808 64:ff9b:1:0:a9:fea9:fe08:808 64:ff9b:1::a9fe:a9fe",
	} {
		for a := range strings.FieldsSeq(addrs) {
			if got := Of(netip.MustParseAddr(a)); got != scope {
				t.Errorf("%s is %s, want %s", a, got, scope)
			}
		}
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range list {
		if p := netip.MustParsePrefix(n.String()); Of(p.Addr()) < Machine {
			t.Errorf("%s of an interface is %s", p, Of(p.Addr()))
		}
	}
}

// site is a server that redirects /to/ADDRESS there and counts everything else.
func site(t *testing.T, host string) (address string, asked *atomic.Int32) {
	t.Helper()
	asked = &atomic.Int32{}
	l, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		t.Fatal(err)
	}
	srv := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if to, ok := strings.CutPrefix(r.URL.Path, "/to/"); ok {
			http.Redirect(w, r, "http://"+to, http.StatusFound)
			return
		}
		asked.Add(1)
	})}}
	srv.Start()
	t.Cleanup(srv.Close)
	return l.Addr().String(), asked
}

// TestWay has servers of all scopes that send the client on to each other.
func TestWay(t *testing.T) {
	if !kilntest.Network(t) {
		return
	}
	hosts := []string{kilntest.Internet, kilntest.Private, "127.0.0.1", kilntest.Metadata, "2001:db8::1", kilntest.Metadata6, "::1"}
	address, asked := map[string]string{}, map[string]*atomic.Int32{}
	for _, h := range hosts {
		address[h], asked[h] = site(t, h)
	}
	proxied := atomic.Int32{}
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		proxied.Add(1)
		r.RequestURI = ""
		if strings.HasPrefix(r.URL.Host, "public.invalid") {
			r.URL.Host = address[kilntest.Internet]
		}
		resp, err := http.DefaultTransport.RoundTrip(r)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		w.Header().Set("Location", resp.Header.Get("Location"))
		w.WriteHeader(resp.StatusCode)
		_, _ = io.Copy(w, resp.Body)
	}))
	defer proxy.Close()
	proxyURL, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	get := func(c *http.Client, to string) error {
		resp, err := c.Get("http://" + to)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	for _, byProxy := range []bool{false, true} {
		base := &http.Transport{}
		if byProxy {
			base.Proxy = func(*http.Request) (*url.URL, error) { return proxyURL, nil }
		}
		// The connections are shared by all ways.
		all := NewTransports(base, net.Dialer{})
		for _, from := range hosts {
			for _, to := range hosts {
				want := Of(netip.MustParseAddr(to)) <= Of(netip.MustParseAddr(from))
				before := asked[to].Load()
				w := all.Way(Anywhere)
				err := get(&http.Client{Transport: w}, address[from]+"/to/"+address[to])
				var refused *Error
				if want != (err == nil) || !want && (!errors.As(err, &refused) || refused.Host != address[to]) {
					t.Errorf("by proxy %v, %s to %s: %v", byProxy, from, to, err)
				}
				if reached := asked[to].Load() - before; (reached == 1) != want {
					t.Errorf("by proxy %v, %s to %s: %d requests arrived", byProxy, from, to, reached)
				}
				if scope := min(Of(netip.MustParseAddr(from)), Of(netip.MustParseAddr(to))); want && w.Scope(t.Context()) != scope {
					t.Errorf("by proxy %v, after %s and %s: %s", byProxy, from, to, w.Scope(t.Context()))
				}
			}
			// What the user names may be anywhere, also right after it was refused.
			if err := get(&http.Client{Transport: all.Way(Anywhere)}, address[from]); err != nil {
				t.Errorf("by proxy %v, %s: %v", byProxy, from, err)
			}
		}
		// The internet in between is not forgotten.
		for _, chain := range [][]string{
			{kilntest.Private, kilntest.Internet, kilntest.Private}, {"127.0.0.1", kilntest.Private, "127.0.0.1"},
			{kilntest.Private, kilntest.Internet, "127.0.0.1"},
		} {
			err := get(&http.Client{Transport: all.Way(Anywhere)}, address[chain[0]]+"/to/"+address[chain[1]]+"/to/"+address[chain[2]])
			if !errors.As(err, new(*Error)) {
				t.Errorf("by proxy %v, %q: %v", byProxy, chain, err)
			}
		}
		// A way that begins at a limit.
		for _, to := range hosts {
			err := get(&http.Client{Transport: all.Way(Private)}, address[to])
			if want := Of(netip.MustParseAddr(to)) <= Private; want != (err == nil) {
				t.Errorf("by proxy %v, within a private network, %s: %v", byProxy, to, err)
			}
		}
		if (proxied.Load() > 0) != byProxy {
			t.Errorf("by proxy %v: %d requests by the proxy", byProxy, proxied.Load())
		}
	}
	// Only the proxy knows the name, and this machine sees an address of its own, or one that proxies read in ways of their own.
	base := &http.Transport{Proxy: func(*http.Request) (*url.URL, error) { return proxyURL, nil }}
	for _, to := range []string{"127.0.0.1", "localhost", "localhost.", "127.0.0.1.",
		"2130706433", "0x7f.1", "127.1", "0177.0.0.1", "[::ffff:169.254.169.254]", "１２７.0.0.1", "a%20b"} {
		proxied.Store(0)
		w := NewTransports(base, net.Dialer{}).Way(Anywhere)
		err := get(&http.Client{Transport: w}, "public.invalid/to/"+to)
		if proxied.Load() != 1 || err == nil || !errors.As(err, new(*Error)) && !strings.Contains(err.Error(), "parse") {
			t.Errorf("%s: %v after %d requests", to, err, proxied.Load())
		}
	}
	if err := get(&http.Client{Transport: NewTransports(base, net.Dialer{}).Way(Anywhere)}, "public.invalid/to/public.invalid/x"); err != nil {
		t.Errorf("what only the proxy knows: %v", err)
	}
}

func TestFind(t *testing.T) {
	find := func(name string) *Host { return NewTransports(&http.Transport{}, net.Dialer{}).Find(t.Context(), name) }
	h := find("localhost")
	if h.Low != Machine || h.High != Machine {
		t.Errorf("localhost is from %s to %s", h.Low, h.High)
	}
	if a, err := h.Addr(Private); !errors.As(err, new(*Error)) {
		t.Errorf("localhost in a private network: %s, %v", a, err)
	}
	if a, err := h.Addr(Machine); err != nil || !a.IsLoopback() {
		t.Errorf("localhost: %s, %v", a, err)
	}
	if a, err := find("1.1.1.1").Addr(Internet); err != nil || a != netip.MustParseAddr("1.1.1.1") {
		t.Errorf("1.1.1.1: %s, %v", a, err)
	}
	if h := find("name.invalid"); h.High != Internet {
		t.Errorf("an unknown name is %s", h.High)
	}
}
