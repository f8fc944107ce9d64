package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/auth"
	"github.com/moby/buildkit/session"
	sessionauth "github.com/moby/buildkit/session/auth"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/session/secrets"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"github.com/moby/buildkit/session/testutil"
	"github.com/moby/buildkit/session/upload/uploadprovider"
	"github.com/tonistiigi/fsutil"
	"github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

// host is a daemon's side: a root directory, and sessions.
type host struct {
	config   Config
	warnings []string
}

func newHost(t *testing.T) *host {
	t.Helper()
	sessions, err := NewSessions()
	if err != nil {
		t.Fatal(err)
	}
	h := &host{config: Config{Sessions: sessions, Root: t.TempDir(), Tmp: t.TempDir()}}
	h.config.Warn = func(text string) { h.warnings = append(h.warnings, text) }
	return h
}

// connect returns a client with a session that provides what is attached, and what ends the session.
func (h *host) connect(t *testing.T, key string, attached ...session.Attachable) (*Client, func()) {
	t.Helper()
	s, err := session.NewSession(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range attached {
		s.Allow(a)
	}
	done := make(chan struct{})
	user, sessions := h.config.User, h.config.Sessions
	go func() {
		defer close(done)
		serve := func(ctx context.Context, conn net.Conn, header map[string][]string) error {
			return sessions.Serve(ctx, conn, header, user)
		}
		s.Run(context.WithoutCancel(t.Context()), session.Dialer(testutil.TestStream(serve)))
	}()
	end := func() {
		s.Close()
		<-done
	}
	c := New(h.config, s.ID())
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		end()
	})
	return c, end
}

// sentDir provides a directory as BuildKit's clients do, and counts the bytes of files that are read of it.
type sentDir struct {
	fsutil.FS
	mu   sync.Mutex
	read []string
}

func (d *sentDir) Open(path string) (io.ReadCloser, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.read = append(d.read, path)
	return d.FS.Open(path)
}

func dirOf(t *testing.T, dir string) *sentDir {
	t.Helper()
	fs, err := fsutil.NewFS(dir)
	if err != nil {
		t.Fatal(err)
	}
	return &sentDir{FS: fs}
}

func (d *sentDir) provide(name string) session.Attachable {
	return filesync.NewFSSyncProvider(filesync.StaticDirSource{name: d})
}

// old is when files of contexts were written: long before they are sent.
var old = time.Unix(1600000000, 987654321)

func write(t *testing.T, dir, path, text string) {
	t.Helper()
	name := filepath.Join(dir, path)
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(name, old, old); err != nil {
		t.Fatal(err)
	}
}

// list returns all of a tree, a line for each file.
func list(t *testing.T, tree layer.Tree) string {
	t.Helper()
	var b strings.Builder
	var walk func(dir string)
	walk = func(dir string) {
		entries, err := tree.List(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			fmt.Fprintf(&b, "%s %c%04o", e.Path, e.Type, e.Mode)
			switch e.Type {
			case layer.File:
				f, err := tree.Open(&e)
				if err != nil {
					t.Fatal(err)
				}
				data, err := io.ReadAll(f)
				f.Close()
				if err != nil {
					t.Fatal(err)
				}
				if len(data) > 20 {
					data = fmt.Appendf(nil, "%d bytes", len(data))
				}
				fmt.Fprintf(&b, " %q", data)
			case layer.Symlink:
				fmt.Fprintf(&b, " -> %s", e.Link)
			}
			b.WriteByte('\n')
			if e.Type == layer.Dir {
				walk(e.Path)
			}
		}
	}
	walk("")
	return b.String()
}

