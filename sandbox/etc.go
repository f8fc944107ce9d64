package sandbox

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/internal/passwd"
	"github.com/kilnbuild/kiln/internal/rootfs"
)

// DefaultHostname is the host name of a process for which Spec gives none.
const DefaultHostname = "buildkitsandbox"

// hosts is the content of /etc/hosts, see hosts(5).
func hosts(hostname string, extra []Host) string {
	var b strings.Builder
	fmt.Fprintf(&b, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", hostname)
	for _, h := range extra {
		fmt.Fprintf(&b, "%s\t%s\n", h.IP, h.Name)
	}
	return b.String()
}

// Where the host's resolver configuration is, and where systemd-resolved keeps the servers that its stub asks.
var (
	resolvConf        = "/etc/resolv.conf"
	systemdResolvConf = "/run/systemd/resolve/resolv.conf"
)

// resolver is the content of /etc/resolv.conf: the host's, unless its only server is systemd-resolved's stub. A host without
// the file gives an empty one. See resolv.conf(5).
func resolver() (string, error) {
	text, err := os.ReadFile(resolvConf)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the host's resolver configuration: %w", err)
	}
	if onlyStub(string(text)) {
		if real, err := os.ReadFile(systemdResolvConf); err == nil {
			text = real
		}
	}
	return string(text), nil
}

func onlyStub(text string) bool {
	stub := netip.MustParseAddr("127.0.0.53")
	found := false
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) < 2 || f[0] != "nameserver" {
			continue
		}
		if addr, err := netip.ParseAddr(f[1]); err != nil || addr != stub {
			return false
		}
		found = true
	}
	return found
}

// UserFiles returns how to open /etc/passwd and /etc/group of the tree below root, for passwd.Lookup and passwd.Owner.
// Links are followed inside root, and only regular files are opened, so that no device or pipe can do harm or hang.
func UserFiles(root *os.File) (users, groups passwd.Opener) {
	open := func(name string) passwd.Opener {
		return func() (io.ReadCloser, error) { return openRegular(root, name) }
	}
	return open("/etc/passwd"), open("/etc/group")
}

// LookupUser resolves the argument of USER in the tree below root; see passwd.Lookup for what it returns.
func LookupUser(root *os.File, spec string) (passwd.User, error) {
	users, groups := UserFiles(root)
	return passwd.Lookup(users, groups, spec)
}

func openRegular(root *os.File, name string) (*os.File, error) {
	f, err := rootfs.At(root).OpenFile(name, unix.O_PATH, 0)
	if errors.Is(err, unix.ENOTDIR) {
		return nil, fs.ErrNotExist
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.New("not a regular file")}
	}
	fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: err}
	}
	return os.NewFile(uintptr(fd), name), nil
}
