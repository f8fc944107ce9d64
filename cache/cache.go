// Package cache keeps records of steps on local disk, each a small self-checking text file under its key. It knows nothing
// of ops, nor of where layers are.
package cache

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/internal/atomicfile"
	"github.com/kilnbuild/kiln/internal/lease"
	"github.com/kilnbuild/kiln/internal/lock"
	"github.com/kilnbuild/kiln/internal/rootdir"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/solver"
)

// Cache is the records/ directory of kiln's root:
//
//	records/ab/<key>        the record of a step, key being 64 hexadecimal digits
//	records/ab/<key>.log    what the step printed, and <key>.failed.log what it printed when it failed last
//	records/steps/<step>    a symbolic link whose target is the key of what the step made last
//
// A record says itself whether it is whole, so that none has to wait for the disk: one that a crash of the machine has
// damaged is a miss. Whether the layer that it speaks of survived is that layer's matter.
type Cache struct {
	dir   string
	locks string
	tmp   string
}

// Open opens the cache in kiln's root directory. tmp is a directory of this process's own on the same file system.
func Open(root, tmp string) (*Cache, error) {
	c := &Cache{dir: filepath.Join(root, rootdir.Records), locks: filepath.Join(root, rootdir.Locks), tmp: tmp}
	for _, dir := range []string{c.dir, c.steps(), c.locks} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("open the cache: %w", err)
		}
	}
	return c, nil
}

func (c *Cache) steps() string { return filepath.Join(c.dir, "steps") }

func (c *Cache) path(key solver.Key) string {
	k := key.String()
	return filepath.Join(c.dir, k[:2], k)
}

// maxRecord bounds a record, in bytes: a command line and an environment can be 6 MiB (execve(2)).
const maxRecord = 16 << 20

// header is the first line of a record. One that begins with headerWords alone is of another version.
const (
	headerWords = "kiln record "
	header      = headerWords + "3"
)

// errVersion is the error of a record that another version of kiln wrote.
var errVersion = errors.New("another version of kiln wrote it")

// Get implements solver.Cache.
func (c *Cache) Get(key solver.Key) (*solver.Record, error) {
	path := c.path(key)
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &solver.Miss{Reason: "it has not run with these inputs before"}
	}
	if err != nil {
		return nil, fmt.Errorf("read a record: %w", err)
	}
	r, err := c.read(path, key, info)
	if errors.As(err, new(*fs.PathError)) {
		return nil, &solver.Miss{Reason: "its record cannot be read: " + err.Error()}
	}
	if err != nil {
		return nil, &solver.Miss{Reason: "its record is damaged: " + err.Error(), Err: err}
	}
	lease.Used(path, info)
	return r, nil
}

// Put implements solver.Cache.
func (c *Cache) Put(key solver.Key, r *solver.Record, log solver.Log) error {
	path := c.path(key)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write a record: %w", err)
	}
	if err := log.(*logFile).keep(path + ".log"); err != nil {
		return fmt.Errorf("keep a step's log: %w", err)
	}
	if err := os.Remove(path + failedLog); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the log of a failure: %w", err)
	}
	if err := atomicfile.WriteBytes(path, c.tmp, []byte(encode(key, r))); err != nil {
		return fmt.Errorf("write a record: %w", err)
	}
	return nil
}

// failedLog is added to the name of a record.
const failedLog = ".failed.log"

// LogFile returns the file that holds the log of a step's last run, or of its last failure, if there is one.
func (c *Cache) LogFile(key solver.Key, failed bool) string {
	if failed {
		return c.path(key) + failedLog
	}
	return c.path(key) + ".log"
}

// PutFailed implements solver.Cache.
func (c *Cache) PutFailed(key solver.Key, log solver.Log) (string, error) {
	path := c.path(key)
	err := os.MkdirAll(filepath.Dir(path), 0o700)
	if err == nil {
		err = log.(*logFile).keep(path + failedLog)
	}
	if err != nil {
		return "", fmt.Errorf("keep the log of a failure: %w", err)
	}
	return path + failedLog, nil
}

