package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// app is an application whose image is built on a machine that has never built before. Its directory in testdata has the context, the
// Dockerfile, and base.Dockerfile if its base image is not Debian alone.
type app struct {
	name string
	edit string // the source file of which a line changes
	// from and to are that line, with %d for a number that is another one each time.
	from, to string
	// fill writes what the context of the base image has, if there is something.
	fill func(ctx context.Context, dir string) error
}

var apps = []app{
	{"node", "src/main.js", "version: 0", "version: %d", npmPackage},
	{"go", "main.go", `version = "0"`, `version = "%d"`, nil},
	{"mariadb", "docker-entrypoint.sh", "# Starts", "# Version %d starts", nil},
}

// latencies are for how long the wire keeps back each request.
var latencies = []time.Duration{0, 50 * time.Millisecond}

// The two things that are done with each application.
const (
	cachedCase = "cached" // every step is in the cache; the image is pushed
	editedCase = "edited" // a source file has changed; the image is pushed
)

// cell is one row of the table of caches.
type cell struct {
	app, what, fs string
	latency       time.Duration
	runs          map[string][]cacheRun // of each builder
}

func (c *cell) String() string {
	return fmt.Sprintf("%s %s %s %dms", c.app, c.what, c.fs, c.latency.Milliseconds())
}

// cacheRun is one build from a cache.
type cacheRun struct {
	usage
	traffic
}

// newcomer is a builder that can become one that has never built.
type newcomer interface {
	peer
	restart() error
}

// place is a directory of root directories.
type place struct {
	fs    string
	peers []newcomer
}

// caches compares kiln and BuildKit on machines that have never built before.
type caches struct {
	e      *env
	kiln   string // the program
	wire   *wire
	places []place
	export bool     // what is measured exports its steps as well
	log    *os.File // of requests; nil for none
	edits  int
	// secrets tell steps what the machine knows of package registries.
	secrets []string
}

// measureCaches builds applications on empty roots, with caches that were filled before, with and without latency, in memory and on the
// disk. It writes the requests of each build to the file of that name, unless that is empty.
func measureCaches(e *env, kiln string, wanted *regexp.Regexp, rounds int, export bool, requests string, r *report) (err error) {
	e.debian = true
	c := &caches{e: e, kiln: kiln, export: export}
	if c.wire, err = startWire(e.reg.host); err != nil {
		return err
	}
	if requests != "" {
		if c.log, err = os.Create(requests); err != nil {
			return err
		}
		defer c.log.Close()
		c.wire.log = []string{}
	}
	if c.secrets, err = secrets(e.tmp); err != nil {
		return err
	}
	defer func() {
		for _, p := range c.places {
			for _, b := range p.peers {
				b.stop()
			}
		}
	}()
	for _, dir := range []string{e.memory, e.tmp} {
		if err := c.addPlace(dir); err != nil {
			return err
		}
	}
	for _, b := range c.places[0].peers {
		r.versions = append(r.versions, b.name()+": "+b.version())
	}
	for _, a := range apps {
		if err := c.measure(a, wanted, rounds, r); err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	return nil
}

var fileSystems = map[int64]string{
	unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
}

// fileSystem returns the name of the file system that a directory is on.
func fileSystem(dir string) (string, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", err
	}
	return cmp.Or(fileSystems[int64(st.Type)], fmt.Sprintf("%#x", st.Type)), nil
}

func (c *caches) addPlace(dir string) error {
	fs, err := fileSystem(dir)
	if err != nil {
		return err
	}
	k, err := newKiln(c.e, "kiln", c.kiln, c.wire.host)
	if err != nil {
		return err
	}
	k.root = filepath.Join(dir, "kiln-root")
	b, err := newBuildkit(c.e, filepath.Join(dir, "buildkit"), c.wire.host)
	if err != nil {
		return err
	}
	c.places = append(c.places, place{fs, []newcomer{k, b}})
	return nil
}

