package main

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// What garbage collection may leave before it runs again: a multiple of what lives, but not much more than spareMemory. In a short
// build with little in memory, collecting at twice what lives, as Go does by itself, is a fifth of the processor's time.
const (
	spareMemory  = 32 << 20
	leastPercent = 50
	mostPercent  = 400
)

// paceGC sets how often garbage is collected, now and after each collection. GOGC, where the user has set it, decides.
func paceGC() {
	if os.Getenv("GOGC") != "" {
		return
	}
	pace(&gcCycle{})
}

// gcCycle is an object that nobody refers to, so that its finalizer runs after each collection.
type gcCycle struct {
	percent int
	_       [16]byte // finalizers of smaller objects may not run (package runtime, SetFinalizer)
}

func pace(c *gcCycle) {
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	percent := mostPercent
	if n := live[0].Value.Uint64(); n > 0 {
		percent = int(min(mostPercent, max(leastPercent, spareMemory*100/n)))
	}
	if percent != c.percent {
		debug.SetGCPercent(percent)
	}
	runtime.SetFinalizer(&gcCycle{percent: percent}, pace)
}
