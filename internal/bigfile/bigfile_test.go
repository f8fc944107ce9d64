package bigfile

import (
	"bytes"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Whatever sizes come, the file has the bytes in their order, on a file system that knows RWF_DONTCACHE and on one that does not.
func TestWhatIsWrittenIsRead(t *testing.T) {
	for _, dir := range []string{t.TempDir(), "/dev/shm"} {
		for _, size := range []int{0, 1, blockSize - 1, blockSize, blockSize + 1, 5*blockSize + 4097} {
			want := make([]byte, size)
			rand.NewChaCha8([32]byte{byte(size)}).Read(want)
			f, err := os.CreateTemp(dir, "bigfile-")
			if err != nil {
				t.Fatal(err)
			}
			defer os.Remove(f.Name())
			w := NewWriter(f)
			for rest := want; len(rest) > 0; {
				n := min(len(rest), []int{1, 300, 70000, blockSize, 2*blockSize + 5}[rand.IntN(5)])
				if k, err := w.Write(rest[:n]); k != n || err != nil {
					t.Fatalf("wrote %d of %d: %v", k, n, err)
				}
				rest = rest[n:]
			}
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
			r := NewReader(f, int64(size))
			got, err := io.ReadAll(r)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s, %d bytes: read %d, digests %x and %x: %v", dir, size, len(got), sha256.Sum256(got), sha256.Sum256(want), err)
			}
			part := make([]byte, size/3)
			if n, err := (Parts{f}).ReadAt(part, int64(size/2)); n != len(part) || err != nil || !bytes.Equal(part, want[size/2:][:n]) {
				t.Errorf("%s, %d bytes: read %d of %d from the middle: %v", dir, size, n, len(part), err)
			}
			if n, err := (Parts{f}).ReadAt(make([]byte, 10), int64(size-min(size, 3))); n != min(size, 3) || err != io.EOF {
				t.Errorf("%s, %d bytes: read %d at the end: %v", dir, size, n, err)
			}
			if err := r.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}

// A disk that is full is an error at the latest in Flush, and stays one.
func TestAnErrorStays(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name) // not to be written to
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := NewWriter(f)
	if _, err := w.Write([]byte("x")); err != nil {
		t.Fatalf("a byte was written at once: %v", err)
	}
	if err := w.Flush(); err == nil {
		t.Error("Flush of a file that cannot be written to is no error")
	}
	if _, err := w.Write([]byte("x")); err == nil {
		t.Error("Write after an error is none")
	}
}
