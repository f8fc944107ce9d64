package policies

import (
	"context"
	"fmt"
	"maps"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"

	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/llb"
)

// Client is the client whose source policy is asked. It is safe for concurrent use.
type Client struct {
	// Check asks the client.
	Check func(ctx context.Context, req *policysession.CheckPolicyRequest) (*policysession.CheckPolicyResponse, error)
	// Resolve looks up what the client wants to know of a source before it decides. Whether that is allowed is what is asked.
	Resolve func(ctx context.Context, req *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error)
}

// Ask asks whether a source is allowed, for a platform as llb.Platform prints it, which is that of the machine if it is "". It returns what
// is used in its place, and whether that is what the client converts it into. Each request to the client takes one off left; with none left
// there is an error.
func (c Client) Ask(
	ctx context.Context, s sourcepolicy.Source, platform string, left *int,
) (_ sourcepolicy.Source, converted bool, err error) {
	p, err := llb.ParsePlatform(platform, llb.Host())
	if platform == "" || err != nil {
		p = llb.Host()
	}
	req := &policysession.CheckPolicyRequest{
		Platform: &pb.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant, OSVersion: p.OSVersion},
		Source:   &gateway.ResolveSourceMetaResponse{Source: &pb.SourceOp{Identifier: s.Identifier, Attrs: s.Attrs}},
	}
	for ; *left > 0; *left-- {
		resp, err := c.Check(ctx, req)
		if err != nil {
			return s, false, fmt.Errorf("ask the client's source policy about %s: %w", s.Identifier, err)
		}
		more := resp.GetRequest()
		if more == nil {
			*left--
			return decided(s, resp.GetDecision())
		}
		asked := more.GetSource()
		if asked.GetIdentifier() != s.Identifier || !maps.Equal(asked.GetAttrs(), s.Attrs) {
			return s, false, fmt.Errorf("policy requested different source identifier: %q != %q", asked.GetIdentifier(), s.Identifier)
		}
		if req.Source, err = c.Resolve(ctx, more); err != nil {
			return s, false, fmt.Errorf("error resolving source metadata from policy request: %w", err)
		}
		req.Source.Source = asked
	}
	return s, false, fmt.Errorf("too many policy requests for %s", s.Identifier)
}

// decided returns what a client makes of a source.
func decided(s sourcepolicy.Source, d *policysession.DecisionResponse) (_ sourcepolicy.Source, converted bool, err error) {
	if d == nil {
		return s, false, fmt.Errorf("the client's source policy decides nothing about %s", s.Identifier)
	}
	switch d.Action {
	case spb.PolicyAction_ALLOW:
		return s, false, nil
	case spb.PolicyAction_CONVERT:
		if d.Update == nil {
			return s, false, fmt.Errorf("the client's source policy converts %s into nothing", s.Identifier)
		}
		return sourcepolicy.Source{Identifier: d.Update.Identifier, Attrs: maps.Clone(d.Update.Attrs)}, true, nil
	}
	err = fmt.Errorf("source %q not allowed by policy: action %s", s.Identifier, d.Action)
	return s, false, policysession.WrapDenyMessages(err, d.GetDenyMessages())
}
