package build

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/reach"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/snapshot/compose"
	"github.com/kilnbuild/kiln/solver"
	"github.com/kilnbuild/kiln/solver/explain"
	"github.com/kilnbuild/kiln/solver/files"
	"github.com/kilnbuild/kiln/store"
)

// stdin stands for standard input as a context and as a Dockerfile.
const stdin = "-"

// isDir reports whether a build context is a directory of the client.
func isDir(context string) bool {
	return context != stdin && !remoteurl.IsGitContext(context) && !remoteurl.IsHTTP(context)
}

// CheckContext reports whether a build context, or the value of a named one, is a directory of the client. The error is that
// of an address that cannot be read.
func CheckContext(context string) (dir bool, err error) {
	switch {
	case context == stdin:
	case remoteurl.IsGitContext(context):
		_, err = remoteurl.ParseGitContext(context)
	case remoteurl.IsHTTP(context):
		_, err = remoteurl.ParseHTTP(context)
	case strings.Contains(context, "://"):
		scheme, _, _ := strings.Cut(context, "://")
		err = fmt.Errorf("a context from %s:// is not supported; there are directories, http, https and git, ssh among them", scheme)
	default:
		return true, nil
	}
	return false, err
}

// maxStdin bounds a context on standard input, in bytes: as large as the largest file that kiln fetches.
const maxStdin = 64 << 30

// remote brings in what a build reads from elsewhere than the client's directories, by steps as those of the build itself.
type remote struct {
	work   *store.Work
	steps  *steps
	events *events.Stream
	graph  llb.Graph
	// explain and files are the solver's options.
	explain explain.Explainer
	files   bool
	// project is that of the build's llb.Place.
	project string
}

// hostLimit returns how far in the hosts may be that ADD names. A Dockerfile from another machine is somebody else's: it names none that a
// RUN could not reach, and none closer than where it came from. Those that the user named may be anywhere.
func hostLimit(o Options) reach.Limit {
	from := o.ContextDir
	if elsewhere(o.Dockerfile) {
		from = o.Dockerfile
	}
	origin := hostOf(from)
	if origin == "" {
		return nil
	}
	named := []string{origin, hostOf(o.ContextDir)}
	for _, value := range o.BuildContexts {
		named = append(named, hostOf(value))
	}
	found := reach.NewTransports(&http.Transport{}, net.Dialer{})
	return func(ctx context.Context, host string) reach.Scope {
		if slices.ContainsFunc(named, func(n string) bool { return strings.EqualFold(n, host) }) {
			return reach.Anywhere
		}
		return max(reach.Private, found.Find(ctx, origin).Low)
	}
}

// hostOf returns the host that an address names, without its port; "" for what is on the client.
func hostOf(address string) string {
	switch {
	case remoteurl.IsGitContext(address):
		if s, err := remoteurl.ParseGitContext(address); err == nil {
			return s.Hostname()
		}
	case remoteurl.IsHTTP(address):
		if u, err := url.Parse(address); err == nil {
			return u.Hostname()
		}
	}
	return ""
}

// tree returns the files that a vertex makes.
func (r *remote) tree(ctx context.Context, v *llb.Vertex) (layer.Tree, error) {
	out, err := solver.Solve(ctx, []llb.Output{v.Output(0)}, solver.Options{
		Cache: r.work.Records, Planner: r.steps.Planner, Executor: r.steps.Job, Events: r.events, Explain: r.explain, Files: r.files, Parallelism: 1,
	})
	if err != nil {
		return nil, err
	}
	return r.chain(ctx, out[0])
}

func (r *remote) chain(ctx context.Context, c solver.Ref) (layer.Tree, error) {
	ids, err := r.steps.Realise(ctx, c)
	if err != nil {
		return nil, err
	}
	return r.work.Layers.Stack(ids)
}

// meta describes a vertex that makes the build context.
func (r *remote) meta(text string) llb.Meta {
	return llb.Meta{Place: llb.Place{Project: r.project, Group: "internal"}, Text: text}
}

func (r *remote) scratch() llb.Output {
	return r.graph.Add(llb.Scratch{}, r.meta("scratch")).Output(0)
}

// source returns the files of a context that is no directory. A context that is one file and no archive is a Dockerfile:
// then that is returned as well.
func (r *remote) source(ctx context.Context, o Options) (tree layer.Tree, dockerfile []byte, err error) {
	switch {
	case o.ContextDir == stdin:
		return r.stdin(ctx, o.Stdin)
	case remoteurl.IsGitContext(o.ContextDir):
		op, err := gitContext(o)
		if err != nil {
			return nil, nil, err
		}
		if keep, err := strconv.ParseBool(o.BuildArgs["BUILDKIT_CONTEXT_KEEP_GIT_DIR"]); err == nil && keep {
			op.KeepGitDir = true
		}
		tree, err = r.tree(ctx, r.graph.Add(op, r.meta("load git source "+remoteurl.WithoutUser(o.ContextDir)), r.scratch()))
		return tree, nil, err
	default:
		return r.http(ctx, o.ContextDir)
	}
}

// gitContext returns the op that fetches the repository that is the build context.
func gitContext(o Options) (llb.Git, error) {
	s, err := remoteurl.ParseGitContext(o.ContextDir)
	if err != nil {
		return llb.Git{}, &input.Error{Err: err}
	}
	return source.GitContext(s), nil
}

