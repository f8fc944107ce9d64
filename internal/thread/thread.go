// Package thread runs functions on threads of their own, for changes of state that the kernel keeps per thread: namespaces, IDs,
// capabilities. It does not know what the functions do.
package thread

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// Do calls f on a thread that ends when f returns, and waits for it. Nothing that f does to the thread reaches another goroutine.
func Do(f func()) {
	done := make(chan struct{})
	go run(f, done)
	<-done
}

// run calls f and closes done. A goroutine that ends while it is locked to its thread takes that with it, but for the first
// thread of the process: that stays, and /proc/self shows what it has become. So there another goroutine, which cannot get this
// thread meanwhile, takes over.
func run(f func(), done chan struct{}) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		ended := make(chan struct{})
		go run(f, ended)
		<-ended
		runtime.UnlockOSThread()
		close(done)
		return
	}
	defer close(done)
	f()
}
