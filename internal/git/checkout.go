package git

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/regularfile"
	"github.com/kilnbuild/kiln/internal/remoteurl"
)

// A build context may be a checkout of anybody's making, and what git reads of a repository can have it run programs, fetch, and read other
// files: its configuration with aliases, filters, promisors and includes, and links of many kinds. So git never works on such a repository.
// kiln reads HEAD and refs itself, and has git decode one commit of its objects in an empty repository, and one value of the configuration
// as a text.

// The limits of what is read of a checkout.
const (
	checkoutTime  = time.Minute // for all that git does
	maxRef        = 4 << 10     // bytes of HEAD, a ref, and a .git that is a file
	maxPackedRefs = 64 << 20    // bytes
	maxConfig     = 1 << 20     // bytes
	maxSymbolic   = 5           // refs that lead from HEAD to a commit
)

var (
	errNoRepository = errors.New("not in a git repository")
	errNoCommit     = errors.New("no commit")
)

// Checkout says what the repository that has dir in its working tree is at.
type Checkout struct {
	// Revision is the hash of the commit that is checked out, and Origin the address of the remote of that name, without credentials.
	// Each is "" if there is none; Origin also if it is not that of a server.
	Revision, Origin string
}

// DescribeCheckout returns the checkout that dir, an absolute path, is in; the zero value if it is in none, or that cannot be found out.
// Files may differ from those of the commit. Whoever owns the repository, nothing that it names is run, fetched, or read elsewhere.
func DescribeCheckout(ctx context.Context, dir string) Checkout {
	r, err := openRepository(dir)
	if err != nil {
		return Checkout{}
	}
	defer r.close()
	ctx, cancel := context.WithTimeout(ctx, checkoutTime)
	defer cancel()
	revision, _, err := r.head(ctx)
	if err != nil {
		return Checkout{}
	}
	return Checkout{revision, r.origin(ctx)}
}

// HeadTime returns when the commit was made that is checked out in the repository of dir, an absolute path that errors call shown: the
// committer's time. Whoever owns the repository, nothing that it names is run, fetched, or read elsewhere.
func HeadTime(ctx context.Context, dir, shown string) (time.Time, error) {
	if _, err := exec.LookPath("git"); err != nil {
		return time.Time{}, errors.New("git is not installed: install the package git")
	}
	r, err := openRepository(dir)
	if err == nil {
		defer r.close()
		var made time.Time
		ctx, cancel := context.WithTimeoutCause(ctx, checkoutTime, fmt.Errorf("git has not read the commit of %s after %s", shown, checkoutTime))
		defer cancel()
		if _, made, err = r.head(ctx); err == nil {
			return made, nil
		}
	}
	switch {
	case errors.Is(err, errNoRepository):
		err = fmt.Errorf("%s is not in a git repository", shown)
	case errors.Is(err, errNoCommit):
		err = fmt.Errorf("the repository of %s has no commit", shown)
	}
	return time.Time{}, err
}

// repository is one with a working tree. A linked working tree has a directory of its own, and one in common with others.
type repository struct {
	dir         string
	own, common *os.Root
}

func (r *repository) close() {
	r.own.Close()
	r.common.Close()
}

// openRepository opens the repository whose working tree has dir in it. The error is errNoRepository, or says what is wrong with a .git.
func openRepository(dir string) (*repository, error) {
	for at := dir; ; at = filepath.Dir(at) {
		name := filepath.Join(at, ".git")
		info, err := os.Lstat(name)
		switch {
		case err == nil && info.IsDir():
			return newRepository(name, name)
		case err == nil && info.Mode().IsRegular():
			return linked(name, info)
		case err == nil:
			return nil, fmt.Errorf("%s is neither a directory nor a file", name)
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		case at == filepath.Dir(at):
			return nil, errNoRepository
		}
	}
}

func newRepository(own, common string) (*repository, error) {
	o, err := os.OpenRoot(own)
	if err != nil {
		return nil, err
	}
	c, err := os.OpenRoot(common)
	if err != nil {
		o.Close()
		return nil, err
	}
	return &repository{common, o, c}, nil
}

// linked opens the repository that a .git which is a file names. It has to be one that knows of that file, a linked working tree
// (git-worktree(1)), or that of a submodule in the repository of a directory above: a context does not choose the repository of somebody
// else.
func linked(name string, info fs.FileInfo) (*repository, error) {
	text, err := regularfile.Read(name, maxRef)
	if err != nil {
		return nil, err
	}
	path, ok := strings.CutPrefix(strings.TrimRight(string(text), "\r\n"), "gitdir: ")
	if !ok {
		return nil, fmt.Errorf("%s does not name a repository", name)
	}
	tree := filepath.Dir(name)
	if !filepath.IsAbs(path) {
		path = filepath.Join(tree, path)
	}
	path = filepath.Clean(path)
	for above := filepath.Dir(tree); above != filepath.Dir(above); above = filepath.Dir(above) {
		if strings.HasPrefix(path, filepath.Join(above, ".git", "modules")+"/") {
			return newRepository(path, path)
		}
	}
	back, err := regularfile.Read(filepath.Join(path, "gitdir"), maxRef)
	if err != nil {
		return nil, fmt.Errorf("%s names the repository %s, which does not know of it", name, path)
	}
	if known, err := os.Lstat(strings.TrimRight(string(back), "\r\n")); err != nil || !os.SameFile(known, info) {
		return nil, fmt.Errorf("%s names the repository %s, which does not know of it", name, path)
	}
	common, err := regularfile.Read(filepath.Join(path, "commondir"), maxRef)
	if err != nil {
		return nil, err
	}
	shared := strings.TrimRight(string(common), "\r\n")
	if !filepath.IsAbs(shared) {
		shared = filepath.Join(path, shared)
	}
	return newRepository(path, shared)
}