// sourceTime returns frontend.Options.SourceTime: directories and standard input have no time.
func (r *remote) sourceTime(o Options) frontend.SourceTime {
	return func(ctx context.Context, op llb.Op) (time.Time, error) {
		if op == nil {
			switch {
			case o.ContextDir == stdin:
				return time.Time{}, nil
			case remoteurl.IsGitContext(o.ContextDir):
				git, err := gitContext(o)
				if err != nil {
					return time.Time{}, err
				}
				op = git
			case remoteurl.IsHTTP(o.ContextDir):
				h, err := remoteurl.ParseHTTP(o.ContextDir)
				if err != nil {
					return time.Time{}, &input.Error{Err: err}
				}
				op = llb.HTTP{URL: h.URL, User: h.User}
			default:
				return time.Time{}, nil
			}
		}
		made, err := r.steps.SourceTime(ctx, op)
		if err != nil {
			return made, &SourceError{err}
		}
		return made, nil
	}
}

// SourceError is a repository or server that did not say what SOURCE_DATE_EPOCH asks for.
type SourceError struct{ Err error }

func (e *SourceError) Error() string { return e.Err.Error() }

// Unwrap returns Err.
func (e *SourceError) Unwrap() error { return e.Err }

// contextFile is the name of the one file that a context from http or standard input is at first.
const contextFile = "context"

func (r *remote) http(ctx context.Context, address string) (layer.Tree, []byte, error) {
	file, err := r.download(address, contextFile)
	if err != nil {
		return nil, nil, err
	}
	tree, err := r.tree(ctx, file)
	if err != nil {
		return nil, nil, err
	}
	return r.unpack(ctx, tree, file, tree, remoteurl.Shown(address))
}

// download returns the vertex of a file from an http or https address.
func (r *remote) download(address, name string) (*llb.Vertex, error) {
	h, err := remoteurl.ParseHTTP(address)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	return r.graph.Add(llb.HTTP{URL: h.URL, User: h.User, Filename: name}, r.meta("download "+remoteurl.Shown(address)), r.scratch()), nil
}

func (r *remote) stdin(ctx context.Context, in io.Reader) (layer.Tree, []byte, error) {
	c, err := r.steps.File(ctx, contextFile, &bounded{r: until(ctx, in), left: maxStdin})
	if err != nil {
		return nil, nil, fmt.Errorf("read the build context from standard input: %w", err)
	}
	tree, err := r.chain(ctx, c)
	if err != nil {
		return nil, nil, err
	}
	empty, err := r.work.Layers.Stack(nil)
	if err != nil {
		return nil, nil, err
	}
	r.steps.Local[stdin] = tree
	file := r.graph.Add(llb.Local{Name: stdin}, r.meta("load the context from standard input"))
	return r.unpack(ctx, tree, file, empty, "standard input")
}

// unpack returns what is in the one file of tree, which vertex makes, if that is an archive; else the file is a Dockerfile
// whose context is bare.
func (r *remote) unpack(ctx context.Context, tree layer.Tree, vertex *llb.Vertex, bare layer.Tree, from string) (layer.Tree, []byte, error) {
	f, err := tree.Open(&layer.Entry{Path: contextFile})
	if err != nil {
		return nil, nil, err
	}
	archive := files.IsArchive(f)
	f.Close()
	if archive {
		tree, err := r.tree(ctx, r.graph.Add(source.UnpackContext(contextFile), r.meta("unpack the context from "+from), r.scratch(), vertex.Output(0)))
		return tree, nil, err
	}
	text, err := readTree(tree, contextFile, maxDockerfile)
	if err == nil && bytes.IndexByte(text, 0) >= 0 {
		err = errors.New("it is neither an archive nor a Dockerfile")
	}
	if err != nil {
		return nil, nil, &input.Error{Err: fmt.Errorf("read the build context from %s: %w", from, err)}
	}
	return bare, text, nil
}

// elsewhere reports whether -f names something that is no file of a context or of the client.
func elsewhere(dockerfile string) bool { return dockerfile == stdin || remoteurl.IsHTTP(dockerfile) }

// dockerfile returns the Dockerfile that -f names elsewhere, and its name.
func (r *remote) dockerfile(ctx context.Context, o Options) ([]byte, string, error) {
	if o.Dockerfile == stdin {
		text, err := io.ReadAll(io.LimitReader(until(ctx, o.Stdin), maxDockerfile+1))
		if err == nil && len(text) > maxDockerfile {
			err = fmt.Errorf("it is larger than the %d MiB that are allowed", maxDockerfile>>20)
		}
		if err != nil {
			return nil, "", &input.Error{Err: fmt.Errorf("read the Dockerfile from standard input: %w", err)}
		}
		return text, "Dockerfile", nil
	}
	file, err := r.download(o.Dockerfile, "Dockerfile")
	if err != nil {
		return nil, "", err
	}
	tree, err := r.tree(ctx, file)
	if err != nil {
		return nil, "", err
	}
	text, err := readTree(tree, "Dockerfile", maxDockerfile)
	if err != nil {
		return nil, "", &input.Error{Err: fmt.Errorf("read the Dockerfile from %s: %w", remoteurl.Shown(o.Dockerfile), err)}
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
		text, err := readTree(tree, e.Path, maxDockerfile)
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
		return nil, fmt.Errorf("/%s is larger than the %d MiB that are allowed", path, limit>>20)
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
