package sandbox

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
// step. As long as a file is open for writing anywhere execve(2) of it fails with ETXTBSY, unless an overlay is in between. So no step
// starts before the processes that were started earlier have closed what they inherited: kiln itself has closed the files of a
// step's root by then, and what is started later inherits none of them.
var launching launches

type launches struct {
	mu sync.Mutex
	// closes is the index of the call after which a process has none of kiln's descriptors, by what it carries out.
	closes map[*program]uintptr
}

// noCall is the index of no call, for a process that closes nothing before it ends.
const noCall = ^uintptr(0)

// add is called before the process is started, and remove when it has ended, or has not come to be.
func (l *launches) add(p *program, closes uintptr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closes == nil {
		l.closes = map[*program]uintptr{}
	}
	l.closes[p] = closes
}

func (l *launches) remove(p *program) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.closes, p)
}

// settle waits until none of the processes that there are now has descriptors of kiln's. It takes a moment: what they do before they
// close them waits for nobody.
func (l *launches) settle(ctx context.Context) error {
	// Those that the standard library starts have the lock until they execute their programs.
	syscall.ForkLock.Lock()
	//lint:ignore SA2001 whoever had the lock has been waited for
	syscall.ForkLock.Unlock()
	l.mu.Lock()
	waiting := slices.Collect(maps.Keys(l.closes))
	l.mu.Unlock()
	for {
		l.mu.Lock()
		waiting = slices.DeleteFunc(waiting, func(p *program) bool {
			closes, there := l.closes[p]
			return !there || atomic.LoadUintptr(&p.pc) > closes
		})
		l.mu.Unlock()
		if len(waiting) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(100 * time.Microsecond):
		}
	}
}