// A directory comes as it is, and the next time only what differs.
func TestContext(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	write(t, dir, "a", "A")
	write(t, dir, "d/large", strings.Repeat("x", 1<<20))
	write(t, dir, "d/.wh.odd", "odd")
	write(t, dir, "d-e", "")
	write(t, dir, "ünï", "u")
	for _, err := range []error{
		os.Symlink("../../etc/passwd", filepath.Join(dir, "link")), os.Link(filepath.Join(dir, "a"), filepath.Join(dir, "again")),
		os.Chmod(filepath.Join(dir, "d/large"), 0o755|os.ModeSetuid),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	sent := dirOf(t, dir)
	c, _ := h.connect(t, "key", sent.provide("context"))
	tree, err := c.Open(t.Context(), llb.Local{Name: "context"})
	if err != nil {
		t.Fatal(err)
	}
	want := `a f0644 "A"
again f0644 "A"
d d0755
d/.wh.odd f0644 "odd"
d/large f4755 "1048576 bytes"
d-e f0644 ""
link l0777 -> ../../etc/passwd
ünï f0644 "u"
`
	if got := list(t, tree); got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
	one, _, _ := tree.Lookup("a")
	two, _, _ := tree.Lookup("again")
	if one.LinkID == "" || one.LinkID != two.LinkID {
		t.Errorf("the names of a file have the links %q and %q", one.LinkID, two.LinkID)
	}
	if !one.ModTime.Equal(old) {
		t.Errorf("the time is %v", one.ModTime)
	}
	again, err := c.Open(t.Context(), llb.Local{Name: "context", Session: c.id})
	if err != nil || again != tree {
		t.Errorf("the same directory is another tree in the same build: %v", err)
	}

	sent.read = nil
	next, _ := h.connect(t, "key", sent.provide("context"))
	tree, err = next.Open(t.Context(), llb.Local{Name: "context"})
	if err != nil {
		t.Fatal(err)
	}
	if len(sent.read) > 0 || list(t, tree) != want {
		t.Errorf("without a change %q were sent", sent.read)
	}
	write(t, dir, "d/large", strings.Repeat("y", 1<<20-1))
	if err := os.Remove(filepath.Join(dir, "d-e")); err != nil {
		t.Fatal(err)
	}
	third, _ := h.connect(t, "key", sent.provide("context"))
	tree, err = third.Open(t.Context(), llb.Local{Name: "context"})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(sent.read, []string{"d/large"}) || strings.Contains(list(t, tree), "d-e") {
		t.Errorf("after an edit %q were sent, and the tree is\n%s", sent.read, list(t, tree))
	}
}

// Who is not the same, or has another key, gets nothing of what another has sent.
func TestContextsOfOthers(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	write(t, dir, "a", "A")
	sent := dirOf(t, dir)
	for i, who := range []struct{ user, key string }{{"1000", "k"}, {"1001", "k"}, {"1000", "l"}, {"", "k"}} {
		h.config.User = who.user
		c, _ := h.connect(t, who.key, sent.provide("context"))
		if _, err := c.Open(t.Context(), llb.Local{Name: "context"}); err != nil {
			t.Fatal(err)
		}
		if len(sent.read) != i+1 {
			t.Errorf("%+v: %d files were sent so far, want %d", who, len(sent.read), i+1)
		}
	}
}

// Without a key, a directory is believed to be the one before if enough of its files are as they were.
func TestProof(t *testing.T) {
	h := newHost(t)
	for _, files := range []int{minProof - 1, minProof} {
		dir := t.TempDir()
		for i := range files {
			write(t, dir, fmt.Sprintf("%d/%02d", files, i), "text")
		}
		write(t, dir, "empty", "")
		sent := dirOf(t, dir)
		for round := range 2 {
			sent.read = nil
			c, _ := h.connect(t, "", sent.provide("context"))
			tree, err := c.Open(t.Context(), llb.Local{Name: "context"})
			if err != nil {
				t.Fatal(err)
			}
			if again := len(sent.read) > 0; again != (round == 0 || files < minProof) {
				t.Errorf("%d files, round %d: %d were sent", files, round, len(sent.read))
			}
			if got := strings.Count(list(t, tree), `"text"`); got != files {
				t.Errorf("%d files, round %d: the tree has %d", files, round, got)
			}
		}
	}
}

// A directory may be that of another session of the same user, and of nobody else.
func TestOtherSession(t *testing.T) {
	h := newHost(t)
	mine, others := t.TempDir(), t.TempDir()
	write(t, mine, "mine", "M")
	write(t, others, "other", "O")
	h.config.User = "somebody"
	same, _ := h.connect(t, "", dirOf(t, others).provide("context"))
	c, _ := h.connect(t, "", dirOf(t, mine).provide("context"))
	h.config.User = "somebody else"
	foreign, _ := h.connect(t, "", dirOf(t, others).provide("context"))
	for session, want := range map[string]string{"": "mine", same.id: "other", foreign.id: "mine"} {
		tree, err := c.Open(t.Context(), llb.Local{Name: "context", Session: session})
		if err != nil {
			t.Fatal(err)
		}
		if got := list(t, tree); !strings.HasPrefix(got, want) {
			t.Errorf("session %q: got %q, want %q", session, got, want)
		}
	}
}

// A client selects what is asked for.
func TestSelection(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	for _, name := range []string{"Dockerfile", "src/a.go", "src/b.c", "out/x", "ü.go"} {
		write(t, dir, name, name)
	}
	if err := os.Symlink("Dockerfile", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	c, _ := h.connect(t, "", dirOf(t, dir).provide("context"))
	for _, tc := range []struct {
		local llb.Local
		want  []string
	}{
		{llb.Local{Include: []string{"**/*.go"}}, []string{"src", "src/a.go", "ü.go"}},
		{llb.Local{Include: []string{"ü.go"}}, []string{"ü.go"}},
		{llb.Local{Exclude: []string{"src", "out", "*.go"}}, []string{"Dockerfile", "link"}},
		{llb.Local{Follow: []string{"link"}}, []string{"Dockerfile", "link"}},
		{llb.Local{Metadata: true, Whole: []string{"src/a.go"}}, []string{descriptions, "src", "src/a.go"}},
	} {
		tc.local.Name = "context"
		tree, err := c.Open(t.Context(), tc.local)
		if err != nil {
			t.Errorf("%+v: %v", tc.local, err)
			continue
		}
		var got []string
		for line := range strings.Lines(list(t, tree)) {
			name, _, _ := strings.Cut(line, " ")
			got = append(got, name)
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%+v: got %q, want %q", tc.local, got, tc.want)
		}
	}
}

// A file that was written just before it was sent, or that changed meanwhile, is sent again although it looks the same.
func TestDoubt(t *testing.T) {
	h := newHost(t)
	dir := t.TempDir()
	write(t, dir, "old", "A")
	write(t, dir, "no time", "A")
	write(t, dir, "now", "A")
	for name, at := range map[string]time.Time{"no time": time.Unix(1, 0), "now": time.Now()} {
		if err := os.Chtimes(filepath.Join(dir, name), at, at); err != nil {
			t.Fatal(err)
		}
	}
	sent := dirOf(t, dir)
	for i, want := range [][]string{{"no time", "now", "old"}, {"no time", "now"}} {
		sent.read = nil
		c, _ := h.connect(t, "key", sent.provide("context"))
		if _, err := c.Open(t.Context(), llb.Local{Name: "context"}); err != nil {
			t.Fatal(err)
		}
		slices.Sort(sent.read)
		if !slices.Equal(sent.read, want) {
			t.Errorf("round %d: %q were sent, want %q", i, sent.read, want)
		}
	}
	sent.read = nil
	c, _ := h.connect(t, "key", sent.provide("context"))
	if _, err := c.Open(t.Context(), llb.Local{Name: "context", Unlike: true}); err != nil || len(sent.read) != 3 {
		t.Errorf("%q were sent where all have to be: %v", sent.read, err)
	}
}

// hostile is a client that sends packets which no client sends.
type hostile struct {
	filesync.UnimplementedFileSyncServer
	send func(filesync.FileSync_DiffCopyServer) error
}

func (h *hostile) Register(s *grpc.Server) { filesync.RegisterFileSyncServer(s, h) }

func (h *hostile) DiffCopy(s filesync.FileSync_DiffCopyServer) error { return h.send(s) }

func stat(path string, mode os.FileMode) *types.Packet {
	return &types.Packet{Type: types.PACKET_STAT, Stat: &types.Stat{Path: path, Mode: uint32(mode), Size: 1}}
}

// Whatever a client sends, nothing is outside of its tree, and what is wrong with it is said.
func TestHostile(t *testing.T) {
	const dir, file = os.ModeDir | 0o755, os.FileMode(0o644)
	named := func(p *types.Packet, link string) *types.Packet {
		p.Stat.Linkname = link
		return p
	}
	many := func(n int) (all []*types.Packet) {
		for i := range n {
			all = append(all, stat(fmt.Sprintf("f%08d", i), dir))
		}
		return all
	}
	for _, tc := range []struct {
		name    string
		packets []*types.Packet
		err     string
	}{
		{"above", []*types.Packet{stat("../x", file)}, "not clean"},
		{"absolute", []*types.Packet{stat("/x", file)}, "not clean"},
		{"through a directory", []*types.Packet{stat("d", dir), stat("d/../../x", file)}, "not clean"},
		{"no name", []*types.Packet{stat("", file)}, "invalid"},
		{"zero byte", []*types.Packet{stat("a\x00b", file)}, "invalid"},
		{"long name", []*types.Packet{stat(strings.Repeat("n", 256), file)}, "255"},
		{"long path", []*types.Packet{stat(strings.Repeat("n/", 3000)+"n", file)}, "4095"},
		{"order", []*types.Packet{stat("b", file), stat("a", file)}, "out of order"},
		{"twice", []*types.Packet{stat("b", file), stat("b", file)}, "out of order"},
		{"no directory", []*types.Packet{stat("d/x", file)}, "did not describe the directory"},
		{"below a file", []*types.Packet{stat("d", file), stat("d/x", file)}, "did not describe the directory"},
		{"below a link", []*types.Packet{named(stat("d", os.ModeSymlink), "/etc"), stat("d/x", file)}, "did not describe the directory"},
		{"link to nothing", []*types.Packet{named(stat("b", file), "a")}, "is no file that was sent"},
		{"link out", []*types.Packet{named(stat("b", file), "../../etc/passwd")}, "is no file that was sent"},
		{"link to a directory", []*types.Packet{stat("a", dir), named(stat("b", file), "a")}, "is no file that was sent"},
		{"symbolic link without target", []*types.Packet{stat("a", os.ModeSymlink)}, "invalid target"},
		{"odd type", []*types.Packet{stat("a", os.ModeIrregular)}, "neither"},
		{"negative size", []*types.Packet{{Type: types.PACKET_STAT, Stat: &types.Stat{Path: "a", Size: -1}}}, "negative"},
		{"too many", many(1001), "more than 1000 files"},
		{"bytes of a file that was not asked for", []*types.Packet{{Type: types.PACKET_DATA, ID: 7, Data: []byte("x")}}, "not asked for"},
		{"error", []*types.Packet{{Type: types.PACKET_ERR, Data: []byte("no\x1b[31m")}}, "the client says: no"},
		{"request", []*types.Packet{{Type: types.PACKET_REQ}}, "packet of type 1"},
		{"more after the last", []*types.Packet{{Type: types.PACKET_STAT}, stat("a", file)}, ""},
		{"end without all", nil, "ended before"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t)
			h.config.Limit = layer.Limit{Entries: 1000, Size: 1 << 20}
			c, _ := h.connect(t, "", &hostile{send: func(s filesync.FileSync_DiffCopyServer) error {
				for _, p := range tc.packets {
					if err := s.SendMsg(p); err != nil {
						return err
					}
				}
				return nil
			}})
			_, err := c.Open(t.Context(), llb.Local{Name: "context"})
			if err == nil || !strings.Contains(err.Error(), tc.err) {
				t.Errorf("got %v, want an error with %q", err, tc.err)
			}
		})
	}
}

