package git

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

const (
	// refsPath is where git asks for a repository's refs, and with it whether the repository is there. See gitprotocol-http(5).
	refsPath = "/info/refs"
	// keyHeader is the header by which git shows a gateway that it may use it.
	keyHeader = "Kiln-Key"
)

// gateway is one remote repository as an http server on this machine, which git fetches from. So all connections are kiln's own:
// git knows neither credentials nor proxies, a redirection leads no further than package reach allows, and what went wrong is known
// without reading git's messages.
type gateway struct {
	address       string // of the repository, for git
	key           string // of whoever may use it: other users of this machine can connect, too
	authorization string // for the repository's own server
	client        *http.Client
	patience      fetch.Patience
	server        *http.Server

	mu   sync.Mutex
	base string // where the repository is, as far as its server has said
	own  bool   // base is on the repository's own server
	err  error  // of the last request that failed
}

// serve makes a gateway to a repository, which works until ctx is done or it is closed.
func serve(ctx context.Context, s *remoteurl.Git, authorization string, way *reach.Way, p fetch.Patience) (*gateway, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("serve git on this machine: %w", err)
	}
	g := &gateway{
		address: "http://" + l.Addr().String() + "/", key: rand.Text(), authorization: authorization,
		client: &http.Client{Transport: way, CheckRedirect: redirect}, patience: p,
		base: strings.TrimSuffix(s.Remote, "/"), own: true,
	}
	g.server = &http.Server{
		Handler:           g,
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: fetch.ConnectTimeout,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	go func() { _ = g.server.Serve(l) }() // it ends with the gateway
	return g, nil
}

func (g *gateway) close() { g.server.Close() }

// failed returns the error of the last request that failed; nil for none.
func (g *gateway) failed() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.err
}

// environment returns what git needs to use the gateway. It is no argument, which every user of the machine could read.
func (g *gateway) environment() []string {
	return []string{"GIT_CONFIG_COUNT=1", "GIT_CONFIG_KEY_0=http.extraHeader", "GIT_CONFIG_VALUE_0=" + keyHeader + ": " + g.key}
}

// redirect follows redirections. What is for the first server goes to no other.
func redirect(next *http.Request, via []*http.Request) error {
	first, last := via[0], via[len(via)-1]
	if next.Method != first.Method {
		return &fetch.RedirectError{Err: fmt.Errorf("%s redirects what is sent to it", last.URL.Host)}
	}
	if err := fetch.CheckRedirect(next, via); err != nil {
		return err
	}
	if !fetch.SameOrigin(next.URL, first.URL) || last.Header.Get("Authorization") == "" {
		next.Header.Del("Authorization")
	}
	return nil
}

// The headers that are passed on from git and to git: those of gitprotocol-http(5), and of contents.
var (
	requestHeaders = []string{
		"Accept", "Accept-Encoding", "Accept-Language", "Content-Encoding", "Content-Type", "Git-Protocol", "Pragma", "User-Agent",
	}
	responseHeaders = []string{"Cache-Control", "Content-Encoding", "Content-Type", "Expires", "Pragma"}
)

// ServeHTTP passes a request of git on.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if subtle.ConstantTimeCompare([]byte(r.Header.Get(keyHeader)), []byte(g.key)) != 1 {
		http.Error(w, "this is for one program of another user", http.StatusForbidden)
		return
	}
	resp, err := g.ask(r)
	if err != nil {
		g.fail(err)
		http.Error(w, "kiln says why", http.StatusBadGateway)
		return
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusMultipleChoices {
		g.fail(fetch.NewStatusError(resp))
		http.Error(w, "kiln says why", resp.StatusCode)
		return
	}
	copyHeaders(w.Header(), resp.Header, responseHeaders)
	w.WriteHeader(resp.StatusCode)
	if err := pass(w, resp.Body); err != nil {
		g.fail(err)
		panic(http.ErrAbortHandler) // git sees that there is no more
	}
}

// ask makes a request of git to the repository's server.
func (g *gateway) ask(r *http.Request) (*http.Response, error) {
	g.mu.Lock()
	base, own := g.base, g.own
	g.mu.Unlock()
	to := base + r.URL.EscapedPath()
	if r.URL.RawQuery != "" {
		to += "?" + r.URL.RawQuery
	}
	req, err := http.NewRequestWithContext(r.Context(), r.Method, to, r.Body)
	if err != nil {
		return nil, errors.New("the address is not a URL")
	}
	if req.ContentLength = r.ContentLength; r.ContentLength == 0 {
		req.Body = http.NoBody
	}
	copyHeaders(req.Header, r.Header, requestHeaders)
	if own && g.authorization != "" {
		req.Header.Set("Authorization", g.authorization)
	}
	resp, err := g.patience.Do(g.client, req)
	if err == nil && r.URL.Path == refsPath && resp.StatusCode == http.StatusOK {
		if err = g.moved(r, resp.Request); err != nil {
			resp.Body.Close()
		}
	}
	return resp, err
}

// moved notes where the server redirected git's request for the refs, as git does: what follows goes there.
func (g *gateway) moved(r, to *http.Request) error {
	path, ok := strings.CutSuffix(to.URL.EscapedPath(), refsPath)
	g.mu.Lock()
	defer g.mu.Unlock()
	if !ok || to.URL.RawQuery != r.URL.RawQuery {
		return fmt.Errorf("%s redirects to %s, where there is no repository", g.base, to.URL.Host)
	}
	g.own = g.own && to.Header.Get("Authorization") != ""
	g.base = to.URL.Scheme + "://" + to.URL.Host + path
	return nil
}

func (g *gateway) fail(err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.err = err
}

func copyHeaders(to, from http.Header, names []string) {
	for _, name := range names {
		if values := from.Values(name); len(values) > 0 {
			to[name] = values
		}
	}
}

// pass writes a body as it comes. The error is that of reading: git may go when it has enough.
func pass(w http.ResponseWriter, body io.Reader) error {
	flush := http.NewResponseController(w)
	buf := make([]byte, 64<<10)
	for {
		n, err := body.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return nil
			}
			_ = flush.Flush()
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
