package llbpb

import (
	"context"
	"errors"
	"testing"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"google.golang.org/protobuf/proto"

	"github.com/kilnbuild/kiln/frontend"
	"github.com/kilnbuild/kiln/llb"
)

// FuzzDecode reads any definition: it is an error of the package, or a graph that is encoded and read again as the same.
func FuzzDecode(f *testing.F) {
	dockerfiles(f, func(_ string, dockerfile []byte) {
		res, err := frontend.Build(context.Background(), dockerfile, frontend.Options{BuildPlatform: llb.Host()}, anyImage{})
		if err != nil {
			return
		}
		for _, image := range res.Images {
			if def, err := Encode(image.Root); err == nil && len(def.Def) > 0 {
				if data, err := proto.Marshal(def); err == nil {
					f.Add(data)
				}
			}
		}
	})
	f.Fuzz(func(t *testing.T, data []byte) {
		var def pb.Definition
		if def.Unmarshal(data) != nil {
			return
		}
		// The digests of ops that were changed are those that others name.
		relink(&def)
		g, err := Decode(t.Context(), &def, Options{Allow: []string{"network.host", "security.insecure"}})
		if err != nil {
			if _, ok := errors.AsType[*Error](err); !ok {
				t.Errorf("the error is %v", err)
			}
			return
		}
		same(t, "it", g.Output)
	})
}

// relink has each op whose inputs are not there take those before it in their places, as far as there are any.
func relink(def *pb.Definition) {
	var known []string
	have := map[string]bool{}
	for i, data := range def.Def {
		var o pb.Op
		if o.Unmarshal(data) != nil {
			return
		}
		for n, in := range o.Inputs {
			if len(known) > 0 && !have[in.GetDigest()] {
				in.Digest = known[(len(known)-1-n%len(known))%len(known)]
			}
		}
		if again, err := o.Marshal(); err == nil {
			def.Def[i] = again
		}
		name := digest.FromBytes(def.Def[i]).String()
		known, have[name] = append(known, name), true
	}
}
