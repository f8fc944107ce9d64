//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// project is a copy of a directory of testdata, to build and to edit.
type project struct {
	t    *testing.T
	dir  string
	args []string
}

func open(t *testing.T, name string, args ...string) *project {
	t.Helper()
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS(filepath.Join("testdata", name))); err != nil {
		t.Fatal(err)
	}
	// COPY keeps files' times, so these are the same in every copy.
	err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		return errors.Join(err, os.Chtimes(path, time.Unix(1e9, 0), time.Unix(1e9, 0)))
	})
	if err != nil {
		t.Fatal(err)
	}
	return &project{t: t, dir: dir, args: args}
}

// edit replaces old, which must be there once, in a file.
func (p *project) edit(name, old, new string) {
	p.t.Helper()
	path := filepath.Join(p.dir, name)
	text, err := os.ReadFile(path)
	if err != nil {
		p.t.Fatal(err)
	}
	if n := strings.Count(string(text), old); n != 1 {
		p.t.Fatalf("%s has %q %d times", name, old, n)
	}
	if err := os.WriteFile(path, []byte(strings.Replace(string(text), old, new, 1)), 0o644); err != nil {
		p.t.Fatal(err)
	}
}

// result is a finished build.
type result struct {
	t *testing.T
	// id is the digest of the image's config.
	id string
	// ran and cached are the steps, as they stand in the Dockerfile.
	ran, cached []string
}

// stepName is a vertex that is a step: "[linux/arm64 stage 2/3] RUN make", or "[2/3] RUN make" where there is one stage
// and one platform. FROM is none: a base is neither cached nor run.
var stepName = regexp.MustCompile(`^\[(?:[^\]]+ +)?[0-9]+/[0-9]+\] (.*)$`)

// build builds the image.
func (p *project) build(args ...string) *result {
	p.t.Helper()
	iid := filepath.Join(p.t.TempDir(), "iid")
	r := p.run(append(args, "--iidfile", iid)...)
	id, err := os.ReadFile(iid)
	if err != nil {
		p.t.Fatal(err)
	}
	r.id = string(id)
	return r
}

// files builds the files of the image and returns the directory that has them.
func (p *project) files() string {
	p.t.Helper()
	dir := p.t.TempDir()
	p.run("--output", "type=local,dest="+dir)
	return dir
}

// run runs kiln build.
func (p *project) run(args ...string) *result {
	p.t.Helper()
	r, log, err := p.try(args...)
	if err != nil {
		p.t.Fatalf("kiln build %s: %v\n%s", strings.Join(args, " "), err, log)
	}
	return r
}

// try runs kiln build, which may fail, in the machine's surroundings: its proxies and certificates. It returns what the
// steps and kiln itself printed as well.
func (p *project) try(args ...string) (*result, string, error) {
	p.t.Helper()
	all := []string{"build", "--progress=rawjson", "--build-arg", "BASE=" + debian, "--secret", "id=ca,src=" + caFile}
	for name, value := range proxies(p.t) {
		all = append(all, "--build-arg", name+"="+value)
	}
	all = append(append(append(all, p.args...), args...), p.dir)
	cmd := exec.Command(kilnPath, all...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	r := &result{t: p.t}
	var log strings.Builder
	vertices := map[string]bool{}
	for line := range strings.Lines(stderr.String()) {
		var status struct {
			Vertexes []struct {
				Digest, Name string
				Completed    *string
				Cached       bool
			}
			Logs []struct{ Data []byte }
		}
		if json.Unmarshal([]byte(line), &status) != nil {
			log.WriteString(line)
			continue
		}
		for _, l := range status.Logs {
			log.Write(l.Data)
		}
		for _, v := range status.Vertexes {
			m := stepName.FindStringSubmatch(v.Name)
			if m == nil || v.Completed == nil || vertices[v.Digest] || strings.HasPrefix(m[1], "FROM ") {
				continue
			}
			vertices[v.Digest] = true
			if v.Cached {
				r.cached = append(r.cached, m[1])
			} else {
				r.ran = append(r.ran, m[1])
			}
		}
	}
	return r, log.String(), err
}

// wantRan says which steps have run, each by how its line begins; all others were cached.
func (r *result) wantRan(steps ...string) {
	r.t.Helper()
	got := slices.Sorted(slices.Values(r.ran))
	want := slices.Sorted(slices.Values(steps))
	if !slices.EqualFunc(got, want, strings.HasPrefix) {
		r.t.Errorf("these steps ran:\n  %s\nand these should have:\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

// wantAllCached says that nothing ran and that the image is that of an earlier build.
func (r *result) wantAllCached(earlier *result) {
	r.t.Helper()
	r.wantRan()
	if len(r.cached) != len(earlier.ran)+len(earlier.cached) {
		r.t.Errorf("%d steps were cached, and the earlier build had %d", len(r.cached), len(earlier.ran)+len(earlier.cached))
	}
	r.wantSame(earlier)
}

func (r *result) wantSame(earlier *result) {
	r.t.Helper()
	if r.id != earlier.id {
		r.t.Errorf("the image is %s, and it was %s", r.id, earlier.id)
	}
}

func (r *result) wantOther(earlier *result) {
	r.t.Helper()
	if r.id == earlier.id {
		r.t.Errorf("the image is still %s", r.id)
	}
}

// command runs a program and returns its standard output without the last newline.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &stderr)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// remoteDigest asks the registry for the digest of an image's manifest.
func remoteDigest(t *testing.T, name string) string {
	t.Helper()
	return command(t, "skopeo", "inspect", "--tls-verify=false", "--format", "{{.Digest}}", "docker://"+name)
}

// unpack fetches an image, given as skopeo names it, and returns the directory of its files.
func unpack(t *testing.T, image string) string {
	t.Helper()
	dir := t.TempDir()
	command(t, "skopeo", "copy", "--quiet", "--src-tls-verify=false", image, "oci:"+dir+"/image:latest")
	command(t, "umoci", "unpack", "--image", dir+"/image:latest", dir+"/bundle")
	return dir + "/bundle/rootfs"
}

// proxies are the variables by which programs in a build find the proxies that this machine uses, apt's included.
func proxies(t *testing.T) map[string]string {
	out := map[string]string{}
	for _, name := range []string{"http_proxy", "https_proxy", "no_proxy"} {
		for _, name := range []string{name, strings.ToUpper(name)} {
			if v := os.Getenv(name); v != "" {
				out[name] = v
			}
		}
	}
	for name, key := range map[string]string{"http_proxy": "Acquire::http::Proxy", "https_proxy": "Acquire::https::Proxy"} {
		v := command(t, "apt-config", "dump", "--format", "%v%n", key)
		if _, ok := out[name]; !ok && v != "" && v != "DIRECT" && v != "false" {
			out[name] = v
		}
	}
	return out
}
