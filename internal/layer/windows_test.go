package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"
)

// TestWindowsTar: what is read of a Windows layer is what was written, and the layer has what Windows needs.
func TestWindowsTar(t *testing.T) {
	entries := []*Entry{
		{Path: "", Type: Dir, Mode: 0o755, Opaque: true},
		{Path: "app", Type: Dir, Mode: 0o755, ModTime: time.Unix(7, 5e6)},
		{Path: "app/a", Type: File, Mode: 0o644, Size: 1, ModTime: time.Unix(8, 0)},
		{Path: "app/gone", Type: Whiteout},
		{Path: "app/hard", Type: Hardlink, Link: "app/a"},
		{Path: "app/soft", Type: Symlink, Mode: 0o777, Link: "app/a"},
	}
	var layer bytes.Buffer
	err := WriteWindowsTar(&layer, func(yield func(*Entry, Body) bool) {
		for _, e := range entries {
			if !yield(e, func(w io.Writer) error { _, err := io.WriteString(w, "x"); return err }) {
				return
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	names := ""
	records := map[string]map[string]string{}
	for r := tar.NewReader(bytes.NewReader(layer.Bytes())); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		names += h.Name + " "
		records[h.Name] = h.PAXRecords
		if h.Linkname != "" && h.Linkname != "Files/app/a" {
			t.Errorf("%s leads to %s", h.Name, h.Linkname)
		}
	}
	if want := "Hives/ Files/ Files/app/ Files/app/a Files/app/.wh.gone Files/app/hard Files/app/soft "; names != want {
		t.Errorf("the layer has %s, want %s", names, want)
	}
	if r := records["Files/app/"]; r[windowsAttributes] != "16" || r[windowsSecurity] == "" || r[windowsCreated] != "7.005000000" {
		t.Errorf("the header of a directory has %v", r)
	}
	if r := records["Files/app/a"]; r[windowsAttributes] != "32" || r[windowsSecurity] == "" {
		t.Errorf("the header of a file has %v", r)
	}

	files := ReadWindowsTar(&layer)
	defer files.Close()
	got := ""
	for r := tar.NewReader(files); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got += h.Name + " " + h.Linkname + string(text) + "|"
	}
	if want := "app/ |app/a x|app/.wh.gone |app/hard app/a|app/soft app/a|"; got != want {
		t.Errorf("the files are %s, want %s", got, want)
	}
}

// TestReadWindowsTarFails: an error of the layer, also one at its very end, is that of whoever reads the files.
func TestReadWindowsTarFails(t *testing.T) {
	boom := errors.New("boom")
	var layer bytes.Buffer
	if err := WriteWindowsTar(&layer, func(func(*Entry, Body) bool) {}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{layer.String(), layer.String()[:700], ""} {
		files := ReadWindowsTar(io.MultiReader(strings.NewReader(text), failing{boom}))
		if _, err := io.Copy(io.Discard, files); !errors.Is(err, boom) {
			t.Errorf("after %d bytes: error %v", len(text), err)
		}
		files.Close()
	}
	files := ReadWindowsTar(io.MultiReader(bytes.NewReader(layer.Bytes()), strings.NewReader("more")))
	files.Close() // ends the goroutine, though nobody has read
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
