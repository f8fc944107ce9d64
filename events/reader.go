package events

import (
	"bytes"
	"context"
	"io"
	"slices"
	"sort"
)

// Keep keeps the events from now on for readers. What decides the state of vertices is kept in any case, which is little for each vertex of
// a graph; of output and of transfers that go on only the newest, up to limit bytes.
func (s *Stream) Keep(limit int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.kept == nil {
		s.kept = &kept{limit: limit, more: make(chan struct{})}
	}
}

// kept are events for readers. The stream's lock guards it.
type kept struct {
	limit   int64
	entries []entry // by number
	next    int     // the number of the next event
	size    int64   // of the entries that may go
	more    chan struct{}
}

type entry struct {
	number int
	event  Event
	size   int64 // 0: it stays
}

// overhead is roughly what an event takes beside its data, in bytes.
const overhead = 256

func (k *kept) add(e Event) {
	size := int64(0)
	switch b := e.Body.(type) {
	case Log:
		b.Data = bytes.Clone(b.Data)
		e.Body, size = b, overhead+int64(len(b.Data))
	case Transfer:
		if !b.Done {
			size = overhead
		}
	}
	k.entries = append(k.entries, entry{k.next, e, size})
	k.next++
	if k.size += size; k.size > k.limit {
		k.shrink()
	}
	k.wake()
}

// shrink removes the oldest entries that may go, and more than must, so that it is seldom called.
func (k *kept) shrink() {
	k.entries = slices.DeleteFunc(k.entries, func(e entry) bool {
		if e.size == 0 || k.size <= k.limit/2 {
			return false
		}
		k.size -= e.size
		return true
	})
}

// wake tells those that wait that there is more to read.
func (k *kept) wake() {
	close(k.more)
	k.more = make(chan struct{})
}

// Reader reads a stream from its beginning, as far as it is kept. It never makes the stream wait.
type Reader struct {
	stream *Stream
	next   int
}

// Reader returns a reader. Keep must have been called.
func (s *Stream) Reader() *Reader { return &Reader{stream: s} }

// Next returns the next event, and waits for it. The error is io.EOF at the end of the stream, and else that of ctx. Where events are not
// kept any more, there is one Lost in their place.
func (r *Reader) Next(ctx context.Context) (Event, error) {
	for {
		e, ok, more := r.read()
		if ok {
			return e, nil
		}
		if more == nil {
			return Event{}, io.EOF
		}
		select {
		case <-more:
		case <-ctx.Done():
			return Event{}, context.Cause(ctx)
		}
	}
}

// read returns the next event, or what to wait for; nil if the stream has ended.
func (r *Reader) read() (e Event, ok bool, more chan struct{}) {
	s := r.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	k := s.kept
	i := sort.Search(len(k.entries), func(i int) bool { return k.entries[i].number >= r.next })
	switch {
	case i < len(k.entries):
		next := k.entries[i]
		if lost := next.number - r.next; lost > 0 {
			r.next = next.number
			return Event{Time: next.event.Time, Body: Lost{Events: lost}}, true, nil
		}
		r.next++
		return next.event, true, nil
	case s.closed && r.next < k.next: // the last ones are gone
		lost := k.next - r.next
		r.next = k.next
		return Event{Time: s.last, Body: Lost{Events: lost}}, true, nil
	case s.closed:
		return Event{}, false, nil
	}
	return Event{}, false, k.more
}
