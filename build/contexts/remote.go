package contexts

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/files"
)

// maxStdin bounds a context on standard input, in bytes: as large as the largest file that kiln fetches.
const maxStdin = 64 << 30

// files returns the files that a vertex makes.
func (l *Loader) files(ctx context.Context, v *llb.Vertex) (layer.Tree, error) {
	out, err := l.Steps.Solve(ctx, v.Output(0))
	if err != nil {
		return nil, err
	}
	return l.Steps.Files(ctx, out)
}

// meta describes a vertex that makes the build context.
func (l *Loader) meta(text string) llb.Meta {
	return llb.Meta{Place: llb.Place{Project: l.Project(), Group: "internal"}, Text: text}
}

func (l *Loader) scratch() llb.Output {
	return l.graph.Add(llb.Scratch{}, l.meta("scratch")).Output(0)
}

// tree returns the files of a context that is no directory. A context that is one file and no archive is a Dockerfile:
// then that is returned as well.
func (l *Loader) tree(ctx context.Context) (tree layer.Tree, dockerfile []byte, err error) {
	switch {
	case l.Context == Stdin:
		return l.stdin(ctx, l.Stdin)
	case remoteurl.IsGitContext(l.Context):
		op, err := l.gitContext()
		if err != nil {
			return nil, nil, err
		}
		tree, err = l.files(ctx, l.graph.Add(op, l.meta("load git source "+remoteurl.WithoutUser(l.Context)), l.scratch()))
		return tree, nil, err
	default:
		return l.http(ctx, l.Context)
	}
}

// gitContext returns the op that fetches the repository that is the build context.
func (l *Loader) gitContext() (llb.Op, error) {
	s, err := remoteurl.ParseGitContext(l.Context)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	op := source.GitContext(s)
	op.KeepGitDir, op.Advice = op.KeepGitDir || l.KeepGitDir, l.GitAdvice
	return l.admit(op)
}

// admit returns what is fetched in place of a source that the user named.
func (l *Loader) admit(op llb.Op) (llb.Op, error) {
	op, err := l.Admit(op)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	return op, nil
}

// SourceTime is frontend.Options.SourceTime: directories and standard input have no time.
func (l *Loader) SourceTime(ctx context.Context, op llb.Op) (time.Time, error) {
	if op == nil {
		switch {
		case l.Context == Stdin:
			return time.Time{}, nil
		case remoteurl.IsGitContext(l.Context):
			git, err := l.gitContext()
			if err != nil {
				return time.Time{}, err
			}
			op = git
		case remoteurl.IsHTTP(l.Context):
			h, err := remoteurl.ParseHTTP(l.Context)
			if err != nil {
				return time.Time{}, &input.Error{Err: err}
			}
			if op, err = l.admit(llb.HTTP{URL: h.URL, User: h.User, Filename: contextFile}); err != nil {
				return time.Time{}, err
			}
		default:
			return time.Time{}, nil
		}
	}
	made, err := l.Steps.SourceTime(ctx, op)
	if err != nil {
		return made, &SourceError{err}
	}
	return made, nil
}

// SourceError is a repository or server that did not say what SOURCE_DATE_EPOCH asks for.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *SourceError) Unwrap() error { return e.Err }

// contextFile is the name of the one file that a context from http or standard input is at first.
const contextFile = "context"

func (l *Loader) http(ctx context.Context, address string) (layer.Tree, []byte, error) {
	file, err := l.download(address, contextFile)
	if err != nil {
		return nil, nil, err
	}
	tree, err := l.files(ctx, file)
	if err != nil {
		return nil, nil, err
	}
	return l.unpack(ctx, tree, file, tree, remoteurl.Shown(address))
}

// download returns the vertex of a file from an http or https address.
func (l *Loader) download(address, name string) (*llb.Vertex, error) {
	h, err := remoteurl.ParseHTTP(address)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	op, err := l.admit(llb.HTTP{URL: h.URL, User: h.User, Filename: name})
	if err != nil {
		return nil, err
	}
	return l.graph.Add(op, l.meta("download "+remoteurl.Shown(address)), l.scratch()), nil
}

