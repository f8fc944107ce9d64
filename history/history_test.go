package history

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/kilnbuild/kiln/events"
	"golang.org/x/sys/unix"
)

func open(t *testing.T, keep Retention) *History {
	t.Helper()
	return Open(t.TempDir(), t.TempDir(), keep)
}

// forEach runs a test with files without a name, as far as the file system has them, and with files that have one from the beginning.
func forEach(t *testing.T, f func(t *testing.T, h *History)) {
	for name, flag := range map[string]int{"unnamed": unix.O_TMPFILE, "named": 0} {
		t.Run(name, func(t *testing.T) {
			h := open(t, Default)
			h.unnamed = flag
			f(t, h)
		})
	}
}

// record records a build with these events between its first and its last.
func record(t *testing.T, h *History, bodies ...events.Body) string {
	t.Helper()
	r := h.Begin()
	s := events.New(r)
	s.Emit(events.Build{Version: events.Version, ID: r.ID()})
	for _, b := range bodies {
		s.Emit(b)
	}
	s.Emit(events.Done{Image: "sha256:x"})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	return r.ID()
}

func read1(t *testing.T, h *History, id string) (out []events.Body) {
	t.Helper()
	if err := h.Read(id, func(e events.Event) error { out = append(out, e.Body); return nil }); err != nil {
		t.Fatal(err)
	}
	return out
}

func ids(t *testing.T, h *History) []string {
	t.Helper()
	all, err := h.IDs()
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// left fails the test if something unfinished is left.
func left(t *testing.T, h *History) {
	t.Helper()
	if names, _ := os.ReadDir(h.tmp); len(names) > 0 {
		t.Errorf("left in tmp: %v", names)
	}
}

func TestRecord(t *testing.T) { forEach(t, testRecord) }

func testRecord(t *testing.T, h *History) {
	if all := ids(t, h); len(all) != 0 {
		t.Fatalf("builds before the first: %v", all)
	}
	note := events.Note{Text: "naming"}
	output, transferred := events.Log{Stream: 1, Data: []byte("output")}, events.Transfer{Name: "x", Done: true}
	first := record(t, h, output, note, events.Transfer{Name: "x", Current: 1}, transferred)
	second := record(t, h)
	if all := ids(t, h); !slices.Equal(all, []string{second, first}) {
		t.Fatalf("builds %v, want %v", all, []string{second, first})
	}
	want := []events.Body{events.Build{Version: events.Version, ID: first}, note, transferred, events.Done{Image: "sha256:x"}}
	if got := read1(t, h, first); !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	info, err := os.Stat(filepath.Join(h.dir, first+extension))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v", info.Mode(), err)
	}
	enough := errors.New("enough")
	if err := h.Read(first, func(events.Event) error { return enough }); err != enough {
		t.Errorf("Read = %v, want the caller's error", err)
	}
	for _, id := range []string{"", "x", "../" + first, strings.Repeat("x", len(first)), strings.Replace(first, "-", "/", 1)} {
		if err := h.Read(id, nil); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("Read(%q) = %v", id, err)
		}
	}
	left(t, h)
}

// A build that did not come to its end is not in the history, and one whose recording fails leaves nothing.
func TestNoHalfBuilds(t *testing.T) { forEach(t, testNoHalfBuilds) }

