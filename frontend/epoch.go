package frontend

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/frontend/expand"
	"github.com/kilnbuild/kiln/frontend/fault"
	"github.com/kilnbuild/kiln/frontend/source"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/parser"
)

const epochArg = "SOURCE_DATE_EPOCH"

// SourceTime returns the time of what op fetches, an llb.Git or llb.HTTP, or of the build context if op is nil: that of the
// commit, or when the file was modified, or else the newest file in it if it is an archive. It is zero for what has no time,
// as a directory.
type SourceTime func(ctx context.Context, op llb.Op) (time.Time, error)

// maxEpoch is the end of the year 9999, in Unix seconds: the times of an image are text whose years have four digits.
const maxEpoch = 253402300799

// madeAt returns the time of what steps make and do not copy, in Unix seconds; nil for the clock's.
func (b *builder) madeAt() *int64 {
	if b.opts.Reproducible {
		return new(int64(llb.ReproducibleTime))
	}
	return b.epoch
}

// setEpoch sets SOURCE_DATE_EPOCH: from the build arguments, from an ARG above the first FROM, or, where it has to be set, from the commit
// of the context.
func (b *builder) setEpoch(df *parser.Dockerfile) error {
	if err := b.readEpoch(df); err != nil || b.epoch != nil || b.opts.CommitTime == nil {
		return err
	}
	made, err := b.opts.CommitTime(b.ctx)
	if err != nil {
		return err
	}
	return b.setEpochTo(made.Unix(), true)
}

// readEpoch reads SOURCE_DATE_EPOCH, from the build arguments or else from an ARG above the first FROM.
func (b *builder) readEpoch(df *parser.Dockerfile) error {
	value, given := b.buildArgs[epochArg]
	var at []moby.Range
	if !given {
		value, _ = b.global.Get(epochArg)
		for _, c := range df.Args {
			for _, a := range c.Args {
				if a.Key == epochArg {
					at = c.Location()
				}
			}
		}
	}
	if value == "" {
		if given {
			return b.unsetEpoch()
		}
		return nil
	}
	if n, err := strconv.ParseInt(value, 10, 64); err == nil {
		if n < 0 || n > maxEpoch {
			why := fmt.Sprintf("it has to be between 0, the beginning of 1970, and %d, the end of 9999", int64(maxEpoch))
			return b.at(&fault.EpochError{Value: value, Why: why}, at)
		}
		return b.setEpochTo(n, given)
	}
	op, ok, err := b.epochSource(df, value, at)
	if err == nil && op != nil {
		op, err = fetched(b, value, op)
	}
	if err != nil || !ok {
		return b.at(err, at)
	}
	var made time.Time
	if b.opts.SourceTime != nil {
		if made, err = b.opts.SourceTime(b.ctx, op); err != nil {
			return b.at(fmt.Errorf("read the time of %s for %s: %w", value, epochArg, err), at)
		}
	}
	if made.IsZero() {
		return b.unsetEpoch()
	}
	return b.setEpochTo(made.Unix(), given)
}

// setEpochTo sets the time, and the argument, which was given or has a default, to it as a plain number.
func (b *builder) setEpochTo(seconds int64, given bool) error {
	b.epoch = &seconds
	text := strconv.FormatInt(seconds, 10)
	if !given {
		return b.global.Set(epochArg, text)
	}
	b.buildArgs[epochArg] = text
	return nil
}

func (b *builder) unsetEpoch() error {
	delete(b.buildArgs, epochArg)
	return b.global.Unset(epochArg)
}

// epochSource returns the op whose time SOURCE_DATE_EPOCH=value asks for, nil for the build context. It is false, and the
// variable is not set any more, for a context that cannot have a time.
func (b *builder) epochSource(df *parser.Dockerfile, value string, at []moby.Range) (op llb.Op, ok bool, err error) {
	if value == "context" {
		return nil, true, nil
	}
	named, err := b.namedContext(value, b.target)
	if err != nil {
		return nil, false, b.at(err, at)
	}
	if named != nil {
		if named.Remote == nil {
			err = b.unsetEpoch()
		}
		return named.Remote, named.Remote != nil, err
	}
	for i := range df.Stages {
		if s := &df.Stages[i]; s.Name != "" && strings.EqualFold(s.Name, value) {
			op, where, err := b.epochStage(s)
			return op, true, b.at(err, where)
		}
	}
	why := `it has to be a number of seconds since 1970, "context", or the name of a context or stage`
	return nil, false, b.at(&fault.EpochError{Value: value, Why: why}, at)
}

// epochStage returns what the stage that SOURCE_DATE_EPOCH names fetches, or an error and its place.
func (b *builder) epochStage(s *instructions.Stage) (op llb.Op, at []moby.Range, err error) {
	env := b.global.Fork()
	at = s.Location
	if err := env.Unset(epochArg); err != nil {
		return nil, at, err
	}
	base, err := b.words.Expand(s.BaseName, env)
	if err != nil {
		return nil, at, err
	}
	if base.Result != "scratch" {
		return nil, at, &fault.EpochStageError{Why: "has to be FROM scratch", Based: true}
	}
	for _, c := range s.Commands {
		at = c.Location()
		switch c := c.(type) {
		case *instructions.ArgCommand:
			for _, a := range c.Args {
				v, ok := b.buildArgs[a.Key]
				ok = ok && a.Key != epochArg
				if !ok && a.Value == nil {
					continue
				}
				if !ok {
					v, _, err = b.words.Word(*a.Value, env)
				}
				if err == nil {
					err = env.Set(a.Key, v)
				}
				if err != nil {
					return nil, at, err
				}
			}
		case *instructions.AddCommand:
			if op != nil || len(c.SourceContents) > 0 || len(c.SourcePaths) != 1 {
				return nil, at, errOneAdd
			}
			if op, err = b.epochAdd(c, env); err != nil {
				return nil, at, err
			}
		default:
			return nil, at, errOneAdd
		}
	}
	if op == nil {
		return nil, s.Location, errOneAdd
	}
	return op, nil, nil
}

var errOneAdd = &fault.EpochStageError{Why: "has to consist of ARGs and one ADD of one URL or git repository"}

// epochAdd returns what an ADD fetches.
func (b *builder) epochAdd(c *instructions.AddCommand, env *expand.Env) (llb.Op, error) {
	src, _, err := b.words.Word(c.SourcePaths[0], env)
	if err != nil {
		return nil, err
	}
	add := *c
	if add.Checksum, _, err = b.words.Word(c.Checksum, env); err != nil {
		return nil, err
	}
	switch {
	case remoteurl.IsGit(src):
		return source.Git(src, add.Checksum, add.KeepGitDir)
	case remoteurl.IsHTTP(src):
		return source.HTTP(src, add.Checksum)
	}
	return nil, errOneAdd
}
