// Package policies reads the source policies of requests, and says of the sources of definitions what they are for policies. It decides
// nothing: package sourcepolicy does, and the client where it is asked.
package policies

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	spb "github.com/moby/buildkit/sourcepolicy/pb"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/input"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
)

// ofRequest is what messages call the policy of a request.
const ofRequest = "of the request"

// Read reads the rules for sources that a request has; nil for none. The error is an *input.Error.
func Read(p *spb.Policy) (*sourcepolicy.Policy, error) {
	if p == nil || len(p.Rules) == 0 {
		return nil, nil
	}
	for _, r := range p.Rules {
		if err := check(r); err != nil {
			return nil, &input.Error{Err: err}
		}
	}
	data, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the source policy: %w", err)
	}
	read, err := sourcepolicy.Parse(ofRequest, data)
	if err != nil {
		return nil, &input.Error{Err: err}
	}
	return read, nil
}

// maxPolicies is how many policies one request of LLBBridge may have.
const maxPolicies = 100

// ReadAll reads the policies of a request of LLBBridge. The error is an *input.Error.
func ReadAll(all []*spb.Policy) ([]*sourcepolicy.Policy, error) {
	if len(all) > maxPolicies {
		return nil, &input.Error{Err: fmt.Errorf("the request has more than %d source policies", maxPolicies)}
	}
	var out []*sourcepolicy.Policy
	for _, p := range all {
		if p == nil {
			return nil, &input.Error{Err: errors.New("invalid nil source policy")}
		}
		read, err := Read(p)
		if err != nil {
			return nil, err
		}
		if read != nil {
			out = append(out, read)
		}
	}
	return out, nil
}

// check returns an error for a rule that lacks something, or whose action is not known.
func check(r *spb.Rule) error {
	switch {
	case r == nil:
		return errors.New("invalid nil rule in policy")
	case r.Selector == nil:
		return errors.New("invalid nil selector in policy")
	case spb.PolicyAction_name[int32(r.Action)] == "":
		return fmt.Errorf("source policy: rule %s %s: unknown type", r.Action, r.Selector.Identifier)
	case r.Action == spb.PolicyAction_CONVERT && r.Updates == nil:
		return errors.New("missing destination for convert rule")
	}
	for _, c := range r.Selector.Constraints {
		if c == nil {
			return errors.New("invalid nil constraint in policy")
		}
	}
	return nil
}

// The schemes of blobs, which are sources, and what the bundle of a git repository is.
const (
	schemeImageBlob  = "docker-image+blob"
	schemeLayoutBlob = "oci-layout+blob"
)

// Decide is what policies make of a source.
type Decide func(ctx context.Context, s sourcepolicy.Source, platform *pb.Platform) (sourcepolicy.Source, error)

// Admit has policies decide about a source, and about the bundle that a git repository comes from, and changes it into what they make of
// it. Sources that are the same to a build are the same to policies, however they are written.
func (decide Decide) Admit(ctx context.Context, source *pb.SourceOp, platform *pb.Platform) error {
	before := normalized(source)
	after, err := decide(ctx, before, platform)
	if err != nil {
		return err
	}
	if after.Identifier != before.Identifier || !maps.Equal(after.Attrs, before.Attrs) {
		source.Identifier, source.Attrs = after.Identifier, known(after.Attrs)
	}
	return decide.admitBundle(ctx, source, platform)
}

// admitBundle has policies decide about the bundle of a git repository, as about the same blob that is a source.
func (decide Decide) admitBundle(ctx context.Context, source *pb.SourceOp, platform *pb.Platform) error {
	bundle := source.GetAttrs()[pb.AttrGitBundle]
	if bundle == "" || !strings.HasPrefix(source.Identifier, "git://") {
		return nil
	}
	before := &pb.SourceOp{Identifier: bundle, Attrs: map[string]string{}}
	for _, name := range []string{pb.AttrOCILayoutSessionID, pb.AttrOCILayoutStoreID} {
		if value := source.Attrs[name]; value != "" {
			before.Attrs[name] = value
		}
	}
	scheme, rest, _ := strings.Cut(bundle, "://")
	switch scheme {
	case schemeImageBlob:
		before.Attrs = nil
	case schemeLayoutBlob:
		if before.Attrs[pb.AttrOCILayoutStoreID] == "" {
			store, _, _ := strings.Cut(rest, "@")
			before.Attrs[pb.AttrOCILayoutStoreID] = store
		}
	default:
		return nil // whoever reads it says so
	}
	asked := normalized(before)
	after, err := decide(ctx, asked, platform)
	if err != nil {
		return fmt.Errorf("git bundle: %w", err)
	}
	if after.Identifier == asked.Identifier && maps.Equal(after.Attrs, asked.Attrs) {
		return nil
	}
	source.Attrs[pb.AttrGitBundle] = after.Identifier
	for _, name := range []string{pb.AttrOCILayoutSessionID, pb.AttrOCILayoutStoreID} {
		delete(source.Attrs, name)
		if value := after.Attrs[name]; value != "" {
			source.Attrs[name] = value
		}
	}
	return nil
}

// normalized returns a source as policies see it: the name of an image in full, and the directory of a git repository without "..".
func normalized(source *pb.SourceOp) sourcepolicy.Source {
	s := sourcepolicy.Source{Identifier: source.GetIdentifier(), Attrs: maps.Clone(source.GetAttrs())}
	scheme, rest := s.Scheme()
	switch scheme {
	case "docker-image", schemeImageBlob:
		if n, err := imagename.Parse(rest); err == nil { // whoever uses it says what is wrong
			s.Identifier = scheme + "://" + n.String()
		}
	case "git":
		place, fragment, ok := strings.Cut(rest, "#")
		if !ok {
			break
		}
		ref, dir, _ := strings.Cut(fragment, ":")
		if dir = strings.TrimPrefix(path.Join("/", dir), "/"); dir != "" {
			ref += ":" + dir
		}
		if s.Identifier = "git://" + place; ref != "" {
			s.Identifier += "#" + ref
		}
	}
	return s
}

// namespaces are what the names of all attributes begin with that sources have.
var namespaces = []string{"git.", "http.", "image.", "local.", "oci."}

// known returns the attributes of a source without those that policies have added for themselves, to know it again.
func known(attrs map[string]string) map[string]string {
	out := maps.Clone(attrs)
	maps.DeleteFunc(out, func(name, _ string) bool {
		for _, n := range namespaces {
			if strings.HasPrefix(name, n) {
				return false
			}
		}
		return true
	})
	return out
}

// Converted returns the named context that a policy puts in the place of one that is an image, if that is none.
func Converted(p *sourcepolicy.Policy, value string) (string, error) {
	const image = "docker-image://"
	ref, ok := strings.CutPrefix(value, image)
	if p == nil || !ok {
		return value, nil
	}
	name, err := imagename.Parse(ref)
	if err != nil {
		return value, nil // whoever uses it says so
	}
	to, _, err := p.Evaluate(sourcepolicy.Source{Identifier: image + name.String()})
	if err != nil {
		return "", err
	}
	scheme, rest := to.Scheme()
	switch scheme {
	case "local":
		return "local:" + rest, nil
	case "http", "https":
		return to.Identifier, nil
	}
	return value, nil
}