// A file that never ends is not kept, device nodes are left out, and a client that goes away ends only what waits for it.
func TestHostileFiles(t *testing.T) {
	h := newHost(t)
	h.config.Limit = layer.Limit{Entries: 10, Size: 1 << 20}
	endless, _ := h.connect(t, "", &hostile{send: func(s filesync.FileSync_DiffCopyServer) error {
		s.SendMsg(stat("a", 0o644))
		for {
			if err := s.SendMsg(&types.Packet{Type: types.PACKET_DATA, Data: make([]byte, 32<<10)}); err != nil {
				return err
			}
		}
	}})
	var tooLarge *layer.LimitError
	if _, err := endless.Open(t.Context(), llb.Local{Name: "context"}); !errors.As(err, &tooLarge) {
		t.Errorf("a file that never ends: %v", err)
	}
	devices, _ := h.connect(t, "", &hostile{send: func(s filesync.FileSync_DiffCopyServer) error {
		for _, p := range []*types.Packet{stat("dev", os.ModeDevice|0o666), stat("fifo", os.ModeNamedPipe|0o666), {Type: types.PACKET_STAT}} {
			s.SendMsg(p)
		}
		var p types.Packet
		return s.RecvMsg(&p)
	}})
	tree, err := devices.Open(t.Context(), llb.Local{Name: "context"})
	if err != nil {
		t.Fatal(err)
	}
	if got := list(t, tree); got != "fifo p0666\n" || len(h.warnings) != 1 {
		t.Errorf("got %q, warnings %q", got, h.warnings)
	}

	began := make(chan struct{})
	silent := &hostile{send: func(s filesync.FileSync_DiffCopyServer) error {
		close(began)
		<-s.Context().Done()
		return nil
	}}
	gone, end := h.connect(t, "", silent)
	result := make(chan error)
	go func() {
		_, err := gone.Open(context.WithoutCancel(t.Context()), llb.Local{Name: "context"})
		result <- err
	}()
	<-began
	end()
	if err := <-result; err == nil {
		t.Error("a client that is gone has sent all")
	}
	left, err := os.ReadDir(h.config.Tmp)
	if err != nil || len(left) > 0 {
		t.Errorf("there is left %v, %v", left, err)
	}
	if _, err := os.Stat(rootdir.Path(h.config.Root, rootdir.Received)); err != nil {
		t.Error(err)
	}
}

