package kilntest

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// Addresses at which servers can listen in a test that Network runs.
const (
	Internet  = "203.0.113.1"     // and all of 203.0.113.0/24, and of 2001:db8::/32
	Private   = "10.9.0.1"        // and all of 10.9.0.0/16
	Metadata  = "169.254.169.254" // of a cloud
	Metadata6 = "fd00:ec2::254"
)

// Network reports whether the calling test has a network of its own, in which this machine answers at all addresses above, though
// none is that of an interface: servers there are on the internet, as far as a client can tell. If it has not, Network runs the
// test again in a process that has, as root, and the caller returns.
func Network(t *testing.T) bool {
	t.Helper()
	const marker = "KILN_TEST_NETWORK"
	if os.Getenv(marker) == t.Name() {
		for _, args := range []string{
			"link set lo up", "route add local 203.0.113.0/24 dev lo", "route add local 10.9.0.0/16 dev lo", "route add local 169.254.0.0/16 dev lo",
			"-6 route add local 2001:db8::/32 dev lo", "-6 route add local fd00:ec2::/32 dev lo",
		} {
			if out, err := exec.Command("busybox", append([]string{"ip"}, strings.Fields(args)...)...).CombinedOutput(); err != nil {
				t.Fatalf("busybox ip %s: %v: %s", args, err, out)
			}
		}
		// IPv6 lets a server listen only at addresses of interfaces, but for this.
		if err := os.WriteFile("/proc/sys/net/ipv6/ip_nonlocal_bind", []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		return true
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^"+regexp.QuoteMeta(t.Name())+"$", "-test.count=1", "-test.v="+verbose())
	cmd.Env = append(os.Environ(), marker+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("in a network of its own: %v\n%s", err, out)
	}
	if !strings.Contains(string(out), "PASS") {
		t.Fatalf("nothing was tested in a network of its own:\n%s", out)
	}
	return false
}

func verbose() string {
	if testing.Verbose() {
		return "true"
	}
	return "false"
}