// read returns the content of a file of at most limit bytes. Links do not lead out of root.
func read(root *os.Root, name string, limit int64) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	return regularfile.ReadFrom(f, name, limit)
}

// head returns the commit that is checked out, and its committer's time. The error is errNoCommit if there is none.
func (r *repository) head(ctx context.Context) (hash string, made time.Time, err error) {
	if hash, err = r.resolve(); err != nil {
		return "", made, err
	}
	empty, err := os.MkdirTemp("", "kiln-git-")
	if err != nil {
		return "", made, err
	}
	defer os.RemoveAll(empty)
	config := "[core]\nrepositoryformatversion = 0\nbare = true\n"
	if len(hash) == 64 {
		config = "[core]\nrepositoryformatversion = 1\nbare = true\n[extensions]\nobjectformat = sha256\n"
	}
	for name, text := range map[string]string{"HEAD": "ref: refs/heads/none\n", "config": config} {
		if err := os.WriteFile(filepath.Join(empty, name), []byte(text), 0o600); err != nil {
			return "", made, err
		}
	}
	for _, name := range []string{"objects", "refs"} {
		if err := os.Mkdir(filepath.Join(empty, name), 0o700); err != nil {
			return "", made, err
		}
	}
	ask := func(args ...string) (string, error) {
		return (&Client{}).output(ctx, call{
			source: &remoteurl.Git{Remote: r.dir}, local: true, doing: "read the commit of", objects: filepath.Join(r.dir, "objects"),
			args: append([]string{"--git-dir=" + empty, "--no-replace-objects", "cat-file"}, args...),
		})
	}
	size, err := ask("-s", hash)
	if err != nil {
		return "", made, err
	}
	if n, err := strconv.ParseInt(strings.TrimSpace(size), 10, 64); err != nil || n > maxOutput {
		return "", made, fmt.Errorf("the commit %s has %s bytes, and at most %d are read", hash, strings.TrimSpace(size), maxOutput)
	}
	text, err := ask("commit", hash)
	if err != nil {
		return "", made, err
	}
	made, err = commitTime(text)
	return hash, made, err
}

// commitTime returns the committer's time of a commit.
func commitTime(text string) (time.Time, error) {
	header, _, _ := strings.Cut(text, "\n\n")
	for line := range strings.Lines(header) {
		who, ok := strings.CutPrefix(line, "committer ")
		if !ok {
			continue
		}
		// NAME <ADDRESS> SECONDS ZONE
		fields := strings.Fields(who[strings.LastIndexByte(who, '>')+1:])
		if len(fields) != 2 {
			break
		}
		seconds, err := strconv.ParseInt(fields[0], 10, 64)
		if err != nil {
			break
		}
		return time.Unix(seconds, 0), nil
	}
	return time.Time{}, errors.New("the commit that is checked out has no time")
}

// resolve returns the hash that HEAD stands for. The error is errNoCommit if there is none.
func (r *repository) resolve() (string, error) {
	text, err := read(r.own, "HEAD", maxRef)
	for range maxSymbolic {
		if errors.Is(err, fs.ErrNotExist) {
			return "", errNoCommit
		}
		if err != nil {
			return "", err
		}
		value := strings.TrimSpace(string(text))
		name, symbolic := strings.CutPrefix(value, "ref: ")
		if !symbolic {
			if !remoteurl.IsHash(value) {
				return "", errNoCommit
			}
			return value, nil
		}
		if !strings.HasPrefix(name, "refs/") || filepath.Clean(name) != name {
			return "", errNoCommit
		}
		if text, err = read(r.common, name, maxRef); errors.Is(err, fs.ErrNotExist) {
			text, err = r.packed(name)
		}
	}
	return "", errNoCommit
}

// packed returns the hash of a ref in packed-refs.
func (r *repository) packed(name string) ([]byte, error) {
	data, err := read(r.common, "packed-refs", maxPackedRefs)
	if err != nil {
		return nil, err
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		if hash, ref, ok := strings.Cut(lines.Text(), " "); ok && ref == name {
			return []byte(hash), nil
		}
	}
	return nil, fs.ErrNotExist
}

// origin returns the address of the remote of that name; "" if it is not that of a server.
func (r *repository) origin(ctx context.Context) string {
	config, err := read(r.common, "config", maxConfig)
	if err != nil {
		return ""
	}
	out, err := (&Client{}).output(ctx, call{
		source: &remoteurl.Git{Remote: r.dir}, local: true, doing: "read the configuration of", stdin: bytes.NewReader(config),
		args: []string{"--git-dir=" + os.DevNull, "config", "--file", "-", "--no-includes", "--get", "remote.origin.url"},
	})
	if err != nil {
		return ""
	}
	return public(strings.TrimSpace(out))
}

// public returns the address of a repository on a server, without credentials: of a URL its scheme, host and path, and of an address as ssh
// has it what follows the user. Everything else, such as a path, is not for others, and gives "".
func public(address string) string {
	if !strings.Contains(address, "://") {
		host, path, ok := strings.Cut(address, ":")
		host = host[strings.LastIndexByte(host, '@')+1:]
		if at := strings.LastIndexByte(path, '@'); at >= 0 { // a password has been written where there is none
			host, path, ok = strings.Cut(path[at+1:], ":")
		}
		if !ok || host == "" || strings.ContainsAny(host, "/\\ ") || path == "" || path[0] == ':' || strings.ContainsAny(path, "?#@\\") {
			return ""
		}
		return host + ":" + path
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Opaque != "" || strings.Contains(u.Path, "@") {
		return ""
	}
	switch u.Scheme {
	case "http", "https", "ssh", "git":
		return (&url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}).String()
	}
	return ""
}