// A client may open its session after its request. One that provides nothing has no secrets and agents.
func TestNothing(t *testing.T) {
	h := newHost(t)
	for name, c := range map[string]*Client{"no session": New(h.config, ""),
		"nothing": func() *Client { c, _ := h.connect(t, ""); return c }()} {
		if _, ok, err := c.Secret(t.Context(), "s"); ok || err != nil {
			t.Errorf("%s: a secret: %v, %v", name, ok, err)
		}
		if a, err := c.Agent(t.Context(), "a"); a != nil || err != nil {
			t.Errorf("%s: an agent: %v, %v", name, a, err)
		}
		if user, password, err := c.Password(t.Context(), "registry.test"); user != "" || password != "" || err != nil {
			t.Errorf("%s: credentials: %v", name, err)
		}
		if _, _, ok, err := c.Token(t.Context(), auth.TokenRequest{}); ok || err != nil {
			t.Errorf("%s: a token: %v, %v", name, ok, err)
		}
		if _, err := c.Open(t.Context(), llb.Local{Name: "context"}); err == nil {
			t.Errorf("%s: a directory", name)
		}
		if err := c.Receiver(0).WriteFile(t.Context(), nil, func(io.Writer) error { return nil }); err == nil {
			t.Errorf("%s: it takes files", name)
		}
	}
}

