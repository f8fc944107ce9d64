package git

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/opencontainers/go-digest"
)

// Objects of git-lfs are fetched by kiln itself from the server of the repository that has their pointers. The program git-lfs is
// not used: it obeys the repository's .lfsconfig, which may name other servers and files of this machine.
const (
	// maxPointer bounds a pointer in bytes, and lfsVersion is how one begins. See the specification of git-lfs, docs/spec.md.
	maxPointer = 1024
	lfsVersion = "version https://git-lfs.github.com/spec/v1\n"
	// maxObjects bounds the objects of one commit: what is known of them is in memory.
	maxObjects = 1 << 17
	// lfsBatch is how many objects are asked for at once, and lfsParallel how many are fetched side by side: as git-lfs does.
	lfsBatch    = 100
	lfsParallel = 8
	// lfsMedia is the media type of requests and answers. See docs/api/batch.md of git-lfs.
	lfsMedia = "application/vnd.git-lfs+json"
)

// object is a file whose content git-lfs keeps elsewhere.
type object struct {
	entry layer.Entry
	path  string // in the repository
	id    [32]byte
	size  int64
}

func (o *object) hex() string { return hex.EncodeToString(o.id[:]) }

func (o *object) digest() digest.Digest { return digest.NewDigestFromBytes(digest.SHA256, o.id[:]) }

// pointer returns what the repository has in place of the content.
func (o *object) pointer() string {
	return fmt.Sprintf("%soid sha256:%s\nsize %d\n", lfsVersion, o.hex(), o.size)
}

// parsePointer reads a pointer in the form that git-lfs writes; false is for any other text. Pointers with extensions, which name
// programs of the user's configuration, are other texts.
func parsePointer(text []byte) (object, bool) {
	rest, ok := strings.CutPrefix(string(text), lfsVersion+"oid sha256:")
	id, size, ok2 := strings.Cut(rest, "\nsize ")
	size, ok3 := strings.CutSuffix(size, "\n")
	n, err := strconv.ParseInt(size, 10, 64)
	o := object{size: n}
	if !ok || !ok2 || !ok3 || err != nil || n < 0 || len(id) != 2*len(o.id) {
		return object{}, false
	}
	if _, err := hex.Decode(o.id[:], []byte(id)); err != nil {
		return object{}, false
	}
	return o, o.pointer() == string(text)
}

// attributed sorts objects by whether .gitattributes of the commit says that git-lfs keeps them.
func (x *export) attributed(s *remoteurl.Git, m *mirror, id string, all []object) (kept, plain []object, err error) {
	dir, err := os.MkdirTemp(x.c.tmp, "git-")
	if err != nil {
		return nil, nil, err
	}
	defer os.RemoveAll(dir)
	k := call{source: s, local: true, doing: "read .gitattributes of", index: filepath.Join(dir, "index"), args: m.git("read-tree", id)}
	if err := x.c.run(x.ctx, k); err != nil {
		return nil, nil, err
	}
	var paths strings.Builder
	for _, o := range all {
		paths.WriteString(o.path + "\x00")
	}
	filters := &filters{all: all}
	k.args, k.stdin, k.stdout = m.git("check-attr", "--cached", "--stdin", "-z", "filter"), strings.NewReader(paths.String()), filters
	if err := x.c.run(x.ctx, k); err != nil {
		return nil, nil, err
	}
	if filters.n != len(all) {
		return nil, nil, &Error{Doing: k.doing, Remote: s.Remote, Said: "git check-attr told of other files than it was asked for"}
	}
	return filters.kept, filters.plain, nil
}

// filters sorts objects by what git check-attr -z prints of their attribute filter: path, attribute and value of each, in order.
type filters struct {
	all, kept, plain []object
	field            []byte
	fields, n        int
}

func (f *filters) Write(p []byte) (int, error) {
	n := len(p)
	for {
		i := bytes.IndexByte(p, 0)
		if i < 0 {
			f.field = append(f.field, p...)
			return n, nil
		}
		value := string(append(f.field, p[:i]...))
		f.field, p = f.field[:0], p[i+1:]
		if f.fields++; f.fields%3 != 0 {
			continue
		}
		if f.n == len(f.all) {
			return 0, errors.New("git check-attr told of more files than it was asked for")
		}
		if value == "lfs" {
			f.kept = append(f.kept, f.all[f.n])
		} else {
			f.plain = append(f.plain, f.all[f.n])
		}
		f.n++
	}
}

