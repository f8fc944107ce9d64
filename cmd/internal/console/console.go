// Package console lends the user's terminal to a program that kiln runs on a terminal of the program's own. It does not know the program.
package console

import (
	"fmt"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/kilnbuild/kiln/sandbox"
)

// Keep returns a function that gives a terminal the settings that it has now. It does nothing for other files.
func Keep(f *os.File) (restore func()) {
	was, err := term.GetState(int(f.Fd()))
	if err != nil {
		return func() {}
	}
	return func() { _ = term.Restore(int(f.Fd()), was) } // the terminal may be gone
}

// Lend returns a terminal for a program that is as large as the user's, which is out, or else in, and follows its size. If in is a terminal
// it is raw: what is typed is for the program alone. The returned function gives it its settings back.
func Lend(in, out *os.File) (t *sandbox.Terminal, restore func(), err error) {
	size := func() sandbox.TerminalSize {
		for _, f := range []*os.File{out, in} {
			if f == nil {
				continue
			}
			if w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
				return sandbox.TerminalSize{Rows: w.Row, Columns: w.Col}
			}
		}
		return sandbox.TerminalSize{}
	}
	cooked := func() {}
	if in != nil && term.IsTerminal(int(in.Fd())) {
		was, err := term.MakeRaw(int(in.Fd()))
		if err != nil {
			return nil, nil, fmt.Errorf("give the terminal to the program: %w", err)
		}
		cooked = func() { _ = term.Restore(int(in.Fd()), was) } // the terminal may be gone
	}
	sizes := make(chan sandbox.TerminalSize)
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, unix.SIGWINCH)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-resized:
				select {
				case sizes <- size():
				case <-stop:
					return
				}
			case <-stop:
				return
			}
		}
	}()
	return &sandbox.Terminal{Size: size(), Resized: sizes}, func() {
		signal.Stop(resized)
		close(stop)
		<-stopped
		cooked()
	}, nil
}
