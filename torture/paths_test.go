package torture

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostilePaths has contexts, Dockerfiles and steps that lead out of where they belong: by links, by names, by swapping one for the
// other. V stands for a directory of the host that nothing may touch.
func TestHostilePaths(t *testing.T) {
	for _, c := range []struct {
		name       string
		dockerfile string
		// links are symbolic links of the context, files are files of it.
		links, files map[string]string
		args         []string
		// says is in the error; "" if it has to be built.
		says string
		want []string // as in hostileArchive
	}{
		// The context.
		{name: "Dockerfile leads out", links: map[string]string{"Dockerfile": "V/secret"}, says: "leads out"},
		{name: "Dockerfile leads up", links: map[string]string{"D": "UPV/secret"}, args: []string{"-f", "D"}, says: "leads out"},
		{name: "ignore file leads out", dockerfile: "FROM scratch\nCOPY . /\n", links: map[string]string{".dockerignore": "V/secret"}, says: "leads out"},
		{name: "Dockerfile is a link inside", files: map[string]string{"docker/D": "FROM scratch\nCOPY a /\n", "a": "x"}, links: map[string]string{"Dockerfile": "docker/D"}, want: []string{"a=x"}},
		{name: "copy of a link out", dockerfile: "FROM scratch\nCOPY leak /\n", links: map[string]string{"leak": "V/secret"}, says: "leak"},
		{name: "copy through a link out", dockerfile: "FROM scratch\nCOPY d/secret /\n", links: map[string]string{"d": "V"}, says: "d/secret"},
		{name: "copy through a link to the root", dockerfile: "FROM scratch\nCOPY rVSLASHsecret /\n", links: map[string]string{"r": "/"}, says: `/secret" not found`},
		{name: "copy through proc", dockerfile: "FROM scratch\nCOPY p/1/root/etc /\n", links: map[string]string{"p": "/proc"}, says: "p/1"},
		{name: "copy of all with links", dockerfile: "FROM scratch\nCOPY . /\n", links: map[string]string{"leak": "V/secret", "d": "V"}, want: []string{"leak->V/secret", "d->V"}},
		{name: "copy with a wildcard through a link", dockerfile: "FROM scratch\nCOPY d/* /\n", links: map[string]string{"d": "V"}, says: "not found"},
		{name: "source up", dockerfile: "FROM scratch\nCOPY ../../../../../../..V/secret /\n", says: `/secret" not found`},
		{name: "destination up", dockerfile: "FROM scratch\nCOPY a ../../../../../../..V/a\n", files: map[string]string{"a": "x"}},
		{name: "a name that deletes", dockerfile: "FROM scratch\nCOPY . /\n", files: map[string]string{".wh.foo": ""}, says: ".wh.foo"},
		{name: "a step's name that deletes", dockerfile: "FROM base\nRUN mkdir /n && touch /n/.wh..wh..opq\n", says: ".wh."},
		{name: "the context written to", dockerfile: "FROM base\nRUN --mount=type=bind,rw,target=/c echo y > /c/a; echo z > /c/new\n", files: map[string]string{"a": "x"}},

		// Mounts, and what they leave.
		{name: "mount point replaced by a link", dockerfile: "FROM base\nRUN --mount=type=tmpfs,target=/a/b/c umount /a/b/c; rm -rf /a; mv /a /z; ln -s V /a; true\n"},
		{name: "mount on a link out", dockerfile: "FROM base\nRUN ln -s V /m\nRUN --mount=type=tmpfs,target=/m/b/c echo x > /m/b/c/x\nRUN --mount=type=cache,target=/m/sub echo x > /m/sub/x\n"},
		{name: "source of a bind is a link to the root", dockerfile: "FROM base AS one\nRUN ln -s / /rootdir\nFROM base\nRUN --mount=type=bind,from=one,source=/rootdir,target=/x,rw touch /x/B; echo >> /xV/secret; true\n"},
		{name: "source of a bind leads out", dockerfile: "FROM base AS one\nRUN ln -s V /v\nFROM base\nRUN --mount=type=bind,from=one,source=/v,target=/x cat /x/secret\n", says: `"/v" not found`},
		{name: "source of a bind leads to what is inside", dockerfile: "FROM base AS one\nRUN mkdir -p V && echo inside > V/secret && ln -s V /v\nFROM base\nRUN --mount=type=bind,from=one,source=/v,target=/x grep inside /x/secret\n"},
		{name: "source of a cache leads out", dockerfile: "FROM base\nRUN --mount=type=cache,id=x,target=/c ln -s V /c/sel; true\nRUN --mount=type=cache,id=x,target=/c,source=sel cat /c/secret\n", says: "mount cache at /c: open /sel: no such file or directory"},
		{name: "source of a cache leads to what is inside", dockerfile: "FROM base\nRUN --mount=type=cache,id=x,target=/c mkdir -p /cV && echo inside > /cV/secret && ln -s V /c/sel\nRUN --mount=type=cache,id=x,target=/c,source=sel grep inside /c/secret\n"},
		{name: "source of a cache up", dockerfile: "FROM base\nRUN --mount=type=cache,target=/c,source=../../../../../../../../V cat /c/secret\n", says: "mount cache at /c: open "},
		{name: "an id up", dockerfile: "FROM base\nRUN --mount=type=cache,id=../../../../../../..V,target=/c echo x > /c/new; ! grep . /c/secret\n"},
		{name: "hosts is a link out", dockerfile: "FROM base\nRUN rm -f /etc/hosts /etc/resolv.conf; ln -s V/secret /etc/hosts; ln -s V/secret /etc/resolv.conf; true\nRUN cat /etc/hosts /etc/resolv.conf; true\n"},
		{name: "working directory through a link out", dockerfile: "FROM base\nRUN ln -s V /app\nWORKDIR /app/new\nUSER 1\nRUN pwd\n"},
		{name: "working directory in a descriptor", dockerfile: "FROM base\nWORKDIR /proc/self/fd/7\nRUN cat ../../../../../../..V/secret\n", says: "open working directory /proc/self/fd/7"},
		{name: "user from a link out", dockerfile: "FROM base\nRUN rm /etc/passwd && ln -s V/passwd /etc/passwd\nUSER app\nRUN id\n", says: `user "app" is not in the image's /etc/passwd`},

		// What a Dockerfile may not ask for.
		{name: "a stage with a path as its name", dockerfile: "FROM base\nCOPY --from=../../../V /secret /\n", says: "invalid image reference"},
		{name: "a secret by its path", dockerfile: "FROM base\nRUN --mount=type=secret,id=V/secret,required=true true\n", says: "is required, and the build was not given it"},
		{name: "propagation", dockerfile: "FROM base\nRUN --mount=type=bind,target=/x,bind-propagation=shared true\n", says: "bind-propagation"},
		{name: "options of mounts", dockerfile: "FROM base\nRUN --mount=type=tmpfs,target=/x,size=1m:suid true\n", says: "invalid value for size"},
		{name: "a type of mount that is none", dockerfile: "FROM base\nRUN --mount=type=volume,target=/x true\n", says: "unsupported mount type"},
		{name: "not confined", dockerfile: "FROM base\nRUN --security=insecure cat V/secret\n", says: "security.insecure"},

		// Programs of the image that kiln could take for the machine's.
		{name: "helpers in the image", dockerfile: `FROM base
RUN for h in unpigz pigz gzip xz zstd bzip2 tar git newuidmap getent id sh; do rm -f /bin/$h; printf '#!/bin/busybox sh\n/bin/busybox touch V/helper\n' > /bin/$h; /bin/busybox chmod 755 /bin/$h; done
ADD a.tar.xz /
USER user
COPY --chown=user Dockerfile /home/
`, want: []string{"unpacked=x"}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			v := newVictim(t)
			if err := os.MkdirAll(v.dir+"/b/c", 0o755); err != nil {
				t.Fatal(err)
			}
			v.before = v.look(t)
			p := newProject(t, filepath.Join(t.TempDir(), "root"), nil)
			place := strings.NewReplacer("UPV", strings.Repeat("../", 20)+v.dir[1:], "VSLASH", v.dir+"/", "V", v.dir).Replace
			if c.dockerfile != "" {
				p.write("Dockerfile", place(c.dockerfile))
			}
			for name, text := range c.files {
				p.write(name, text)
			}
			for name, to := range c.links {
				if err := os.Symlink(place(to), filepath.Join(p.dir, name)); err != nil {
					t.Fatal(err)
				}
			}
			if strings.Contains(c.dockerfile, "a.tar.xz") {
				var a archive
				a.file("unpacked", "x")
				a.end()
				p.write("a.tar.xz", string(xzed(a.Bytes())))
			}
			args := slices.Clone(c.args)
			if len(args) > 0 {
				args[1] = filepath.Join(p.dir, args[1])
			}
			of := listContext(t, p.dir)
			out, log, err := runBounded(t, p.kiln(append(args, "-t", "app", "-o", "type=image", "-o", "type=tar,dest=-")...))
			if (err == nil) != (c.says == "") || !strings.Contains(log, c.says) {
				t.Errorf("%v, want %q\n%s", err, c.says, log)
			}
			checkLog(t, log)
			if err == nil {
				var want []string
				for _, w := range c.want {
					want = append(want, place(w))
				}
				checkTree(t, out, want)
			}
			if now := listContext(t, p.dir); now != of {
				t.Errorf("the context was\n%s\nand is\n%s", of, now)
			}
			v.check(t, p.root, out, []byte(log))
			p.clean()
		})
	}
}