// vault has secrets by id.
type vault struct {
	secrets.UnimplementedSecretsServer
	values map[string][]byte
}

func (v *vault) Register(s *grpc.Server) { secrets.RegisterSecretsServer(s, v) }

func (v *vault) GetSecret(_ context.Context, r *secrets.GetSecretRequest) (*secrets.GetSecretResponse, error) {
	value, ok := v.values[r.ID]
	if !ok {
		return nil, status.Error(codes.NotFound, "not found")
	}
	return &secrets.GetSecretResponse{Data: value}, nil
}

func TestSecrets(t *testing.T) {
	h := newHost(t)
	c, _ := h.connect(t, "", &vault{values: map[string][]byte{"s": []byte("value"), "large": make([]byte, maxSecret+1)}})
	if _, _, err := c.Secret(t.Context(), "large"); err == nil {
		t.Error("a secret of any size")
	}
	if data, ok, err := c.Secret(t.Context(), "s"); string(data) != "value" || !ok || err != nil {
		t.Errorf("got %q, %v, %v", data, ok, err)
	}
	if _, ok, err := c.Secret(t.Context(), "other"); ok || err != nil {
		t.Errorf("a secret that there is not: %v, %v", ok, err)
	}
	// What the client does not have itself, another session may, but none of another user.
	h.config.User = "somebody"
	foreign, _ := h.connect(t, "", &vault{values: map[string][]byte{"other": []byte("foreign")}})
	h.config.User = ""
	more, _ := h.connect(t, "", &vault{values: map[string][]byte{"other": []byte("more"), "s": []byte("of more")}})
	c.Also(foreign.id, more.id)
	for id, want := range map[string]string{"s": "value", "other": "more"} {
		if data, ok, err := c.Secret(t.Context(), id); string(data) != want || !ok || err != nil {
			t.Errorf("%s: got %q, %v, %v", id, data, ok, err)
		}
	}
	if _, ok, err := c.Secret(t.Context(), "none"); ok || err != nil {
		t.Errorf("a secret that nobody has: %v, %v", ok, err)
	}
}

