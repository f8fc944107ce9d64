package torture

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/cache/pack"
	"github.com/kilnbuild/kiln/cache/remote"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

// TestDamagedCache builds on empty roots from a cache of which something was damaged, exchanged or kept back. Whatever that is, the build
// succeeds and its files are right; and what it publishes there is a cache again, from which the next build is right.
func TestDamagedCache(t *testing.T) {
	rnd := random(t)
	files := fiveStepFiles()
	files["Dockerfile"] += "FROM base\nCOPY --from=0 / /all\nRUN --network=none cat /all/etc/passwd > /passwd 2>/dev/null || :\n"
	p := newProject(t, filepath.Join(t.TempDir(), "root"), files)
	private, public := keys(t)
	sound, stale := filepath.Join(t.TempDir(), "cache"), filepath.Join(t.TempDir(), "stale")
	now := files["tree/1/file1"]
	p.write("tree/1/file1", "what the file was before")
	p.build("--cache-to", "type=local,mode=max,dest="+sound+",sign="+private)
	sh(t, "cp", "-r", sound, stale)
	p.write("tree/1/file1", now)
	want := treeDigest(t, p.build("--cache-to", "type=local,mode=max,dest="+sound+",sign="+private))
	p.clean()
	n := rounds(t, 10)
	hits := 0
	for i := range n {
		d := &damage{t: t, rnd: rnd, dir: filepath.Join(t.TempDir(), "cache"), stale: stale}
		sh(t, "cp", "-r", sound, d.dir)
		d.from = "type=local,src=" + d.dir
		d.verify = rnd.IntN(2) == 0
		what := d.do()
		if d.verify {
			what += ", signatures verified"
			d.from += ",verify=" + public
		}
		for range 2 {
			q := *p
			q.root = filepath.Join(t.TempDir(), "root")
			tarball, log, err := q.try("--cache-from", d.from, "--cache-to", "type=local,mode=max,dest="+d.dir+",sign="+private)
			if err != nil {
				t.Errorf("round %d, %s: %v\n%s", i, what, err, log)
			} else if got := treeDigest(t, tarball); got != want {
				t.Errorf("round %d, %s: the files are %s, want %s\n%s", i, what, got, want, log)
			}
			if strings.Contains(log, "CACHED") {
				hits++
			}
			q.clean()
			if err := os.RemoveAll(q.root); err != nil {
				t.Fatal(err)
			}
		}
		if d.server != nil {
			d.server.CloseClientConnections()
			d.server.Close()
		}
		if err := os.RemoveAll(d.dir); err != nil {
			t.Fatal(err)
		}
	}
	if hits == 0 {
		t.Error("nothing was ever found in a cache")
	}
	t.Logf("%d rounds; in %d of %d builds something was found in the cache", n, hits, 2*n)
}

// TestLyingBase has a cache say of a base image what is not so. That shows once its files are needed: then the build begins again without
// the cache. Nothing that was made before is used by others.
func TestLyingBase(t *testing.T) {
	p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": "FROM base\nCOPY a /etc/new/\n", "a": "one"})
	d := &damage{t: t, dir: filepath.Join(t.TempDir(), "cache")}
	p.build("--cache-to", "type=local,mode=max,dest="+d.dir)
	p.write("a", "two")
	want := treeDigest(t, p.build())
	d.poisonWith(func(cache *pack.Pack) {
		if len(cache.Bases) == 0 {
			t.Fatal("the cache does not say what is in the base image")
		}
		for id, base := range cache.Bases {
			for _, other := range cache.Layers {
				base.Manifest = other.Manifest
			}
			cache.Bases[id] = base
		}
	})
	p.root = filepath.Join(t.TempDir(), "root")
	dest := "type=oci,dest=" + filepath.Join(t.TempDir(), "image.tar")
	log, err := p.kiln("--cache-from", "type=local,src="+d.dir, "-o", dest, "--sbom=true").CombinedOutput() // which is of the image's files
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	if !strings.Contains(string(log), "is not used any more") || !strings.Contains(string(log), "is not what the cache says") {
		t.Errorf("nothing is said of the cache:\n%s", log)
	}
	if got := treeDigest(t, p.build()); got != want {
		t.Errorf("the files are %s, want %s", got, want)
	}
	p.clean()
}

