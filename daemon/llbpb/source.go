package llbpb

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	"golang.org/x/sync/errgroup"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
)

// attributes are those of a source op that have not been read yet.
type attributes map[string]string

// take returns an attribute, "" for one that is not there, which is then read.
func (a attributes) take(name string) string {
	v := a[name]
	delete(a, name)
	return v
}

// flag reads an attribute that is "true" or not.
func (a attributes) flag(name string) (bool, error) {
	v := a.take(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, fmt.Errorf("the attribute %s is %q, and neither true nor false", name, clip(v))
	}
	return b, nil
}

// list reads an attribute that is a list of strings as JSON.
func (a attributes) list(name string) (all []string, err error) {
	v := a.take(name)
	if v == "" {
		return nil, nil
	}
	if err := json.Unmarshal([]byte(v), &all); err != nil {
		return nil, fmt.Errorf("the attribute %s is no list of strings: %w", name, err)
	}
	return all, nil
}

// number reads an attribute that is a number of at most limit, in any base that begins as in Go; 0 if it is not there.
func (a attributes) number(name string, limit int64) (int64, error) {
	v := a.take(name)
	if v == "" {
		return 0, nil
	}
	n, err := strconv.ParseInt(v, 0, 64)
	if err != nil || n < 0 || n > limit {
		return 0, fmt.Errorf("the attribute %s is %q, and no number up to %d", name, clip(v), limit)
	}
	return n, nil
}

// rest returns an error if there are attributes that were not read.
func (a attributes) rest() error {
	for _, name := range slices.Sorted(maps.Keys(a)) {
		return &UnsupportedError{fmt.Sprintf("the attribute %q", clip(name))}
	}
	return nil
}

// source reads a source op.
func (d *decoder) source(o *op, s *pb.SourceOp, inputs ...llb.Output) error {
	if len(o.Inputs) > 0 {
		return fmt.Errorf("it has %d inputs", len(o.Inputs))
	}
	scheme, rest, ok := strings.Cut(s.GetIdentifier(), "://")
	if !ok || rest == "" {
		return fmt.Errorf("%q is no identifier of a source", clip(s.GetIdentifier()))
	}
	attrs := attributes(maps.Clone(s.GetAttrs()))
	if attrs == nil {
		attrs = attributes{}
	}
	var err error
	switch scheme {
	case "docker-image":
		err = d.image(o, rest, attrs)
	case "oci-layout":
		d.result.Named = append(d.result.Named, s)
		err = d.layout(o, rest, attrs)
	case "local":
		err = d.local(o, rest, attrs)
	case "http", "https":
		err = d.http(o, s.Identifier, attrs)
	case "git":
		d.result.Named = append(d.result.Named, s)
		err = d.git(o, rest, attrs)
	case schemeImageBlob, schemeLayoutBlob:
		err = d.blob(o, scheme, rest, attrs)
	default:
		err = &UnsupportedError{fmt.Sprintf("a source %s://", clip(scheme))}
	}
	return err
}

// parallelAdmit is how many sources of a definition are admitted at the same time: a client that is asked about one can wait until it is
// asked about another.
const parallelAdmit = 64

// admitAll has the sources admitted that the output needs, and replaces them by what they become. Those of kiln's own are admitted when
// they are lowered.
func (d *decoder) admitAll() error {
	if d.options.Admit == nil {
		return nil
	}
	g, ctx := errgroup.WithContext(d.ctx)
	g.SetLimit(parallelAdmit)
	seen := map[digest.Digest]bool{}
	need := []string{d.last.Inputs[0].Digest}
	for len(need) > 0 {
		o := d.ops[digest.Digest(need[len(need)-1])]
		need = need[:len(need)-1]
		if seen[o.digest] {
			continue
		}
		seen[o.digest] = true
		for _, in := range o.Inputs {
			need = append(need, in.Digest)
		}
		if source := o.GetSource(); source != nil && len(o.ProtoReflect().GetUnknown()) == 0 {
			g.Go(func() error {
				if err := d.options.Admit(ctx, source, o.Platform); err != nil {
					return o.fail(err)
				}
				return nil
			})
		}
	}
	return g.Wait()
}

