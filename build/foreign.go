package build

import (
	"context"
	"errors"

	"github.com/kilnbuild/kiln/build/contexts"
	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/solver/session"
)

// Frontends runs frontends that are images. They make graphs by requests in the form of BuildKit's API, which this package does not know.
type Frontends interface {
	// Run has a frontend make what a request asks for, or describe it in the Result; the Product is nil then. It has called Provide before the
	// frontend runs.
	Run(ctx context.Context, f *Foreign) (*Product, error)
}

// Foreign is a request for the Dockerfile of a frontend that is an image.
type Foreign struct {
	Job     *Job
	Request *Request
	Result  *Result
	// Syntax says which frontend, and Line where the Dockerfile does.
	Syntax *source.SyntaxError
	Line   *parser.Error
	// Allow are the entitlements of the build, and Pull says that registries are asked about images.
	Allow []string
	Pull  bool
	// Warn tells people what the frontend has found.
	Warn func(events.Warning)

	loader *contexts.Loader
}

// foreign has another frontend make what a request asks for, where that is allowed; refused is the error of kiln's own.
func (j *Job) foreign(ctx context.Context, r *Request, res *Result, refused error) (*Product, error) {
	syntax, ok := errors.AsType[*source.SyntaxError](refused)
	line, isLine := errors.AsType[*parser.Error](refused)
	if !ok || !isLine || !j.options.Client.Frontends && !j.builder.foreign {
		return nil, refused
	}
	switch line.Hint = ""; {
	case r.Call == CallLock:
		line.Hint = "only the frontend itself knows what it takes from elsewhere: a lock file cannot have it"
	case j.options.Run.Reproducible:
		line.Hint = "what it makes is not reproducible everywhere, as what kiln's own frontend makes is: add --reproducible=false"
	case j.builder.Frontends == nil:
		line.Hint = "it is run by kilnd, a program that belongs beside kiln and is not there: make install installs both"
	}
	if line.Hint != "" {
		return nil, refused
	}
	f := &Foreign{
		Job: j, Request: r, Result: res, Syntax: syntax, Line: line, Allow: j.options.Client.Allow, Pull: j.options.Cache.Pull,
		loader: j.loader(r),
	}
	f.Warn = func(w events.Warning) {
		j.events.Emit(w)
		res.Warnings = append(res.Warnings, Warning{Message: w.Text, Description: w.Detail, URL: w.URL, Location: w.Location})
	}
	p, err := j.builder.Frontends.Run(ctx, f)
	if err != nil || r.Call != CallBuild {
		return nil, err
	}
	if len(p.Images) == 1 {
		p.Given.ByPlatform = false // kiln build makes no index of one image, whichever frontend it is of
	}
	return p, j.complete(ctx, p)
}

// Contexts opens the contexts of the request once more, as its frontend gets them.
func (f *Foreign) Contexts(ctx context.Context) (*contexts.Whole, error) {
	return f.loader.Whole(ctx, f.Job.open.Main(), f.Result.Dockerfile, f.Result.DockerfileName)
}

// Provide has all directories that graphs name come from elsewhere from now on, and gives OCI layouts names: no other can be named.
func (j *Job) Provide(locals session.Locals, layouts map[string]string) {
	j.open.Replace(locals)
	j.bases.Stores = j.bases.Named(layouts)
}
