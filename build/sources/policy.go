package sources

import (
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/internal/sourcepolicy"
	"github.com/kilnbuild/kiln/llb"
	"github.com/kilnbuild/kiln/registry/layout"
)

// Schemes of identifiers, as BuildKit has them.
const (
	imageScheme  = "docker-image"
	gitScheme    = "git"
	localScheme  = "local"
	layoutScheme = "oci-layout"

	imageBlobScheme  = imageScheme + "+blob"
	layoutBlobScheme = layoutScheme + "+blob"
)

// Attributes of sources, as BuildKit has them.
const (
	attrFilename       = "http.filename"
	attrChecksum       = "http.checksum"
	attrFullURL        = "git.fullurl"
	attrCommit         = "git.checksum"
	attrKeepGitDir     = "git.keepgitdir"
	attrSkipSubmodules = "git.skipsubmodules"
	attrFetchByCommit  = "git.fetchbycommit"
	attrResolveMode    = "image.resolvemode"
	attrLayerLimit     = "image.layerlimit"
	attrStore          = "oci.store"
)

// identify returns an op as policies see it.
func (s *Sources) identify(op llb.Op) sourcepolicy.Source {
	attrs := map[string]string{}
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	flag := func(key string, on bool) {
		if on {
			attrs[key] = "true"
		}
	}
	id := ""
	switch op := op.(type) {
	case llb.Local:
		id = localScheme + "://" + op.Name
	case llb.Image:
		id = imageScheme + "://" + op.Ref
		if op.Digest != "" && !strings.Contains(op.Ref, "@") {
			id += "@" + op.Digest
		}
		if op.Layout != "" {
			id = layoutScheme + "://" + layout.Name(op.Layout, op.Ref)
		} else if s.config.Pull {
			set(attrResolveMode, "pull")
		}
		if op.Layers > 0 {
			set(attrLayerLimit, strconv.Itoa(op.Layers))
		}
	case llb.Blob:
		if id = imageBlobScheme + "://" + op.Ref + "@" + op.Digest; op.Store != "" {
			id = layoutBlobScheme + "://" + op.Ref + "@" + op.Digest
			set(attrStore, op.Store)
		}
	case llb.HTTP:
		id = op.URL
		set(attrFilename, op.Filename)
		set(attrChecksum, op.Checksum)
	case llb.Git:
		id = gitScheme + "://" + gitPlace(op.Remote)
		if op.Ref != "" || op.Subdir != "" {
			id += "#" + op.Ref
		}
		if op.Subdir != "" {
			id += ":" + op.Subdir
		}
		set(attrFullURL, op.Remote)
		set(attrCommit, op.Checksum)
		flag(attrKeepGitDir, op.KeepGitDir)
		flag(attrSkipSubmodules, op.SkipSubmodules)
		flag(attrFetchByCommit, op.FetchByCommit)
	}
	return sourcepolicy.Source{Identifier: id, Attrs: attrs}
}

// gitPlace returns the host and the path of a repository, which are the same whatever the protocol is.
func gitPlace(remote string) string {
	g, err := remoteurl.ParseGitRemote(remote)
	if err != nil {
		return remote
	}
	return g.Host() + path.Join("/", g.Path())
}

// PolicyError is a conversion of a policy that kiln cannot do.
type PolicyError struct {
	// File is the name of the policy, and Rule the number of the rule that converted last, from 1; 0 for a policy without rules.
	File string
	Rule int
	// From and To are the identifiers of the source before and after.
	From, To string
	Why      string
}

func (e *PolicyError) Error() string {
	what := "changes " + e.From
	if e.From != e.To {
		what = fmt.Sprintf("makes %s of %s", e.To, e.From)
	}
	if e.Rule == 0 {
		return fmt.Sprintf("the source policy %s %s: %s", e.File, what, e.Why)
	}
	return fmt.Sprintf("source policy %s: rule %d %s: %s", e.File, e.Rule, what, e.Why)
}

// AdmitBy returns what the policy of the build, and more, make of a source: an op of the same kind. The error says that a policy forbids
// it, or converts it into something that kiln cannot take in its place.
func (s *Sources) AdmitBy(op llb.Op, more ...*sourcepolicy.Policy) (llb.Op, error) {
	image, isImage := op.(llb.Image)
	if isImage && image.Layout != "" && image.Layout == s.config.Store || s.config.Policy == nil && s.config.Ask == nil && len(more) == 0 {
		return op, nil
	}
	before := s.identify(op)
	after, by, err := s.Decide(before, image.Platform, more...)
	if err != nil {
		return nil, err
	}
	changed := sourcepolicy.Changed(before, after)
	if after.Identifier == before.Identifier && len(changed) == 0 {
		return op, nil
	}
	out, err := apply(op, after, changed)
	if err != nil {
		file := "of the client"
		if by.Policy != nil {
			file = by.Policy.File()
		}
		return nil, &PolicyError{file, by.Number, before.Identifier, after.Identifier, err.Error()}
	}
	return out, nil
}

// Admit is AdmitBy with the policy of the build alone.
func (s *Sources) Admit(op llb.Op) (llb.Op, error) { return s.AdmitBy(op) }

