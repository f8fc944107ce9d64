package main

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

// signalError is the cause of a context that a signal ended.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string {
	switch e.signal {
	case syscall.SIGINT:
		return "interrupted"
	case syscall.SIGTERM:
		return "terminated"
	}
	return "stopped by signal: " + e.signal.String()
}

// Is makes the error a kind of context.Canceled, so that what it stops counts as stopped and not as failed.
func (e *signalError) Is(target error) bool { return target == context.Canceled }

// status returns the exit status that a shell gives to a process that the signal ended.
func (e *signalError) status() int { return 128 + int(e.signal) }

// notify returns a context that ends at SIGINT, SIGTERM and SIGHUP, with a *signalError as its cause. A second signal ends
// the process at once.
func (a *app) notify(ctx context.Context) (context.Context, func()) {
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
			e := &signalError{s.(syscall.Signal)}
			if n > 0 {
				os.Exit(e.status())
			}
			cancel(e)
		}
	}()
	// Of a signal that the terminal sends both kilns of a user namespace know; told by the other one is no second signal.
	userns.Told(func(s syscall.Signal) { cancel(&signalError{s}) })
	return ctx, func() {
		signal.Stop(ch)
		signal.Stop(pipe)
		close(ch)
		cancel(nil)
	}
}

// causeSignal returns the signal that ended ctx, nil where none did.
func causeSignal(ctx context.Context) *signalError {
	s, _ := errors.AsType[*signalError](context.Cause(ctx))
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

// watch returns w in a form that ends a context when a write fails.
func watch(w io.Writer, cancel context.CancelCauseFunc) io.Writer {
	if f, ok := w.(*os.File); ok {
		return watchedFile{watched{w, cancel}, f}
	}
	return watched{w, cancel}
}
