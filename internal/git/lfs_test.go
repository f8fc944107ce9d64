package git

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// store is a git-lfs server: see docs/api/batch.md of git-lfs.
type store struct {
	objects map[string]string // by hash
	// href and header are of an object; nil is for the store's own address.
	href   func(id string) string
	header map[string]string

	mu       sync.Mutex
	batches  int
	requests []string // path, and what Authorization it came with
}

func (s *store) add(content string) (pointer string) {
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(content)))
	s.objects[id] = content
	return fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", id, len(content))
}

func (s *store) handle(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !strings.Contains(r.URL.Path, "/lfs/") {
		return false
	}
	s.requests = append(s.requests, strings.TrimSpace(r.URL.Path+" "+r.Header.Get("Authorization")+r.Header.Get("X-Key")))
	if id, ok := strings.CutPrefix(r.URL.Path, "/lfs/object/"); ok {
		w.Write([]byte(s.objects[id]))
		return true
	}
	s.batches++
	var asked struct {
		Operation string
		Transfers []string
		Objects   []struct {
			OID  string
			Size int64
		}
	}
	err := json.NewDecoder(r.Body).Decode(&asked)
	if err != nil || asked.Operation != "download" || !slices.Equal(asked.Transfers, []string{"basic"}) ||
		r.Method != http.MethodPost || r.Header.Get("Accept") != lfsMedia || r.Header.Get("Content-Type") != lfsMedia {
		http.Error(w, "what?", http.StatusBadRequest)
		return true
	}
	var objects []any
	for _, o := range asked.Objects {
		if content, ok := s.objects[o.OID]; !ok || o.Size != int64(len(content)) && o.Size != int64(len(content))+1 {
			objects = append(objects, map[string]any{"oid": o.OID, "size": o.Size, "error": map[string]any{"code": 404, "message": "not here"}})
			continue
		}
		href := "http://" + r.Host + "/lfs/object/" + o.OID
		if s.href != nil {
			href = s.href(o.OID)
		}
		actions := map[string]any{"download": map[string]any{"href": href, "header": s.header}}
		objects = append(objects, map[string]any{"oid": o.OID, "size": o.Size, "actions": actions})
	}
	json.NewEncoder(w).Encode(map[string]any{"transfer": "basic", "objects": objects})
	return true
}

const kept = "*.bin filter=lfs diff=lfs merge=lfs -text\n"

