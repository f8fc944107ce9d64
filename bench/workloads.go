package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// workload is something that is built again and again.
type workload struct {
	name    string
	what    string
	prepare func(*env) (*task, error)
}

// task is a workload whose inputs are there.
type task struct {
	// before changes the input ahead of a round; nil where nothing changes.
	before func(round int) error
	job    func(round int, peer string) job
	// floor does what no builder could do without, and nothing else; nil for none.
	floor     func() (usage, error)
	floorName string
}

// treeFiles is the size of the context of noop, edit and editoci.
const treeFiles = 50000

// sentFiles is that of sent and sentedit.
const sentFiles = 20000

var workloads = []workload{
	{"tiny", "one COPY on scratch, no cache", func(e *env) (*task, error) {
		return e.simple("tiny", "FROM scratch\nCOPY file /\n", job{noCache: true})
	}},
	{"noop", "a context of 50,000 files, RUN, COPY, RUN; nothing changed", func(e *env) (*task, error) { return e.edit("noop", treeFiles) }},
	{"edit", "the same, one file changed", func(e *env) (*task, error) { return e.edit("edit", treeFiles) }},
	{"editoci", "the same, and the image written as the tar of an OCI layout", func(e *env) (*task, error) {
		return e.edit("editoci", treeFiles)
	}},
	{"sent", "a context of 20,000 files, which clients of servers send; nothing changed", func(e *env) (*task, error) {
		return e.edit("noop", sentFiles)
	}},
	{"sentedit", "the same, one file changed", func(e *env) (*task, error) { return e.edit("edit", sentFiles) }},
	{"chain", "60 × RUN true, no cache", func(e *env) (*task, error) { return e.chain(60) }},
	{"fan", "16 stages of RUN sleep 0.5, gathered, no cache", func(e *env) (*task, error) { return e.fan(16, "sleep 0.5") }},
	{"bigoci", "empty store; COPY of 1 GiB in 4 files, the tar of an OCI layout, gzip", bigOCI},
	{"pull", "empty store; a base of 170 MB from the registry, RUN true", func(e *env) (*task, error) {
		t, err := e.onDebian("pull", "RUN true\n", job{cold: true}, false)
		if err != nil {
			return nil, err
		}
		_, blob, err := e.base("debian")
		t.floor, t.floorName = e.floor("gunzip", blob), "gunzip of the layer"
		return t, err
	}},
	{"push", "the same base, RUN that writes three copies of its /usr; pushed to the registry", func(e *env) (*task, error) {
		return e.onDebian("push", "RUN echo ROUND > /round && for i in 1 2 3; do cp -a /usr /copy$i; done\n", job{}, true)
	}},
	{"lazylink", "empty store; COPY --link of a file onto the same base; pushed to the registry that has the base",
		func(e *env) (*task, error) {
			return e.onDebian("lazylink", "COPY --link file /opt/app/file\n", job{cold: true}, true)
		}},
	{"lazypush", "the same with COPY", func(e *env) (*task, error) {
		return e.onDebian("lazypush", "COPY file /opt/app/file\n", job{cold: true}, true)
	}},
	{"mariadb", "the real Debian; RUN that installs mariadb-server; the packages are on the machine", func(e *env) (*task, error) {
		return e.install("mariadb", "mariadb-server")
	}},
	{"node", "the same with nodejs and npm: 500 packages, many small files", func(e *env) (*task, error) {
		return e.install("node", "nodejs npm")
	}},
	{"many", "empty store; 20 builds at once that share a base and their first step", many},
}

// file is a context of one small file.
func (e *env) file() (string, error) {
	return e.context("file", func(dir string) error { return os.WriteFile(filepath.Join(dir, "file"), []byte("content\n"), 0o644) })
}

// simple is the task of building one Dockerfile, always the same, in the context of one file.
func (e *env) simple(name, text string, j job) (*task, error) {
	file, err := e.dockerfile(name, text)
	if err != nil {
		return nil, err
	}
	j.dockerfiles = []string{file}
	j.dir, err = e.file()
	return &task{job: func(int, string) job { return j }}, err
}

// edit is the task of a large context.
func (e *env) edit(kind string, files int) (*task, error) {
	base, _, err := e.base("busybox")
	if err != nil {
		return nil, err
	}
	dir, err := e.context(fmt.Sprintf("tree%d", files), func(dir string) error { return tree(dir, files) })
	if err != nil {
		return nil, err
	}
	file, err := e.dockerfile("edit", "FROM "+base+"\nRUN mkdir /app\nCOPY . /app/\nRUN ls /app | wc -l > /count\n")
	if err != nil {
		return nil, err
	}
	t := &task{floor: e.floor("statx", dir), floorName: "statx of the tree in parallel"}
	if kind != "noop" {
		t.floor, t.floorName = e.floor("copy", dir), "read, sha256, write of the tree in one pass"
		t.before = func(round int) error {
			return os.WriteFile(treeFile(dir, files/2), fmt.Appendf(nil, "%s, round %d\n", kind, round), 0o644)
		}
	}
	t.job = func(_ int, peer string) job {
		j := job{dir: dir, dockerfiles: []string{file}}
		if kind == "editoci" {
			j.dest = filepath.Join(e.tmp, peer+".tar")
		}
		return j
	}
	return t, nil
}