// Decide returns what the policy of the build, more of them, and the client make of a source for a platform, as llb.Platform prints it; ""
// for that of the machine. by is the rule that changed it last; the zero Rule if none did. The error says that it is forbidden.
func (s *Sources) Decide(
	src sourcepolicy.Source, platform string, more ...*sourcepolicy.Policy,
) (_ sourcepolicy.Source, by sourcepolicy.Rule, err error) {
	policies := append([]*sourcepolicy.Policy{s.config.Policy}, more...)
	after, by, err := sourcepolicy.Evaluate(policies, src)
	left := maxAsked
	for converted := s.config.Ask != nil; err == nil && converted; {
		if after, converted, err = s.config.Ask(after, platform, &left); err == nil && converted {
			after, by, err = sourcepolicy.Evaluate(policies, after)
		}
	}
	return after, by, err
}

// maxAsked is how often a client is asked about one source, and what it puts in its place. It is BuildKit's number.
const maxAsked = 10

// apply returns what is fetched for op if a policy makes a source of it in which these attributes have changed.
func apply(op llb.Op, to sourcepolicy.Source, changed []string) (llb.Op, error) {
	scheme, rest := to.Scheme()
	if scheme == "" || rest == "" {
		return nil, fmt.Errorf("that is not an identifier")
	}
	switch op := op.(type) {
	case llb.Image:
		if op.Layout != "" {
			return nil, fmt.Errorf("an image of an OCI layout cannot be converted")
		}
		if scheme != imageScheme {
			return nil, fmt.Errorf("an image can only become another %s://", imageScheme)
		}
		if err := known(changed); err != nil {
			return nil, err
		}
		n, err := imagename.Parse(rest)
		if err != nil {
			return nil, err
		}
		return llb.Image{Ref: n.String()}, nil
	case llb.HTTP:
		return applyHTTP(op, to, changed)
	case llb.Git:
		if scheme != gitScheme {
			return nil, fmt.Errorf("a git repository can only become another %s://", gitScheme)
		}
		return applyGit(op, to, changed)
	}
	if _, ok := op.(llb.Blob); ok {
		return nil, fmt.Errorf("a blob cannot be converted")
	}
	return nil, fmt.Errorf("a directory of this machine cannot be converted")
}

// known returns an error if attributes have changed that are not among those that a policy may change.
func known(changed []string, names ...string) error {
	for _, key := range changed {
		if !slices.Contains(names, key) {
			if len(names) == 0 {
				return fmt.Errorf("the attribute %s cannot be set", key)
			}
			return fmt.Errorf("the attribute %s cannot be set; there are %s", key, strings.Join(names, ", "))
		}
	}
	return nil
}

func applyHTTP(op llb.HTTP, to sourcepolicy.Source, changed []string) (llb.Op, error) {
	if !remoteurl.IsHTTP(to.Identifier) {
		return nil, fmt.Errorf("a file can only become another https:// or http://")
	}
	if err := known(changed, attrChecksum); err != nil {
		return nil, err
	}
	h, err := remoteurl.ParseHTTP(to.Identifier)
	if err != nil {
		return nil, err
	}
	if h.User == "" && sameOrigin(op.URL, h.URL) { // a password is for the server that the user wrote it for
		h.User = op.User
	}
	op.URL, op.User, op.Checksum = h.URL, h.User, to.Attrs[attrChecksum]
	if op.Checksum != "" && !imagename.IsDigest(op.Checksum) {
		return nil, fmt.Errorf("%s=%q is not a digest", attrChecksum, op.Checksum)
	}
	return op, nil
}

// sameOrigin reports whether two URLs have the same scheme and host.
func sameOrigin(a, b string) bool {
	x, errX := url.Parse(a)
	y, errY := url.Parse(b)
	return errX == nil && errY == nil && x.Scheme == y.Scheme && strings.EqualFold(x.Host, y.Host)
}

func applyGit(op llb.Git, to sourcepolicy.Source, changed []string) (llb.Op, error) {
	if err := known(changed, attrFullURL, attrCommit, attrKeepGitDir, attrSkipSubmodules, attrFetchByCommit); err != nil {
		return nil, err
	}
	_, id := to.Scheme()
	place, fragment, _ := strings.Cut(id, "#")
	// The address says how the repository is reached, and the identifier which one it is.
	if got := gitPlace(to.Attrs[attrFullURL]); strings.TrimSuffix(got, ".git") != strings.TrimSuffix(place, ".git") {
		return nil, fmt.Errorf("the rule has to set %s, since %s is another repository", attrFullURL, to.Attrs[attrFullURL])
	}
	address := to.Attrs[attrFullURL]
	if fragment != "" {
		address += "#" + fragment
	}
	g, err := remoteurl.ParseGit(address)
	if err == nil && to.Attrs[attrCommit] != "" {
		err = g.SetChecksum(to.Attrs[attrCommit])
	}
	if err != nil {
		return nil, err
	}
	before, err := remoteurl.ParseGitRemote(op.Remote)
	if err == nil && g.User == "" && g.Account() == before.Account() {
		g.User = op.User
	}
	op.Remote, op.User, op.Ref, op.Subdir, op.Checksum = g.Remote, g.User, g.Ref, g.Subdir, g.Checksum
	op.KeepGitDir = to.Attrs[attrKeepGitDir] == "true"
	op.SkipSubmodules = to.Attrs[attrSkipSubmodules] == "true"
	op.FetchByCommit = to.Attrs[attrFetchByCommit] == "true"
	if op.FetchByCommit && !remoteurl.IsHash(op.Checksum) {
		return nil, fmt.Errorf("%s needs the whole hash of a commit as %s", attrFetchByCommit, attrCommit)
	}
	return op, nil
}