func testNoHalfBuilds(t *testing.T, h *History) {
	r := h.Begin()
	s := events.New(r)
	s.Emit(events.Build{Version: events.Version})
	for range 100 {
		s.Emit(events.Note{Text: strings.Repeat("x", bufferSize/10)})
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	if all := ids(t, h); len(all) != 0 {
		t.Errorf("builds %v", all)
	}
	left(t, h)

	// There is a file where the directory should be.
	if err := errors.Join(os.Remove(h.dir), os.WriteFile(h.dir, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	r = h.Begin()
	s = events.New(r)
	s.Emit(events.Build{Version: events.Version})
	s.Emit(events.Done{})
	if err := r.Close(); err == nil {
		t.Error("a build is recorded where that is impossible")
	}
	left(t, h)

	off := open(t, Retention{Off: true})
	record(t, off)
	if all := ids(t, off); len(all) != 0 {
		t.Errorf("builds %v, though none are recorded", all)
	}
}

// However many events a build has, memory and file are bounded, and the end is there.
func TestBounds(t *testing.T) { forEach(t, testBounds) }

func testBounds(t *testing.T, h *History) {
	r := h.Begin()
	r.space = 1 << 20
	s := events.New(r)
	s.Emit(events.Build{Version: events.Version})
	text := strings.Repeat("x", 10<<10)
	for range 1000 {
		s.Emit(events.Note{Text: text})
		if cap(r.buf) > 2*bufferSize {
			t.Fatalf("the buffer has %d KiB", cap(r.buf)>>10)
		}
	}
	s.Emit(events.Note{Text: strings.Repeat("x", maxLine+1)})
	s.Emit(events.Done{})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	all := read1(t, h, r.ID())
	lost := all[len(all)-2].(events.Lost)
	if notes := len(all) - 3; notes < 90 || notes > 110 || notes+lost.Events != 1001 {
		t.Errorf("%d notes, %d lost", notes, lost.Events)
	}
	left(t, h)

	long := h.Begin()
	s = events.New(long)
	s.Emit(events.Build{Version: events.Version})
	s.Emit(events.Note{Text: strings.Repeat("x", maxLine+1)}) // one event that nobody would read
	s.Emit(events.Done{})
	if err := long.Close(); err != nil {
		t.Fatal(err)
	}
	if all := read1(t, h, long.ID()); len(all) != 3 || all[1] != (events.Lost{Events: 1}) {
		t.Errorf("%d events", len(all))
	}
}

func TestRetention(t *testing.T) {
	// at makes builds of these ages, the oldest first.
	at := func(h *History, ages ...time.Duration) (made []string) {
		t.Helper()
		if err := os.MkdirAll(h.dir, 0o700); err != nil {
			t.Fatal(err)
		}
		for i, age := range ages {
			when := time.Now().Add(-age)
			id := fmt.Sprintf("%s-%08x", when.UTC().Format(idFormat), i)
			path := filepath.Join(h.dir, id+extension)
			if err := errors.Join(os.WriteFile(path, nil, 0o600), os.Chtimes(path, when, when)); err != nil {
				t.Fatal(err)
			}
			made = append(made, id)
		}
		return made
	}
	const hour = time.Hour
	for _, c := range []struct {
		name string
		keep Retention
		ages []time.Duration
		want int // how many of them stay when another one is recorded
	}{
		{"fewer than entries, however old", Retention{Age: hour, Entries: 4}, []time.Duration{300 * hour, 200 * hour, 100 * hour}, 3},
		{"old ones beyond entries", Retention{Age: hour, Entries: 3}, []time.Duration{300 * hour, 200 * hour, 100 * hour, 0}, 2},
		{"young ones beyond entries", Retention{Age: 2 * hour, Entries: 1}, []time.Duration{3 * hour, hour, hour, 0}, 3},
		{"age alone", Retention{Age: 2 * hour}, []time.Duration{3 * hour, 3 * hour, hour}, 1},
		{"entries alone", Retention{Entries: 2}, []time.Duration{3 * hour, hour, 0}, 1},
		{"more than there may be", Retention{Age: 100 * hour, Entries: 1}, slices.Repeat([]time.Duration{hour}, most+10), most - 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := open(t, c.keep)
			old := at(h, c.ages...)
			foreign := filepath.Join(h.dir, "notes.txt")
			if err := os.WriteFile(foreign, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			last := record(t, h)
			all := ids(t, h)
			if len(all) != c.want+1 || all[0] != last {
				t.Fatalf("%d builds are left, want %d and the new one", len(all), c.want)
			}
			slices.Reverse(all)
			if !slices.Equal(all[:c.want], old[len(old)-c.want:]) {
				t.Error("not the oldest ones were removed")
			}
			if _, err := os.Lstat(foreign); err != nil {
				t.Errorf("a file of somebody else: %v", err)
			}
		})
	}
}

// Whatever a crash or a disk does to a file, it is not taken for a whole one.
func TestDamage(t *testing.T) {
	h := open(t, Default)
	id := record(t, h, events.Note{Text: "one"}, events.Note{Text: "two"})
	path := filepath.Join(h.dir, id+extension)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := sound(path); err != nil {
		t.Fatal(err)
	}
	check := func(what string, data []byte) {
		t.Helper()
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		for _, err := range []error{sound(path), h.Read(id, func(events.Event) error { return nil })} {
			if !errors.As(err, new(*DamagedError)) {
				t.Errorf("%s: %v", what, err)
			}
		}
	}
	for i := range whole {
		check(fmt.Sprintf("cut at byte %d", i), whole[:i])
		check(fmt.Sprintf("zeros from byte %d on", i), append(bytes.Clone(whole[:i]), make([]byte, len(whole)-i)...))
	}
	lines := bytes.SplitAfter(whole, []byte("\n"))
	check("without its beginning", bytes.Join(lines[1:], nil))
	check("twice", append(bytes.Clone(whole), whole...))
	check("a line without end", bytes.Repeat([]byte("x"), 3*maxLine))
	later := bytes.Replace(whole, []byte(`"version":1`), []byte(`"version":99`), 1)
	if err := os.WriteFile(path, later, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := sound(path); err != nil {
		t.Errorf("a file of a later version is damaged: %v", err)
	}
	if err := h.Read(id, func(events.Event) error { return nil }); err == nil || errors.As(err, new(*DamagedError)) {
		t.Errorf("Read of a file of a later version = %v", err)
	}
	if err := sound(path + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Check of nothing = %v", err)
	}
}

// Builds that run at once, in one process or several, do not lose each other's history.
func TestConcurrent(t *testing.T) {
	root := t.TempDir()
	var wg sync.WaitGroup
	for range 4 {
		h := Open(root, t.TempDir(), Default)
		wg.Go(func() {
			for range 10 {
				record(t, h, events.Note{Text: "x"})
			}
		})
	}
	wg.Wait()
	h := Open(root, t.TempDir(), Default)
	all := ids(t, h)
	if len(all) != 40 {
		t.Errorf("%d builds", len(all))
	}
	for _, id := range all {
		read1(t, h, id)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"time":"2026-11-30T08:00:00Z","build":{"version":1}}` + "\n" + `{"time":"2026-11-30T08:00:00Z","done":{}}` + "\n"))
	f.Add([]byte("{}\n"))
	f.Add([]byte{})
	path := filepath.Join(f.TempDir(), "x")
	f.Fuzz(func(t *testing.T, data []byte) {
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		var all []events.Event
		if err := read(path, func(e events.Event) error { all = append(all, e); return nil }); err != nil {
			return
		}
		if _, ok := all[len(all)-1].Body.(events.Done); !ok {
			t.Errorf("%q is taken for a whole history", data)
		}
	})
}