// objects puts the files of a commit that were found to be pointers: with their contents where git-lfs keeps those.
func (x *export) objects(s *remoteurl.Git, m *mirror, commit Commit, id string, all []object, o options) error {
	if len(all) == 0 {
		return nil
	}
	kept, plain, err := x.attributed(s, m, id, all)
	if err != nil {
		return err
	}
	for _, one := range plain {
		if err := x.put(one.entry, strings.NewReader(one.pointer())); err != nil {
			return err
		}
	}
	if len(kept) == 0 {
		return nil
	}
	fmt.Fprintf(x.o.Log, "%d files of %s are kept by git-lfs\n", len(kept), s.Remote)
	l := &lfs{c: x.c, source: s, commit: commit, o: o, dir: filepath.Join(m.path, "lfs", "objects")}
	for len(kept) > 0 {
		some := kept[:min(len(kept), lfsBatch)]
		kept = kept[len(some):]
		if err := l.fetch(x.ctx, some); err != nil {
			return fmt.Errorf("fetch files that git-lfs keeps for %s: %w", s.Remote, err)
		}
		for _, one := range some {
			if err := x.putObject(l, one); err != nil {
				return err
			}
		}
	}
	return nil
}

func (x *export) putObject(l *lfs, o object) error {
	f, err := os.Open(l.path(&o))
	if err != nil {
		return err
	}
	defer f.Close()
	o.entry.Size = o.size
	v := o.digest().Verifier()
	err = x.put(o.entry, io.TeeReader(f, v))
	if err == nil && !v.Verified() {
		os.Remove(f.Name()) // the next build fetches it anew
		err = fmt.Errorf("%s was changed on the disk: build again", f.Name())
	}
	return err
}

// lfs fetches objects from the server of one repository.
type lfs struct {
	c      *Client
	source *remoteurl.Git
	commit Commit
	o      options
	dir    string // of the objects that are there, as git-lfs keeps them

	at *endpoint // nil until something is fetched
}

// endpoint is where a repository's objects are asked for.
type endpoint struct {
	address string // without "/objects/batch"
	header  http.Header
	limit   reach.Scope
	way     *reach.Way
}

func (l *lfs) path(o *object) string {
	id := o.hex()
	return filepath.Join(l.dir, id[:2], id[2:4], id)
}