func (l *Loader) stdin(ctx context.Context, in io.Reader) (layer.Tree, []byte, error) {
	c, err := l.Steps.File(ctx, contextFile, &bounded{r: until(ctx, in), left: maxStdin})
	if err != nil {
		return nil, nil, fmt.Errorf("read the build context from standard input: %w", err)
	}
	tree, err := l.Steps.Files(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	empty, err := l.Steps.Files(ctx, solver.Ref{})
	if err != nil {
		return nil, nil, err
	}
	l.Open.Add(Stdin, tree)
	file := l.graph.Add(llb.Local{Name: Stdin, Session: l.Session}, l.meta("load the context from standard input"))
	return l.unpack(ctx, tree, file, empty, "standard input")
}

// unpack returns what is in the one file of tree, which vertex makes, if that is an archive; else the file is a Dockerfile
// whose context is bare.
func (l *Loader) unpack(
	ctx context.Context, tree layer.Tree, vertex *llb.Vertex, bare layer.Tree, from string,
) (layer.Tree, []byte, error) {
	f, err := tree.Open(&layer.Entry{Path: contextFile})
	if err != nil {
		return nil, nil, err
	}
	archive := files.IsArchive(f)
	f.Close()
	if archive {
		meta := l.meta("unpack the context from " + from)
		tree, err := l.files(ctx, l.graph.Add(source.UnpackContext(contextFile), meta, l.scratch(), vertex.Output(0)))
		return tree, nil, err
	}
	text, err := readTree(tree, contextFile, MaxDockerfile)
	if err == nil && len(text) == 0 {
		err = errors.New("it is empty, and neither an archive nor a Dockerfile")
	}
	if err == nil && bytes.IndexByte(text, 0) >= 0 {
		err = errors.New("it is neither an archive nor a Dockerfile")
	}
	if err != nil {
		return nil, nil, &input.Error{Err: fmt.Errorf("read the build context from %s: %w", from, err)}
	}
	return bare, text, nil
}

// elsewhere reports whether -f names something that is no file of a context or of the client.
func elsewhere(dockerfile string) bool { return dockerfile == Stdin || remoteurl.IsHTTP(dockerfile) }

// dockerfile returns the Dockerfile that -f names elsewhere, and its name.
func (l *Loader) dockerfile(ctx context.Context) ([]byte, string, error) {
	if l.Dockerfile == Stdin {
		text, err := io.ReadAll(io.LimitReader(until(ctx, l.Stdin), MaxDockerfile+1))
		if err == nil && len(text) > MaxDockerfile {
			err = fmt.Errorf("it is larger than the %d MiB that are allowed", MaxDockerfile>>20)
		}
		if err != nil {
			return nil, "", &input.Error{Err: fmt.Errorf("read the Dockerfile from standard input: %w", err)}
		}
		return text, "Dockerfile", nil
	}
	file, err := l.download(l.Dockerfile, "Dockerfile")
	if err != nil {
		return nil, "", err
	}
	tree, err := l.files(ctx, file)
	if err != nil {
		return nil, "", err
	}
	text, err := readTree(tree, "Dockerfile", MaxDockerfile)
	if err != nil {
		return nil, "", &input.Error{Err: fmt.Errorf("read the Dockerfile from %s: %w", remoteurl.Shown(l.Dockerfile), err)}
	}
	return text, "Dockerfile", nil
}

// dockerfileIn returns the Dockerfile that a tree has at a path, or at one of the usual ones for "", and its path.
func dockerfileIn(tree layer.Tree, name, context string) ([]byte, string, error) {
	for _, candidate := range []string{cmp.Or(name, "Dockerfile"), cmp.Or(name, "dockerfile")} {
		_, e, err := compose.Resolve(tree.Lookup, candidate, true)
		if err != nil {
			return nil, "", &input.Error{Err: fmt.Errorf("look for the Dockerfile: %w", err)}
		}
		if e == nil {
			continue
		}
		text, err := readTree(tree, e.Path, MaxDockerfile)
		if err != nil {
			return nil, "", &input.Error{Err: fmt.Errorf("read the Dockerfile: %w", err)}
		}
		return text, candidate, nil
	}
	if name != "" {
		return nil, "", &input.Error{Err: fmt.Errorf("there is no %s in the context from %s; -f names a file of the context", name, context)}
	}
	return nil, "", &input.Error{Err: fmt.Errorf("there is no Dockerfile in the context from %s; name one with -f", context)}
}

// ReadTree reads a regular file of at most limit bytes, to which links may lead; false if there is none.
func ReadTree(tree layer.Tree, name string, limit int64) (data []byte, found bool, err error) {
	at, e, err := compose.Resolve(tree.Lookup, name, true)
	if err != nil || e == nil {
		return nil, false, err
	}
	data, err = readTree(tree, at, limit)
	return data, err == nil, err
}

// readTree reads a regular file of at most limit bytes.
func readTree(tree layer.Tree, path string, limit int64) ([]byte, error) {
	e, ok, err := tree.Lookup(path)
	if err != nil {
		return nil, err
	}
	if !ok || e.Type != layer.File {
		return nil, fmt.Errorf("/%s is not a regular file", path)
	}
	if e.Size > limit {
		return nil, &regularfile.TooLargeError{Path: "/" + path, Limit: limit}
	}
	f, err := tree.Open(&e)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// until returns in as a reader that ends with ctx: a read of a pipe or a terminal waits for whoever writes, and cannot be
// called off itself.
func until(ctx context.Context, in io.Reader) io.Reader {
	r, w := io.Pipe()
	stop := context.AfterFunc(ctx, func() { w.CloseWithError(context.Cause(ctx)) })
	go func() {
		_, err := io.Copy(w, in)
		stop()
		w.CloseWithError(err)
	}()
	return r
}

// bounded fails after so many bytes.
type bounded struct {
	r    io.Reader
	left int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if b.left -= int64(n); b.left < 0 {
		return n, fmt.Errorf("it is larger than the %d GiB that are allowed", maxStdin>>30)
	}
	return n, err
}
