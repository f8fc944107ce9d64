package layer

import (
	"archive/tar"
	"fmt"
	"io"
	"iter"
	"strings"
	"time"
)

// A layer of a Windows image has its files in the directory Files, and registry changes in Hives; each header has Windows
// attributes and a security descriptor (image-spec, layer.md; hcsshim, pkg/ociwclayer; BuildKit, util/winlayers).
const (
	windowsFiles = "Files/"
	windowsHives = "Hives"

	windowsAttributes = "MSWINDOWS.fileattr"
	windowsSecurity   = "MSWINDOWS.rawsd"
	windowsCreated    = "LIBARCHIVE.creationtime"

	// O:BAG:SYD:(A;OICI;FA;;;BA)(A;OICI;FA;;;SY)(A;;FA;;;BA)(A;OICIIO;GA;;;CO)(A;OICI;0x1200a9;;;BU)(A;CI;LC;;;BU)(A;CI;DC;;;BU)
	windowsDirSecurity = "" +
		"AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgCoAAcAAAAAAxgA/wEfAAECAAAAAAAFIAAAACACAAAAAxQA/wEfAAEBAAAAAAAF" +
		"EgAAAAAAGAD/AR8AAQIAAAAAAAUgAAAAIAIAAAALFAAAAAAQAQEAAAAAAAMAAAAAAAMYAKkAEgAB" +
		"AgAAAAAABSAAAAAhAgAAAAIYAAQAAAABAgAAAAAABSAAAAAhAgAAAAIYAAIAAAABAgAAAAAABSAAAAAhAgAA"
	// O:BAG:SYD:(A;;FA;;;BA)(A;;FA;;;SY)(A;;0x1200a9;;;BU)
	windowsFileSecurity = "" +
		"AQAEgBQAAAAkAAAAAAAAADAAAAABAgAAAAAABSAAAAAgAgAAAQEAAAAAAAUSAAAAAgBMAAMAAAAAABgA/wEfAAECAAAAAAAFIAAAACACAAAAABQA/wEfAAEBAAAAAAAF" +
		"EgAAAAAAGACpABIAAQIAAAAAAAUgAAAAIQIAAA=="
)

// WriteWindowsTar is like WriteTar for a layer of a Windows image.
func WriteWindowsTar(w io.Writer, entries iter.Seq2[*Entry, Body]) error {
	return writeTar(w, windowsEntries(entries), windowsHeader)
}

// windowsEntries moves entries into the directory Files.
func windowsEntries(entries iter.Seq2[*Entry, Body]) iter.Seq2[*Entry, Body] {
	return func(yield func(*Entry, Body) bool) {
		for _, dir := range []string{windowsHives, strings.TrimSuffix(windowsFiles, "/")} {
			if !yield(&Entry{Path: dir, Type: Dir, Mode: 0o755, ModTime: time.Unix(0, 0)}, nil) {
				return
			}
		}
		for e, body := range entries {
			if e.Path == "" {
				continue // the root is not a file in Windows
			}
			moved := *e
			moved.Path = windowsFiles + e.Path
			if e.Type == Hardlink || e.Type == Symlink {
				moved.Link = windowsFiles + e.Link
			}
			if !yield(&moved, body) {
				return
			}
		}
	}
}

func windowsHeader(e *Entry) *tar.Header {
	h := header(e)
	if e.Type == Whiteout {
		return h
	}
	records := map[string]string{windowsCreated: fmt.Sprintf("%d.%09d", e.ModTime.Unix(), e.ModTime.Nanosecond())}
	inFiles := strings.HasPrefix(e.Path, windowsFiles)
	switch e.Type {
	case Dir:
		h.Mode |= 1 << 14
		records[windowsAttributes] = "16"
		if inFiles {
			records[windowsSecurity] = windowsDirSecurity
		}
	case File:
		h.Mode |= 1 << 15
		records[windowsAttributes] = "32"
		records[windowsSecurity] = windowsFileSecurity
	}
	for name, value := range h.PAXRecords {
		records[name] = value
	}
	h.PAXRecords, h.Format = records, tar.FormatPAX
	return h
}

// ReadWindowsTar converts r, the tar of a Windows layer, to the tar of a layer of other systems. It reads r to EOF, and returns
// its errors. After Close, r is not read any more.
func ReadWindowsTar(r io.Reader) io.ReadCloser {
	pr, pw := io.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		pw.CloseWithError(copyWindowsFiles(pw, r))
	}()
	return &windowsReader{pr, done}
}

type windowsReader struct {
	*io.PipeReader
	done chan struct{}
}

// Close implements io.Closer.
func (r *windowsReader) Close() error {
	err := r.PipeReader.Close()
	<-r.done
	return err
}

// isWindowsName reports whether a name is of what layers of Windows images have at their top.
func isWindowsName(name string) bool {
	top, _, _ := strings.Cut(strings.TrimPrefix(name, "./"), "/")
	return top == "Files" || top == "Hives" || top == "UtilityVM"
}

func copyWindowsFiles(w io.Writer, r io.Reader) error {
	in, out := tar.NewReader(r), tar.NewWriter(w)
	files := windowsFiles
	for first := true; ; first = false {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if first && !isWindowsName(h.Name) {
			files = "" // it was made on nothing by a builder for other systems, as BuildKit and kiln are
		}
		name, ok := strings.CutPrefix(h.Name, files)
		if !ok || name == "" {
			continue
		}
		h.Name, h.Linkname = name, strings.TrimPrefix(h.Linkname, files)
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	if err := out.Close(); err != nil {
		return err
	}
	_, err := io.Copy(io.Discard, r) // the digest includes the bytes after the end of the tar
	return err
}
