package daemon

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/kilnbuild/kiln/build/bases"
	"github.com/kilnbuild/kiln/daemon/policies"
	"github.com/kilnbuild/kiln/llb"
)

// Schemes of the identifiers of sources that are images.
const (
	schemeImage  = "docker-image://"
	schemeLayout = "oci-layout://"
)

// resolverLayout is the type of a resolver that is an OCI layout.
const resolverLayout = 1

// ResolveImageConfig returns the configuration of an image, as frontends asked for it that are older.
func (s *bridges) ResolveImageConfig(
	ctx context.Context, req *gateway.ResolveImageConfigRequest,
) (*gateway.ResolveImageConfigResponse, error) {
	source := &pb.SourceOp{Identifier: schemeImage + req.Ref, Attrs: map[string]string{}}
	if req.ResolverType == resolverLayout {
		source.Identifier = schemeLayout + req.Ref
		for name, value := range map[string]string{pb.AttrOCILayoutStoreID: req.StoreID, pb.AttrOCILayoutSessionID: req.SessionID} {
			if value != "" {
				source.Attrs[name] = value
			}
		}
	}
	resp, err := s.ResolveSourceMeta(ctx, &gateway.ResolveSourceMetaRequest{
		Source: source, Platform: req.Platform, LogName: req.LogName, ResolveMode: req.ResolveMode, SourcePolicies: req.SourcePolicies,
	})
	if err != nil {
		return nil, err
	}
	ref := strings.TrimPrefix(strings.TrimPrefix(resp.Source.Identifier, schemeImage), schemeLayout)
	return &gateway.ResolveImageConfigResponse{Ref: ref, Digest: resp.Image.GetDigest(), Config: resp.Image.GetConfig()}, nil
}

// ResolveSourceMeta returns what the source of an op is now. Steps with that op get the same.
func (s *bridges) ResolveSourceMeta(
	ctx context.Context, req *gateway.ResolveSourceMetaRequest,
) (*gateway.ResolveSourceMetaResponse, error) {
	ctx, b, end, err := s.build(ctx)
	if err != nil {
		return nil, err
	}
	defer end()
	more, err := policies.ReadAll(req.SourcePolicies)
	if err != nil {
		return nil, b.failure(err)
	}
	req = req.CloneVT()
	if req.Source == nil {
		return nil, status.Error(codes.InvalidArgument, "source is required")
	}
	if err := b.asking(more...).admit(ctx, req.Source, req.Platform); err != nil {
		return nil, b.failure(fmt.Errorf("could not resolve image due to policy: %w", err))
	}
	resp, err := b.sourceMeta(ctx, req, true)
	if err != nil {
		return nil, b.failure(err)
	}
	return resp, nil
}

