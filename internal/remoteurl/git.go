// Package remoteurl reads the addresses of git repositories and files as ADD and build contexts write them. It does not
// know how anything is fetched.
package remoteurl

import (
	"fmt"
	"net"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// Git is a repository and what is wanted of it.
type Git struct {
	// Remote is the repository's address for git, without query, fragment and credentials: "https://host/r.git",
	// "ssh://git@host/r.git", "git@host:r.git". The user of ssh stays.
	Remote string
	// User is "user[:password]" of an http address, decoded; "" for none. It is a secret.
	User string
	// Ref is a branch, a tag, any other ref or a commit's whole hash; "" is the repository's default branch.
	Ref string
	// Subdir is a directory in the repository, cleaned and relative; "" is all of it.
	Subdir string
	// Checksum is a commit's hash or the beginning of one, which Ref has to turn out to be; "" for none.
	Checksum string
	// FetchByCommit says that Checksum, a whole hash, is fetched whatever Ref is now.
	FetchByCommit bool
	// KeepGitDir and Submodules are nil where the address says nothing of them.
	KeepGitDir, Submodules *bool
}

// maxURL bounds an address in bytes: servers refuse far shorter ones.
const maxURL = 8 << 10

// IsGit reports whether source is a repository's address as ADD takes it: ssh://, git://, user@host:path, or http(s):// with
// a path that ends in .git.
func IsGit(source string) bool {
	scheme, rest, ok := strings.Cut(source, "://")
	if !ok {
		return isSCP(source)
	}
	switch strings.ToLower(scheme) {
	case "ssh", "git":
		return true
	case "http", "https":
		rest, _, _ = strings.Cut(rest, "#")
		rest, _, _ = strings.Cut(rest, "?")
		return strings.HasSuffix(rest, ".git") && strings.Contains(rest, "/")
	}
	return false
}

// isSCP reports whether s is "user@host:path".
func isSCP(s string) bool {
	user, rest, ok := strings.Cut(s, "@")
	if !ok || user == "" || strings.Trim(user, nameChars+"_") != "" {
		return false
	}
	host, p, ok := strings.Cut(rest, ":")
	return ok && host != "" && p != "" && strings.Trim(host, nameChars+".") == "" && !strings.Contains(s, "://")
}

const nameChars = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-"

// IsGitContext reports whether source is a repository's address as a build context may have it: as IsGit has it, or
// github.com/user/repository.
func IsGitContext(source string) bool {
	return strings.HasPrefix(source, "github.com/") || IsGit(source)
}

// ParseGitContext is ParseGit for what IsGitContext accepts.
func ParseGitContext(source string) (*Git, error) {
	if strings.HasPrefix(source, "github.com/") {
		source = "https://" + source
	}
	return ParseGit(source)
}

// ParseGit reads an address, "REMOTE[?key=value&…][#ref[:subdir]]", with the keys ref, tag, branch, subdir, checksum or
// commit, keep-git-dir, submodules, mtime and fetch-by-commit. The error quotes no credentials.
func ParseGit(source string) (*Git, error) {
	s := &Git{}
	fragment, query, err := s.split(source)
	if err != nil {
		return nil, err
	}
	var subdir string
	s.Ref, subdir, _ = strings.Cut(fragment, ":")
	if err := s.setSubdir(subdir); err != nil {
		return nil, err
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return nil, fmt.Errorf("the query of the git address %s cannot be read", s.Remote)
	}
	if err := s.setQuery(values); err != nil {
		return nil, fmt.Errorf("git address %s: %w", s.Remote, err)
	}
	if err := checkRef(s.Ref); err != nil {
		return nil, err
	}
	if err := checkHash(s.Checksum); err != nil {
		return nil, err
	}
	if s.FetchByCommit && !IsHash(s.Checksum) {
		return nil, fmt.Errorf("git address %s: fetch-by-commit needs the whole hash of a commit as checksum", s.Remote)
	}
	return s, nil
}

// ParseGitRemote reads the address of a repository alone, as a submodule has it: any path, no query or fragment.
func ParseGitRemote(address string) (*Git, error) {
	s := &Git{}
	fragment, query, err := s.split(address)
	if err != nil {
		return nil, err
	}
	if fragment != "" || query != "" {
		return nil, fmt.Errorf("the git address %s has more than the place of a repository", s.Remote)
	}
	return s, nil
}

// split sets Remote and User, and returns the other parts.
func (s *Git) split(source string) (fragment, query string, err error) {
	if len(source) > maxURL {
		return "", "", fmt.Errorf("a git address is longer than %d bytes", maxURL)
	}
	for _, r := range source {
		if r <= ' ' || r == 0x7f {
			return "", "", fmt.Errorf("a git address has a space or control character in it")
		}
	}
	if isSCP(source) {
		rest, fragment, _ := strings.Cut(source, "#")
		s.Remote, query, _ = strings.Cut(rest, "?")
		_, place, _ := strings.Cut(s.Remote, "@")
		host, p, _ := strings.Cut(place, ":")
		if strings.HasPrefix(source, "-") || strings.HasPrefix(host, "-") || strings.HasPrefix(p, "-") {
			return "", "", fmt.Errorf("the git address %q has a part that begins with a dash", s.Remote)
		}
		if p == "" {
			return "", "", fmt.Errorf("the git address %q has no path", s.Remote)
		}
		return fragment, query, nil
	}
	u, err := url.Parse(source)
	if err != nil {
		// The error of url.Parse quotes what may be a password.
		return "", "", fmt.Errorf("a git address is not a URL")
	}
	switch u.Scheme {
	case "http", "https", "ssh", "git":
	default:
		return "", "", fmt.Errorf("git over %q is not supported; there are https, http, ssh and git", u.Scheme)
	}
	if u.Hostname() == "" || u.Path == "" || u.Path == "/" {
		return "", "", fmt.Errorf("the git address %s has no host or no path", u.Redacted())
	}
	fragment, query = u.Fragment, u.RawQuery
	u.Fragment, u.RawFragment, u.RawQuery, u.ForceQuery = "", "", "", false
	_, hasPassword := u.User.Password()
	switch {
	case u.User == nil:
	case u.Scheme != "ssh":
		s.User = userinfo(u.User)
		u.User = nil
	case hasPassword:
		return "", "", fmt.Errorf("the git address %s has a password, which ssh does not take", u.Redacted())
	case strings.HasPrefix(u.User.Username(), "-"):
		return "", "", fmt.Errorf("the git address %s has a part that begins with a dash", u.Redacted())
	}
	if strings.HasPrefix(u.Host, "-") || strings.HasPrefix(u.Path, "/-") && u.Scheme != "http" && u.Scheme != "https" {
		return "", "", fmt.Errorf("the git address %s has a part that begins with a dash", u.Redacted())
	}
	if s.Remote = u.String(); len(s.Remote) > maxURL {
		return "", "", fmt.Errorf("a git address is longer than %d bytes", maxURL)
	}
	return fragment, query, nil
}

func (s *Git) setSubdir(dir string) error {
	for part := range strings.SplitSeq(dir, "/") {
		if part == ".." {
			return fmt.Errorf("the directory %q of a git address leads out of the repository", dir)
		}
	}
	if clean := path.Clean("/" + dir)[1:]; clean != "" {
		if s.Subdir != "" && s.Subdir != clean {
			return fmt.Errorf("there are two directories, %q and %q", s.Subdir, clean)
		}
		s.Subdir = clean
	}
	return nil
}

// ConflictError is an address that says a thing twice, and not the same.
type ConflictError struct {
	// What is "ref" or "commit".
	What          string
	First, Second string
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("there are two %ss, %q and %q", e.What, e.First, e.Second)
}

func (s *Git) setRef(ref string) error {
	if s.Ref != "" && s.Ref != ref {
		return &ConflictError{What: "ref", First: s.Ref, Second: ref}
	}
	s.Ref = ref
	return nil
}

func (s *Git) setQuery(q url.Values) (err error) {
	if q.Has("tag") && q.Has("branch") {
		return fmt.Errorf("it has a tag and a branch")
	}
	for _, key := range []string{
		"ref", "tag", "branch", "subdir", "checksum", "commit", "keep-git-dir", "submodules", "mtime", "fetch-by-commit",
	} {
		values, ok := q[key]
		if !ok {
			continue
		}
		delete(q, key)
		if len(values) > 1 {
			return fmt.Errorf("%s= is there more than once", key)
		}
		v := values[0]
		flag := func() (bool, error) {
			if v == "" {
				return true, nil
			}
			b, err := strconv.ParseBool(v)
			if err != nil {
				return false, fmt.Errorf("%s=%q is neither true nor false", key, v)
			}
			return b, nil
		}
		var b bool
		switch key {
		case "keep-git-dir":
			b, err = flag()
			s.KeepGitDir = &b
		case "submodules":
			b, err = flag()
			s.Submodules = &b
		case "fetch-by-commit":
			s.FetchByCommit, err = flag()
		default:
			if v == "" {
				return fmt.Errorf("%s= has no value", key)
			}
			err = s.setValue(key, v)
		}
		if err != nil {
			return err
		}
	}
	for key := range q {
		const known = "ref, tag, branch, subdir, checksum, commit, keep-git-dir, submodules, mtime and fetch-by-commit"
		return fmt.Errorf("%q is not known; there are %s", key, known)
	}
	return nil
}

func (s *Git) setValue(key, v string) error {
	switch key {
	case "ref":
		return s.setRef(v)
	case "tag":
		return s.setRef("refs/tags/" + strings.TrimPrefix(v, "refs/tags/"))
	case "branch":
		return s.setRef("refs/heads/" + strings.TrimPrefix(v, "refs/heads/"))
	case "subdir":
		return s.setSubdir(v)
	case "mtime":
		if v != "commit" {
			return fmt.Errorf("mtime=%s is not supported: files have the time of the commit", v)
		}
		return nil
	default: // checksum, commit
		if s.Checksum != "" && s.Checksum != v {
			return &ConflictError{What: "commit", First: s.Checksum, Second: v}
		}
		s.Checksum = v
		return nil
	}
}

// checkRef refuses what git would take for an option, a pattern or an expression: git-check-ref-format(1).
func checkRef(ref string) error {
	if strings.HasPrefix(ref, "-") || strings.ContainsAny(ref, "~^:?*[\\") || strings.Contains(ref, "..") || strings.Contains(ref, "@{") {
		return fmt.Errorf("%q is not the name of a git ref", ref)
	}
	for _, r := range ref {
		if r <= ' ' || r == 0x7f {
			return fmt.Errorf("%q is not the name of a git ref", ref)
		}
	}
	return nil
}

// minHash is the least number of digits that a commit is known by: what git itself shows at least.
const minHash = 7

func checkHash(h string) error {
	if h != "" && (len(h) < minHash || len(h) > 64 || strings.Trim(h, "0123456789abcdef") != "") {
		return fmt.Errorf("%q is not the hash of a commit, nor its first %d digits or more", h, minHash)
	}
	return nil
}

// IsHash reports whether s is the whole hash of an object, SHA-1 or SHA-256, in lower case.
func IsHash(s string) bool {
	return (len(s) == 40 || len(s) == 64) && strings.Trim(s, "0123456789abcdef") == ""
}

// SetChecksum makes a commit, as ADD --checksum has it, that which Ref has to be.
func (s *Git) SetChecksum(hash string) error {
	if err := checkHash(hash); err != nil {
		return err
	}
	return s.setValue("checksum", hash)
}

// Scheme returns the protocol: "https", "http", "ssh" or "git".
func (s *Git) Scheme() string {
	if scheme, _, ok := strings.Cut(s.Remote, "://"); ok {
		return scheme
	}
	return "ssh"
}

// Host returns "host[:port]" of the repository.
func (s *Git) Host() string {
	if u, err := url.Parse(s.Remote); err == nil && u.Host != "" {
		return u.Host
	}
	_, place, _ := strings.Cut(s.Remote, "@")
	host, _, _ := strings.Cut(place, ":")
	return host
}

// Hostname returns the name or address of the server, without a port and brackets.
func (s *Git) Hostname() string { return (&url.URL{Host: s.Host()}).Hostname() }

// Port returns the server's port; "" for the usual one.
func (s *Git) Port() string { return (&url.URL{Host: s.Host()}).Port() }

// SSHUser returns the user of ssh; "" for none.
func (s *Git) SSHUser() string {
	if u, err := url.Parse(s.Remote); err == nil && u.Host != "" {
		if u.Scheme != "ssh" {
			return ""
		}
		return u.User.Username()
	}
	user, _, _ := strings.Cut(s.Remote, "@")
	return user
}

// Path returns where the repository is on its server, without the slash at the beginning of that of a URL.
func (s *Git) Path() string {
	if u, err := url.Parse(s.Remote); err == nil && u.Host != "" {
		return strings.TrimPrefix(u.Path, "/")
	}
	_, place, _ := strings.Cut(s.Remote, "@")
	_, p, _ := strings.Cut(place, ":")
	return p
}

// WithHost returns Remote, which is a URL, with another host name or address.
func (s *Git) WithHost(name string) string {
	u, err := url.Parse(s.Remote)
	if err != nil {
		return s.Remote
	}
	port := u.Port()
	if u.Host = name; strings.Contains(name, ":") {
		u.Host = "[" + name + "]"
	}
	if port != "" {
		u.Host = net.JoinHostPort(name, port)
	}
	return u.String()
}

// Account returns the server, and for ssh the user there, that the repository is at: "https://host:443", "ssh://git@host:22". Two
// repositories with the same account are served by the same server to the same user.
func (s *Git) Account() string {
	user, port := "", s.Port()
	if u := s.SSHUser(); u != "" {
		user = u + "@"
	}
	if port == "" {
		port = map[string]string{"http": "80", "https": "443", "ssh": "22", "git": "9418"}[s.Scheme()]
	}
	return s.Scheme() + "://" + user + net.JoinHostPort(strings.ToLower(s.Hostname()), port)
}

// Join resolves the address of a submodule, which may be relative to the repository that has it: "../other.git".
func (s *Git) Join(address string) (*Git, error) {
	if !strings.HasPrefix(address, "./") && !strings.HasPrefix(address, "../") {
		return ParseGitRemote(address)
	}
	base := strings.TrimSuffix(s.Remote, "/")
	for {
		var ok bool
		if address, ok = strings.CutPrefix(address, "./"); ok {
			continue
		}
		if address, ok = strings.CutPrefix(address, "../"); !ok {
			break
		}
		i := strings.LastIndexAny(base, "/:")
		if i < 0 || strings.HasSuffix(base[:i+1], "//") || strings.HasSuffix(base[:i+1], "@") {
			return nil, fmt.Errorf("the submodule address %q leads out of %s", address, s.Remote)
		}
		if base[i] == ':' {
			// Of "git@host:r.git" the colon stays, and nothing is above it.
			if strings.Contains(base[i+1:], "/") || i == len(base)-1 {
				return nil, fmt.Errorf("the submodule address %q leads out of %s", address, s.Remote)
			}
			base = base[:i+1]
			continue
		}
		base = base[:i]
	}
	if !strings.HasSuffix(base, ":") {
		base += "/"
	}
	sub, err := ParseGitRemote(base + address)
	if err != nil {
		return nil, err
	}
	if sub.Scheme() != s.Scheme() || sub.Host() != s.Host() {
		return nil, fmt.Errorf("the submodule address %q leads out of %s", address, s.Remote)
	}
	sub.User = s.User
	return sub, nil
}
