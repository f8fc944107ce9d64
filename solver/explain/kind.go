package explain

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/kilnbuild/kiln/events"
	"github.com/kilnbuild/kiln/internal/layer"
	"github.com/kilnbuild/kiln/solver"
)

// The kinds of difference between the bytes of two files.
const (
	byTime  = "content (time)"   // only in times near now
	byOrder = "content (order)"  // the same lines, words, blocks or members in another order
	other   = "content (random)" // anything else
)

const (
	// maxCompared bounds a file, uncompressed, whose bytes are looked at, in bytes; those of a larger one count as random.
	maxCompared = 16 << 20
	// near is how far from now a number may be that counts as the time of a step, in seconds.
	near = 24 * 60 * 60
)

// Kinds implements solver.Explainer.
func (x Explainer) Kinds(ctx context.Context, now, last solver.Layer) events.Files {
	f := x.Files(now, last)
	if x.Tree == nil || !slices.ContainsFunc(f.Changes, contentDiffers) {
		return f
	}
	a, errA := x.Tree(ctx, last)
	b, errB := x.Tree(ctx, now)
	if errA != nil || errB != nil {
		return f
	}
	for i, c := range f.Changes {
		if !contentDiffers(c) {
			continue
		}
		was, errA := read(a, c.Path)
		is, errB := read(b, c.Path)
		what := other
		if errA == nil && errB == nil {
			what = kind(was, is, time.Now().Unix())
		}
		f.Changes[i].What = slices.Clone(c.What)
		f.Changes[i].What[slices.Index(c.What, content)] = what
	}
	return f
}

func contentDiffers(c events.FileChange) bool { return slices.Contains(c.What, content) }

var errLarge = errors.New("the file is too large")

// read returns the bytes of a file.
func read(t layer.Tree, path string) ([]byte, error) {
	e, ok, err := t.Lookup(path)
	if err != nil || !ok || e.Type != layer.File || e.Size > maxCompared {
		return nil, errors.Join(err, errLarge)
	}
	f, err := t.Open(&e)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return limited(f)
}

// limited reads at most maxCompared bytes; more are an error.
func limited(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxCompared+1))
	if err == nil && len(data) > maxCompared {
		err = errLarge
	}
	return data, err
}

// kind returns in what two files differ, of which at least one byte does. now is in Unix seconds.
func kind(a, b []byte, now int64) string {
	if x, y, ok := both(a, b, gunzip); ok {
		if bytes.Equal(x, y) {
			return byTime // the header has one
		}
		return kind(x, y, now)
	}
	for _, list := range []func([]byte) ([]string, error){tarMembers, zipMembers} {
		if x, y, ok := both(a, b, list); ok && len(x) > 1 {
			return members(x, y, a, b, now)
		}
	}
	return plainKind(a, b, now)
}

// both reads two files in the same way; false if it cannot read one.
func both[T any](a, b []byte, read func([]byte) (T, error)) (x, y T, ok bool) {
	x, errA := read(a)
	y, errB := read(b)
	return x, y, errA == nil && errB == nil
}

func members(x, y []string, a, b []byte, now int64) string {
	switch {
	case slices.Equal(x, y):
		return byTime // all but the times is the same
	case sameSet(x, y):
		return byOrder
	}
	return plainKind(a, b, now)
}

// plainKind is kind for bytes of no format.
func plainKind(a, b []byte, now int64) string {
	switch {
	case numbersNear(a, b, now) || bytes.Equal(withoutTimes(a, now), withoutTimes(b, now)):
		return byTime
	case len(a) != len(b):
	case sameSet(strings.Split(string(a), "\n"), strings.Split(string(b), "\n")),
		sameSet(words(a), words(b)), sameSet(blocks(a), blocks(b)):
		return byOrder
	}
	return other
}

// sameSet reports whether two lists of more than one element have the same, each as often.
func sameSet(a, b []string) bool {
	if len(a) != len(b) || len(a) < 2 {
		return false
	}
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func words(data []byte) []string {
	return strings.FieldsFunc(string(data), func(r rune) bool { return strings.ContainsRune(" \t\r\n,;:{}[]()", r) })
}

// blocks returns the blocks of a tar whose members are not looked at, and of other files of blocks.
func blocks(data []byte) (all []string) {
	for block := range slices.Chunk(data, 512) {
		all = append(all, string(block))
	}
	return all
}

// numbersNear reports whether files of one length differ only in 32-bit numbers, of either byte order, that are times near now in both.
func numbersNear(a, b []byte, now int64) bool {
	if len(a) != len(b) {
		return false
	}
	isNear := func(n uint32) bool { return int64(n) > now-near && int64(n) < now+near }
	for i := 0; i < len(a); i++ {
		if a[i] == b[i] {
			continue
		}
		found := false
		for from := max(0, i-3); from <= i && from+4 <= len(a) && !found; from++ {
			for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
				if isNear(order.Uint32(a[from:])) && isNear(order.Uint32(b[from:])) {
					found = true
					i = from + 3
					break
				}
			}
		}
		if !found {
			return false
		}
	}
	return true
}

// timeText matches times as text: dates, times of the day, names of days and months, and numbers that may be Unix times.
var timeText = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`\d{4}[-/.]\d{2}[-/.]\d{2}(?:[T_ -]?\d{2}[:.]?\d{2}(?:[:.]?\d{2}(?:[.,]\d+)?)?)?` +
		`|\b\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?\b` +
		`|\b(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]*,?\s+` +
		`|\b\d{0,2} ?(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*\.? +\d{1,2}\b` +
		`|\b20\d{6}(?:[T_-]?\d{4,6}Z?)?\b` +
		`|\d{10,19}`)
})

// withoutTimes returns text without what may be the times of a step.
func withoutTimes(data []byte, now int64) []byte {
	return timeText().ReplaceAllFunc(data, func(match []byte) []byte {
		n, err := strconv.ParseInt(string(match), 10, 64)
		if err != nil {
			return nil
		}
		for scale := int64(1); scale <= int64(time.Second); scale *= 1000 { // seconds, milliseconds, …
			if s := n / scale; s > now-near && s < now+near {
				return nil
			}
		}
		if text := string(match); strings.HasPrefix(text, time.Unix(now, 0).UTC().Format("200601")) {
			return nil // 20060102150405
		}
		return match
	})
}

func gunzip(data []byte) ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(data))
	if err != nil {
		return nil, err
	}
	return limited(z)
}

// tarMembers describes the members of a tar, without their times.
func tarMembers(data []byte) (all []string, err error) {
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, r); err != nil {
			return nil, err
		}
		all = append(all, fmt.Sprintf("%q %c %o %d %d %q %x", h.Name, h.Typeflag, h.Mode, h.Uid, h.Gid, h.Linkname, sum.Sum(nil)))
	}
}

// zipMembers describes the members of a zip archive, without their times.
func zipMembers(data []byte) (all []string, err error) {
	z, err := zip.NewReader(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, err
	}
	for _, f := range z.File {
		all = append(all, fmt.Sprintf("%q %v %d %x", f.Name, f.Mode(), f.UncompressedSize64, f.CRC32))
	}
	return all, nil
}