// admit returns what is fetched for a source.
func admit[T llb.Op](d *decoder, written string, op T, admitted bool) (T, error) {
	if d.options.Source == nil {
		return op, nil
	}
	found, err := d.options.Source(written, op, admitted)
	if err != nil {
		return op, err
	}
	other, ok := found.(T)
	if !ok {
		return op, fmt.Errorf("a policy replaces %s by something else", clip(written))
	}
	return other, nil
}

func (d *decoder) image(o *op, ref string, attrs attributes) (err error) {
	name, err := imagename.Parse(ref)
	if err != nil {
		return err
	}
	op := llb.Image{Digest: name.Digest.String()}
	name.Digest = ""
	op.Ref = name.String()
	if op.Platform, err = o.platform(); err != nil {
		return err
	}
	switch mode := attrs.take(pb.AttrImageResolveMode); mode {
	case "", pb.AttrImageResolveModeDefault:
	case pb.AttrImageResolveModeForcePull:
		op.Pull = llb.PullAlways
	case pb.AttrImageResolveModePreferLocal:
		op.Pull = llb.PullLocal
	default:
		return fmt.Errorf("the attribute %s is %q", pb.AttrImageResolveMode, clip(mode))
	}
	attrs.take(pb.AttrImageRecordType) // how BuildKit lists what it keeps
	if op.Layers, err = layerLimit(attrs, pb.AttrImageLayerLimit); err != nil {
		return err
	}
	if op.Checksum = attrs.take(pb.AttrImageChecksum); op.Checksum != "" {
		if err := digest.Digest(op.Checksum).Validate(); err != nil {
			return fmt.Errorf("invalid image checksum %s: %w", clip(op.Checksum), err)
		}
	}
	if err := attrs.rest(); err != nil {
		return err
	}
	if op, err = admit(d, ref, op, true); err != nil {
		return err
	}
	if op.Platform == "" && op.Digest == "" {
		op.Platform = d.options.Host.String()
	}
	return o.made(d.add(o, op, d.metaOf(o)).Output(0))
}

func layerLimit(attrs attributes, name string) (int, error) {
	v, given := attrs[name]
	n, err := attrs.number(name, 1<<20)
	if err == nil && given && n == 0 {
		err = fmt.Errorf("invalid layer limit %s", clip(v))
	}
	return int(n), err
}

// layout reads an image in an OCI layout that a client has.
func (d *decoder) layout(o *op, ref string, attrs attributes) (err error) {
	name, dgst, ok := strings.Cut(ref, "@")
	if !ok || digest.Digest(dgst).Validate() != nil {
		return fmt.Errorf("%q has no digest of an image", clip(ref))
	}
	name, tag := imagename.SplitTag(name)
	op := llb.Image{Ref: tag, Digest: dgst, Store: cmp.Or(attrs.take(pb.AttrOCILayoutStoreID), name)}
	op.Session = d.session(attrs.take(pb.AttrOCILayoutSessionID))
	if op.Platform, err = o.platform(); err != nil {
		return err
	}
	op.Platform = cmp.Or(op.Platform, d.options.Host.String())
	if op.Layers, err = layerLimit(attrs, pb.AttrOCILayoutLayerLimit); err != nil {
		return err
	}
	if err := attrs.rest(); err != nil {
		return err
	}
	return o.made(d.add(o, op, d.metaOf(o)).Output(0))
}

// session returns a session as kiln's ops have it.
func (d *decoder) session(id string) string {
	if id == d.options.Session {
		return ""
	}
	return id
}

