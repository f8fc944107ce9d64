package mapped

import (
	"bytes"
	"crypto/sha256"
	"errors"
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
