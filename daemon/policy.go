package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"
	"github.com/moby/buildkit/sourcepolicy/policysession"

	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/llb"
)

// policyName is what messages call the policy of a request.
const policyName = "of the request"

// readPolicy reads the rules for sources that a request has; nil for none. The error is an *input.Error.
func readPolicy(p *spb.Policy) (*sourcepolicy.Policy, error) {
	if p == nil || len(p.Rules) == 0 {
		return nil, nil
	}
	for _, r := range p.Rules {
		err := error(nil)
		switch {
		case r == nil:
			err = errors.New("invalid nil rule in policy")
		case r.Selector == nil:
			err = errors.New("invalid nil selector in policy")
		case r.Action == spb.PolicyAction_CONVERT && r.Updates == nil:
			err = errors.New("missing destination for convert rule")
		}
		for _, c := range r.GetSelector().GetConstraints() {
			if c == nil {
				err = errors.New("invalid nil constraint in policy")
			}
		}
		if err != nil {
			return nil, &input.Error{Err: err}
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the source policy: %w", err)
	}
	read, err := sourcepolicy.Parse(policyName, data)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	return read, nil
}

// maxPolicyRequests is how often a client may ask for more about a source before it decides.
const maxPolicyRequests = 10

// verify asks the client whether a source is allowed, and returns what it makes of it. Clients are told the platform of the machine.
func (b *buildJob) verify(s sourcepolicy.Source) (sourcepolicy.Source, error) {
	host := llb.Host()
	req := &policysession.CheckPolicyRequest{
		Platform: &pb.Platform{OS: host.OS, Architecture: host.Architecture, Variant: host.Variant},
		Source:   &gateway.ResolveSourceMetaResponse{Source: &pb.SourceOp{Identifier: s.Identifier, Attrs: s.Attrs}},
	}
	for range maxPolicyRequests {
		resp, err := b.client.CheckPolicy(b.ctx, req)
		if err != nil {
			return s, fmt.Errorf("ask the client's source policy about %s: %w", s.Identifier, err)
		}
		if more := resp.GetRequest(); more != nil {
			asked := more.GetSource()
			if asked.GetIdentifier() != s.Identifier || !maps.Equal(asked.GetAttrs(), s.Attrs) {
				return s, fmt.Errorf("policy requested different source identifier: %q != %q", asked.GetIdentifier(), s.Identifier)
			}
			if req.Source, err = b.sourceMeta(b.ctx, more, nil); err != nil { // whether it is allowed is what is asked
				return s, fmt.Errorf("error resolving source metadata from policy request: %w", err)
			}
			req.Source.Source = asked
			continue
		}
		return decided(s, resp.GetDecision())
	}
	return s, fmt.Errorf("too many policy requests for %s", s.Identifier)
}

// decided returns what a client makes of a source.
func decided(s sourcepolicy.Source, d *policysession.DecisionResponse) (sourcepolicy.Source, error) {
	switch d.GetAction() {
	case spb.PolicyAction_ALLOW:
		if d == nil {
			return s, fmt.Errorf("the client's source policy decides nothing about %s", s.Identifier)
		}
		return s, nil
	case spb.PolicyAction_CONVERT:
		if d.Update == nil {
			return s, fmt.Errorf("the client's source policy converts %s into nothing", s.Identifier)
		}
		return sourcepolicy.Source{Identifier: d.Update.Identifier, Attrs: maps.Clone(d.Update.Attrs)}, nil
	}
	err := fmt.Errorf("source %q not allowed by policy: action %s", s.Identifier, d.GetAction())
	return s, policysession.WrapDenyMessages(err, d.GetDenyMessages())
}