func (d *decoder) local(o *op, name string, attrs attributes) (err error) {
	op := llb.Local{Name: name}
	session := attrs.take(pb.AttrLocalSessionID)
	if prefix, id, ok := strings.Cut(session, ":"); ok {
		op.Name, session = prefix+"-"+name, id
	}
	op.Session = d.session(session)
	attrs.take(pb.AttrLocalUniqueID) // which keeps BuildKit from using what another client sent
	op.Shared = attrs.take(pb.AttrSharedKeyHint)
	var errs [6]error
	op.Include, errs[0] = attrs.list(pb.AttrIncludePatterns)
	op.Exclude, errs[1] = attrs.list(pb.AttrExcludePatterns)
	op.Follow, errs[2] = attrs.list(pb.AttrFollowPaths)
	op.Metadata, errs[3] = attrs.flag(pb.AttrMetadataTransfer)
	op.Whole, errs[4] = attrs.list(pb.AttrMetadataTransferExclude)
	switch differ := attrs.take(pb.AttrLocalDiffer); differ {
	case "", pb.AttrLocalDifferMetadata:
	case pb.AttrLocalDifferNone:
		op.Unlike = true
	default:
		errs[5] = fmt.Errorf("the attribute %s is %q", pb.AttrLocalDiffer, clip(differ))
	}
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if err := attrs.rest(); err != nil {
		return err
	}
	return o.made(d.add(o, op, d.metaOf(o)).Output(0))
}

// unnamed is the name of a file whose address has none.
const unnamed = "download"