func listContext(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		var st unix.Stat_t
		if err = errors.Join(err, unix.Lstat(path, &st)); err == nil {
			fmt.Fprintf(&b, "%s %o %d %v %v\n", path, st.Mode, st.Size, st.Mtim, st.Ctim)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestSwappedSource has one build swap a directory of a cache for a link out, again and again, while others mount it.
func TestSwappedSource(t *testing.T) {
	v := newVictim(t)
	root := filepath.Join(t.TempDir(), "root")
	swaps := newProject(t, root, map[string]string{"Dockerfile": fmt.Sprintf(`FROM base
RUN --mount=type=cache,id=x,target=/c mkdir -p /c/d; ln -sfn %s /c/l; echo ready; while :; do mv /c/d /c/t; mv /c/l /c/d; mv /c/d /c/l; mv /c/t /c/d; done
`, v.dir)})
	mounts := newProject(t, root, map[string]string{"Dockerfile": "FROM base\nARG N\nRUN --mount=type=cache,id=x,target=/c,source=d echo $N; cat /c/secret; echo x > /c/written; chmod 777 /c; rm -rf /c/*\n"})
	cmd := swaps.kiln()
	pipe, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	lines, swapping := bufio.NewScanner(pipe), false
	for !swapping && lines.Scan() {
		swapping = strings.HasSuffix(lines.Text(), " ready")
	}
	if !swapping {
		t.Fatal("nothing swaps the directory")
	}
	go io.Copy(io.Discard, pipe)
	mounted := 0
	n := rounds(t, 20)
	for i := range n {
		out, log, err := mounts.try("--build-arg", fmt.Sprint("N=", i))
		if err == nil {
			mounted++
		}
		v.check(t, "/nowhere", out, []byte(log)) // to walk through the cache now would be to walk into the trap
	}
	cmd.Process.Kill()
	cmd.Wait()
	v.check(t, root)
	if mounted == 0 {
		t.Errorf("in %d rounds the directory was never mounted", n)
	}
	t.Logf("%d rounds, the directory was mounted in %d", n, mounted)
}
