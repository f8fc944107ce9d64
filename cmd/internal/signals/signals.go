// Package signals ends the context of a command when the user no longer wants its result: at a signal, or when nobody reads its progress.
package signals

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"github.com/kilnbuild/kiln/internal/userns"
)

// Error is the cause of a context that a signal ended.
type Error struct{ Signal syscall.Signal }

func (e *Error) Error() string {
	switch e.Signal {
	case syscall.SIGINT:
		return "interrupted"
	case syscall.SIGTERM:
		return "terminated"
	}
	return "stopped by signal: " + e.Signal.String()
}

// Is makes the error a kind of context.Canceled, so that what it stops counts as stopped and not as failed.
func (e *Error) Is(target error) bool { return target == context.Canceled }

// Status returns the exit status that a shell reports for a process that the signal ended.
func (e *Error) Status() int { return 128 + int(e.Signal) }

// Notify returns a context that ends at SIGINT, SIGTERM and SIGHUP, with an *Error as its cause, and a function that restores the handling
// of signals. A second signal ends the process at once.
func Notify(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	h := &handler{ch: make(chan os.Signal, 64), cancel: cancel}
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signals = append(signals, syscall.SIGHUP)
	}
	signal.Notify(h.ch, signals...)
	// A write to a closed pipe has to be an error, so that what was begun can be cleaned up; without a handler for SIGPIPE
	// it ends the process. Ignoring the signal would be inherited by the processes of a build.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	go func() {
		for s := range h.ch {
			h.received(s.(syscall.Signal))
		}
	}()
	userns.Told(h.told)
	return context.WithValue(ctx, handlerKey{}, h), func() {
		signal.Stop(h.ch)
		signal.Stop(pipe)
		close(h.ch)
		cancel(nil)
	}
}

type handlerKey struct{}

// handler decides what a signal does.
type handler struct {
	ch     chan os.Signal
	cancel context.CancelCauseFunc

	mu sync.Mutex
	// to takes signals in place of cancel; nil for nothing.
	to   func(syscall.Signal)
	seen int // signals for cancel
	// single are signals that came one way and not the other yet, see once.
	single map[way]time.Time
}

// way is a signal, and whether it came from the kiln outside of the user namespace.
type way struct {
	signal syscall.Signal
	told   bool
}

// received takes a signal of the process.
func (h *handler) received(s syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.to != nil {
		h.once(way{s, false})
		return
	}
	e := &Error{s}
	if h.seen++; h.seen > 1 {
		os.Exit(e.Status())
	}
	h.cancel(e)
}

// told takes a signal that the other kiln has passed on. It may be one that the terminal has sent to both, so it does not count as a second
// one.
func (h *handler) told(s syscall.Signal) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.to != nil {
		h.once(way{s, true})
		return
	}
	h.cancel(&Error{s})
}

// apart is how long a signal to both kilns may take to come both ways.
const apart = time.Second

// once passes a signal on. One that the terminal, or whoever signals a process group, has sent to both kilns comes both ways, and is passed
// on when it comes first.
func (h *handler) once(w way) {
	other := way{w.signal, !w.told}
	if at, ok := h.single[other]; ok {
		delete(h.single, other)
		if time.Since(at) < apart {
			return
		}
	}
	if userns.Inside() {
		h.single[w] = time.Now()
	}
	h.to(w.signal)
}

// Redirect passes signals to f, and more than those that end the context, until the returned function is called. They do not end ctx, which
// comes from Notify, and end no process, meanwhile.
func Redirect(ctx context.Context, f func(syscall.Signal), more ...os.Signal) (restore func()) {
	h, ok := ctx.Value(handlerKey{}).(*handler)
	if !ok {
		return func() {}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.to, h.single = f, map[way]time.Time{}
	if len(more) > 0 { // none would be all
		signal.Notify(h.ch, more...)
	}
	return func() {
		if len(more) > 0 {
			signal.Reset(more...)
		}
		h.mu.Lock()
		defer h.mu.Unlock()
		h.to = nil
	}
}

// Cause returns the signal that ended ctx, or nil.
func Cause(ctx context.Context) *Error {
	s, _ := errors.AsType[*Error](context.Cause(ctx))
	return s
}

// watched is a writer that ends a context when it breaks.
type watched struct {
	io.Writer
	cancel context.CancelCauseFunc
}

func (w watched) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	if err != nil {
		w.cancel(fmt.Errorf("write progress: %w", err))
	}
	return n, err
}

// watchedFile is a watched file, which may be a terminal.
type watchedFile struct {
	watched
	file *os.File
}

func (w watchedFile) Fd() uintptr { return w.file.Fd() }

// Watch returns a writer to w that calls cancel when a write fails. If w is a file, the result has its Fd.
func Watch(w io.Writer, cancel context.CancelCauseFunc) io.Writer {
	if f, ok := w.(*os.File); ok {
		return watchedFile{watched{w, cancel}, f}
	}
	return watched{w, cancel}
}