func (d *decoder) http(o *op, address string, attrs attributes) (err error) {
	file, err := remoteurl.ParseHTTP(address)
	if err != nil {
		return err
	}
	given, err := fileAttrs(attrs)
	if err != nil {
		return err
	}
	op := llb.HTTP{
		URL: file.URL, User: file.User, Filename: unnamed, ServerNames: given.name == "", Secret: attrs.take(pb.AttrHTTPAuthHeaderSecret),
	}
	if u, err := url.Parse(file.URL); err == nil && strings.Trim(path.Base(u.Path), "./") != "" && !strings.Contains(u.Path, "\x00") {
		op.Filename = path.Base(u.Path)
	}
	if op.Checksum = attrs.take(pb.AttrHTTPChecksum); op.Checksum != "" {
		if err := digest.Digest(op.Checksum).Validate(); err != nil {
			return fmt.Errorf("the checksum %q: %w", clip(op.Checksum), err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(attrs)) {
		if header, ok := strings.CutPrefix(name, pb.AttrHTTPHeaderPrefix); ok {
			value := attrs.take(name)
			if header != "accept" && header != "user-agent" || strings.ContainsAny(value, "\r\n\x00") {
				return &UnsupportedError{fmt.Sprintf("the header %q: %q", clip(header), clip(value))}
			}
			op.Header = append(op.Header, llb.Header{Name: header, Value: value})
		}
	}
	if err := attrs.rest(); err != nil {
		return err
	}
	if op, err = admit(d, address, op, true); err != nil {
		return err
	}
	out := d.add(o, op, d.metaOf(o), d.scratch()).Output(0)
	if given.from = op.Filename; op.ServerNames {
		given.from = "*"
	}
	return o.made(d.named(o, out, given))
}

// named is what a file from elsewhere is to be called, and its permissions and owners; 0 is for what they are.
type named struct {
	// from is the name that it has, or "*" for whatever that is.
	from, name     string
	mode, uid, gid int64
}

// fileAttrs reads the attributes of a file.
func fileAttrs(attrs attributes) (n named, err error) {
	var errs [3]error
	n.mode, errs[0] = attrs.number(pb.AttrHTTPPerm, 0o7777)
	n.uid, errs[1] = attrs.number(pb.AttrHTTPUID, maxID)
	n.gid, errs[2] = attrs.number(pb.AttrHTTPGID, maxID)
	n.name = attrs.take(pb.AttrHTTPFilename)
	if strings.ContainsAny(n.name, "/\x00") || n.name == "." || n.name == ".." {
		return n, fmt.Errorf("%q is no name of a file", clip(n.name))
	}
	return n, errors.Join(errs[:]...)
}

// named returns a file from elsewhere with the name and attributes that it is to have: a copy, so that the same one is not fetched again.
func (d *decoder) named(o *op, file llb.Output, n named) llb.Output {
	if n.mode == 0 && n.uid == 0 && n.gid == 0 && (n.name == "" || n.name == n.from) {
		return file
	}
	c := &llb.Copy{Sources: []llb.CopySource{{Input: 1, Path: "/" + n.from}}, Dest: "/" + n.name, NoWildcards: n.from != "*"}
	if n.mode != 0 {
		c.Chmod = fmt.Sprintf("%04o", n.mode)
	}
	if n.uid != 0 || n.gid != 0 {
		c.Chown = fmt.Sprintf("%d:%d", n.uid, n.gid)
	}
	meta := d.metaOf(o)
	meta.Text = "set the attributes of " + meta.Text
	return d.add(o, llb.File{Actions: []llb.Action{{Copy: c}}}, meta, d.scratch(), file).Output(0)
}

// maxID is the highest id of an owner.
const maxID = 1<<31 - 1

func (d *decoder) git(o *op, id string, attrs attributes) (err error) {
	remote, fragment, _ := strings.Cut(id, "#")
	if full := attrs.take(pb.AttrFullRemoteURL); full != "" {
		remote, _, _ = strings.Cut(full, "#")
	} else if !remoteurl.IsGit(remote) {
		remote = "https://" + remote
	}
	if strings.Contains(remote, "?") {
		return errors.New("the address of its repository has a query")
	}
	if fragment != "" {
		remote += "#" + fragment
	}
	s, err := remoteurl.ParseGit(remote)
	if err != nil {
		return err
	}
	if sum := attrs.take(pb.AttrGitChecksum); sum != "" {
		if err := s.SetChecksum(sum); err != nil {
			return fmt.Errorf("invalid checksum %s, expected hex commit hash: %w", clip(sum), err)
		}
	}
	op := llb.Git{Remote: s.Remote, User: s.User, Ref: s.Ref, Subdir: s.Subdir, Checksum: s.Checksum}
	var errs [5]error
	op.KeepGitDir, errs[0] = attrs.flag(pb.AttrKeepGitDir)
	op.SkipSubmodules, errs[1] = attrs.flag(pb.AttrGitSkipSubmodules)
	op.FetchByCommit, errs[2] = attrs.flag(pb.AttrGitFetchByCommit)
	op.Advice, errs[3] = attrs.flag(pb.AttrGitAdvice)
	op.AsBundle, errs[4] = attrs.flag(pb.AttrGitCheckoutBundle)
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	if op.FetchByCommit && !remoteurl.IsHash(op.Checksum) {
		return errors.New("the whole hash of a commit is needed to fetch by it")
	}
	if op.AsBundle && (op.KeepGitDir || op.Subdir != "") {
		return errors.New("git.checkoutbundle is incompatible with git.keepgitdir and git.subdir")
	}
	inputs := []llb.Output{d.scratch()}
	if locator := attrs.take(pb.AttrGitBundle); locator != "" {
		bundle, err := d.bundle(o, locator, op, attrs)
		if err != nil {
			return err
		}
		op.Bundled, inputs = true, append(inputs, bundle)
	}
	op.HeaderSecret = usual(attrs.take(pb.AttrAuthHeaderSecret), "GIT_AUTH_HEADER")
	op.TokenSecret = usual(attrs.take(pb.AttrAuthTokenSecret), "GIT_AUTH_TOKEN")
	op.Agent = usual(attrs.take(pb.AttrMountSSHSock), "default")
	op.KnownHosts = attrs.take(pb.AttrKnownSSHHosts)
	switch mtime := attrs.take(pb.AttrGitMTime); mtime {
	case "", "checkout", "commit": // files have the time of the commit
	default:
		return fmt.Errorf("the attribute %s is %q", pb.AttrGitMTime, clip(mtime))
	}
	if err := attrs.rest(); err != nil {
		return err
	}
	if op, err = admit(d, withoutUser(remote), op, true); err != nil {
		return err
	}
	return o.made(d.add(o, op, d.metaOf(o), inputs...).Output(0))
}

// usual returns "" for a name that is the one which is meant without any.
func usual(name, usually string) string {
	if name == usually {
		return ""
	}
	return name
}

// withoutUser returns an identifier as it may be shown.
func withoutUser(identifier string) string { return remoteurl.WithoutUser(identifier) }
