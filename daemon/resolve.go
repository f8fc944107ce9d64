package daemon

import (
	"context"
	"fmt"
	"strings"

	gateway "github.com/moby/buildkit/frontend/gateway/pb"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

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
	resp, err := b.sourceMeta(ctx, req, b.job.Source)
	if err != nil {
		return nil, b.failure(err)
	}
	return resp, nil
}

// sourceMeta returns what the source of an op is now.
func (b *buildJob) sourceMeta(
	ctx context.Context, req *gateway.ResolveSourceMetaRequest, admit admit,
) (*gateway.ResolveSourceMetaResponse, error) {
	switch {
	case req.Source == nil:
		return nil, status.Error(codes.InvalidArgument, "source is required")
	case len(req.SourcePolicies) > 0:
		return nil, status.Error(codes.Unimplemented, "source policies of one request are not supported")
	case req.Image.GetAttestationChain() || len(req.Image.GetResolveAttestations()) > 0:
		return nil, status.Error(codes.Unimplemented, "the attestations of an image are not looked up with it")
	case req.Git.GetReturnObject():
		return nil, status.Error(codes.Unimplemented, "the objects of a commit are not looked up with it")
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
	op, err := b.sourceOp(ctx, source, req.Platform, admit)
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
	found, err := b.job.Resolve(ctx, op, place, text)
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
	case found.Git != nil:
		resp.Git = &gateway.ResolveSourceGitResponse{Checksum: found.Git.Object, Ref: found.Git.Name, CommitChecksum: found.Git.ID}
		if resp.Git.Checksum == resp.Git.CommitChecksum {
			resp.Git.CommitChecksum = "" // it is no annotated tag
		}
	case found.HTTP != nil:
		resp.HTTP = &gateway.ResolveSourceHTTPResponse{Checksum: found.HTTP.Digest.String()}
		if file, ok := op.(llb.HTTP); ok {
			resp.HTTP.Filename = file.Filename
		}
		if !found.HTTP.Modified.IsZero() {
			resp.HTTP.LastModified = timestamppb.New(found.HTTP.Modified)
		}
	}
	return resp, nil
}

// sourceOp returns what a source op of a client is for kiln.
func (b *buildJob) sourceOp(ctx context.Context, source *pb.SourceOp, platform *pb.Platform, admit admit) (llb.Op, error) {
	data, err := (&pb.Op{Op: &pb.Op_Source{Source: source}, Platform: platform}).MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode the source: %w", err)
	}
	last, err := (&pb.Op{Inputs: []*pb.Input{{Digest: string(digest.FromBytes(data))}}}).MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode the source: %w", err)
	}
	out, err := b.decode(ctx, &pb.Definition{Def: [][]byte{data, last}}, admit)
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
