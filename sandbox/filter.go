package sandbox

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/kilnbuild/kiln/sandbox/internal/calls"
	"github.com/kilnbuild/kiln/sandbox/internal/seccomp"
	"github.com/kilnbuild/kiln/sandbox/internal/socketcall"
)

// filters are the compiled system call filters of this machine, by whether an image is one of 386.
var filters = map[bool]func() (seccomp.Filter, error){
	false: sync.OnceValues(func() (seccomp.Filter, error) { return seccomp.Compile(runtime.GOARCH, "") }),
	true:  sync.OnceValues(func() (seccomp.Filter, error) { return seccomp.Compile(runtime.GOARCH, "386") }),
}

// planFilter installs the system call filter. It comes before privileges go: without no_new_privs, which would disable programs like
// sudo, it takes CAP_SYS_ADMIN to install one. The descriptor spare may be used up.
func (r *run) planFilter(l *calls.List, spare *os.File) error {
	if r.spec.Privileges.Insecure {
		if !r.privileged() {
			l.Add("install the filter of keys", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, calls.FilterOf(seccomp.Keys(runtime.GOARCH)))
		}
		return nil
	}
	f, err := filters[r.spec.Process.Architecture == "386"]()
	if err != nil {
		return err
	}
	l.Add("install the system call filter", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, calls.FilterOf(f.Program))
	if !f.Notifies {
		return nil
	}
	if r.sockets, err = socketcall.Plan(l, spare); err == nil {
		r.files = append(r.files, r.sockets.Give)
	}
	return err
}