// sourceMeta returns what the source of an op is now. One that has been admitted is held: it stays what it is until the build ends.
func (b *buildJob) sourceMeta(
	ctx context.Context, req *gateway.ResolveSourceMetaRequest, admitted bool,
) (*gateway.ResolveSourceMetaResponse, error) {
	switch {
	case req.HTTP.GetChecksumRequest() != nil:
		return nil, status.Error(codes.Unimplemented, "the checksum of a file is looked up as sha256 alone")
	}
	source := req.Source.CloneVT()
	if req.ResolveMode != "" && strings.HasPrefix(source.Identifier, schemeImage) {
		if source.Attrs == nil {
			source.Attrs = map[string]string{}
		}
		source.Attrs[pb.AttrImageResolveMode] = req.ResolveMode
	}
	op, err := b.sourceOp(ctx, source, req.Platform)
	if err != nil {
		return nil, err
	}
	resp := &gateway.ResolveSourceMetaResponse{Source: req.Source.CloneVT()}
	if op.Kind() == (llb.Local{}).Kind() {
		return resp, nil // which nobody knows before it is needed
	}
	place, text := placeOf(req.LogName)
	if text == "" {
		text = "resolve " + source.Identifier
	}
	found, err := b.job.Resolve(ctx, op, admitted || req.Git.GetReturnObject(), place, text)
	if err != nil {
		return nil, err
	}
	switch {
	case found.Image != nil:
		resp.Image = &gateway.ResolveSourceImageResponse{Digest: found.Image.Digest.String(), Config: found.Image.Config}
		if req.Image.GetNoConfig() {
			resp.Image.Config = nil
		}
		if strings.HasPrefix(source.Identifier, schemeImage) {
			resp.Source.Identifier = schemeImage + found.Image.Ref
		}
		if types := req.Image.GetResolveAttestations(); req.Image.GetAttestationChain() || len(types) > 0 {
			chain, err := b.job.Attested(ctx, op.(llb.Image), types)
			if err != nil {
				return nil, err
			}
			resp.Image.AttestationChain = chainPB(chain)
		}
	case found.Git != nil:
		g := found.Git
		resp.Git = &gateway.ResolveSourceGitResponse{Checksum: g.Object, Ref: cmp.Or(g.Branch, g.Name, g.ID), CommitChecksum: g.ID}
		if g.Object == g.ID {
			resp.Git.CommitChecksum = "" // it is no annotated tag
		}
		if req.Git.GetReturnObject() {
			resp.Git.CommitObject, resp.Git.TagObject = g.CommitObject, g.TagObject
		}
	case found.HTTP != nil:
		resp.HTTP = &gateway.ResolveSourceHTTPResponse{Checksum: found.HTTP.Digest.String()}
		if file, ok := op.(llb.HTTP); ok {
			resp.HTTP.Filename = cmp.Or(source.Attrs[pb.AttrHTTPFilename], found.HTTP.Name, file.Filename)
		}
		if !found.HTTP.Modified.IsZero() {
			resp.HTTP.LastModified = timestamppb.New(found.HTTP.Modified)
		}
	}
	return resp, nil
}

// unadmitted is sourceMeta of a source that the client is yet to decide about.
func (b *buildJob) unadmitted(ctx context.Context, req *gateway.ResolveSourceMetaRequest) (*gateway.ResolveSourceMetaResponse, error) {
	return b.sourceMeta(ctx, req, false)
}

// chainPB returns what is attested of an image as clients get it; nil for nothing.
func chainPB(c *bases.Chain) *gateway.AttestationChain {
	if c == nil {
		return nil
	}
	out := &gateway.AttestationChain{
		Root: c.Root.String(), ImageManifest: c.Image.String(), AttestationManifest: c.Attestation.String(), Blobs: map[string]*gateway.Blob{},
	}
	for _, s := range c.Signatures {
		out.SignatureManifests = append(out.SignatureManifests, s.String())
	}
	for _, b := range c.Blobs {
		out.Blobs[b.Digest.String()] = &gateway.Blob{Data: b.Data, Descriptor_: &gateway.Descriptor{
			MediaType: b.MediaType, Digest: b.Digest.String(), Size: b.Size, Annotations: b.Annotations,
		}}
	}
	return out
}

// sourceOp returns what a source op of a client is for kiln, which has been admitted.
func (b *buildJob) sourceOp(ctx context.Context, source *pb.SourceOp, platform *pb.Platform) (llb.Op, error) {
	data, err := (&pb.Op{Op: &pb.Op_Source{Source: source}, Platform: platform}).MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode the source: %w", err)
	}
	last, err := (&pb.Op{Inputs: []*pb.Input{{Digest: string(digest.FromBytes(data))}}}).MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode the source: %w", err)
	}
	out, err := b.decode(ctx, &pb.Definition{Def: [][]byte{data, last}}, b.admitted())
	if err != nil {
		return nil, err
	}
	v := out.Vertex
	if v.Op().Kind() == (llb.File{}).Kind() && len(v.Inputs()) > 1 { // which gives a file from elsewhere its attributes
		v = v.Inputs()[1].Vertex
	}
	return v.Op(), nil
}

// placeOf reads how a client calls something: "[internal] load metadata for x".
func placeOf(name string) (p llb.Place, text string) {
	if group, rest, ok := strings.Cut(name, "] "); ok && strings.HasPrefix(group, "[") {
		return llb.Place{Group: group[1:]}, rest
	}
	return p, name
}
