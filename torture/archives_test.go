package torture

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/kilnbuild/kiln/internal/kilntest"
	"github.com/klauspost/compress/zstd"
	"github.com/ulikunitz/xz"
	"golang.org/x/sys/unix"
)

// canary is in files that no build may read.
const canary = "CANARY-4f1d2a"

// archive writes a tar by hand, so that it can be wrong.
type archive struct {
	bytes.Buffer
	victim string // a directory of the host that nothing may touch
}

var epoch = time.Unix(1000000000, 0)

// add writes an entry of any kind: archive/tar makes the header, and refuses little.
func (a *archive) add(h tar.Header, body string) {
	if h.Size == 0 {
		h.Size = int64(len(body))
	}
	if h.Mode == 0 {
		h.Mode = 0o755
	}
	if h.ModTime.IsZero() {
		h.ModTime = epoch
	}
	w := tar.NewWriter(a)
	if err := w.WriteHeader(&h); err != nil {
		panic(err)
	}
	io.WriteString(w, body)
	w.Flush() // pads; no end of the archive
}

func (a *archive) file(name, body string) { a.add(tar.Header{Typeflag: tar.TypeReg, Name: name}, body) }
func (a *archive) dir(name string)        { a.add(tar.Header{Typeflag: tar.TypeDir, Name: name}, "") }
func (a *archive) link(name, to string) {
	a.add(tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: to}, "")
}
func (a *archive) hard(name, to string) {
	a.add(tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: to}, "")
}
func (a *archive) node(t byte, name string, major, minor int64) {
	a.add(tar.Header{Typeflag: t, Name: name, Devmajor: major, Devminor: minor}, "")
}

// pax writes an entry with records of a PAX header as they are, right or wrong.
func (a *archive) pax(t byte, name, body string, records ...string) {
	var p strings.Builder
	for i := 0; i < len(records); i += 2 {
		kv := " " + records[i] + "=" + records[i+1] + "\n"
		n := len(kv) + 1
		for len(fmt.Sprint(n))+len(kv) != n {
			n++
		}
		fmt.Fprintf(&p, "%d%s", n, kv)
	}
	a.raw('x', "PaxHeaders.0/x", p.String(), nil)
	a.raw(t, name, body, nil)
}

// raw writes a header block that change may spoil before it gets its checksum, and a body.
func (a *archive) raw(t byte, name, body string, change func(block []byte)) {
	b := make([]byte, 512)
	copy(b, name)
	copy(b[100:], "0000755\x000000000\x000000000\x00")
	copy(b[124:], fmt.Sprintf("%011o\x00", len(body)))
	copy(b[136:], fmt.Sprintf("%011o\x00", epoch.Unix()))
	b[156] = t
	copy(b[257:], "ustar\x0000")
	if change != nil {
		change(b)
	}
	copy(b[148:], "        ")
	sum := 0
	for _, c := range b {
		sum += int(c)
	}
	copy(b[148:], fmt.Sprintf("%06o\x00 ", sum))
	a.Write(b)
	a.WriteString(body)
	a.Write(make([]byte, -len(body)&511))
}

// end writes the two blocks of zeros.
func (a *archive) end() { a.Write(make([]byte, 1024)) }

// What becomes of an archive, in each of the three ways that it comes in.
const (
	unpacked = "unpacked" // all of it, and the image has what want says
	refused  = "refused"  // with one clear error
	either   = "either"   // one of these, and nothing else
	copied   = "copied"   // as it is: for ADD, what does not begin as an archive is a file
)

// hostileArchive is one archive and what is to become of it.
type hostileArchive struct {
	name string
	make func(a *archive)
	// result is what becomes of it; added and context are that of ADD, and of the context, where they are others.
	result, added, context string
	// warns is what is said where it is built.
	warns string
	// want are files of the image: "path=content", "path->target of the link", "path/" for a directory, "!path" for none.
	want []string
	// layered is what want is of a layer of an image, where that is something else.
	layered []string
	// says is in the error of one that is refused.
	says string
	// packed compresses the archive, or does worse to it.
	packed func(tarball []byte) []byte
	// lower is a layer below it, that of an image or made by an ADD before.
	lower func(a *archive)
	// more are lines of the Dockerfile after it.
	more string
}

// TestHostileArchives feeds archives that somebody made to do harm, and others that only look like it, to ADD, as the
// layer of a base image, and as the build context. Whatever is in them, nothing of a directory outside changes, nothing of it
// is in the image, the root or the log, and kiln ends in time with little memory: with the right image or an error.
func TestHostileArchives(t *testing.T) {
	for _, c := range hostileArchives {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			v := newVictim(t)
			written := func(begin func(a *archive)) []byte {
				a := &archive{victim: v.dir}
				begin(a)
				c.make(a)
				if c.packed != nil {
					return c.packed(a.Bytes())
				}
				return a.Bytes()
			}
			tarball := written(func(*archive) {})
			var lower *archive
			if c.lower != nil {
				lower = &archive{victim: v.dir}
				c.lower(lower)
				lower.end()
			}
			t.Run("add", func(t *testing.T) {
				p := newProject(t, filepath.Join(t.TempDir(), "root"), nil)
				text := "FROM scratch\n"
				if lower != nil {
					p.write("lower.tar", lower.String())
					text += "ADD lower.tar /\n"
				}
				p.write("archive", string(tarball))
				p.write("Dockerfile", text+"ADD archive /\n"+c.more)
				result := c.result
				if c.added != "" {
					result = c.added
				}
				c.build(t, v, p, result, nil)
			})
			t.Run("layer", func(t *testing.T) {
				p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": "FROM image\n" + c.more})
				layers := [][]byte{tarball}
				if lower != nil {
					layers = [][]byte{lower.Bytes(), tarball}
				}
				dir := t.TempDir()
				writeLayout(t, dir, layers)
				if c.layered != nil {
					c.want = c.layered
				}
				c.build(t, v, p, c.result, nil, "--build-context", "image=oci-layout://"+dir)
			})
			if lower != nil {
				return // a context has nothing below it
			}
			t.Run("context", func(t *testing.T) {
				p := newProject(t, filepath.Join(t.TempDir(), "root"), nil)
				result := c.result
				if c.context != "" {
					result = c.context
				}
				c.build(t, v, p, result, written(func(a *archive) { a.file("Dockerfile", "FROM scratch\nCOPY . /\n"+c.more) }))
			})
		})
	}
}