func TestUpload(t *testing.T) {
	h := newHost(t)
	up := uploadprovider.New()
	text := strings.Repeat("archive", 100_000)
	address := up.Add(io.NopCloser(strings.NewReader(text)))
	c, _ := h.connect(t, "", up)
	for range 2 { // the client uploads it once
		r, ok, err := c.Upload(t.Context(), address)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if data, err := io.ReadAll(r); err != nil || string(data) != text {
			t.Errorf("%d bytes, %v", len(data), err)
		}
		r.Close()
	}
	if _, ok, err := c.Upload(t.Context(), "http://example.com/x"); ok || err != nil {
		t.Errorf("an address of a server: %v, %v", ok, err)
	}
	if _, ok, err := c.Upload(t.Context(), "http://"+uploadHost+"/other"); !ok || err == nil {
		t.Error("what is not there was uploaded")
	}
}

// tokens is a client that fetches tokens, or leaves that to kiln.
type tokens struct {
	sessionauth.UnimplementedAuthServer
	password bool
}

func (a *tokens) Register(s *grpc.Server) { sessionauth.RegisterAuthServer(s, a) }

func (a *tokens) Credentials(context.Context, *sessionauth.CredentialsRequest) (*sessionauth.CredentialsResponse, error) {
	return &sessionauth.CredentialsResponse{Username: "user", Secret: "password"}, nil
}

func (a *tokens) GetTokenAuthority(context.Context, *sessionauth.GetTokenAuthorityRequest) (*sessionauth.GetTokenAuthorityResponse, error) {
	if a.password {
		return nil, status.Error(codes.Unavailable, "client side tokens disabled")
	}
	return &sessionauth.GetTokenAuthorityResponse{PublicKey: make([]byte, 32)}, nil
}

func (a *tokens) FetchToken(_ context.Context, r *sessionauth.FetchTokenRequest) (*sessionauth.FetchTokenResponse, error) {
	return &sessionauth.FetchTokenResponse{Token: strings.Join(append([]string{r.Host, r.Realm, r.Service}, r.Scopes...), "|"),
		ExpiresIn: 1 << 62}, nil
}

func TestCredentials(t *testing.T) {
	h := newHost(t)
	c, _ := h.connect(t, "", &tokens{})
	if user, password, err := c.Password(t.Context(), "r.test"); user != "user" || password != "password" || err != nil {
		t.Errorf("%q, %q, %v", user, password, err)
	}
	token, life, ok, err := c.Token(t.Context(), auth.TokenRequest{Addr: "r.test", Realm: "https://r.test/token", Service: "s",
		Scopes: []string{"a", "b"}})
	if token != "r.test|https://r.test/token|s|a|b" || life != maxExpiry*time.Second || !ok || err != nil {
		t.Errorf("%q, %v, %v, %v", token, life, ok, err)
	}
	c, _ = h.connect(t, "", &tokens{password: true})
	if _, _, ok, err := c.Token(t.Context(), auth.TokenRequest{}); ok || err != nil {
		t.Errorf("a client without authority: %v, %v", ok, err)
	}
}

