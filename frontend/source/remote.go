package source

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strings"
	"unicode"

	"github.com/kilnbuild/kiln/internal/imagename"
	"github.com/kilnbuild/kiln/internal/remoteurl"
	"github.com/kilnbuild/kiln/llb"
)

// ChecksumError is a --checksum that cannot be one.
type ChecksumError struct {
	Value string
	// Commit says that it has to be the hash of a commit.
	Commit bool
	Err    error
}

func (e *ChecksumError) Error() string {
	if e.Commit {
		return e.Err.Error()
	}
	return fmt.Sprintf("--checksum=%s: %v", e.Value, e.Err)
}

// Unwrap returns Err.
func (e *ChecksumError) Unwrap() error { return e.Err }

// HTTP returns the op that fetches a file from a URL; checksum is that of ADD, "" for none.
func HTTP(address, checksum string) (llb.HTTP, error) {
	if checksum != "" && !imagename.IsDigest(checksum) {
		return llb.HTTP{}, &ChecksumError{Value: checksum,
			Err: errors.New("it has to be sha256:, sha384: or sha512: and the digits of that digest")}
	}
	op, err := httpOp(address, urlFilename(address))
	op.Checksum = checksum
	return op, err
}

func httpOp(address, filename string) (llb.HTTP, error) {
	r, err := remoteurl.ParseHTTP(address)
	if err != nil {
		return llb.HTTP{}, err
	}
	return llb.HTTP{URL: r.URL, User: r.User, Filename: filename}, nil
}

// unnamed is the name of a file whose URL has none, or one that no file can have.
const unnamed = "__unnamed__"

// urlFilename returns the last element of a URL's path.
func urlFilename(src string) string {
	u, err := url.Parse(src)
	if err != nil {
		return unnamed
	}
	name := path.Base(u.Path)
	if name == "." || name == ".." || name == "/" || strings.ContainsFunc(name, unicode.IsControl) {
		return unnamed
	}
	return name
}

// Git returns the op that fetches a repository; checksum and keepGitDir are those of ADD, "" and nil for none.
func Git(address, checksum string, keepGitDir *bool) (llb.Git, error) {
	remote, err := remoteurl.ParseGit(address)
	if err == nil && checksum != "" {
		if err = remote.SetChecksum(checksum); err != nil {
			err = &ChecksumError{Value: checksum, Commit: true, Err: err}
		}
	}
	if err == nil && keepGitDir != nil {
		if remote.KeepGitDir != nil && *remote.KeepGitDir != *keepGitDir {
			err = fmt.Errorf("--keep-git-dir=%t contradicts keep-git-dir=%t in the address", *keepGitDir, *remote.KeepGitDir)
		}
		remote.KeepGitDir = keepGitDir
	}
	if err != nil {
		return llb.Git{}, err
	}
	return gitOp(remote), nil
}

func gitOp(s *remoteurl.Git) llb.Git {
	return llb.Git{
		Remote: s.Remote, User: s.User, Ref: s.Ref, Subdir: s.Subdir, Checksum: s.Checksum, FetchByCommit: s.FetchByCommit,
		KeepGitDir: s.KeepGitDir != nil && *s.KeepGitDir, SkipSubmodules: s.Submodules != nil && !*s.Submodules,
	}
}

// GitName is how progress names a source: "https://host/r.git#v1:dir".
func GitName(op llb.Git) string {
	name := op.Remote
	if op.Ref != "" || op.Subdir != "" {
		name += "#" + op.Ref
	}
	if op.Subdir != "" {
		name += ":" + op.Subdir
	}
	return name
}
