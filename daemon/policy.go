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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

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

// verify asks the client whether a source is allowed, and returns what it makes of it. Clients are told the platform of the machine.
func (b *buildJob) verify(s sourcepolicy.Source) (sourcepolicy.Source, error) {
	host := llb.Host()
	req := &policysession.CheckPolicyRequest{
		Platform: &pb.Platform{OS: host.OS, Architecture: host.Architecture, Variant: host.Variant},
		Source:   &gateway.ResolveSourceMetaResponse{Source: &pb.SourceOp{Identifier: s.Identifier, Attrs: s.Attrs}},
	}
	resp, err := b.client.CheckPolicy(b.ctx, req)
	if err != nil {
		return s, fmt.Errorf("ask the client's source policy about %s: %w", s.Identifier, err)
	}
	if resp.GetRequest() != nil {
		return s, status.Errorf(codes.Unimplemented, "the client's source policy asks for more about %s, which is not supported yet", s.Identifier)
	}
	decision := resp.GetDecision()
	switch decision.GetAction() {
	case spb.PolicyAction_ALLOW:
		return s, nil
	case spb.PolicyAction_CONVERT:
		if decision.Update == nil {
			return s, fmt.Errorf("the client's source policy converts %s into nothing", s.Identifier)
		}
		return sourcepolicy.Source{Identifier: decision.Update.Identifier, Attrs: maps.Clone(decision.Update.Attrs)}, nil
	}
	err = fmt.Errorf("source %q not allowed by policy: action %s", s.Identifier, decision.GetAction())
	return s, policysession.WrapDenyMessages(err, decision.GetDenyMessages())
}
