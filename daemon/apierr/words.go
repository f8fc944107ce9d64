package apierr

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/platforms"
	"google.golang.org/grpc/status"

	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/frontend/fault"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/fetch"
	"github.com/kilnbuild/kiln/internal/git"
	"github.com/kilnbuild/kiln/internal/httpsource"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/internal/termtext"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
	"github.com/kilnbuild/kiln/registry"
	"github.com/kilnbuild/kiln/registry/image"
	"github.com/kilnbuild/kiln/solver/execute"
	"github.com/kilnbuild/kiln/solver/files"
)

// Text returns the message of an error as BuildKit's clients expect it, without the place in the Dockerfile, which has a detail of its own.
func Text(err error) string {
	if e, ok := errors.AsType[*parser.Error](err); ok {
		text, known := "", false
		if e.Err != nil {
			text, known = words(e.Err)
		}
		if !known {
			text = e.Msg
		}
		if e.Syntax && e.Line > 0 {
			text = fmt.Sprintf("dockerfile parse error on line %d: %s", e.Line, text)
		}
		if e.Hint != "" && (!known || strings.HasPrefix(e.Hint, didYouMean)) {
			text += " (" + e.Hint + ")"
		}
		return text
	}
	text, _ := words(err)
	return text
}

// didYouMean is how hints begin that BuildKit gives as well.
const didYouMean = "did you mean "

// row says what BuildKit says of an error of one type: ok is false for errors of others.
type row func(err error) (text string, ok bool)

// of returns the row of a type.
func of[E error](say func(E) string) row {
	return func(err error) (string, bool) {
		e, ok := errors.AsType[E](err)
		if !ok {
			return "", false
		}
		return say(e), true
	}
}

// table has BuildKit's words for kiln's types. Types that are not in it say it as BuildKit does, or BuildKit has no such error.
var table = []row{
	func(err error) (string, bool) { return context.Canceled.Error(), errors.Is(err, context.Canceled) },
	of(func(e *files.NotFoundError) string {
		// BuildKit says one thing of paths that are part of a key, and another of those that are looked up later.
		text := fmt.Sprintf("failed to compute cache key: failed to calculate checksum of ref source: %q: not found: "+
			"lstat /%s: no such file or directory", "/"+e.Path, e.Path)
		switch {
		case e.Ignored != nil:
			text += fmt.Sprintf(" (it is excluded by %s)", e.Ignored)
		case e.Similar != "":
			text += fmt.Sprintf(" (did you mean %s?)", e.Similar)
		}
		return text
	}),
	of(func(e *execute.SecretError) string { return fmt.Sprintf("secret %s: not found", e.ID) }),
	of(func(e *sshagent.MissingError) string {
		if e.Reason != "" {
			return e.Reason
		}
		return fmt.Sprintf("no SSH key %q forwarded from the client", e.ID)
	}),
	of(func(e *execute.DeviceError) string {
		return fmt.Sprintf("device %s is requested by the build but not allowed", e.Name)
	}),
	of(func(e *execute.NoExecError) string {
		return fmt.Sprintf("process %q did not complete successfully: exit code: %d: %v", strings.Join(e.Args, " "), notStarted, e)
	}),
	of(func(e *fault.EntitlementError) string {
		return fmt.Sprintf("%s: entitlement %s is not allowed", e.What, e.Entitlement)
	}),
	of(func(e *fault.PlatformError) string {
		return fmt.Sprintf("failed to parse platform %s: %s", e.Expr, platform(e.Err))
	}),
	of(func(e *llb.PlatformError) string { return platform(e) }),
	of(func(e *fault.EpochError) string {
		return fmt.Sprintf("invalid SOURCE_DATE_EPOCH: %s: %s", e.Value, e.Why)
	}),
	of(func(e *fault.EpochStageError) string {
		if e.Based {
			return "SOURCE_DATE_EPOCH stage must use FROM scratch"
		}
		return "SOURCE_DATE_EPOCH stage does not meet source-only requirements: it " + e.Why
	}),
	func(err error) (string, bool) {
		return fault.ErrFromVariable.Error() + ", define a new stage with FROM using ARG from global scope as a workaround",
			errors.Is(err, fault.ErrFromVariable)
	},
	of(func(e *source.ChecksumError) string {
		if e.Commit {
			return fmt.Sprintf("invalid checksum %q: expected hex commit hash: %v", e.Value, e.Err)
		}
		return fmt.Sprintf("invalid checksum digest format: %s: %v", e.Value, e.Err)
	}),
	of(func(e *remoteurl.ConflictError) string {
		return fmt.Sprintf("%s conflicts: %q vs %q", e.What, e.First, e.Second)
	}),
	of(func(e *git.RefError) string { return "repository does not contain ref " + e.Ref }),
	of(func(e *git.ChecksumError) string {
		return fmt.Sprintf("expected checksum to match %s, got %s", e.Want, e.Got)
	}),
	of(func(e *httpsource.ChecksumError) string {
		return fmt.Sprintf("digest mismatch for %s: expected checksum to match %s, got %s", e.URL, e.Want, e.Got)
	}),
	of(func(e *registry.Error) string {
		if e.Kind != registry.NotFound {
			return e.Error()
		}
		text := e.Ref + ": not found"
		if e.Advice != "" {
			text += "; " + e.Advice
		}
		return text
	}),
	of(func(e *fetch.StatusError) string {
		text := fmt.Sprintf("invalid response status %d from %s", e.Status, e.Host)
		if e.Text != "" {
			text += ": " + e.Text
		}
		return text
	}),
	of(func(e *sourcepolicy.RuleError) string {
		if e.Denied {
			return fmt.Sprintf("source %q not allowed by policy: source denied by policy: rule %d of %s", e.Source, e.Rule, e.File)
		}
		return e.Error()
	}),
	of(func(e *regularfile.TooLargeError) string {
		return fmt.Sprintf("%s exceeds maximum allowed size of %s", strings.TrimPrefix(e.Path, "/"), termtext.Size(e.Limit))
	}),
	of(func(e *bases.ChecksumError) string {
		return fmt.Sprintf("image digest %s for %s does not match expected checksum %s", e.Got, e.Ref, e.Want)
	}),
	func(err error) (string, bool) {
		_, ok := errors.AsType[*layer.DiffIDError](err)
		return "failed to verify layer: " + err.Error(), ok
	},
	of(func(e *image.PlatformError) string {
		return e.Error() + ": no match for platform in manifest: not found"
	}),
}

// statusError is an error of another service, or of the API itself.
type statusError interface {
	error
	GRPCStatus() *status.Status
}

// words returns BuildKit's words for the first type in err's chain that the table has, or kiln's own; known says which.
func words(err error) (text string, known bool) {
	for _, row := range table {
		if text, ok := row(err); ok {
			return text, true
		}
	}
	if e, ok := errors.AsType[statusError](err); ok && e.Error() == err.Error() {
		return e.GRPCStatus().Message(), false // its text would have the name of the status, which clients add
	}
	return err.Error(), false
}

// platform returns what is wrong with a text that is not a platform.
func platform(err error) string {
	e, ok := errors.AsType[*llb.PlatformError](err)
	if !ok {
		return err.Error()
	}
	if _, theirs := platforms.Parse(e.Text); theirs != nil {
		return theirs.Error()
	}
	return e.Error() // containerd takes it
}
