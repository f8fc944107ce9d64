package explain

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"
)

func TestKind(t *testing.T) {
	const now = 1_700_000_000
	stamp := func(n int64) []byte {
		return binary.LittleEndian.AppendUint32([]byte("\xa7\r\r\n\x00\x00\x00\x00"), uint32(n))
	}
	random := func(seed uint64) []byte {
		r := rand.New(rand.NewPCG(seed, 1))
		data := make([]byte, 4096)
		for i := range data {
			data[i] = byte(r.Uint32())
		}
		return data
	}
	archive := func(at int64, names ...string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, n := range names {
			if err := w.WriteHeader(&tar.Header{Name: n, Size: int64(len(n)), ModTime: time.Unix(at, 0)}); err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(w, n)
		}
		w.Close()
		return b.Bytes()
	}
	zipped := func(at int64, names ...string) []byte {
		var b bytes.Buffer
		w := zip.NewWriter(&b)
		for _, n := range names {
			f, err := w.CreateHeader(&zip.FileHeader{Name: n, Modified: time.Unix(at, 0)})
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(f, n)
		}
		w.Close()
		return b.Bytes()
	}
	packed := func(at int64, data []byte) []byte {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		w.ModTime = time.Unix(at, 0)
		w.Write(data)
		w.Close()
		return b.Bytes()
	}
	for name, tc := range map[string]struct {
		a, b []byte
		want string
	}{
		"date":              {[]byte("built 2023-11-14 22:13:20\n"), []byte("built 2023-11-14 22:14:01\n"), byTime},
		"date(1)":           {[]byte("Tue Nov 14 22:13:20 UTC 2023\n"), []byte("Wed Nov 15 00:00:01 UTC 2023\n"), byTime},
		"seconds":           {fmt.Appendf(nil, "at=%d;", now), fmt.Appendf(nil, "at=%d;", now+3), byTime},
		"nanoseconds":       {fmt.Appendf(nil, `{"at":%d}`, int64(now)*1e9), fmt.Appendf(nil, `{"at":%d}`, int64(now)*1e9+12345), byTime},
		"binary":            {stamp(now), stamp(now + 300), byTime},
		"other number":      {[]byte("4294967295"), []byte("4294967296"), other},
		"tar, times":        {archive(now, "a", "b"), archive(now+1, "a", "b"), byTime},
		"tar, order":        {archive(now, "a", "b"), archive(now, "b", "a"), byOrder},
		"tar, order, times": {archive(now, "a", "b"), archive(now+1, "b", "a"), byOrder},
		"tar, members":      {archive(now, "a", "b"), archive(now, "a", "c"), other},
		"zip, times":        {zipped(now, "a", "b"), zipped(now+10, "a", "b"), byTime},
		"zip, order":        {zipped(now, "a", "b"), zipped(now, "b", "a"), byOrder},
		"gzip, header":      {packed(now, []byte("x")), packed(now+1, []byte("x")), byTime},
		"gzip, order":       {packed(now, []byte("a\nb\n")), packed(now, []byte("b\na\n")), byOrder},
		"lines":             {[]byte("one\ntwo\nthree\n"), []byte("three\none\ntwo\n"), byOrder},
		"JSON":              {[]byte(`{"a":1,"b":2}`), []byte(`{"b":2,"a":1}`), byOrder},
		"UUID":              {[]byte("0f0e5a1c-3d0b-4f62-9f2a-2f6b1e6f1c11\n"), []byte("9b2f7a44-88aa-4c1e-b1d7-5f1f0c9ad2c3\n"), other},
		"random":            {random(1), random(2), other},
		"longer":            {[]byte("a"), []byte("ab"), other},
	} {
		if got := kind(tc.a, tc.b, now); got != tc.want {
			t.Errorf("%s: %s, and not %s", name, got, tc.want)
		}
	}
}