func TestLFS(t *testing.T) {
	r := newRemote(t)
	s := &store{objects: map[string]string{}}
	r.handle = s.handle
	var other []string
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { other = append(other, r.URL.Path) }))
	defer elsewhere.Close()
	big := strings.Repeat("content ", 1<<16)
	files := map[string]string{
		".gitattributes": kept, "d/.gitattributes": "plain.bin -filter\n",
		"a.bin": s.add("one"), "d/b.bin": s.add(big),
		"d/same.bin": s.add("one"), "d/plain.bin": s.add("two"), "c.txt": s.add("three"), "e.bin": "no pointer",
		// What the repository says of servers and programs is not obeyed.
		".lfsconfig": fmt.Sprintf("[lfs]\n\turl = %[1]s\n\tpushurl = %[1]s\n\tstandalonetransferagent = evil\n"+
			"[lfs \"customtransfer.evil\"]\n\tpath = /bin/false\n[remote \"origin\"]\n\tlfsurl = file://%[2]s\n", elsewhere.URL, r.dir),
	}
	id := r.commit("r.git", files)
	outer := r.commit("outer.git", map[string]string{"m": "@" + id, ".gitmodules": "[submodule \"m\"]\n\tpath = m\n\turl = ../r.git\n"})
	c := newClient(t)
	got, err := exported(t, c, r.source("r.git"), Options{})
	two := strings.TrimSpace(s.add("two"))
	for _, want := range []string{
		"f 644 a.bin one", "f 644 d/b.bin " + strings.TrimSpace(big), "f 644 d/same.bin one", "f 644 d/plain.bin " + two,
		"f 644 c.txt " + strings.TrimSpace(s.add("three")), "f 644 e.bin no pointer",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%.80q is not there: %v", want, err)
		}
	}
	if len(got) != len(files)+2 || len(other) != 0 || s.batches != 1 {
		t.Errorf("%d entries, %d batches, and elsewhere %q", len(got), s.batches, other)
	}
	// They are fetched once.
	before := len(s.requests)
	got, err = exported(t, c, r.source("r.git#main:d"), Options{})
	if err != nil || !slices.Contains(got, "f 644 same.bin one") || len(s.requests) != before {
		t.Errorf("again: %.200q, %v, %q", got, err, s.requests)
	}
	got, err = exported(t, newClient(t), r.source("outer.git#"+outer), Options{})
	if err != nil || !slices.Contains(got, "f 644 m/a.bin one") || !slices.Contains(got, "f 644 m/d/plain.bin "+two) {
		t.Errorf("in a submodule: %.200q, %v", got, err)
	}
	// What was damaged on the disk is noticed.
	damaged, err := filepath.Glob(filepath.Join(c.dir, "*", "lfs", "objects", "*", "*", fmt.Sprintf("%x", sha256.Sum256([]byte("one")))))
	if err != nil || len(damaged) != 1 {
		t.Fatal(damaged, err)
	}
	if err := os.WriteFile(damaged[0], []byte("two"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err = exported(t, c, r.source("r.git"), Options{}); err == nil || !strings.Contains(err.Error(), "build again") {
		t.Errorf("a damaged object: %v", err)
	}
	if got, err = exported(t, c, r.source("r.git"), Options{}); err != nil || !slices.Contains(got, "f 644 a.bin one") {
		t.Errorf("after it: %.200q, %v", got, err)
	}
}

// TestLFSServers has servers that need credentials, send their clients elsewhere, or have other objects.
func TestLFSServers(t *testing.T) {
	var leaked string
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		leaked += r.Header.Get("Authorization")
		if r.Header.Get("X-Key") == "its own" {
			w.Write([]byte("one"))
		}
	}))
	defer other.Close()
	const basic = "Basic eC1hY2Nlc3MtdG9rZW46Y2FuYXJ5"
	for name, tt := range map[string]struct {
		change func(s *store)
		hint   string // in the error; "" for success
		saw    []string
	}{
		"of its own": {func(*store) {}, "", []string{"/r.git/info/lfs/objects/batch " + basic, "/lfs/object/ID " + basic}},
		"with header": {func(s *store) { s.header = map[string]string{"Authorization": "Bearer x"} }, "",
			[]string{"/r.git/info/lfs/objects/batch " + basic, "/lfs/object/ID Bearer x"}},
		"elsewhere": {func(s *store) {
			s.href, s.header = func(string) string { return other.URL + "/x?signature" }, map[string]string{"X-Key": "its own"}
		}, "", []string{"/r.git/info/lfs/objects/batch " + basic}},
		"wrong": {func(s *store) {
			for id := range s.objects {
				s.objects[id] = "two"
			}
		}, "has digest", nil},
		"too long": {func(s *store) {
			s.href = func(string) string { return other.URL + "/long" }
			s.header = map[string]string{"X-Key": "its own"}
			for id := range s.objects {
				s.objects[id] = "on"
			}
		}, "is larger than the 2 bytes", nil},
		"not there": {func(s *store) { clear(s.objects) }, `404 "not here"`, nil},
		"a file":    {func(s *store) { s.href = func(string) string { return "file:///etc/passwd" } }, "not http or https", nil},
		"nowhere":   {func(s *store) { s.href = func(string) string { return "" } }, "did not say where", nil},
	} {
		t.Run(name, func(t *testing.T) {
			leaked = ""
			r := newRemote(t)
			s := &store{objects: map[string]string{}}
			r.handle = func(w http.ResponseWriter, req *http.Request) bool {
				if strings.Contains(req.URL.Path, ".git/") && req.Header.Get("Authorization") != basic {
					w.WriteHeader(http.StatusUnauthorized)
					return true
				}
				return s.handle(w, req)
			}
			pointer := s.add("one")
			if name == "too long" {
				pointer = strings.Replace(pointer, "size 3", "size 2", 1)
			}
			r.commit("r.git", map[string]string{".gitattributes": kept, "a.bin": pointer})
			tt.change(s)
			c := secrets(t, map[string]string{"GIT_AUTH_TOKEN." + strings.TrimPrefix(r.url, "http://"): "canary"})
			got, err := exported(t, c, r.source("r.git"), Options{})
			if tt.hint == "" && (err != nil || !slices.Contains(got, "f 644 a.bin one")) ||
				tt.hint != "" && (err == nil || !strings.Contains(err.Error(), tt.hint)) {
				t.Errorf("got %q, %v", got, err)
			}
			saw := []string{}
			for _, q := range s.requests {
				for id := range s.objects {
					q = strings.ReplaceAll(q, id, "ID")
				}
				saw = append(saw, q)
			}
			if leaked != "" || tt.saw != nil && !slices.Equal(saw, tt.saw) {
				t.Errorf("the server saw %q, another %q", saw, leaked)
			}
		})
	}
	r := newRemote(t)
	s := &store{objects: map[string]string{}}
	r.commit("r.git", map[string]string{".gitattributes": kept, "a.bin": s.add("one")})
	_, err := exported(t, newClient(t), r.source("r.git"), Options{})
	if err == nil || !strings.Contains(err.Error(), "fetch files that git-lfs keeps for") || !strings.Contains(err.Error(), "answered 404") {
		t.Errorf("a server without git-lfs: %v", err)
	}
}

