package daemon

import (
	"slices"

	controlapi "github.com/moby/buildkit/api/services/control"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// compatibility are the versions of BuildKit's behaviour that a request may ask for: none, and the current one.
var compatibility = []int64{0, 30}

// maxRef bounds the ref of a build in bytes.
const maxRef = 256

// check returns an error for a request that asks for something that kiln does not do.
func check(req *controlapi.SolveRequest) error {
	switch {
	case req.Ref == "" || len(req.Ref) > maxRef:
		return status.Errorf(codes.InvalidArgument, "a build needs a ref of at most %d bytes", maxRef)
	case !slices.Contains(compatibility, req.CompatibilityVersion):
		return status.Errorf(codes.InvalidArgument, "unsupported compatibility-version %d: kiln has %d", req.CompatibilityVersion,
			compatibility[1])
	case req.ProxyNetwork:
		return status.Error(codes.Unimplemented, "a proxy network is not supported")
	}
	return nil
}