// An agent of the client can be used by what is given its socket.
func TestAgent(t *testing.T) {
	h := newHost(t)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, testKey(t), 0o600); err != nil {
		t.Fatal(err)
	}
	provider, err := sshprovider.NewSSHAgentProvider([]sshprovider.AgentConfig{{ID: "mine", Paths: []string{key}}})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := h.connect(t, "", provider)
	var missing *sshagent.MissingError
	if a, err := c.Agent(t.Context(), "other"); a != nil || !errors.As(err, &missing) || missing.ID != "other" || missing.Reason == "" {
		t.Errorf("an agent that there is not: %v, %v", a, err)
	}
	a, err := c.Agent(t.Context(), "mine")
	if err != nil || a == nil {
		t.Fatal(err)
	}
	if keys := keysOf(t, a); keys != 1 {
		t.Errorf("the agent has %d keys", keys)
	}
}

// What is written to a client is there as a whole, or the client knows that it is not.
func TestFile(t *testing.T) {
	h := newHost(t)
	var got bytes.Buffer
	var about map[string]string
	closed := make(chan error, 2)
	target := filesync.NewFSSyncTarget(filesync.WithFSSync(3, func(md map[string]string) (io.WriteCloser, error) {
		about = md
		return &closing{&got, closed}, nil
	}), filesync.WithFSSync(4, func(map[string]string) (io.WriteCloser, error) { return nil, nil }))
	c, _ := h.connect(t, "", &watched{target, closed})
	text := strings.Repeat("tar", 1<<20)
	err := c.Receiver(3).WriteFile(t.Context(), map[string]string{"containerimage.digest": "sha256:x"}, func(w io.Writer) error {
		_, err := io.WriteString(w, text)
		return err
	})
	if err != nil || got.String() != text || about["containerimage.digest"] != "sha256:x" {
		t.Errorf("%d bytes, %v, %v", got.Len(), about, err)
	}
	if err := <-closed; err != nil {
		t.Errorf("the client got %v", err)
	}
	broken := errors.New("broken")
	err = c.Receiver(3).WriteFile(t.Context(), nil, func(w io.Writer) error {
		_, err := io.WriteString(w, "half")
		return errors.Join(err, broken)
	})
	if !errors.Is(err, broken) {
		t.Errorf("got %v", err)
	}
	if err := <-closed; err == nil {
		t.Error("the client believes that it has the whole file")
	}
	// It has the file already, and wants no other.
	if err := c.Receiver(4).WriteFile(t.Context(), nil, func(w io.Writer) error {
		_, err := io.Copy(w, strings.NewReader(text))
		return err
	}); err != nil {
		t.Errorf("got %v", err)
	}
}

// closing is a file of a client.
type closing struct {
	io.Writer
	closed chan error
}

func (c *closing) Close() error { return nil }

// watched tells how each request of a target ended.
type watched struct {
	*filesync.SyncTarget
	ended chan error
}

func (w *watched) Register(s *grpc.Server) { filesync.RegisterFileSendServer(s, w) }

func (w *watched) DiffCopy(s filesync.FileSend_DiffCopyServer) error {
	err := w.SyncTarget.DiffCopy(s)
	w.ended <- err
	return err
}

// The user of a client on a socket is what the kernel says of its process, and neither of them has to say anything.
func TestSocketUser(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	got := make(chan string, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			got <- err.Error()
			return
		}
		defer c.Close()
		_, info, err := Credentials().ServerHandshake(c)
		if err != nil {
			got <- err.Error()
			return
		}
		got <- User(peer.NewContext(context.Background(), &peer.Peer{AuthInfo: info}))
	}()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if user, want := <-got, fmt.Sprintf("uid %d", os.Getuid()); user != want {
		t.Errorf("%q instead of %q", user, want)
	}
}
