//go:build e2e

package e2e

import (
	"strings"
	"testing"
)

// A server with many packages, pushed; what others fetch and unpack is a system in which it runs.
func TestDatabase(t *testing.T) {
	name := registry + "/database:latest"
	p := open(t, "database", "-t", name, "--push")
	first := p.build()
	first.wantRan("RUN apt-get update")
	digest := remoteDigest(t, name)

	rootfs := unpack(t, "docker://"+name)
	version := command(t, "chroot", rootfs, "mariadbd", "--version")
	if !strings.Contains(version, "MariaDB") {
		t.Errorf("mariadbd --version printed %q", version)
	}
	t.Log(version)

	p.build().wantAllCached(first)
	if d := remoteDigest(t, name); d != digest {
		t.Errorf("the pushed manifest is %s, and it was %s", d, digest)
	}
	p.edit("Dockerfile", "FROM $BASE", "# a comment\nFROM $BASE")
	p.build().wantAllCached(first)
}
