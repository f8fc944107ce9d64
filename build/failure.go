package build

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/sandbox"
	"github.com/kilnbuild/kiln/solver/execute"
)

// Failure is a RUN that failed, while what it left is still there: see Options.OnFailure.
type Failure struct {
	// Err is why, and what the build returns: a *solver.VertexError.
	Err error
	// Result is that of the build so far, with its Dockerfile.
	Result *Result

	job  *Job
	step *execute.Failed
}

// failed tells the client of a step that failed, when no other step runs any more.
func (j *Job) failed(ctx context.Context, res *Result, err error) {
	if j.options.OnFailure == nil || ctx.Err() != nil {
		return
	}
	if step := j.steps.Failed(err); step != nil {
		j.options.OnFailure(ctx, &Failure{err, res, j, step})
	}
}

// NoShellError says that the image of a step has no shell.
type NoShellError struct {
	// Tried are the programs that are not there, or cannot be executed, and Err is why not the last.
	Tried []string
	Err   error
}

func (e *NoShellError) Error() string {
	return fmt.Sprintf("the root file system of the step has no shell that can be started (%s)", strings.Join(e.Tried, ", "))
}

// Unwrap returns Err.
func (e *NoShellError) Unwrap() error { return e.Err }

// defaultShell is where a shell is by convention.
const defaultShell = "/bin/sh"

// Shell runs the SHELL of the step, or else /bin/sh, in the step's root file system as it is now, with its mounts, network, user,
// environment and working directory. How the shell ends does not matter. It can be called again. The error is a *NoShellError if there is
// none.
func (f *Failure) Shell(ctx context.Context, stdio sandbox.Stdio) error {
	shells := [][]string{{defaultShell}}
	if own := interactive(f.step.Shell()); len(own) > 0 && own[0] != defaultShell {
		shells = append([][]string{own}, shells...)
	}
	none := &NoShellError{}
	for _, args := range shells {
		_, err := f.step.Run(ctx, args, stdio)
		if _, ok := errors.AsType[*sandbox.ExecError](err); !ok {
			return err
		}
		none.Tried, none.Err = append(none.Tried, args[0]), err
	}
	return none
}

// interactive returns the command of a SHELL without its options, which are for commands that are not typed: "-c", "-e".
func interactive(shell []string) []string {
	for i, arg := range shell {
		if strings.HasPrefix(arg, "-") {
			return shell[:i]
		}
	}
	return shell
}

// The names in a directory that Keep writes.
const (
	keptFiles   = "files"
	keptDeleted = "deleted"
)

// Kept is what Keep has written.
type Kept struct {
	// Files is the directory with what the step changed, and Deleted a list of what it deleted; "" for nothing.
	Files, Deleted string
	Dropped        exporter.Dropped
}

// Keep writes the files and directories that the step changed in its root file system to dir/files, and the paths of those that it deleted
// to dir/deleted, a line for each, quoted as in Go where one has other than printable characters. Devices and the bits set-user-ID and
// set-group-ID are left out. It is the last that is done with a Failure.
func (f *Failure) Keep(ctx context.Context, dir string) (k Kept, err error) {
	id, err := f.step.Commit(ctx)
	if err != nil {
		return k, err
	}
	tree, err := f.job.layers.Stack(ctx, []layer.ID{id})
	if err != nil {
		return k, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return k, err
	}
	k.Files = filepath.Join(dir, keptFiles)
	if k.Dropped, err = exporter.WriteDir(ctx, k.Files, tree, exporter.DirOptions{}); err != nil {
		return k, err
	}
	m, err := f.job.layers.Manifest(ctx, id)
	if err != nil {
		return k, err
	}
	name := filepath.Join(dir, keptDeleted)
	err = exporter.WriteFile(name, func(w io.Writer) error {
		out := bufio.NewWriter(w)
		for path, err := range f.step.Deleted(m) {
			if err != nil {
				return err
			}
			k.Deleted = name
			line := "/" + path
			if quoted := strconv.Quote(line); quoted != `"`+line+`"` {
				line = quoted
			}
			fmt.Fprintln(out, line)
		}
		return out.Flush()
	})
	if err == nil && k.Deleted == "" {
		err = os.Remove(name)
	}
	return k, err
}
