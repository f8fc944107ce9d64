// Package signals ends the context of a command when the user no longer wants its result: at a signal, or when nobody reads its progress.
package signals

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

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
	ch := make(chan os.Signal, 2)
	signals := []os.Signal{syscall.SIGINT, syscall.SIGTERM}
	if !signal.Ignored(syscall.SIGHUP) { // nohup
		signals = append(signals, syscall.SIGHUP)
	}
	signal.Notify(ch, signals...)
	// A write to a closed pipe has to be an error, so that what was begun can be cleaned up; without a handler for SIGPIPE
	// it ends the process. Ignoring the signal would be inherited by the processes of a build.
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, syscall.SIGPIPE)
	go func() {
		for n := 0; ; n++ {
			s, ok := <-ch
			if !ok {
				return
			}
			e := &Error{s.(syscall.Signal)}
			if n > 0 {
				os.Exit(e.Status())
			}
			cancel(e)
		}
	}()
	// The terminal sends a signal to both processes of kiln when one runs in a user namespace: a signal that the other passes on does not
	// count as a second one.
	userns.Told(func(s syscall.Signal) { cancel(&Error{s}) })
	return ctx, func() {
		signal.Stop(ch)
		signal.Stop(pipe)
		close(ch)
		cancel(nil)
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
