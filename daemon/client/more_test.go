package client

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/exporter"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/internal/sshagent"
	"github.com/kilnbuild/kiln/llb"
	"github.com/moby/buildkit/session/filesync"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
)

func testKey(t *testing.T) []byte {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(key, "")
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(block)
}

// keysOf returns how many keys an agent has, by a socket that it is lent to.
func keysOf(t *testing.T, a *sshagent.Agent) int {
	t.Helper()
	socket, err := a.Lend(t.Context(), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	conn, err := net.Dial("unix", socket.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	keys, err := agent.NewClient(conn).List()
	if err != nil {
		t.Fatal(err)
	}
	return len(keys)
}

// Trees are written to a directory of the client, which has nothing else then if it wants so.
func TestFiles(t *testing.T) {
	h := newHost(t)
	from := t.TempDir()
	write(t, from, "d/a", "A")
	write(t, from, "d/b", strings.Repeat("b", 1<<20))
	for _, err := range []error{
		os.Symlink("/etc/passwd", filepath.Join(from, "link")), os.Link(filepath.Join(from, "d/a"), filepath.Join(from, "hard")),
		os.Mkdir(filepath.Join(from, "empty"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	to, mirror := t.TempDir(), t.TempDir()
	write(t, to, "old", "o")
	write(t, mirror, "old", "o")
	c, _ := h.connect(t, "", dirOf(t, from).provide("context"),
		filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, to), filesync.WithFSSyncDirDelete(1, mirror)))
	tree, err := c.Open(t.Context(), llb.Local{Name: "context"})
	if err != nil {
		t.Fatal(err)
	}
	epoch := time.Unix(1500000000, 0)
	if err := c.Receiver(0).WriteFiles(t.Context(), &epoch, exporter.Root{Tree: tree}); err != nil {
		t.Fatal(err)
	}
	roots := []exporter.Root{{Dir: "linux_amd64", Tree: tree}, {Dir: "linux_arm64", Tree: tree}}
	if err := c.Receiver(1).WriteFiles(t.Context(), nil, roots...); err != nil {
		t.Fatal(err)
	}
	for path, there := range map[string]bool{
		to + "/d/a": true, to + "/old": true, to + "/empty": true, mirror + "/linux_amd64/d/a": true, mirror + "/linux_arm64/hard": true,
		mirror + "/old": false,
	} {
		if _, err := os.Lstat(path); (err == nil) != there {
			t.Errorf("%s: %v", path, err)
		}
	}
	a, _ := os.Stat(to + "/d/a")
	hard, _ := os.Stat(to + "/hard")
	if a == nil || hard == nil || !os.SameFile(a, hard) || !a.ModTime().Equal(epoch) {
		t.Errorf("d/a is %v, hard is %v", a, hard)
	}
	if target, err := os.Readlink(to + "/link"); target != "/etc/passwd" || err != nil {
		t.Errorf("link is %q, %v", target, err)
	}
	// Two trees in one directory have no file in common.
	if err := c.Receiver(0).WriteFiles(t.Context(), nil, exporter.Root{Tree: tree}, exporter.Root{Tree: tree}); err == nil ||
		!strings.Contains(err.Error(), "platform-split") {
		t.Errorf("two trees at one place: %v", err)
	}
	part := t.TempDir()
	c, _ = h.connect(t, "", dirOf(t, from).provide("context"), filesync.NewFSSyncTarget(filesync.WithFSSyncDir(0, part)))
	if tree, err = c.Open(t.Context(), llb.Local{Name: "context"}); err != nil {
		t.Fatal(err)
	}
	if err := c.Receiver(0).WriteFiles(t.Context(), nil, exporter.Root{Tree: layer.Below(tree, "d")}); err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(part + "/a"); string(data) != "A" || err != nil {
		t.Errorf("of a part of the tree, a is %q, %v", data, err)
	}
}