// chain is a Dockerfile of steps, each on the one before.
func (e *env) chain(n int) (*task, error) {
	base, _, err := e.base("busybox")
	if err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString("FROM " + base + "\n")
	for i := range n {
		fmt.Fprintf(&b, "RUN true %d\n", i)
	}
	t, err := e.simple(fmt.Sprintf("chain%d", n), b.String(), job{noCache: true})
	if err != nil {
		return nil, err
	}
	t.floor, t.floorName = e.floor("spawn", fmt.Sprint(n)), fmt.Sprintf("%d × fork and exec of sh -c true", n)
	return t, nil
}

// fan is a Dockerfile of stages that do not depend on each other, and one that gathers what they made.
func (e *env) fan(n int, command string) (*task, error) {
	base, _, err := e.base("busybox")
	if err != nil {
		return nil, err
	}
	var b, last strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "FROM %s AS s%d\nRUN %s && echo %d > /out\n", base, i, command, i)
		fmt.Fprintf(&last, "COPY --from=s%d /out /out%d\n", i, i)
	}
	return e.simple(fmt.Sprintf("fan%d", n), b.String()+"FROM scratch\n"+last.String(), job{noCache: true})
}

func bigOCI(e *env) (*task, error) {
	dir, err := e.context("big", func(dir string) error {
		for i := range 4 {
			if err := newSource(uint64(1000+i)).write(filepath.Join(dir, fmt.Sprintf("file%d", i)), 256<<20); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	file, err := e.dockerfile("bigoci", "FROM scratch\nCOPY . /\n")
	if err != nil {
		return nil, err
	}
	return &task{
		job: func(_ int, peer string) job {
			return job{dir: dir, dockerfiles: []string{file}, cold: true, dest: filepath.Join(e.tmp, peer+".tar")}
		},
		floor:     e.floor("copy", dir),
		floorName: "read, sha256, write of the files in one pass, uncompressed",
	}, nil
}

// onDebian is the task of building on the large base, in which ROUND is the round's number.
func (e *env) onDebian(name, text string, j job, push bool) (*task, error) {
	base, _, err := e.base("debian")
	if err != nil {
		return nil, err
	}
	t, err := e.simple(name, "", j)
	if err != nil {
		return nil, err
	}
	t.before = func(round int) error {
		_, err := e.dockerfile(name, "FROM "+base+"\n"+strings.ReplaceAll(text, "ROUND", fmt.Sprint(round)))
		return err
	}
	same := t.job
	t.job = func(round int, peer string) job {
		j := same(round, peer)
		if push {
			j.push = fmt.Sprintf("%s/out/%s:latest", e.reg.host, peer)
		}
		return j
	}
	return t, nil
}

// manyBuilds is how many builds many is.
const manyBuilds = 20

// hashing is a command that does nothing but work, n times.
func hashing(n int, out string) string {
	return fmt.Sprintf("i=0; while [ $i -lt %d ]; do sha256sum /bin/busybox; i=$((i+1)); done > %s", n, out)
}

// sharedHashes and ownHashes are how much all builds of many do in common, and each for itself.
const sharedHashes, ownHashes = 60, 20

func many(e *env) (*task, error) {
	base, _, err := e.base("busybox")
	if err != nil {
		return nil, err
	}
	j := job{cold: true}
	if j.dir, err = e.file(); err != nil {
		return nil, err
	}
	for i := range manyBuilds {
		text := fmt.Sprintf("FROM %s\nRUN %s\nRUN %s; echo %d\n", base, hashing(sharedHashes, "/shared"), hashing(ownHashes, "/own"), i)
		file, err := e.dockerfile(fmt.Sprintf("many%d", i), text)
		if err != nil {
			return nil, err
		}
		j.dockerfiles = append(j.dockerfiles, file)
	}
	return &task{
		job:       func(int, string) job { return j },
		floor:     e.floor("work", fmt.Sprint(manyBuilds)),
		floorName: "the commands alone, the first once",
	}, nil
}

// install is the task of installing packages into a Debian.
func (e *env) install(name, packages string) (*task, error) {
	if !e.debian {
		return nil, errNeedsDebian
	}
	script := "printf '#!/bin/sh\\nexit 101\\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d && apt-get update -q && " +
		"DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends " + packages + " && rm -rf /var/lib/apt/lists/*"
	if e.proxy == nil {
		var err error
		if e.proxy, err = startProxy(filepath.Join(e.tmp, "proxy")); err != nil {
			return nil, err
		}
	}
	t, err := e.onDebian(name, "RUN "+script+"\n", job{noCache: true, buildArgs: []string{"http_proxy=" + e.proxy.url}}, false)
	if err != nil {
		return nil, err
	}
	t.floorName = "the same command in a chroot"
	t.floor = func() (usage, error) {
		dir := filepath.Join(e.tmp, "chroot")
		defer os.RemoveAll(dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return usage{}, err
		}
		file, err := debianTar()
		if err != nil {
			return usage{}, err
		}
		if _, err := execute(e.ctx, nil, "tar", "-x", "--exclude=./dev/*", "-C", dir, "-f", file); err != nil {
			return usage{}, err
		}
		unix.Sync()
		mounts := "mount -t proc proc $0/proc && mount --rbind /dev $0/dev && exec chroot $0 /bin/sh -c \"$1\""
		env := []string{"http_proxy=" + e.proxy.url, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		return execute(e.ctx, env, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", mounts, dir, script)
	}
	// What is fetched is fetched now.
	_, err = t.floor()
	return t, err
}

// errNeedsDebian is of a workload that cannot do with generated files.
var errNeedsDebian = errors.New("it needs -debian")
