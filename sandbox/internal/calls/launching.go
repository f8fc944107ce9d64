package calls

import (
	"context"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// launching are the processes that have copies of kiln's descriptors. One may be that of a file that kiln is just writing for another
// step. As long as a file is open for writing anywhere execve(2) of it fails with ETXTBSY, unless an overlay is in between.
var launching launches

type launches struct {
	mu    sync.Mutex
	lists map[*List]bool // that processes carry out
}

// add is called before the process is started, and remove when it has ended, or has not come to be.
func (l *launches) add(list *List) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lists == nil {
		l.lists = map[*List]bool{}
	}
	l.lists[list] = true
}

func (l *launches) remove(list *List) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.lists, list)
}

// closed reports whether a process that carries out the list has none of kiln's descriptors any more.
func (l *List) closed() bool {
	return l.Closes != nil && atomic.LoadUintptr(&l.prog.pc) > uintptr(l.Closes.index)
}

// Settle waits until no process that is being started now has descriptors of kiln's, and is called before another is started whose files
// must be open for writing nowhere: kiln itself has closed them by then, and a process that is started later inherits none. So whoever
// waits here delays nobody else, and waits for as long as one process takes to set itself up, however many begin at once.
func Settle(ctx context.Context) error {
	// Those that the standard library starts have the lock until they execute their programs.
	syscall.ForkLock.Lock()
	//lint:ignore SA2001 whoever had the lock has been waited for
	syscall.ForkLock.Unlock()
	return launching.wait(ctx, launching.now())
}

// now returns the lists that processes carry out.
func (l *launches) now() []*List {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Keys(l.lists))
}

// wait waits until the processes that carry out the lists have none of kiln's descriptors.
func (l *launches) wait(ctx context.Context, lists []*List) error {
	for {
		l.mu.Lock()
		lists = slices.DeleteFunc(lists, func(list *List) bool { return !l.lists[list] || list.closed() })
		l.mu.Unlock()
		if len(lists) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Microsecond):
		}
	}
}
