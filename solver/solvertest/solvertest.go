// Package solvertest holds what tests of the solver and of its caches share: a cache in memory, and what every cache must
// keep to.
package solvertest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/solver"
)

// Memory is a solver.Cache that forgets everything with the process.
type Memory struct {
	mu      sync.Mutex
	records map[solver.Key]*solver.Record
	logs    map[solver.Key]string
	locks   map[solver.Key]chan struct{}
}

// NewMemory returns an empty cache.
func NewMemory() *Memory {
	return &Memory{records: map[solver.Key]*solver.Record{}, logs: map[solver.Key]string{}, locks: map[solver.Key]chan struct{}{}}
}

// Get implements solver.Cache.
func (m *Memory) Get(key solver.Key) (*solver.Record, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	r, ok := m.records[key]
	if !ok {
		return nil, &solver.Miss{Reason: "it has not run with these inputs before"}
	}
	c := *r
	return &c, nil
}

// Put implements solver.Cache.
func (m *Memory) Put(key solver.Key, r *solver.Record, log solver.Log) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := log.(*memoryLog)
	if l.closed {
		return fmt.Errorf("put a record: %w", fs.ErrClosed)
	}
	l.closed = true
	c := *r
	m.records[key], m.logs[key] = &c, l.String()
	return nil
}

// Lock implements solver.Cache.
func (m *Memory) Lock(ctx context.Context, key solver.Key) (func(), error) {
	m.mu.Lock()
	l := m.locks[key]
	if l == nil {
		l = make(chan struct{}, 1)
		m.locks[key] = l
	}
	m.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// NewLog implements solver.Cache.
func (m *Memory) NewLog() (solver.Log, error) { return &memoryLog{}, nil }

// PutFailed implements solver.Cache.
func (m *Memory) PutFailed(solver.Key, solver.Log) (string, error) { return "", nil }

// Log returns the log that was kept with a record.
func (m *Memory) Log(key solver.Key) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.logs[key]
}

type memoryLog struct {
	bytes.Buffer
	closed bool
}

func (l *memoryLog) Close() error {
	l.closed = true
	return nil
}

// Record returns a record with something in every field, and its key.
func Record(n int) (solver.Key, *solver.Record) {
	inputs := []solver.Input{
		{Name: "op", Value: "exec"},
		{Name: "arg", Value: fmt.Sprintf("echo %d \"\\\n\x00\xff sum", n)},
		{Name: "", Value: "\nsum 00\n"},
		{Name: "empty"},
	}
	r := &solver.Record{
		Outputs: []solver.Made{
			{Layer: solver.Layer{ID: fmt.Sprintf("%064x", n), Content: solver.Content{byte(n), 2: 0xff}}},
			{Output: 1, Layer: solver.Layer{ID: fmt.Sprintf("%064x", n+1)}},
			{Output: 1, Layer: solver.Layer{ID: fmt.Sprintf("%064x", n), Content: solver.Content{1}}},
		},
		Materials: []solver.Material{{URI: "https://host/a b\n", Digest: "sha256:00"}, {URI: "", Digest: ""}},
		Inputs:    inputs,
		Name:      "[1/2] RUN echo \"\n\" \xff",
		Started:   time.Unix(1700000000, int64(n)).UTC(),
		Took:      1500*time.Millisecond + time.Duration(n),
		LogSize:   0,
	}
	return solver.KeyOf(inputs), r
}

// TestCache checks what the solver expects of a cache. reopen, called any number of times, returns the same cache, as
// another process would open it.
func TestCache(t *testing.T, reopen func() solver.Cache) {
	put := func(c solver.Cache, key solver.Key, r *solver.Record, text string) {
		t.Helper()
		log, err := c.NewLog()
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		if _, err := log.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		if err := c.Put(key, r, log); err != nil {
			t.Fatal(err)
		}
	}
	get := func(c solver.Cache, key solver.Key, want *solver.Record) {
		t.Helper()
		got, err := c.Get(key)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Fatalf("Get = %+v\nwant  %+v", got, want)
		}
	}

	c := reopen()
	key, r := Record(1)
	_, err := c.Get(key)
	var miss *solver.Miss
	if !errors.As(err, &miss) || miss.Reason == "" {
		t.Fatalf("Get of a key that was never put = %v, want a Miss with a reason", err)
	}
	r.LogSize = 5
	put(c, key, r, "hello")
	get(c, key, r)
	get(reopen(), key, r)

	// A step that ran again has another time and perhaps another layer.
	again := *r
	again.Outputs = []solver.Made{{Layer: solver.Layer{ID: fmt.Sprintf("%064x", 99)}}}
	again.Took, again.LogSize = time.Hour, 0
	put(c, key, &again, "")
	get(reopen(), key, &again)

	other, r2 := Record(2)
	if _, err := c.Get(other); !errors.As(err, &miss) {
		t.Fatalf("Get of another key = %v", err)
	}
	put(reopen(), other, r2, "")
	get(c, other, r2)
	get(c, key, &again)

	// A log that is closed without Put leaves nothing behind, and the cache goes on.
	log, err := c.NewLog()
	if err != nil {
		t.Fatal(err)
	}
	if err := log.Close(); err != nil {
		t.Fatal(err)
	}

	t.Run("lock", func(t *testing.T) { testLock(t, reopen, key, other) })
	t.Run("concurrent", func(t *testing.T) { testConcurrent(t, reopen) })
}

func testLock(t *testing.T, reopen func() solver.Cache, key, other solver.Key) {
	unlock, err := reopen().Lock(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	// Other keys are free, and a waiter ends with its context's cause.
	unlockOther, err := reopen().Lock(t.Context(), other)
	if err != nil {
		t.Fatal(err)
	}
	unlockOther()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := reopen().Lock(ctx, key); !errors.Is(err, cause) {
		t.Fatalf("Lock of a key that is held, with a context that ended = %v, want its cause", err)
	}
	unlock()

	inside, worst := 0, 0
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		c := reopen()
		wg.Go(func() {
			for range 20 {
				unlock, err := c.Lock(context.Background(), key)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				inside++
				worst = max(worst, inside)
				mu.Unlock()
				mu.Lock()
				inside--
				mu.Unlock()
				unlock()
			}
		})
	}
	wg.Wait()
	if worst != 1 {
		t.Fatalf("%d held the lock at once", worst)
	}
}

// testConcurrent puts the same records from several places while others read them: a reader sees a whole record or none.
func testConcurrent(t *testing.T, reopen func() solver.Cache) {
	var wg sync.WaitGroup
	for range 4 {
		c := reopen()
		wg.Go(func() {
			for round := range 10 {
				for n := 100; n < 110; n++ {
					key, r := Record(n)
					log, err := c.NewLog()
					if err == nil {
						err = c.Put(key, r, log)
					}
					if err != nil {
						t.Error(err)
						return
					}
					got, err := c.Get(key)
					if err != nil || !reflect.DeepEqual(got, r) {
						t.Errorf("round %d: Get = %+v, %v", round, got, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
}