// Lock implements solver.Cache.
func (c *Cache) Lock(ctx context.Context, key solver.Key) (func(), error) {
	l, err := lock.Acquire(ctx, filepath.Join(c.locks, "key-"+key.String()), false)
	if err != nil {
		return nil, err
	}
	return func() { l.Remove() }, nil
}

// Last implements solver.LastBuild. What a step made last is only ever a hint: a link that is wrong leads to nothing, or to
// a record that says less.
func (c *Cache) Last(v *llb.Vertex) (r *solver.Record, same bool) {
	names := stepNames(v)
	for i, name := range names {
		target, err := os.Readlink(filepath.Join(c.steps(), name))
		if err != nil {
			continue
		}
		key, err := solver.ParseKey(target)
		if err != nil {
			continue
		}
		r, err := c.Get(key)
		if errors.Is(err, errVersion) {
			r, err = &solver.Record{}, nil
		}
		if err == nil {
			return r, i < len(names)-1
		}
	}
	return nil, false
}

// SetLast implements solver.LastBuild.
func (c *Cache) SetLast(v *llb.Vertex, key solver.Key) error {
	names := stepNames(v)
	leads := func(name string) bool {
		target, err := os.Readlink(filepath.Join(c.steps(), name))
		return err == nil && target == key.String()
	}
	if own := names[:len(names)-1]; !slices.ContainsFunc(own, func(name string) bool { return !leads(name) }) {
		return nil // what other projects did meanwhile at such a place is of no interest
	}
	for _, name := range names {
		if leads(name) {
			continue
		}
		if err := atomicfile.Symlink(key.String(), filepath.Join(c.steps(), name), c.tmp); err != nil {
			return fmt.Errorf("remember a step: %w", err)
		}
	}
	return nil
}

// stepNames returns the names that a step is remembered by, the most exact one first: what it is; for one that was edited itself, or
// whose inputs were, its place in its Dockerfile; and last the same place in any project, since a copy of the project elsewhere has
// mostly the same files.
func stepNames(v *llb.Vertex) []string {
	d := v.Digest()
	own, any := v.Meta().Place, v.Meta().Place
	any.Project = ""
	return []string{hex.EncodeToString(d[:]), placeName(v, own), placeName(v, any)}
}

// placeName returns the digest of a place and of the kind of step that is there. The numbers of steps, stages and platforms have no part
// in it: they change when something is added elsewhere. The Merge of a COPY --link has the place of its Copy, and another kind. What is no
// instruction has a text that tells it from others of its group.
func placeName(v *llb.Vertex, p llb.Place) string {
	text := ""
	if p.Group != "" {
		text = v.Meta().Text
	}
	at := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %q %d %q %q %q",
		v.Op().Kind(), p.Project, v.Meta().Location.File, p.Group, p.Stage, p.Step, p.Platform, p.Target, text))
	return hex.EncodeToString(at[:])
}

// NewLog implements solver.Cache. A step that prints nothing never has a file.
func (c *Cache) NewLog() (solver.Log, error) { return &logFile{tmp: c.tmp}, nil }

// logFile is a step's log, from the first byte on in a file of tmp.
type logFile struct {
	tmp  string
	file *os.File
	buf  *bufio.Writer
}

func (l *logFile) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if l.file == nil {
		f, err := os.CreateTemp(l.tmp, "log-")
		if err != nil {
			return 0, fmt.Errorf("open a step's log: %w", err)
		}
		l.file, l.buf = f, bufio.NewWriter(f)
	}
	return l.buf.Write(p)
}

