package contexts

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/ignore"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/localdir"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/internal/rootfs"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
	"golang.org/x/sys/unix"
)

// MaxDockerfile bounds a Dockerfile, and maxIgnore a .dockerignore, in bytes: far above any that a person or a generator
// has reason to write.
const (
	MaxDockerfile = 16 << 20
	maxIgnore     = 16 << 20
)

// shownName is how errors name the Dockerfile: as it is in the context, or as it was given.
func shownName(path, contextDir string) string {
	if rel, err := filepath.Rel(contextDir, path); err == nil && filepath.IsLocal(rel) {
		return rel
	}
	return rootdir.Shown(path)
}

// OpenFile opens a regular file of the client.
func OpenFile(path string) (*os.File, error) {
	// Opening a fifo would wait for somebody to write to it.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return f, checkRegular(f, path)
}

// checkRegular closes f, which is called path, and returns an error, if it is not a regular file.
func checkRegular(f *os.File, path string) error {
	info, err := f.Stat()
	switch {
	case err != nil:
	case info.IsDir():
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("it is a directory")}
	case !info.Mode().IsRegular():
		err = &fs.PathError{Op: "open", Path: path, Err: errors.New("it is not a regular file")}
	}
	if err != nil {
		f.Close()
	}
	return err
}

// ReadFile reads a regular file of the client of at most limit bytes.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := OpenFile(path)
	if err != nil {
		return nil, err
	}
	return readAll(f, path, limit)
}

// readContextFile is ReadFile for a Dockerfile or an ignore file. One in the directory dir, the context, is not followed out of
// it: a context may come from somebody who would like to see in an error what else there is.
func readContextFile(dir, path string, limit int64) ([]byte, error) {
	rel, err := relative(dir, path)
	if err != nil || !filepath.IsLocal(rel) {
		return ReadFile(path, limit)
	}
	root, err := rootfs.Open(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(rel, unix.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		if _, outside := os.Stat(path); outside == nil {
			err = fmt.Errorf("%s is a symbolic link that leads out of the context, and is not followed there", rootdir.Shown(path))
		}
		return nil, err
	}
	if err := checkRegular(f, path); err != nil {
		return nil, err
	}
	return readAll(f, path, limit)
}

func relative(dir, path string) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if path, err = filepath.Abs(path); err != nil {
		return "", err
	}
	return filepath.Rel(dir, path)
}

// readAll reads f, which is called path, and closes it.
func readAll(f *os.File, path string, limit int64) ([]byte, error) {
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(data)) > limit {
		err = fmt.Errorf("%s is larger than the %s that are allowed", rootdir.Shown(path), termtext.Size(limit))
	}
	return data, err
}

// Contexts are the contexts of a build that are open. Close must be called.
type Contexts struct {
	// Add is told of the files of each: "context" is the build context. Named contexts that are no directories are not among them: they are
	// sources of the graph.
	Add func(name string, files layer.Tree)
	// Ignore is the .dockerignore of the build context; nil for none.
	Ignore *ignore.Matcher
	// Dockerfile is its text, and Name what errors call it.
	Dockerfile []byte
	Name       string
	// Lock is its lock file.
	Lock LockFile

	dirs []*localdir.Dir
}

// Close closes the directories.
func (c *Contexts) Close() {
	for _, d := range c.dirs {
		// What the cache of digests loses is read again by the next build.
		d.Close()
	}
}

// Steps do what brings in contexts that are not directories, as steps of the build.
type Steps interface {
	// Solve makes an output of a graph.
	Solve(context.Context, llb.Output) (solver.Ref, error)
	// File makes a root file system with one file at its top.
	File(ctx context.Context, name string, body io.Reader) (solver.Ref, error)
	// Files returns the files of a root file system. That of the zero Ref is empty.
	Files(context.Context, solver.Ref) (layer.Tree, error)
	// SourceTime returns when a source was made.
	SourceTime(context.Context, llb.Op) (time.Time, error)
}

// Loader opens the contexts of one build.
type Loader struct {
	Source
	Steps Steps
	// Root is kiln's root directory, and Tmp a directory of this process on the same file system.
	Root, Tmp string
	// KeepGitDir keeps the directory .git of a build context that is a repository.
	KeepGitDir bool
	// GitAdvice is as llb.Git.Advice for a build context that is a repository.
	GitAdvice bool
	// Canonical makes contexts what git would record of them, whatever the machine is.
	Canonical bool
	// Warn tells people what they should know.
	Warn func(text string)
	// Reading is told of the reading of contexts, as localdir.Dir.Reading says.
	Reading func(ctx context.Context, total int64) (count func(n int))
	// Session is that of each llb.Local that is added to Open; "" for that of the build.
	Session string
	// Admit returns what is fetched in place of a source: an op of its kind. The error is that it must not be.
	Admit func(llb.Op) (llb.Op, error)
	// Lock says what becomes of the lock file.
	Lock LockRule
	// Open are the contexts: those that Steps need are in it as soon as they do.
	Open *Contexts

	graph llb.Graph
}

// LockRule says what a build wants of the lock file of its Dockerfile.
type LockRule int

// The rules.
const (
	// NoLock does not look for one.
	NoLock LockRule = iota
	// MayLock reads it if it is there. The Dockerfile has to be a file of this machine.
	MayLock
	// MustLock is for a build that it is an error for if there is none.
	MustLock
)