// keys writes a key to sign with, and the one to verify with.
func keys(t *testing.T) (private, public string) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(name, kind string, der []byte, err error) string {
		path := filepath.Join(dir, name)
		if err == nil {
			err = os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	private = write("key", "PRIVATE KEY", der, err)
	der, err = x509.MarshalPKIXPublicKey(pub)
	return private, write("key.pub", "PUBLIC KEY", der, err)
}

// damage is something bad that is done to a cache.
type damage struct {
	t      *testing.T
	rnd    *rand.Rand
	dir    string // the cache
	stale  string // what it was before its last build
	from   string // where builds import it from
	verify bool   // builds believe signed statements alone
	server *httptest.Server
}

func (d *damage) check(err error) {
	d.t.Helper()
	if err != nil {
		d.t.Fatal(err)
	}
}

// do does something, and says what.
func (d *damage) do() string {
	switch d.rnd.IntN(4) {
	case 0:
		return d.poison()
	case 1:
		return d.serve()
	}
	return d.spoil()
}

// spoil damages a file of the cache, or puts another one into its place.
func (d *damage) spoil() string {
	all, err := filepath.Glob(filepath.Join(d.dir, "blobs/sha256/*"))
	if err != nil || len(all) < 2 {
		d.t.Fatalf("%d blobs, %v", len(all), err)
	}
	all = append(all, filepath.Join(d.dir, "index.json"))
	path, other := all[d.rnd.IntN(len(all))], all[d.rnd.IntN(len(all))]
	name := filepath.Base(path)
	switch d.rnd.IntN(10) {
	case 0:
		d.check(os.Remove(path))
		return "without " + name
	case 1:
		info, err := os.Stat(path)
		d.check(err)
		size := d.rnd.Int64N(info.Size() + 1)
		d.check(os.Truncate(path, size))
		return fmt.Sprintf("%s cut to %d bytes", name, size)
	case 2:
		data, err := os.ReadFile(other)
		d.check(err)
		d.check(os.WriteFile(path, data, 0o644))
		return name + " replaced by " + filepath.Base(other)
	case 3:
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		d.check(err)
		_, err = f.WriteString("more")
		d.check(err)
		d.check(f.Close())
		return name + " with more at its end"
	case 4:
		d.check(os.Remove(path))
		d.check(os.Symlink("/etc/passwd", path))
		return name + " replaced by a link out of the cache"
	case 5:
		d.check(os.RemoveAll(filepath.Join(d.dir, "blobs")))
		return "without blobs"
	case 6:
		data, err := os.ReadFile(filepath.Join(d.stale, "index.json"))
		d.check(err)
		d.check(os.WriteFile(filepath.Join(d.dir, "index.json"), data, 0o644))
		return "with the tag of an earlier build"
	}
	for range 1 + d.rnd.IntN(3) {
		flip(d.t, d.rnd, path)
	}
	return "flipped bits in " + name
}

// poisonWith changes what the cache says, so that it is whole.
func (d *damage) poisonWith(change func(*pack.Pack)) {
	ctx := d.t.Context()
	old, err := remote.OpenDir(d.dir, "cache")
	d.check(err)
	head, err := remote.Read(ctx, old, "latest")
	d.check(errors.Join(err, old.Close()))
	change(head.Pack)
	d.check(os.Remove(filepath.Join(d.dir, "index.json")))
	poisoned, err := remote.CreateDir(d.dir, "cache")
	d.check(err)
	_, err = remote.Publish(context.WithoutCancel(ctx), poisoned, "latest", head.Pack, pack.Limit{})
	d.check(errors.Join(err, poisoned.Close()))
}

// poison writes a cache that is whole, and says what is wrong.
func (d *damage) poison() (what string) {
	d.poisonWith(func(p *pack.Pack) { what = d.lie(p) })
	return what
}

// lie changes something that a cache says, and says what.
func (d *damage) lie(p *pack.Pack) string {
	keys := slices.SortedFunc(maps.Keys(p.Records), func(a, b solver.Key) int { return slices.Compare(a[:], b[:]) })
	ids := slices.Sorted(maps.Keys(p.Layers))
	a, b := d.rnd.IntN(len(keys)), d.rnd.IntN(len(keys))
	one, other := p.Records[keys[a]], p.Records[keys[b]]
	from, to := ids[d.rnd.IntN(len(ids))], ids[d.rnd.IntN(len(ids))]
	this, that := p.Layers[from], p.Layers[to]
	what := ""
	switch d.rnd.IntN(8) {
	case 0: // only a signature says who made a record
		d.verify = true
		one.Outputs, other.Outputs = other.Outputs, one.Outputs
		what = "with outputs of one step in the record of another"
	case 1:
		d.verify = true
		all := slices.SortedFunc(maps.Keys(p.Shortcuts), func(a, b solver.Key) int { return slices.Compare(a[:], b[:]) })
		for _, shortcut := range all {
			to := p.Shortcuts[shortcut]
			to.Key = keys[d.rnd.IntN(len(keys))]
			p.Shortcuts[shortcut] = to
		}
		what = "with shortcuts that lead elsewhere"
	case 2:
		one.Inputs = append(slices.Clone(one.Inputs), solver.Input{Name: "arg", Value: "more"})
		what = "with another input in a record"
	case 3:
		this.Manifest, that.Manifest = that.Manifest, this.Manifest
		what = "with the manifest of one layer at another"
	case 4:
		this.Blobs, that.Blobs = that.Blobs, this.Blobs
		what = "with the blob of one layer at another"
	case 5:
		this.Blobs = maps.Clone(this.Blobs)
		for encoding, blob := range this.Blobs {
			for _, other := range that.Blobs {
				blob.Desc = other.Desc
			}
			this.Blobs[encoding] = blob
		}
		what = "with the blob of one layer and the diff ID of another"
	case 6:
		this.Content = that.Content
		what = "with the content of one layer at another"
	case 7:
		for id, base := range p.Bases {
			base.Manifest = this.Manifest
			p.Bases[id] = base
		}
		what = "with the manifest of one layer as that of the base image"
	}
	p.Records[keys[a]], p.Records[keys[b]] = one, other
	p.Layers[from], p.Layers[to] = this, that
	return fmt.Sprintf("%s (%s and %s, layers %.8s and %.8s)", what, one.Name, other.Name, layer.ID(from), layer.ID(to))
}

// serve has the cache come from a registry that does not do well with some requests.
func (d *damage) serve() string {
	kind, rate := d.rnd.IntN(8), 1+d.rnd.IntN(3)
	var mu sync.Mutex // of rnd
	sound := http.HandlerFunc(d.registry)
	d.server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		fails, cut := d.rnd.IntN(rate) == 0, d.rnd.IntN(2000)
		mu.Unlock()
		if !fails {
			sound(w, r)
			return
		}
		switch kind {
		case 0:
			http.Error(w, "no", http.StatusInternalServerError)
		case 1:
			w.Header().Set("Retry-After", "0")
			http.Error(w, "slower", http.StatusTooManyRequests)
		case 2:
			http.Error(w, "who are you", http.StatusUnauthorized)
		case 3:
			_, _ = w.Write([]byte(strings.Repeat("<html>", cut)))
		case 4: // it hangs up, at once or within the answer
			sound(&cutting{ResponseWriter: w, left: cut}, r)
			panic(http.ErrAbortHandler)
		case 5:
			http.NotFound(w, r)
		case 6: // it says nothing for a while
			time.Sleep(time.Second)
			panic(http.ErrAbortHandler)
		case 7:
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusTemporaryRedirect)
		}
	}))
	d.from = "type=registry,ref=" + strings.TrimPrefix(d.server.URL, "http://") + "/cache:latest"
	return fmt.Sprintf("from a registry with fault %d in one of %d requests", kind, rate)
}

// cutting passes on the first bytes of an answer.
type cutting struct {
	http.ResponseWriter
	left int
}

func (c *cutting) Write(p []byte) (int, error) {
	n := min(c.left, len(p))
	c.left -= n
	if n > 0 {
		if _, err := c.ResponseWriter.Write(p[:n]); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// registry answers as a registry from which the cache can be read.
func (d *damage) registry(w http.ResponseWriter, r *http.Request) {
	_, name, manifest := strings.Cut(r.URL.Path, "/manifests/")
	if !manifest {
		_, name, _ = strings.Cut(r.URL.Path, "/blobs/")
	}
	dir, err := remote.OpenDir(d.dir, "cache")
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer dir.Close()
	if manifest && name == "latest" {
		data, err := dir.Get(r.Context(), name)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/vnd.oci.image.manifest.v1+json")
		_, _ = w.Write(data)
		return
	}
	if r.URL.Path == "/v2/" {
		return
	}
	http.ServeFile(w, r, filepath.Join(d.dir, "blobs", "sha256", filepath.Base(strings.TrimPrefix(name, "sha256:"))))
}
