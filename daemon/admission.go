package daemon

import (
	"context"

	"github.com/moby/buildkit/solver/pb"

	"github.com/kilnbuild/kiln/daemon/policies"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/llb"
)

// admission says which sources of a definition are fetched, as llbpb.Options.Admit and Source do. The zero value is for those that it
// names.
type admission struct {
	admit  func(ctx context.Context, source *pb.SourceOp, platform *pb.Platform) error
	source func(written string, op llb.Op, admitted bool) (llb.Op, error)
}

// asking is for sources that the policies of the build and more have to allow.
func (b *buildJob) asking(more ...*sourcepolicy.Policy) admission {
	decide := policies.Decide(func(_ context.Context, s sourcepolicy.Source, p *pb.Platform) (sourcepolicy.Source, error) {
		platform := ""
		if p != nil {
			platform = llb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion}.String()
		}
		out, _, err := b.job.Sources().Decide(s, platform, more...)
		return out, err
	})
	return admission{decide.Admit, func(written string, op llb.Op, admitted bool) (llb.Op, error) {
		if !admitted {
			var err error
			if op, err = b.job.Sources().AdmitBy(op, more...); err != nil {
				return nil, err
			}
		}
		return b.job.Sources().Pin(written, op)
	}}
}

// admitted is for sources that the policies have allowed.
func (b *buildJob) admitted() admission {
	return admission{source: func(written string, op llb.Op, _ bool) (llb.Op, error) { return b.job.Sources().Pin(written, op) }}
}
