package llbpb

import (
	"errors"
	"fmt"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
)

// The schemes of blobs.
const (
	schemeImageBlob  = "docker-image+blob"
	schemeLayoutBlob = "oci-layout+blob"
)

// blobOf reads which blob is meant, and where it is.
func (d *decoder) blobOf(scheme, ref string, attrs attributes) (b llb.Blob, err error) {
	place, dgst, ok := strings.Cut(ref, "@")
	if !ok || digest.Digest(dgst).Validate() != nil || digest.Digest(dgst).Algorithm() != digest.SHA256 {
		return b, fmt.Errorf("%q has no digest sha256:… of a blob", clip(ref))
	}
	name, err := imagename.Parse(place)
	if err != nil {
		return b, err
	}
	name.Tag = ""
	b = llb.Blob{Ref: name.String(), Digest: dgst}
	if scheme == schemeImageBlob {
		return b, nil
	}
	b.Session = d.session(attrs.take(pb.AttrOCILayoutSessionID))
	if b.Store = attrs.take(pb.AttrOCILayoutStoreID); b.Store == "" {
		b.Store = place
	}
	return b, nil
}

// blob reads a source that is a blob.
func (d *decoder) blob(o *op, scheme, ref string, attrs attributes) error {
	op, err := d.blobOf(scheme, ref, attrs)
	if err != nil {
		return err
	}
	given, err := fileAttrs(attrs)
	if err != nil {
		return err
	}
	attrs.take(pb.AttrImageRecordType) // how BuildKit lists what it keeps
	if err := attrs.rest(); err != nil {
		return err
	}
	op.Filename = digest.Digest(op.Digest).Encoded()
	out := d.add(o, op, d.metaOf(o), d.scratch()).Output(0)
	if given.from = op.Filename; given.name == "" {
		given.name = op.Filename
	}
	return o.made(d.named(o, out, given))
}

// bundle reads the bundle of a git repository.
func (d *decoder) bundle(o *op, locator string, g llb.Git, attrs attributes) (llb.Output, error) {
	scheme, ref, _ := strings.Cut(locator, "://")
	if scheme != schemeImageBlob && scheme != schemeLayoutBlob {
		return llb.Output{}, fmt.Errorf("the git bundle %q is no %s:// and no %s://", clip(locator), schemeImageBlob, schemeLayoutBlob)
	}
	if !remoteurl.IsHash(g.Checksum) {
		return llb.Output{}, errors.New("a git bundle needs the whole hash of the commit as git.checksum")
	}
	if remoteurl.IsHash(g.Ref) && g.Ref != g.Checksum {
		return llb.Output{}, fmt.Errorf("expected checksum to match %s, got %s", g.Checksum, g.Ref)
	}
	op, err := d.blobOf(scheme, ref, attrs)
	if err != nil {
		return llb.Output{}, err
	}
	op.Filename, op.BundleOf = llb.BundleFile, g.Remote
	if g.Ref != "" {
		op.BundleOf += "#" + g.Ref
	}
	meta := d.metaOf(o)
	meta.Text = "fetch the bundle of " + meta.Text
	return d.add(o, op, meta, d.scratch()).Output(0), nil
}