// TestWrongDiffIDs has an image whose config does not say what its layers are.
func TestWrongDiffIDs(t *testing.T) {
	var one, two archive
	one.file("f", "one")
	one.end()
	two.file("f", "two")
	two.end()
	for name, change := range map[string]func(ids []string) []string{
		"swapped":      func(ids []string) []string { return []string{ids[1], ids[0]} },
		"one too few":  func(ids []string) []string { return ids[:1] },
		"one too many": func(ids []string) []string { return append(ids, ids[0]) },
		"of nothing":   func(ids []string) []string { return []string{ids[0], "sha256:" + strings.Repeat("0", 64)} },
		"no digest":    func(ids []string) []string { return []string{ids[0], "sha256:../../../x"} },
		"in capitals":  func(ids []string) []string { return []string{ids[0], strings.ToUpper(ids[1])} },
	} {
		t.Run(name, func(t *testing.T) {
			root := filepath.Join(t.TempDir(), "root")
			build := func(change ...func([]string) []string) ([]byte, string, error) {
				dir := t.TempDir()
				writeLayout(t, dir, [][]byte{one.Bytes(), gzipped(two.Bytes())}, change...)
				p := newProject(t, root, map[string]string{"Dockerfile": "FROM image\nCOPY Dockerfile /\n"})
				return runBounded(t, p.kiln("--build-context", "image=oci-layout://"+dir, "-o", "type=tar,dest=-"))
			}
			if _, log, err := build(change); err == nil {
				t.Errorf("it was built\n%s", log)
			}
			// What was refused is not what the right image gets.
			out, log, err := build()
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			checkTree(t, out, []string{"f=two"})
		})
	}
}

// TestRepeatedDiffID has an image whose config names one diff id for two blobs. Only the first is read, so that no image may
// be made of the other.
func TestRepeatedDiffID(t *testing.T) {
	var one, two archive
	one.file("f", "one")
	one.end()
	two.file("f", "two")
	two.end()
	dir := t.TempDir()
	writeLayout(t, dir, [][]byte{gzipped(one.Bytes()), gzipped(two.Bytes())}, func(ids []string) []string { return []string{ids[0], ids[0]} })
	p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": "FROM image\nCOPY Dockerfile /\n"})
	build := func(output string) []byte {
		out, log, err := runBounded(t, p.kiln("--build-context", "image=oci-layout://"+dir, "-o", "type="+output+",dest=-"))
		if err != nil {
			t.Fatalf("%v\n%s", err, log)
		}
		return out
	}
	checkTree(t, build("tar"), []string{"f=one"})
	image := build("oci")
	for _, l := range []struct {
		archive archive
		in      bool
	}{{one, true}, {two, false}} {
		if sum := fmt.Sprintf("%x", sha256.Sum256(gzipped(l.archive.Bytes()))); bytes.Contains(image, []byte(sum)) != l.in {
			t.Errorf("layer %s in the image: %v", sum, !l.in)
		}
	}
}

// TestArchiveLimits has kiln.toml allow less than the archives hold.
func TestArchiveLimits(t *testing.T) {
	p := newProject(t, filepath.Join(t.TempDir(), "root"), map[string]string{"Dockerfile": "FROM scratch\nADD a.tar /\n"})
	config := filepath.Join(t.TempDir(), "kiln.toml")
	if err := os.WriteFile(config, []byte("[archive]\nmaxSize = '1MB'\nmaxEntries = 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		make func(a *archive)
		says string
	}{
		{"small", func(a *archive) { a.file("a", "x"); a.file("b", "x"); a.file("c", "x") }, ""},
		{"many", func(a *archive) { a.file("a", "x"); a.file("b", "x"); a.file("c", "x"); a.file("d", "x") }, "archive.maxEntries"},
		{"many directories in one name", func(a *archive) { a.file("a/b/c/d/e", "x") }, "archive.maxEntries"},
		{"large", func(a *archive) { a.file("a", strings.Repeat("x", 600<<10)); a.file("b", strings.Repeat("x", 600<<10)) }, "archive.maxSize"},
		{"large after its end", func(a *archive) { a.file("a", "x"); a.end(); a.Write(make([]byte, 2<<20)) }, "archive.maxSize"},
	} {
		var a archive
		c.make(&a)
		p.write("a.tar", a.String())
		cmd := p.kiln()
		cmd.Env = append(cmd.Env, "KILN_CONFIG="+config)
		_, log, err := runBounded(t, cmd)
		if (err == nil) != (c.says == "") || !strings.Contains(log, c.says) {
			t.Errorf("%s: %v\n%s", c.name, err, log)
		}
		p.clean()
	}
}

// build builds the project, with stdin as its context unless that is nil, and looks at what came of it.
func (c *hostileArchive) build(t *testing.T, v *victim, p *project, result string, stdin []byte, args ...string) {
	t.Helper()
	cmd := p.kiln(append(args, "-t", "app", "-o", "type=image", "-o", "type=tar,dest=-")...)
	if stdin != nil {
		for i, a := range cmd.Args {
			if a == p.dir {
				cmd.Args[i] = "-"
			}
		}
		cmd.Stdin = bytes.NewReader(stdin)
	}
	out, log, err := runBounded(t, cmd)
	if err == nil && result == refused {
		t.Errorf("it was built\n%s", log)
	}
	if err != nil && (result == unpacked || result == copied) {
		t.Errorf("it was refused: %v\n%s", err, log)
	}
	if err == nil && !strings.Contains(log, c.warns) {
		t.Errorf("it was built, and nothing says %q:\n%s", c.warns, log)
	}
	if err != nil && !strings.Contains(log, c.says) {
		t.Errorf("the error does not say %q:\n%s", c.says, log)
	}
	checkLog(t, log)
	if err == nil {
		want := c.want // of what may be refused as well, if it is not
		if result == copied {
			want = []string{"archive"}
		}
		checkTree(t, out, want)
	}
	v.check(t, p.root, out, []byte(log))
	p.clean()
}

// runBounded is runWithoutLog for a kiln whose output is small, and returns that.
func runBounded(t *testing.T, cmd *exec.Cmd) (out []byte, log string, err error) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = runWithoutLog(t, cmd)
	if t.Failed() {
		t.Logf("%.64000s", stderr.String())
	}
	return stdout.Bytes(), stderr.String(), err
}