// Load opens the build context and the named contexts that are directories, and reads the Dockerfile.
func (l *Loader) Load(ctx context.Context) error {
	load := l.contextElsewhere
	switch {
	case isDir(l.Context) && l.Given != nil:
		load = l.contextGiven
	case isDir(l.Context):
		load = l.contextDir
	}
	text, name, err := load(ctx)
	if err != nil {
		return err
	}
	if l.Lock == MustLock && l.Open.Lock.Name == "" {
		return errNoLockFile()
	}
	l.Open.Dockerfile, l.Open.Name = text, name
	for name, value := range l.Named {
		if !source.IsDirContext(value) {
			continue
		}
		if err := l.admitLocal(name); err != nil {
			return err
		}
		if l.Given != nil {
			continue
		}
		m, err := readIgnore(ctx, value, filepath.Join(value, ".dockerignore"))
		if err == nil {
			err = l.openDir(ctx, name, value, m)
		}
		if err != nil {
			return &input.Error{Err: fmt.Errorf("named context %q: %w", name, err)}
		}
	}
	return nil
}

// openDir adds a directory of the client, which ends with ctx.
func (l *Loader) openDir(ctx context.Context, name, dir string, m *ignore.Matcher) error {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	id := fmt.Sprintf("%x", sha256.Sum256([]byte(abs)))
	d, err := localdir.Open(ctx, abs, m, filepath.Join(l.Root, rootdir.Context, id[:32]), l.Tmp)
	if err != nil {
		return fmt.Errorf("open the build context: %w", err)
	}
	d.Warn(l.Warn)
	d.Reading(l.Reading)
	if l.Canonical {
		d.Canonical(modTime(), l.KeepGitDir)
	}
	if err := d.HideRoot(l.Root); err != nil {
		return errors.Join(err, d.Close())
	}
	l.Open.Add(name, d)
	l.Open.dirs = append(l.Open.dirs, d)
	return nil
}

// contextGiven takes a Dockerfile and directories that were opened elsewhere.
func (l *Loader) contextGiven(context.Context) (dockerfile []byte, name string, err error) {
	for _, name := range []string{"dockerfile", "context"} {
		if err := l.admitLocal(name); err != nil {
			return nil, "", err
		}
	}
	l.Open.Ignore = l.Given.Ignore
	return l.Given.Text, l.Given.Name, nil
}

// contextDir opens a build context that is a directory, whose Dockerfile may come from anywhere.
func (l *Loader) contextDir(ctx context.Context) (dockerfile []byte, name string, err error) {
	ignored := []string{filepath.Join(l.Context, ".dockerignore")}
	if elsewhere(l.Dockerfile) {
		dockerfile, name, err = l.dockerfile(ctx)
	} else {
		var path string
		if path, err = l.DockerfilePath(); err != nil {
			return nil, "", err
		}
		ignored = append([]string{path + ".dockerignore"}, ignored...)
		name = shownName(path, l.Context)
		if dockerfile, err = readContextFile(l.Context, path, MaxDockerfile); err != nil {
			err = &input.Error{Err: l.explain(err)}
		} else {
			err = l.lockFile(path)
		}
	}
	if err == nil {
		err = l.admitLocal("dockerfile")
	}
	if err == nil {
		err = l.admitLocal("context")
	}
	if err != nil {
		return nil, "", err
	}
	if l.Open.Ignore, err = readIgnore(ctx, l.Context, ignored...); err == nil {
		err = l.openDir(ctx, "context", l.Context, l.Open.Ignore)
	}
	if err != nil {
		return nil, "", &input.Error{Err: err}
	}
	return dockerfile, name, nil
}

// contextElsewhere brings in a build context that is no directory. Its .dockerignore, if it has one, is a file as any other.
func (l *Loader) contextElsewhere(ctx context.Context) (dockerfile []byte, name string, err error) {
	if l.Context == Stdin && l.Dockerfile == Stdin {
		return nil, "", &input.Error{Err: errors.New("standard input cannot be both the build context and the Dockerfile")}
	}
	tree, bare, err := l.tree(ctx)
	if err != nil {
		return nil, "", err
	}
	if l.Canonical {
		tree = canonical{tree, l.KeepGitDir}
	}
	if l.Subdir != "" && bare == nil {
		if tree, err = subdir(tree, l.Subdir); err != nil {
			return nil, "", err
		}
	}
	l.Open.Add(Main, tree)
	switch {
	case l.Given != nil:
		return l.Given.Text, l.Given.Name, nil
	case elsewhere(l.Dockerfile):
		return l.dockerfile(ctx)
	case bare != nil:
		return bare, "Dockerfile", nil
	}
	from := remoteurl.WithoutUser(l.Context)
	if l.Context == Stdin {
		from = "standard input"
	}
	if dockerfile, name, err = dockerfileIn(tree, l.Dockerfile, from); err == nil {
		err = l.lockFileIn(tree, name)
	}
	return dockerfile, name, err
}

// readIgnore reads the first of these ignore files of the context dir that exists; nil for none.
func readIgnore(ctx context.Context, dir string, paths ...string) (*ignore.Matcher, error) {
	for _, path := range paths {
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		data, err := readContextFile(dir, path, maxIgnore)
		if err != nil {
			return nil, fmt.Errorf("read the ignore file: %w", err)
		}
		m, err := ignore.Parse(ctx, bytes.NewReader(data))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", rootdir.Shown(path), err)
		}
		if m != nil {
			m.File = filepath.Base(path)
		}
		return m, nil
	}
	return nil, nil
}
