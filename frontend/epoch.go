package frontend

import (
	"fmt"
	"strconv"
	"strings"

	moby "github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/kilnbuild/kiln/parser"
)

const epochArg = "SOURCE_DATE_EPOCH"

// setEpoch reads SOURCE_DATE_EPOCH, from the build arguments or else from an ARG above the first FROM.
func (b *builder) setEpoch(df *parser.Dockerfile) error {
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
		return nil
	}
	if n, err := strconv.ParseInt(value, 10, 64); err == nil {
		b.epoch = &n
		return nil
	}
	// The names of sources: a directory has no time of its own.
	isStage := false
	for _, s := range df.Stages {
		isStage = isStage || s.Name != "" && strings.EqualFold(s.Name, value)
	}
	_, isContext := b.opts.NamedContexts[value]
	switch {
	case value == "context" || isContext:
		b.global = b.global.without(epochArg)
		delete(b.buildArgs, epochArg)
		return nil
	case isStage:
		return b.at(unsupported("%s from the stage %s", epochArg, value), at)
	}
	return b.at(fmt.Errorf("invalid %s %q: it has to be a number of seconds since 1970", epochArg, value), at)
}