// runWithoutLog runs a kiln that has to end by itself and to do with 400 MiB, whatever it is given.
func runWithoutLog(t *testing.T, cmd *exec.Cmd) (err error) {
	t.Helper()
	limit := kilntest.Hang
	if rounds(t, 0) > 0 {
		limit *= 10 // what is random and much takes long
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	hung := time.AfterFunc(limit, func() {
		t.Errorf("kiln has run for %v", limit)
		cmd.Process.Kill()
	})
	// getrusage(2) would count this process's own memory, from between fork and exec.
	var most int
	ended := make(chan struct{})
	sampled := make(chan struct{})
	go func() {
		defer close(sampled)
		for {
			status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
			if _, after, ok := bytes.Cut(status, []byte("VmHWM:")); ok {
				var kib int
				fmt.Sscan(string(after), &kib)
				most = max(most, kib>>10)
			}
			select {
			case <-ended:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	err = cmd.Wait()
	hung.Stop()
	close(ended)
	<-sampled
	if most > 400 {
		t.Errorf("kiln took %d MiB of memory", most)
	}
	if code := cmd.ProcessState.ExitCode(); err != nil && code != 1 && code != 2 {
		t.Errorf("exit status %d", code)
	}
	return err
}

// checkLog looks for what no user may see, and for what a terminal would obey.
func checkLog(t *testing.T, log string) {
	t.Helper()
	if m := regexp.MustCompile(`panic|goroutine \d|runtime error|BUG`).FindString(log); m != "" {
		t.Errorf("the log has %q:\n%s", m, log)
	}
	if i := strings.IndexFunc(log, control); i >= 0 {
		t.Errorf("the log has control characters: %q", log[i:min(len(log), i+40)])
	}
	if len(log) > 64<<10 {
		t.Errorf("the log has %d bytes", len(log))
	}
}

// control reports whether a terminal would obey a character, or show others in another order because of it.
func control(r rune) bool {
	return r < ' ' && r != '\n' && r != '\t' || r >= 0x7f && r < 0xa0 || unicode.Is(unicode.Bidi_Control, r)
}

// checkTree compares a tar of an image's files with what is wanted of it.
func checkTree(t *testing.T, tarball []byte, want []string) {
	t.Helper()
	got := map[string]string{}
	tr := tar.NewReader(bytes.NewReader(tarball))
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatalf("the tar of the image: %v", err)
		}
		name := strings.Trim(h.Name, "/")
		switch h.Typeflag {
		case tar.TypeReg:
			data, err := io.ReadAll(io.LimitReader(tr, 1<<10))
			if err != nil {
				t.Fatal(err)
			}
			got[name] = "=" + string(data)
		case tar.TypeLink:
			got[name] = got[strings.Trim(h.Linkname, "/")]
		case tar.TypeSymlink:
			got[name] = "->" + h.Linkname
		case tar.TypeDir:
			got[name] = "/"
		default:
			got[name] = "?" + string(h.Typeflag)
		}
	}
	for _, w := range want {
		name, none := strings.CutPrefix(w, "!")
		end := max(strings.LastIndex(name, "="), strings.LastIndex(name, "?"), strings.LastIndex(name, "->"))
		if end < 0 {
			end = len(strings.TrimSuffix(name, "/"))
		}
		is, ok := got[name[:end]]
		if ok == none || ok && !none && name[end:] != "" && is != name[end:] {
			t.Errorf("want %q in the image: there is %v, %q", w, ok, is)
		}
	}
}

// victim is a directory of the host.
type victim struct {
	dir    string
	before string
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	v := &victim{dir: t.TempDir()}
	err := errors.Join(os.WriteFile(v.dir+"/secret", []byte(canary), 0o600), os.Mkdir(v.dir+"/dir", 0o700),
		os.WriteFile(v.dir+"/dir/file", []byte(canary), 0o600), os.WriteFile(v.dir+"/passwd", []byte("app:x:7777:7777:"+canary+":/:/bin/sh\n"), 0o644),
		os.WriteFile(v.dir+"/empty", nil, 0o644))
	if err != nil {
		t.Fatal(err)
	}
	v.before = v.look(t)
	return v
}

// look describes everything in the directory. What was changed and put back shows in the times of change.
func (v *victim) look(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(v.dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %o %d:%d nlink %d size %d ino %d mtime %v ctime %v", path, st.Mode, st.Uid, st.Gid, st.Nlink, st.Size, st.Ino, st.Mtim, st.Ctim)
		if e.Type().IsRegular() {
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %q", data)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// check fails the test if the directory has changed, or if its secret is in the root or in what kiln wrote.
func (v *victim) check(t *testing.T, root string, written ...[]byte) {
	t.Helper()
	if now := v.look(t); now != v.before {
		t.Errorf("the directory outside was\n%s\nand is\n%s", v.before, now)
	}
	for _, data := range written {
		if bytes.Contains(data, []byte(canary)) {
			t.Errorf("the secret is in what kiln wrote")
		}
	}
	err := filepath.WalkDir(root, func(path string, e os.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		if info, err := e.Info(); err != nil || info.Size() > 64<<20 {
			return err // a sparse file of the archive's own
		}
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(canary)) {
			t.Errorf("the secret is in %s", path)
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
}

// writeLayout makes an OCI layout with an image of these layers, whose blobs they are as they stand. change may spoil what its
// config says of them.
func writeLayout(t *testing.T, dir string, layers [][]byte, change ...func(diffIDs []string) []string) {
	t.Helper()
	type descriptor struct {
		MediaType string            `json:"mediaType"`
		Digest    string            `json:"digest"`
		Size      int               `json:"size"`
		Notes     map[string]string `json:"annotations,omitempty"`
	}
	blob := func(mediaType string, data []byte) descriptor {
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		path := filepath.Join(dir, "blobs", "sha256", sum)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, data, 0o644)); err != nil {
			t.Fatal(err)
		}
		return descriptor{mediaType, "sha256:" + sum, len(data), nil}
	}
	text := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	var diffIDs []string
	var descriptors []descriptor
	for _, l := range layers {
		mediaType := "application/vnd.oci.image.layer.v1.tar"
		h := sha256.New()
		io.Copy(h, decompress(l)) // what is broken breaks off
		diffIDs = append(diffIDs, fmt.Sprintf("sha256:%x", h.Sum(nil)))
		switch {
		case bytes.HasPrefix(l, []byte{0x1f, 0x8b}):
			mediaType += "+gzip"
		case bytes.HasPrefix(l, []byte{0x28, 0xb5, 0x2f, 0xfd}):
			mediaType += "+zstd"
		}
		descriptors = append(descriptors, blob(mediaType, l))
	}
	for _, f := range change {
		diffIDs = f(diffIDs)
	}
	config := blob("application/vnd.oci.image.config.v1+json", text(map[string]any{"os": "linux", "architecture": runtime.GOARCH,
		"rootfs": map[string]any{"type": "layers", "diff_ids": diffIDs}}))
	manifest := blob("application/vnd.oci.image.manifest.v1+json", text(map[string]any{"schemaVersion": 2,
		"mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": descriptors}))
	manifest.Notes = map[string]string{"org.opencontainers.image.ref.name": "latest"}
	index := text(map[string]any{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []any{manifest}})
	err := errors.Join(os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644),
		os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644))
	if err != nil {
		t.Fatal(err)
	}
}

func decompress(data []byte) io.Reader {
	if z, err := gzip.NewReader(bytes.NewReader(data)); err == nil {
		return z
	}
	if bytes.HasPrefix(data, []byte{0x28, 0xb5, 0x2f, 0xfd}) {
		if z, err := zstd.NewReader(bytes.NewReader(data)); err == nil {
			return z
		}
	}
	return bytes.NewReader(data)
}

func gzipped(data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func zstded(data []byte) []byte {
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		panic(err)
	}
	w.Write(data)
	w.Close()
	return b.Bytes()
}

func xzed(data []byte) []byte {
	var b bytes.Buffer
	w, err := xz.NewWriter(&b)
	if err != nil {
		panic(err)
	}
	w.Write(data)
	w.Close()
	return b.Bytes()
}

// through makes the archive a link out and then does something to what lies behind it.
func through(do func(a *archive)) func(a *archive) {
	return func(a *archive) {
		a.link("l", a.victim)
		do(a)
	}
}

// everyByte is a name with every byte that a name can have.
func everyByte() string {
	var b []byte
	for c := 1; c < 256; c++ {
		if c != '/' {
			b = append(b, byte(c))
		}
	}
	return string(b)
}

func up(path string) string { return strings.Repeat("../", 30) + strings.TrimPrefix(path, "/") }

// maxLinks is a number of names that a file can have on ext4.
const maxLinks = 60000

// many is a number of entries, and bomb a number of bytes of which next to nothing is left when they are compressed.
var many, bomb = func() (int, int) {
	if os.Getenv("KILN_TORTURE") == "" {
		return 1000, 32 << 20
	}
	return 100000, 1 << 30
}()

var hostileArchives = []hostileArchive{
	// Names.
	{name: "name up", make: func(a *archive) { a.file(up(a.victim)+"/new", "x") }, result: refused, added: unpacked, context: unpacked, says: "leads out"},
	{name: "name up in the middle", make: func(a *archive) { a.file("a/../../x", "x") }, result: refused, added: unpacked, context: unpacked, says: "leads out"},
	{name: "name up that stays", make: func(a *archive) { a.file("a/../b", "x") }, result: unpacked, want: []string{"b=x"}},
	{name: "name two dots", make: func(a *archive) { a.file("..", "x") }, result: refused, says: "of the archive"},
	{name: "absolute name", make: func(a *archive) { a.file(a.victim+"/secret", "x") }, result: unpacked},
	{name: "empty name", make: func(a *archive) { a.raw('0', "", "x", nil) }, result: refused, says: "root of the archive"},
	{name: "slashes and dots", make: func(a *archive) { a.dir("./"); a.file(".//a///./b", "x") }, result: unpacked, want: []string{"a/b=x"}},
	{name: "NUL in a name", make: func(a *archive) { a.pax('0', "n", "x", "path", "a\x00b") }, result: refused, added: copied},
	{name: "every byte in a name", make: func(a *archive) { a.file(everyByte(), "x") }, result: unpacked, want: []string{everyByte() + "=x"}},
	{name: "escape sequences in a name that is refused", make: func(a *archive) { a.file("../\x1b]0;x\a\x1b[2J\r", "x") }, result: refused, added: unpacked, context: unpacked, says: "leads out"},
	{name: "name of 255 bytes", make: func(a *archive) { a.file(strings.Repeat("n", 255), "x") }, result: unpacked, want: []string{strings.Repeat("n", 255) + "=x"}},
	{name: "name of 256 bytes", make: func(a *archive) { a.file(strings.Repeat("n", 256), "x") }, result: refused, says: "longer than"},
	{name: "name of a megabyte", make: func(a *archive) { a.file(strings.Repeat("n", 1<<20-100), "x") }, result: refused},
	{name: "1900 deep", make: func(a *archive) { a.file(strings.Repeat("d/", 1900)+"f", "x") }, result: unpacked, want: []string{strings.Repeat("d/", 1900) + "f=x"}},
	{name: "1900 deep and each named", make: func(a *archive) {
		for i := 1; i <= 1900; i++ {
			a.dir(strings.Repeat("d/", i))
		}
		a.file(strings.Repeat("d/", 1900)+"f", "x")
	}, result: unpacked, want: []string{strings.Repeat("d/", 1900) + "f=x"}},
	{name: "5000 deep", make: func(a *archive) { a.file(strings.Repeat("d/", 5000)+"f", "x") }, result: refused, says: "longer than"},
	{name: "5000 deep step by step", make: func(a *archive) {
		for i := 1; i <= 5000; i += 50 {
			a.dir(strings.Repeat("d/", i))
		}
	}, result: refused, says: "longer than"},

	// Roots that are none.
	{name: "root is a link", make: func(a *archive) { a.link("./", a.victim); a.file("x", "x") }, result: refused, says: "root of the archive"},
	{name: "root is a link by its absolute name", make: func(a *archive) { a.link("/", a.victim); a.file("x", "x") }, result: refused, says: "root of the archive"},
	{name: "root is a link by dots", make: func(a *archive) { a.link("a/..", a.victim); a.file("x", "x") }, result: refused, says: "root of the archive"},
	{name: "root is a file", make: func(a *archive) { a.file("/.", "x") }, result: refused, says: "root of the archive"},
	{name: "root of another mode", make: func(a *archive) {
		a.add(tar.Header{Typeflag: tar.TypeDir, Name: "./", Mode: 0o700, Uid: 5}, "")
		a.file("x", "x")
	}, result: unpacked, want: []string{"x=x"}},
	{name: "root is a link and a layer above", lower: func(a *archive) { a.link("/.", a.victim) }, make: func(a *archive) { a.file("x", "x") }, result: refused, says: "root of the archive"},

	// Through a link that leads out: every verb.
	{name: "create through a link", make: through(func(a *archive) { a.file("l/new", "x") }), result: unpacked, added: refused, context: refused},
	{name: "overwrite through a link", make: through(func(a *archive) { a.file("l/secret", "x") }), result: unpacked, added: refused, context: refused},
	{name: "overwrite a link", make: func(a *archive) { a.link("s", a.victim+"/secret"); a.file("s", "x") }, result: unpacked, want: []string{"s=x"}},
	{name: "mkdir through a link", make: through(func(a *archive) { a.dir("l/new") }), result: unpacked, added: refused, context: refused},
	{name: "chmod through a link", make: through(func(a *archive) { a.add(tar.Header{Typeflag: tar.TypeDir, Name: "l/dir", Mode: 0o777}, "") }), result: unpacked, added: refused, context: refused},
	{name: "chmod of a link", make: through(func(a *archive) { a.add(tar.Header{Typeflag: tar.TypeDir, Name: "l", Mode: 0o777}, "") }), result: unpacked},
	{name: "chmod of a link with a slash", make: through(func(a *archive) { a.add(tar.Header{Typeflag: tar.TypeDir, Name: "l/.", Mode: 0o777}, "") }), result: unpacked},
	{name: "chown through a link", make: through(func(a *archive) { a.add(tar.Header{Typeflag: tar.TypeDir, Name: "l/dir", Uid: 1, Gid: 1}, "") }), result: unpacked, added: refused, context: refused},
	{name: "times through a link", make: through(func(a *archive) {
		a.add(tar.Header{Typeflag: tar.TypeDir, Name: "l/dir/", ModTime: time.Unix(1, 0)}, "")
	}), result: unpacked, added: refused, context: refused},
	{name: "attributes through a link", make: through(func(a *archive) { a.pax('5', "l/dir", "", "SCHILY.xattr.user.x", "x") }), result: unpacked, added: refused, context: refused},
	{name: "attributes of a link", make: func(a *archive) { a.pax('2', "l", "", "linkpath", a.victim+"/secret", "SCHILY.xattr.user.x", "x") }, result: either},
	{name: "node through a link", make: through(func(a *archive) { a.node('3', "l/new", 1, 3) }), result: unpacked, added: refused, context: refused},
	{name: "fifo through a link", make: through(func(a *archive) { a.node('6', "l/new", 0, 0) }), result: unpacked, added: refused, context: refused},
	{name: "link through a link", make: through(func(a *archive) { a.link("l/new", "/etc/passwd") }), result: unpacked, added: refused, context: refused},
	{name: "hard link through a link", make: through(func(a *archive) { a.file("f", "x"); a.hard("l/secret", "f") }), result: unpacked, added: refused, context: refused},
	{name: "hard link to what is behind a link", make: through(func(a *archive) { a.hard("h", "l/secret") }), result: refused, says: "h"},
	{name: "deletion through a link", make: through(func(a *archive) { a.file("l/.wh.secret", "") }), result: unpacked, added: refused, context: refused},
	{name: "opaque through a link", make: through(func(a *archive) { a.file("l/.wh..wh..opq", "") }), result: unpacked, added: refused, context: refused},
	{name: "replace a directory behind a link", make: through(func(a *archive) { a.file("l/dir", "x") }), result: unpacked, added: refused, context: refused},
	{name: "through a relative link", make: func(a *archive) { a.link("l", up(a.victim)); a.file("l/secret", "x") }, result: unpacked, added: refused, context: refused},
	{name: "through links of links", make: func(a *archive) {
		a.link("m", a.victim)
		a.link("d", "m")
		a.link("l", "/d/dir")
		a.file("l/file", "x")
	}, result: unpacked, added: refused, context: refused},
	{name: "through a link to a root of proc", make: func(a *archive) { a.link("l", "/proc/self/root"+a.victim); a.file("l/new", "x") }, result: unpacked, added: refused, context: refused},
	{name: "through a link to a descriptor", make: func(a *archive) { a.link("l", "/proc/self/fd/3"); a.file("l/new", "x") }, result: unpacked, added: refused, context: refused},
	{name: "through a link of the layer below", lower: func(a *archive) { a.link("l", a.victim) }, make: func(a *archive) { a.file("l/secret", "x"); a.dir("l/dir") }, result: unpacked, added: refused},
	{name: "links in a circle", make: func(a *archive) { a.link("a", "b"); a.link("b", "a"); a.file("a/x", "x") }, result: refused, says: "symbolic links"},
	{name: "a link to itself", make: func(a *archive) { a.link("a", "a"); a.file("a/x", "x") }, result: refused, says: "symbolic links"},
	{name: "links that grow", make: func(a *archive) {
		a.link("l0", ".")
		for i := range 60 {
			a.link(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d/l%d", i, i))
		}
		a.file("l60/x", "x")
	}, result: refused, says: "symbolic links"},
	{name: "a link without a target", make: func(a *archive) { a.raw('2', "l", "", nil) }, result: refused, says: "symbolic link"},
	{name: "a link of 5000 bytes", make: func(a *archive) { a.link("l", strings.Repeat("x/", 2500)) }, result: refused, says: "symbolic link"},
	{name: "directory replaced by a link", make: func(a *archive) { a.dir("d"); a.file("d/a", "x"); a.link("d", a.victim); a.file("d/secret", "x") }, result: unpacked, added: refused, context: refused, want: []string{"!d/a"}},
	{name: "parent replaced by a link", make: func(a *archive) {
		a.file("a/b/c/x", "x")
		a.link("a/b", a.victim)
		a.file("a/b/dir/file", "x")
	}, result: unpacked, added: refused, context: refused},

	// Hard links.
	{name: "hard link to the outside", make: func(a *archive) { a.hard("h", a.victim+"/secret") }, result: refused, says: "h"},
	{name: "hard link up", make: func(a *archive) { a.hard("h", up(a.victim)+"/secret") }, result: refused, says: "hard link"},
	{name: "hard link to a link out", make: func(a *archive) { a.link("s", a.victim+"/secret"); a.hard("h", "s"); a.file("h", "x") }, result: unpacked, want: []string{"h=x"}},
	{name: "hard link to a directory", make: func(a *archive) { a.dir("d"); a.hard("h", "d") }, result: refused},
	{name: "hard link to itself", make: func(a *archive) { a.hard("h", "h") }, result: refused},
	{name: "hard link to what comes later", make: func(a *archive) { a.hard("h", "f"); a.file("f", "x") }, result: refused},
	{name: "hard link to the root", make: func(a *archive) { a.hard("h", "/") }, result: refused, says: "leads out"},
	{name: "hard link with content", make: func(a *archive) { a.file("f", "x"); a.raw('1', "h", "y", func(b []byte) { copy(b[157:], "f") }) }, result: either},
	{name: "written through a hard link", make: func(a *archive) { a.file("f", "one"); a.hard("h", "f"); a.file("f", "two") }, result: unpacked, want: []string{"f=two", "h=one"}},
	{name: "hard links in a chain", make: func(a *archive) { a.file("a", "x"); a.hard("b", "a"); a.hard("c", "b") }, result: unpacked, want: []string{"c=x"}},

	// Devices and pipes.
	{name: "a disk", make: func(a *archive) { a.node('4', "sda", 8, 0); a.node('3', "mem", 1, 1) }, result: unpacked, want: []string{"sda?4", "mem?3"}},
	{name: "written to a device", make: func(a *archive) { a.node('3', "null", 1, 3); a.file("null", "x") }, result: unpacked, want: []string{"null=x"}},
	{name: "device 0:0", make: func(a *archive) { a.node('3', "x", 0, 0) }, result: refused, says: "0:0"},
	{name: "a device out of range", make: func(a *archive) { a.node('3', "x", 1<<20, 0) }, result: refused, says: "out of range"},
	{name: "passwd is a fifo", make: func(a *archive) { a.node('6', "etc/passwd", 0, 0) }, more: "COPY --chown=app Dockerfile /\n", added: either, result: either},
	{name: "passwd is a device", make: func(a *archive) { a.node('3', "etc/passwd", 1, 5) }, more: "COPY --chown=app Dockerfile /\n", result: refused},
	{name: "passwd leads out", make: func(a *archive) { a.link("etc/passwd", a.victim+"/passwd") }, more: "COPY --chown=app Dockerfile /\n", result: unpacked, warns: "the files belong to 0:0"},
	{name: "passwd is huge", make: func(a *archive) { a.file("etc/passwd", strings.Repeat("#\n", 20<<20)) }, more: "COPY --chown=app Dockerfile /\n", result: refused, packed: gzipped},

	// Headers.
	{name: "a PAX header of 2 MiB", make: func(a *archive) { a.pax('0', "f", "x", "comment", strings.Repeat("x", 2<<20)) }, result: refused, added: copied},
	{name: "100000 PAX records", make: func(a *archive) {
		var r []string
		for i := range 50000 {
			r = append(r, fmt.Sprint("a", i), "b")
		}
		a.pax('0', "f", "x", r...)
	}, result: either},
	{name: "a PAX record with a wrong length", make: func(a *archive) { a.raw('x', "p", "99 path=x\n", nil); a.raw('0', "f", "x", nil) }, result: refused, added: copied},
	{name: "a PAX header and nothing after it", make: func(a *archive) { a.file("f", "x"); a.raw('x', "p", "9 path=x\n", nil) }, result: either},
	{name: "global PAX header", make: func(a *archive) { a.raw('g', "p", "33 path=../../../../etc/./passwd\n", nil); a.file("f", "x") }, result: unpacked, want: []string{"f=x"}},
	{name: "a PAX size that is not the size", make: func(a *archive) { a.pax('0', "f", "x", "size", "99999999") }, result: refused},
	{name: "a negative PAX size", make: func(a *archive) { a.pax('0', "f", "x", "size", "-1") }, result: refused, added: copied},
	{name: "an owner out of range", make: func(a *archive) { a.pax('0', "f", "x", "uid", "4294967296") }, result: refused, says: "out of range"},
	{name: "owner -1", make: func(a *archive) { a.pax('0', "f", "x", "uid", "-1") }, result: refused},
	{name: "the last owner", make: func(a *archive) { a.pax('0', "f", "x", "uid", "4294967294", "gid", "4294967294") }, result: unpacked, want: []string{"f=x"}},
	{name: "a time far away", make: func(a *archive) { a.pax('0', "f", "x", "mtime", "1099511627776") }, result: unpacked, want: []string{"f=x"}},
	{name: "a time out of range", make: func(a *archive) { a.pax('0', "f", "x", "mtime", "9223372036854775807") }, result: either},
	{name: "a negative time", make: func(a *archive) { a.pax('0', "f", "x", "mtime", "-1.5") }, result: unpacked, want: []string{"f=x"}},
	{name: "an attribute without a name", make: func(a *archive) { a.pax('0', "f", "x", "SCHILY.xattr.", "x") }, result: either},
	{name: "an attribute of no name space", make: func(a *archive) { a.pax('0', "f", "x", "SCHILY.xattr.bogus.x", "x") }, result: either},
	{name: "an attribute of 100 kB", make: func(a *archive) { a.pax('0', "f", "x", "SCHILY.xattr.user.x", strings.Repeat("x", 100<<10)) }, result: either},
	{name: "overlay attributes", make: func(a *archive) {
		for _, x := range []string{"trusted.overlay.opaque", "trusted.overlay.redirect", "trusted.overlay.metacopy", "user.overlay.opaque", "user.overlay.redirect", "trusted.overlay.overlay.opaque"} {
			a.pax('5', "d", "", "SCHILY.xattr."+x, a.victim)
		}
		a.pax('0', "d/f", "x", "SCHILY.xattr.trusted.overlay.metacopy", "", "SCHILY.xattr.trusted.overlay.redirect", a.victim+"/secret", "SCHILY.xattr.user.overlay.whiteout", "y")
	}, result: unpacked, want: []string{"d/f=x"}},
	{name: "capabilities", make: func(a *archive) {
		a.pax('0', "f", "x", "SCHILY.xattr.security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	}, result: unpacked, want: []string{"f=x"}},
	{name: "setuid", make: func(a *archive) { a.add(tar.Header{Typeflag: tar.TypeReg, Name: "su", Mode: 0o6755}, "x") }, result: unpacked, want: []string{"su=x"}},
	{name: "mode with a type in it", make: func(a *archive) { a.add(tar.Header{Typeflag: tar.TypeReg, Name: "f", Mode: 0o20666}, "x") }, result: unpacked, want: []string{"f=x"}},
	{name: "a type that is not known", make: func(a *archive) { a.raw('Z', "f", "x", nil) }, result: refused, says: "type"},
	{name: "a directory with content", make: func(a *archive) { a.raw('5', "d", "x", nil); a.file("f", "x") }, result: either},
	{name: "a size of 8 EiB", make: func(a *archive) {
		a.raw('0', "f", "x", func(b []byte) { copy(b[124:136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff") })
	}, result: refused},
	{name: "a negative size", make: func(a *archive) {
		a.raw('0', "f", "x", func(b []byte) { copy(b[124:136], "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff") })
	}, result: refused, added: copied},
	{name: "a GNU name of 10 MiB", make: func(a *archive) {
		a.raw('L', "././@LongLink", strings.Repeat("n", 10<<20), nil)
		a.raw('0', "f", "x", nil)
	}, result: refused, added: copied},

	// Sparse files.
	{name: "sparse, a tebibyte of nothing", make: func(a *archive) {
		a.pax('0', "f", "0\n", "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "f", "GNU.sparse.realsize", "1099511627776")
	}, result: refused, added: copied},
	{name: "sparse, old form", make: func(a *archive) {
		a.raw('S', "f", "", func(b []byte) {
			copy(b[257:], "ustar  \x00")
			copy(b[386:], "00000000000\x0000000000000\x00")
			copy(b[483:], "\x80\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00")
		})
	}, result: refused},
	{name: "sparse, a million regions", make: func(a *archive) {
		var m strings.Builder
		m.WriteString("1000000\n")
		for i := range 1000000 {
			fmt.Fprintf(&m, "%d\n0\n", i)
		}
		m.WriteString(strings.Repeat("\x00", -m.Len()&511))
		a.pax('0', "f", m.String(), "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "f", "GNU.sparse.realsize", "1000000")
	}, result: either, packed: gzipped},
	{name: "sparse, regions that overlap", make: func(a *archive) {
		m := "2\n0\n10\n5\n10\n"
		a.pax('0', "f", m+strings.Repeat("\x00", 512-len(m))+"01234567890123456789", "GNU.sparse.major", "1", "GNU.sparse.minor", "0", "GNU.sparse.name", "f", "GNU.sparse.realsize", "20")
	}, result: refused, added: copied},

	// Deletions.
	{name: "a deletion of nothing", make: func(a *archive) { a.file("d/.wh.", "") }, result: refused},
	{name: "a deletion of the directory", make: func(a *archive) { a.file("d/.wh..", "") }, result: refused},
	{name: "a deletion of the parent", make: func(a *archive) { a.file("d/.wh...", "") }, result: refused},
	{name: "a deletion of the root's parent", make: func(a *archive) { a.file(".wh...", "") }, result: refused},
	{name: "a deletion that is a directory", make: func(a *archive) { a.dir(".wh.d/"); a.file(".wh.d/x", "x") }, result: refused},
	{name: "a deletion that is a link", make: func(a *archive) { a.link(".wh.secret", a.victim+"/secret") }, result: either, added: refused, context: refused},
	{name: "a deletion", lower: func(a *archive) { a.file("f", "x"); a.file("g", "x") }, make: func(a *archive) { a.file(".wh.f", "") }, result: unpacked, added: refused, context: refused, want: []string{"!f", "g=x"}, says: ".wh."},
	{name: "everything deleted, which overlayfs ignores", lower: func(a *archive) { a.file("f", "x") },
		make:   func(a *archive) { a.file(".wh..wh..opq", ""); a.file("g", "x") },
		result: unpacked, added: refused, context: refused, want: []string{"f=x", "g=x"}},
	{name: "bookkeeping of AUFS", make: func(a *archive) { a.dir(".wh..wh.plnk"); a.file("f", "x") }, result: unpacked, added: refused, context: refused, want: []string{"f=x"}},

	// Archives that are broken, or more than one.
	{name: "nothing at all", make: func(a *archive) {}, result: either},
	{name: "an end and nothing else", make: func(a *archive) { a.end() }, result: either},
	{name: "cut off in a header", make: func(a *archive) { a.file("f", "x"); a.file("g", "x"); a.Truncate(a.Len() - 1024 + 100) }, result: refused},
	{name: "cut off in a file", make: func(a *archive) {
		a.file("f", "x")
		a.file("g", strings.Repeat("x", 5000))
		a.Truncate(1024 + 512 + 1000)
	}, result: refused},
	{name: "cut off after a file", make: func(a *archive) { a.file("f", "x") }, result: unpacked, want: []string{"f=x"}},
	{name: "cut off, and compressed", make: func(a *archive) { a.file("f", strings.Repeat("x", 100000)); a.end() }, packed: func(b []byte) []byte { z := gzipped(b); return z[:len(z)-20] }, result: refused},
	{name: "a checksum that is wrong", make: func(a *archive) { a.file("f", strings.Repeat("x", 100000)); a.end() }, packed: func(b []byte) []byte { z := gzipped(b); z[len(z)-6] ^= 1; return z }, result: refused},
	{name: "garbage in the middle", make: func(a *archive) { a.file("f", "x"); a.WriteString(strings.Repeat("garbage!", 64)); a.end() }, result: refused},
	{name: "garbage at the end", make: func(a *archive) { a.file("f", "x"); a.end(); a.WriteString(strings.Repeat("garbage!", 1000)) }, result: unpacked, want: []string{"f=x"}},
	{name: "a second archive at the end", make: func(a *archive) { a.file("f", "x"); a.end(); a.file("g", "x"); a.end() }, result: unpacked, want: []string{"f=x", "!g"}},
	{name: "two gzip streams", make: func(a *archive) { a.file("f", "x"); a.file("g", "x"); a.end() }, packed: func(b []byte) []byte { return append(gzipped(b[:700]), gzipped(b[700:])...) }, result: unpacked, want: []string{"f=x", "g=x"}},
	{name: "the same name again and again", make: func(a *archive) {
		for i := range 1000 {
			a.file("f", fmt.Sprint(i))
		}
	}, result: unpacked, want: []string{"f=999"}},
	{name: "directory, file, link, directory", make: func(a *archive) {
		a.file("d/x", "x")
		a.file("d", "x")
		a.link("d", a.victim)
		a.node('6', "d", 0, 0)
		a.dir("d")
		a.file("d/y", "y")
	}, result: either, want: []string{"d/y=y", "!d/x"}},

	// Much.
	{name: "many files", make: func(a *archive) {
		for i := range many {
			a.raw('0', fmt.Sprintf("d%d/%d", i%100, i), "", nil)
		}
	}, packed: gzipped, result: unpacked, want: []string{"d0/0=", fmt.Sprintf("d%d/%d=", (many-1)%100, many-1)}},
	{name: "many hard links", make: func(a *archive) {
		a.file("f", "x")
		for i := range min(many, maxLinks) {
			a.raw('1', fmt.Sprint(i), "", func(b []byte) { copy(b[157:], "f") })
		}
	}, packed: gzipped, result: unpacked, want: []string{fmt.Sprint(min(many, maxLinks)-1, "=x")}},
	{name: "many directories that become files", make: func(a *archive) {
		for i := range many {
			a.raw('5', fmt.Sprint(i), "", nil)
			a.raw('0', fmt.Sprint(i), "x", nil)
		}
	}, packed: gzipped, result: unpacked, want: []string{fmt.Sprint(many-1, "=x")}},
	{name: "links that are followed many times", make: func(a *archive) {
		a.dir("d")
		for i := range 39 {
			a.link(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d", i))
		}
		a.link("l0", "d")
		for i := range many {
			a.raw('0', fmt.Sprintf("l39/%d", i), "", nil)
		}
	}, packed: gzipped, result: unpacked, want: []string{fmt.Sprintf("d/%d=", many-1)}},
	{name: "bomb, gzip", make: func(a *archive) { a.file("f", strings.Repeat("\x00", bomb)); a.end() }, packed: gzipped, result: unpacked},
	{name: "bomb, zstd", make: func(a *archive) { a.file("f", strings.Repeat("\x00", bomb)); a.end() }, packed: zstded, result: unpacked},
	{name: "bomb, xz", make: func(a *archive) { a.file("f", strings.Repeat("\x00", bomb)); a.end() }, packed: xzed, result: refused, added: unpacked, context: unpacked},
	{name: "a bomb after the end", make: func(a *archive) { a.file("f", "x"); a.end(); a.Write(make([]byte, bomb)) }, packed: gzipped, result: unpacked, want: []string{"f=x"}},
	{name: "gzip in gzip", make: func(a *archive) { a.file("f", "x"); a.end() }, packed: func(b []byte) []byte { return gzipped(gzipped(gzipped(b))) }, result: either},
	{name: "a zstd window of 2 GiB", make: func(a *archive) { a.file("f", "x"); a.end() }, packed: func(b []byte) []byte {
		// RFC 8878, 3.1.1.1.2: an exponent of 21 above 1 KiB.
		return []byte{0x28, 0xb5, 0x2f, 0xfd, 0, 21 << 3, 1, 0, 0}
	}, result: refused, says: "size"},
	{name: "an xz dictionary of 2 GiB", make: func(a *archive) { a.file("f", "x"); a.end() }, packed: func(b []byte) []byte {
		return bigDictionary(xzed(b))
	}, result: refused, says: "xz"},

	// What looks like harm and is none.
	{name: "absolute links inside", make: func(a *archive) {
		a.dir("usr/lib")
		a.link("lib", "/usr/lib")
		a.file("lib/x", "x")
		a.hard("y", "lib/x")
	}, result: unpacked, want: []string{"usr/lib/x=x", "y=x", "lib->/usr/lib"}},
	{name: "hard link through a directory that is a link below", lower: func(a *archive) { a.file("usr/lib/y", "y"); a.link("lib64", "/usr/lib") }, make: func(a *archive) { a.file("lib64/x", "x"); a.hard("lib64/z", "/lib64/x") }, result: unpacked, want: []string{"usr/lib/x=x", "usr/lib/z=x", "lib64->/usr/lib"},
		layered: []string{"lib64/", "lib64/x=x", "lib64/z=x", "usr/lib/y=y", "!usr/lib/x"}}, // as an overlay shows it
	{name: "hard link to a file below", lower: func(a *archive) { a.file("usr/lib/y", "y") }, make: func(a *archive) { a.hard("z", "usr/lib/y") }, result: refused, says: "not a file of this layer", added: unpacked, want: []string{"z=y", "usr/lib/y=y"}},
	{name: "parents that nobody names", make: func(a *archive) { a.file("a/b/c/d", "x") }, result: unpacked, want: []string{"a/b/c/", "a/b/c/d=x"}},
	{name: "a link that leads nowhere", make: func(a *archive) { a.link("l", "/none"); a.file("l/x", "x") }, result: unpacked, added: refused, context: refused, want: []string{"none/x=x"}},
	{name: "40 links to follow", make: func(a *archive) {
		a.dir("d")
		a.link("l0", "d")
		for i := range 39 {
			a.link(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d", i))
		}
		a.file("l39/x", "x")
	}, result: unpacked, want: []string{"d/x=x"}},
	{name: "names of Windows", make: func(a *archive) { a.file(`C:\Windows\..\x`, "x"); a.file("a:b", "y") }, result: unpacked, want: []string{`C:\Windows\..\x=x`, "a:b=y"}},
	{name: "a name that begins with a dash", make: func(a *archive) { a.file("-rf", "x"); a.file("--checkpoint-action=exec=sh", "x") }, result: unpacked, want: []string{"-rf=x"}},
}

// bigDictionary gives an xz file a dictionary of 2 GiB, and the sums that belong to it.
func bigDictionary(data []byte) []byte {
	out := slices.Clone(data)
	// The block header follows the 12 bytes of the stream's: size, flags, filter 0x21, one byte of properties, padding, CRC-32.
	size := int(out[12]+1) * 4
	header := out[12 : 12+size]
	i := bytes.Index(header, []byte{0x21, 0x01})
	header[i+2] = 38
	crc := crc32.ChecksumIEEE(header[:size-4])
	copy(header[size-4:], []byte{byte(crc), byte(crc >> 8), byte(crc >> 16), byte(crc >> 24)})
	return out
}
