package calls

import (
	"context"
	"errors"
	"testing"
)

// Who waits does so for the processes that were started before, and not for those that begin meanwhile: they have no copies of what is
// closed already.
func TestSettle(t *testing.T) {
	var l launches
	begun := func() *List {
		list := &List{prog: &program{}}
		list.Closes = list.Add("close files", 0)
		l.add(list)
		return list
	}
	first := begun()
	earlier := l.now()
	begun()
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	cancel(enough)
	if err := l.wait(ctx, l.now()); !errors.Is(err, enough) {
		t.Errorf("before a process has closed its files: %v", err)
	}
	first.prog.pc = 1
	if err := l.wait(t.Context(), earlier); err != nil {
		t.Error(err)
	}
	last := begun()
	l.remove(last) // it ended before it closed anything
	if err := l.wait(t.Context(), []*List{last}); err != nil {
		t.Error(err)
	}
}