// keep puts the log at path, in the place of an earlier one.
func (l *logFile) keep(path string) error {
	if l.file == nil {
		if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	err := l.buf.Flush()
	if err == nil {
		err = os.Rename(l.file.Name(), path)
	}
	if err != nil {
		return errors.Join(err, l.Close())
	}
	err = l.file.Close()
	l.file = nil
	return err
}

// Close throws the log away unless it was kept.
func (l *logFile) Close() error {
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file = nil
	return errors.Join(f.Close(), os.Remove(f.Name()))
}

func encode(key solver.Key, r *solver.Record) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\nkey %s\n", header, key)
	for _, m := range r.Outputs {
		fmt.Fprintf(&b, "output %d %s %s\n", m.Output, m.ID, m.Content)
	}
	fmt.Fprintf(&b, "name %q\nstarted %s\ntook %d\nlog %d\n", r.Name, r.Started.UTC().Format(time.RFC3339Nano), int64(r.Took), r.LogSize)
	for _, m := range r.Materials {
		fmt.Fprintf(&b, "material %q %q\n", m.URI, m.Digest)
	}
	for _, in := range r.Inputs {
		fmt.Fprintf(&b, "input %q %q\n", in.Name, in.Value)
	}
	text := b.String()
	sum := sha256.Sum256([]byte(text))
	return text + "sum " + hex.EncodeToString(sum[:]) + "\n"
}

func decode(key solver.Key, data string) (*solver.Record, error) {
	text, sum, ok := strings.Cut(data, "sum ")
	if i := strings.LastIndex(data, "\nsum "); i >= 0 {
		text, sum, ok = data[:i+1], data[i+len("\nsum "):], true
	}
	want := sha256.Sum256([]byte(text))
	if !ok || strings.TrimSuffix(sum, "\n") != hex.EncodeToString(want[:]) {
		return nil, errors.New("its checksum is wrong")
	}
	r := &solver.Record{}
	for i, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		word, rest, _ := strings.Cut(line, " ")
		var err error
		switch {
		case i == 0:
			if line != header {
				err = errVersion
			}
			if !strings.HasPrefix(line, headerWords) {
				err = fmt.Errorf("its first line is %q", line)
			}
		case word == "key":
			if rest != key.String() {
				err = errors.New("it is that of another key")
			}
		case word == "output":
			var m solver.Made
			if m, err = parseOutput(rest); err == nil {
				r.Outputs = append(r.Outputs, m)
			}
		case word == "material":
			var m solver.Input
			if m, err = parseInput(rest); err == nil {
				r.Materials = append(r.Materials, solver.Material{URI: m.Name, Digest: m.Value})
			}
		case word == "name":
			r.Name, err = strconv.Unquote(rest)
		case word == "started":
			r.Started, err = time.Parse(time.RFC3339Nano, rest)
		case word == "took":
			var n int64
			n, err = strconv.ParseInt(rest, 10, 64)
			r.Took = time.Duration(n)
		case word == "log":
			r.LogSize, err = strconv.ParseInt(rest, 10, 64)
		case word == "input":
			var in solver.Input
			if in, err = parseInput(rest); err == nil {
				r.Inputs = append(r.Inputs, in)
			}
		default:
			err = fmt.Errorf("line %d is not known", i+1)
		}
		if err != nil {
			return nil, err
		}
	}
	if solver.KeyOf(r.Inputs) != key {
		return nil, errors.New("its inputs have another key")
	}
	return r, nil
}

func parseOutput(s string) (m solver.Made, err error) {
	number, rest, _ := strings.Cut(s, " ")
	id, content, _ := strings.Cut(rest, " ")
	m.ID = id
	if m.Output, err = strconv.Atoi(number); err != nil || m.Output < 0 {
		return m, fmt.Errorf("the output %q is not a number", number)
	}
	m.Content, err = solver.ParseContent(content)
	return m, err
}

func parseInput(s string) (solver.Input, error) {
	name, err := strconv.QuotedPrefix(s)
	if err != nil {
		return solver.Input{}, err
	}
	value := strings.TrimPrefix(s[len(name):], " ")
	var in solver.Input
	if in.Name, err = strconv.Unquote(name); err != nil {
		return in, err
	}
	in.Value, err = strconv.Unquote(value)
	return in, err
}