// TestLFSPointer compares pointers with those of the program git-lfs.
func TestLFSPointer(t *testing.T) {
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	text, err := exec.Command("git-lfs", "pointer", "--file="+file).Output()
	if err != nil {
		t.Fatalf("install the package git-lfs: %v", err)
	}
	o, ok := parsePointer(text)
	if !ok || o.hex() != fmt.Sprintf("%x", sha256.Sum256([]byte("content"))) || o.size != 7 {
		t.Errorf("%q is read as %+v", text, o)
	}
	for _, bad := range []string{
		"", "x", string(text) + "\n", string(text[1:]), strings.TrimSuffix(string(text), "\n"),
		strings.Replace(string(text), "size 7", "size -7", 1), strings.Replace(string(text), "size 7", "size +7", 1),
		strings.Replace(string(text), "size 7", "size 07", 1), strings.Replace(string(text), "sha256:", "sha256:../", 1),
		strings.Replace(string(text), "oid", "ext-0-evil sha256:"+strings.Repeat("0", 64)+"\noid", 1),
		strings.Replace(string(text), "sha256:e", "sha256:E", 1),
	} {
		if o, ok := parsePointer([]byte(bad)); ok {
			t.Errorf("%q is read as %+v", bad, o)
		}
	}
}

// FuzzPointer holds that a pointer is read in one form alone, in which its hash is no path.
func FuzzPointer(f *testing.F) {
	f.Add([]byte(lfsVersion + "oid sha256:" + strings.Repeat("ab", 32) + "\nsize 1\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if o, ok := parsePointer(text); ok && (o.pointer() != string(text) || len(o.hex()) != 64 || o.size < 0) {
			t.Errorf("%q is read as %+v", text, o)
		}
	})
}

// TestLFSBySSH has a server that says by ssh where its objects are.
func TestLFSBySSH(t *testing.T) {
	r := newRemote(t)
	s := &store{objects: map[string]string{}}
	r.handle = s.handle
	id := r.commit("it's.git", map[string]string{".gitattributes": kept, "a.bin": s.add("one")})
	bin, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	// An ssh that runs the command here, as a server's shell does.
	script := fmt.Sprintf("#!/bin/sh\necho \"$SSH_AUTH_SOCK $@\" >>%[1]s\nfor last; do :; done\ncd %[2]s\n"+
		"export GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'\neval \"$last\"\n", log, r.dir)
	lfs := fmt.Sprintf("#!/bin/sh\n[ \"$1 $2\" = \"it's.git download\" ] || exit 1\n"+
		"echo '{\"href\": \"%s/lfs/api\", \"header\": {\"Authorization\": \"by ssh\"}}'\n", r.url)
	for name, text := range map[string]string{"ssh": script, "git-lfs-authenticate": lfs} {
		if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	t.Setenv("SSH_AUTH_SOCK", "/agent")
	g, err := remoteurl.ParseGit("git@localhost:it's.git#" + id)
	if err != nil {
		t.Fatal(err)
	}
	got, err := exported(t, newClient(t), g, Options{})
	if err != nil || !slices.Contains(got, "f 644 a.bin one") {
		t.Errorf("got %q, %v", got, err)
	}
	if len(s.requests) != 2 || s.requests[0] != "/lfs/api/objects/batch by ssh" || !strings.HasSuffix(s.requests[1], "by ssh") {
		t.Errorf("requests %q", s.requests)
	}
	said, err := os.ReadFile(log)
	if err != nil || strings.Contains(string(said), "/agent") || !strings.Contains(string(said), "IdentityAgent=none") ||
		!strings.Contains(string(said), "-l git -- localhost git-lfs-authenticate 'it'\\''s.git' download\n") {
		t.Errorf("ssh was called, %v:\n%s", err, said)
	}
}