// fetch brings objects into the directory.
func (l *lfs) fetch(ctx context.Context, some []object) error {
	var missing []object
	for _, o := range some {
		if info, err := os.Lstat(l.path(&o)); err != nil || !info.Mode().IsRegular() || info.Size() != o.size {
			missing = append(missing, o)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	var err error
	if l.at == nil {
		if l.at, err = l.find(ctx); err != nil {
			return err
		}
	}
	var actions map[string]action
	err = l.c.patience.Retry(ctx, func() error {
		actions, err = l.ask(ctx, missing)
		return err
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	turns := make(chan struct{}, lfsParallel)
	var all sync.WaitGroup
	for _, o := range missing {
		turns <- struct{}{}
		all.Go(func() {
			defer func() { <-turns }()
			if ctx.Err() != nil {
				return
			}
			if err := l.download(ctx, &o, actions[o.hex()]); err != nil {
				cancel(fmt.Errorf("%s: %w", o.path, err))
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// find returns where the objects are asked for: below the repository's address, or where its ssh server says. See
// docs/api/server-discovery.md of git-lfs.
func (l *lfs) find(ctx context.Context) (*endpoint, error) {
	if l.source.Scheme() == "ssh" {
		return l.findBySSH(ctx)
	}
	address := strings.TrimSuffix(l.source.Remote, "/")
	if !strings.HasSuffix(address, ".git") {
		address += ".git"
	}
	if rest, ok := strings.CutPrefix(address, "git://"); ok {
		address = "https://" + rest
	}
	at := &endpoint{address: address + "/info/lfs", header: http.Header{}, limit: l.o.limit, way: l.c.web.Way(l.o.limit)}
	auth, err := l.c.authorization(ctx, l.source, l.o.named, l.o.identity)
	if auth != "" {
		at.header.Set("Authorization", auth)
	}
	return at, err
}

// findBySSH has the ssh server say where the objects are, and how it is known there who asks. See docs/api/authentication.md.
func (l *lfs) findBySSH(ctx context.Context) (*endpoint, error) {
	var out answer
	k := call{source: l.source, doing: "ask for the git-lfs server of", identity: l.o.identity, limit: l.o.limit, stdout: &out}
	err := l.c.patience.Retry(ctx, func() error {
		out.text = nil
		return l.c.ssh(ctx, k, "git-lfs-authenticate", l.source.Path(), "download")
	})
	if err != nil {
		return nil, err
	}
	var said struct {
		Href   string            `json:"href"`
		Header map[string]string `json:"header"`
	}
	if err := json.Unmarshal(out.text, &said); err != nil {
		return nil, &Error{Doing: k.doing, Remote: l.source.Remote, Said: "its answer is not what git-lfs-authenticate prints"}
	}
	u, err := parseWeb(said.Href)
	if err != nil {
		return nil, &Error{Doing: k.doing, Remote: l.source.Remote, Said: err.Error()}
	}
	at := &endpoint{address: strings.TrimSuffix(said.Href, "/"), header: header(said.Header)}
	at.limit = l.c.onward(ctx, l.o.limit, l.source.Hostname(), u.Hostname())
	at.way = l.c.web.Way(at.limit)
	return at, nil
}

// parseWeb reads an address that a server sent.
func parseWeb(address string) (*url.URL, error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" {
		return nil, errors.New("the server sent an address that is not http or https")
	}
	return u, nil
}

func header(values map[string]string) http.Header {
	h := http.Header{}
	for name, value := range values {
		h.Set(name, value)
	}
	return h
}

// action is how an object is fetched.
type action struct {
	Href   string            `json:"href"`
	Header map[string]string `json:"header"`
}

// ask asks for the ways to get objects, by their hash. See docs/api/batch.md.
func (l *lfs) ask(ctx context.Context, some []object) (map[string]action, error) {
	type named struct {
		OID  string `json:"oid"`
		Size int64  `json:"size"`
	}
	type ref struct {
		Name string `json:"name"`
	}
	question := struct {
		Operation string   `json:"operation"`
		Transfers []string `json:"transfers"`
		Ref       *ref     `json:"ref,omitempty"`
		Objects   []named  `json:"objects"`
		Hash      string   `json:"hash_algo"`
	}{Operation: "download", Transfers: []string{"basic"}, Hash: "sha256"}
	if l.commit.Name != "" {
		question.Ref = &ref{l.commit.Name}
	}
	for _, o := range some {
		question.Objects = append(question.Objects, named{o.hex(), o.size})
	}
	text, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, l.at.address+"/objects/batch", bytes.NewReader(text))
	if err != nil {
		return nil, l.failed(err)
	}
	req.Header = l.at.header.Clone()
	req.Header.Set("Accept", lfsMedia)
	req.Header.Set("Content-Type", lfsMedia)
	req.Header.Set("User-Agent", "git-lfs/3 (kiln)") // some servers want the name
	resp, err := l.c.patience.Do(&http.Client{Transport: l.at.way, CheckRedirect: redirect}, req)
	if err != nil {
		return nil, l.failed(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, l.failed(fetch.NewStatusError(resp))
	}
	fetch.Decode(resp)
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxOutput+1))
	if err == nil && len(data) > maxOutput {
		err = fmt.Errorf("the answer of %s is longer than %d MiB", resp.Request.URL.Host, maxOutput>>20)
	}
	if err != nil {
		return nil, l.failed(err)
	}
	var said struct {
		Transfer string `json:"transfer"`
		Objects  []struct {
			OID     string            `json:"oid"`
			Actions map[string]action `json:"actions"`
			Error   *struct {
				Code    int    `json:"code"`
				Message string `json:"message"`
			} `json:"error"`
		} `json:"objects"`
	}
	if err := json.Unmarshal(data, &said); err != nil || said.Transfer != "" && said.Transfer != "basic" {
		return nil, l.failed(fmt.Errorf("%s sent an answer that is not that of a git-lfs server", resp.Request.URL.Host))
	}
	actions := map[string]action{}
	for _, o := range said.Objects {
		if o.Error != nil {
			return nil, l.failed(fmt.Errorf("%s does not give object %.64q: %d %.200q", resp.Request.URL.Host, o.OID, o.Error.Code, o.Error.Message))
		}
		actions[o.OID] = o.Actions["download"]
	}
	return actions, nil
}

// failed returns the *Error of a failure of the server.
func (l *lfs) failed(err error) error {
	e := &Error{Doing: "ask the git-lfs server of", Remote: l.source.Remote, Said: err.Error(), err: err}
	e.Hint = hint(e.Said, call{source: l.source})
	return e
}

// download fetches an object.
func (l *lfs) download(ctx context.Context, o *object, a action) error {
	if a.Href == "" {
		return l.failed(errors.New("the server did not say where an object is that it was asked for"))
	}
	to, err := parseWeb(a.Href)
	if err != nil {
		return l.failed(err)
	}
	at, err := url.Parse(l.at.address)
	if err != nil {
		return err
	}
	if at.Scheme == "https" && to.Scheme == "http" {
		return l.failed(fmt.Errorf("%s sends from https to plain http, which is refused", at.Host))
	}
	h, err := remoteurl.ParseHTTP(a.Href)
	if err != nil {
		return l.failed(err)
	}
	r := httpsource.Request{HTTP: h, Checksum: o.digest(), MaxSize: max(o.size, 1), Header: header(a.Header)}
	// The objects of the server itself need what the server was asked with, unless it says what else.
	if r.Header.Get("Authorization") == "" && to.Scheme == at.Scheme && to.Host == at.Host {
		if v := l.at.header.Values("Authorization"); len(v) > 0 {
			r.Header["Authorization"] = v
		}
	}
	limit := l.at.limit
	if !strings.EqualFold(to.Hostname(), at.Hostname()) {
		limit = l.at.way.Scope(ctx)
	}
	r.Way = l.c.web.Way(limit)
	file, err := l.c.files.Download(ctx, r)
	if err != nil {
		return err
	}
	path := l.path(o)
	if err = os.MkdirAll(filepath.Dir(path), 0o700); err == nil {
		err = os.Rename(file.Path, path)
	}
	if err != nil {
		os.Remove(file.Path)
	}
	return err
}