// secrets returns what the machine knows of package registries: certificates, and addresses.
func secrets(tmp string) ([]string, error) {
	all := []string{"id=ca,src=" + cmp.Or(os.Getenv("SSL_CERT_FILE"), "/etc/ssl/certs/ca-certificates.crt")}
	for _, s := range [][]string{
		{"npm", "npm", "config", "get", "registry"}, {"goproxy", "go", "env", "GOPROXY"}, {"gosumdb", "go", "env", "GOSUMDB"},
	} {
		value := firstLine(s[1:]...)
		if value == "" {
			return nil, fmt.Errorf("%s prints nothing", strings.Join(s[1:], " "))
		}
		file := filepath.Join(tmp, "secret-"+s[0])
		if err := os.WriteFile(file, []byte(value), 0o600); err != nil {
			return nil, err
		}
		all = append(all, "id="+s[0]+",src="+file)
	}
	return all, nil
}

// measure measures one application, if any of its rows is wanted.
func (c *caches) measure(a app, wanted *regexp.Regexp, rounds int, r *report) error {
	var cells []*cell
	var places []place // of the cells
	for _, p := range c.places {
		for _, latency := range latencies {
			for _, what := range []string{cachedCase, editedCase} {
				cell := &cell{a.name, what, p.fs, latency, map[string][]cacheRun{}}
				if wanted.MatchString(cell.String()) {
					cells, places = append(cells, cell), append(places, p)
				}
			}
		}
	}
	if len(cells) == 0 {
		return nil
	}
	fmt.Fprintf(c.e.log, "%s: making the base image\n", a.name)
	base, err := c.base(a)
	if err != nil {
		return err
	}
	dir, err := c.e.context("app-"+a.name, func(dir string) error { return os.CopyFS(dir, os.DirFS(filepath.Join(testdata, a.name))) })
	if err != nil {
		return err
	}
	filled := map[string]pushedImage{}
	for _, p := range c.places[0].peers {
		j := c.job(a, base, dir, p)
		j.imports, j.exports = "", j.imports
		if err := p.restart(); err != nil {
			return err
		}
		c.wire.reset(0)
		u, err := p.build(j)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.e.log, "%s: %s filled its cache: %v\n", a.name, p.name(), u)
		if filled[p.name()], err = c.pushed(j.push); err != nil {
			return err
		}
	}
	for i, cell := range cells {
		r.cells = append(r.cells, cell)
		for round := range rounds {
			if err := c.round(a, base, dir, cell, places[i], round, filled, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// round has each builder build once, on an empty root.
func (c *caches) round(
	a app, base, dir string, cell *cell, p place, round int, filled map[string]pushedImage, r *report,
) error {
	number := 0
	if cell.what == editedCase {
		c.edits++
		number = c.edits
	}
	if err := a.write(dir, number); err != nil {
		return err
	}
	for _, b := range p.peers {
		if err := b.restart(); err != nil {
			return err
		}
	}
	if err := pause(c.e.ctx, settle); err != nil {
		return err
	}
	for i := range p.peers {
		b := p.peers[(i+round)%len(p.peers)]
		j := c.job(a, base, dir, b)
		syscall.Sync()
		c.wire.reset(cell.latency)
		u, err := b.build(j)
		if err != nil {
			return err
		}
		run := cacheRun{u, c.wire.counted()}
		fmt.Fprintf(c.e.log, "%v: round %d: %s: %v, %d requests, %d bytes fetched, %d sent\n",
			cell, round+1, b.name(), u, run.requests, run.fetched, run.sent)
		if c.log != nil {
			fmt.Fprintf(c.log, "%v: round %d: %s: %v\n", cell, round+1, b.name(), u)
			if err := c.wire.writeLog(c.log); err != nil {
				return err
			}
		}
		pushed, err := c.pushed(j.push)
		if err != nil {
			return err
		}
		odd, counts := pushed.odd(filled[b.name()], cell.what)
		if counts {
			cell.runs[b.name()] = append(cell.runs[b.name()], run)
		}
		if odd != "" {
			odd = fmt.Sprintf("%v, round %d: %s %s", cell, round+1, b.name(), odd)
			fmt.Fprintln(c.e.log, odd)
			r.odd = append(r.odd, odd)
		}
	}
	return nil
}

// write writes the application's source file, with a number in the line that changes; 0 is for the file as it was.
func (a app) write(dir string, number int) error {
	text, err := os.ReadFile(filepath.Join(testdata, a.name, a.edit))
	if err != nil {
		return err
	}
	edited := string(text)
	if number > 0 {
		edited = strings.Replace(edited, a.from, fmt.Sprintf(a.to, number), 1)
		if edited == string(text) {
			return fmt.Errorf("%s does not have %q", a.edit, a.from)
		}
	}
	return os.WriteFile(filepath.Join(dir, a.edit), []byte(edited), 0o644) // which keeps the mode
}

// job is the build of an application by a builder, each of which has a repository.
func (c *caches) job(a app, base, dir string, b peer) job {
	repository := c.wire.host + "/" + a.name + "-" + b.name()
	j := job{
		dir: dir, dockerfiles: []string{filepath.Join(dir, "Dockerfile")}, push: repository + ":latest", imports: repository + ":cache",
		buildArgs: []string{"BASE=" + base}, secrets: c.secrets,
	}
	if c.export {
		j.exports = j.imports
	}
	return j
}

// pushedImage is an image in the registry: its manifest's digest, and those of its layers.
type pushedImage struct {
	digest string
	layers []string
}

// odd returns what is not as it should be with an image that was built from a cache, beside the one that filled the cache; "" for nothing.
// A build that has done other work than the row says does not count.
func (p pushedImage) odd(filled pushedImage, what string) (text string, counts bool) {
	same := slices.Equal(p.layers, filled.layers)
	switch {
	case what == editedCase && same:
		return "pushed the image that its cache has: not counted", false
	case what == cachedCase && !same:
		return "pushed other layers than its cache has, so a step ran again: not counted", false
	case what == cachedCase && p.digest != filled.digest:
		return "pushed the layers that its cache has, with another config", true
	}
	return "", true
}

// pushed returns an image in the registry.
func (c *caches) pushed(name string) (p pushedImage, err error) {
	repository, _ := strings.CutSuffix(strings.TrimPrefix(name, c.wire.host+"/"), ":latest")
	req, err := http.NewRequestWithContext(c.e.ctx, http.MethodGet, "http://"+c.e.reg.host+"/v2/"+repository+"/manifests/latest", nil)
	if err != nil {
		return p, err
	}
	req.Header.Set("Accept", "application/vnd.oci.image.manifest.v1+json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return p, err
	}
	defer res.Body.Close()
	p.digest = res.Header.Get("Docker-Content-Digest")
	var m struct{ Layers []struct{ Digest string } }
	if res.StatusCode != http.StatusOK || p.digest == "" {
		return p, fmt.Errorf("the registry does not have %s: %s", name, res.Status)
	}
	if err := json.NewDecoder(res.Body).Decode(&m); err != nil {
		return p, fmt.Errorf("the manifest of %s: %w", name, err)
	}
	if len(m.Layers) == 0 {
		return p, fmt.Errorf("the manifest of %s has no layers", name)
	}
	for _, l := range m.Layers {
		p.layers = append(p.layers, l.Digest)
	}
	return p, nil
}

// testdata has the applications. This program is run from the top of the source.
const testdata = "bench/testdata"

// base pushes the base image of an application, and returns its name.
func (c *caches) base(a app) (string, error) {
	debian, _, err := c.e.base("debian")
	if err != nil {
		return "", err
	}
	debian = strings.Replace(debian, c.e.reg.host, c.wire.host, 1)
	file := filepath.Join(testdata, a.name, "base.Dockerfile")
	if _, err := os.Stat(file); errors.Is(err, os.ErrNotExist) {
		return debian, nil
	}
	dir, err := c.e.context("base-"+a.name, func(dir string) error {
		if a.fill == nil {
			return nil
		}
		return a.fill(c.e.ctx, dir)
	})
	if err != nil {
		return "", err
	}
	name := c.wire.host + "/base/" + a.name + ":latest"
	k := &kilnPeer{e: c.e, program: c.kiln, root: filepath.Join(c.e.memory, "base-root")}
	c.wire.reset(0)
	_, err = k.build(job{dir: dir, dockerfiles: []string{file}, push: name, buildArgs: []string{"BASE=" + debian}, contexts: []string{
		"go=" + firstLine("go", "env", "GOROOT"),
	}})
	return name, errors.Join(err, k.forget())
}

// npmPackage fetches the package of npm, which base.Dockerfile of node unpacks.
func npmPackage(ctx context.Context, dir string) error {
	out, err := exec.CommandContext(ctx, "npm", "pack", "npm@10.8.2", "--silent", "--pack-destination", dir).CombinedOutput()
	if err != nil {
		return fmt.Errorf("npm pack: %w\n%s", err, out)
	}
	return nil
}
