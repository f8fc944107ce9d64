package mapped

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestOpen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	text := bytes.Repeat([]byte("some text "), 100000)
	sum := sha256.Sum256(text)
	good := append(bytes.Clone(text), sum[:]...)
	write := func(data []byte) {
		t.Helper()
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(good)
	f, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if !bytes.Equal(f.Data, text) {
		t.Error("the file has other bytes than were written")
	}
	name += "2"
	for i := 0; i < len(good); i += 99991 {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		for _, data := range [][]byte{bad, good[:i]} {
			write(data)
			if _, err := Open(name); !errors.Is(err, ErrDamaged) {
				t.Errorf("damaged at %d of %d: %v", i, len(data), err)
			}
		}
	}
}

// What was given back to the kernel is there again when it is looked at.
func TestTouch(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	text := bytes.Repeat([]byte("some text "), smallFile/10+1)
	sum := sha256.Sum256(text)
	if err := os.WriteFile(name, append(text, sum[:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for name, touch := range map[string]func(){"Touch": f.Touch, "Search": f.Search} {
		before := resident(t)
		for i := range 1 << 16 {
			touch()
			_ = f.Data[i*97%len(f.Data)]
		}
		if grown := resident(t) - before; grown > 4<<20 {
			t.Errorf("%s: %d bytes of the file count as memory", name, grown)
		}
	}
	if !bytes.Equal(f.Data, text[:len(f.Data)]) {
		t.Error("the file has other bytes than were written")
	}
}

// resident returns how many bytes of mapped files count as memory of this process: proc(5), /proc/pid/statm.
func resident(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	var size, all, shared int
	if _, err := fmt.Sscan(string(b), &size, &all, &shared); err != nil {
		t.Fatal(err)
	}
	return shared * os.Getpagesize()
}
