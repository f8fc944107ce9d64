package rpm

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"github.com/kilnbuild/kiln/sbom/internal/found/foundtest"
)

// sqliteDB is what rpm 4.18 wrote with two packages, of which one takes several pages.
func sqliteDB(t testing.TB) []byte {
	t.Helper()
	f, err := os.Open("testdata/rpmdb.sqlite.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := io.ReadAll(z)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// blob returns the header of a package as rpm keeps it.
func blob(name string, padding int) []byte {
	values := []struct {
		tag, kind uint32
		data      string
	}{
		{tagName, typeString, name + "\x00"},
		{tagVersion, typeString, "1.2\x00"},
		{tagRelease, typeString, "3\x00"},
		{tagEpoch, typeInt32, "\x00\x00\x00\x01"},
		{1004, typeI18N, strings.Repeat("x", padding) + "\x00"},
	}
	var index, data []byte
	for _, v := range values {
		for _, n := range []uint32{v.tag, v.kind, uint32(len(data)), 1} {
			index = binary.BigEndian.AppendUint32(index, n)
		}
		data = append(data, v.data...)
	}
	b := binary.BigEndian.AppendUint32(nil, uint32(len(values)))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(append(b, index...), data...)
}

// ndbDB returns a database of the format ndb with some headers.
func ndbDB(headers ...[]byte) []byte {
	b := make([]byte, slotsPage)
	copy(b, ndbMagic)
	binary.LittleEndian.PutUint32(b[12:], 1)
	for i := 2 * slotSize; i < slotsPage; i += slotSize {
		copy(b[i:], slotMagic)
	}
	for i, h := range headers {
		slot := b[(2+i)*slotSize:]
		binary.LittleEndian.PutUint32(slot[4:], uint32(i+1))
		binary.LittleEndian.PutUint32(slot[8:], uint32(len(b)/blockSize))
		head := make([]byte, blobHeader)
		copy(head, blobMagic)
		binary.LittleEndian.PutUint32(head[4:], uint32(i+1))
		binary.LittleEndian.PutUint32(head[12:], uint32(len(h)))
		b = append(append(b, head...), h...)
		for len(b)%blockSize != 0 {
			b = append(b, 0)
		}
	}
	return b
}

// hashDB returns a hash table of Berkeley DB with some headers, each on pages of its own.
func hashDB(order binary.ByteOrder, headers ...[]byte) []byte {
	const size = 512
	meta, table := make([]byte, size), make([]byte, size)
	order.PutUint32(meta[12:], hashMagic)
	order.PutUint32(meta[20:], size)
	meta[25] = metaPage
	table[25] = hashPage
	order.PutUint16(table[20:], uint16(2*len(headers)))
	b := append(meta, table...)
	for i, h := range headers {
		key, value := size-16*(i+1), size-16*(i+1)+4
		order.PutUint16(b[size+pageHeader+4*i:], uint16(key))
		order.PutUint16(b[size+pageHeader+4*i+2:], uint16(value))
		b[size+key], b[size+value] = keyOrData, offPage
		order.PutUint32(b[size+value+4:], uint32(len(b)/size))
		order.PutUint32(b[size+value+8:], uint32(len(h)))
		for len(h) > 0 {
			page := make([]byte, size)
			page[25] = overflowPage
			n := copy(page[pageHeader:], h)
			h = h[n:]
			order.PutUint16(page[22:], uint16(n))
			if len(h) > 0 {
				order.PutUint32(page[16:], uint32(len(b)/size+1))
			}
			b = append(b, page...)
		}
	}
	order.PutUint32(b[32:], uint32(len(b)/size-1))
	return b
}

func TestRead(t *testing.T) {
	two := "rpm a@1.2-3 [1]\nrpm b@1.2-3 [1]\n"
	for name, c := range map[string]struct {
		data []byte
		want string
		bad  bool
	}{
		"sqlite": {sqliteDB(t), "rpm big@1.2-3 [noarch] [big-1.2-3.src.rpm] [MIT] [Example]\n" +
			"rpm hello@1.2-3 [noarch] [hello-1.2-3.src.rpm] [1] [MIT] [Example]\n", false},
		"ndb":              {ndbDB(blob("a", 10), blob("b", 5000)), two, false},
		"hash":             {hashDB(binary.LittleEndian, blob("a", 10), blob("b", 5000)), two, false},
		"big-endian":       {hashDB(binary.BigEndian, blob("a", 10), blob("b", 5000)), two, false},
		"key":              {ndbDB(blob("gpg-pubkey", 0), blob("b", 0)), "rpm b@1.2-3 [1]\n", false},
		"empty":            {nil, "", false},
		"another":          {[]byte(strings.Repeat("no database ", 10)), "", true},
		"short":            {[]byte("RpmP"), "", true},
		"one bad":          {ndbDB(blob("a", 0), []byte("header"), blob("b", 0)), two, true},
		"cut ndb":          {ndbDB(blob("a", 0), blob("b", 5000))[:6000], "rpm a@1.2-3 [1]\n", true},
		"cut hash":         {hashDB(binary.LittleEndian, blob("a", 0), blob("b", 5000))[:4096], "rpm a@1.2-3 [1]\n", true},
		"cut sqlite":       {sqliteDB(t)[:8192], "", true},
		"the same package": {same(ndbDB(blob("a", 3000), blob("b", 0))), "", true},
	} {
		all, err := Read(foundtest.File("var/lib/rpm/Packages", c.data))
		if got := foundtest.Show(all); got != c.want && name != "the same package" {
			t.Errorf("%s: got %s", name, got)
		}
		if (err != nil) != c.bad {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// same has all slots of a database refer to its first package.
func same(b []byte) []byte {
	b = bytes.Clone(b)
	for i := 3 * slotSize; i < slotsPage; i += slotSize {
		copy(b[i:], b[2*slotSize:3*slotSize])
	}
	return b
}

// A hash table whose value refers to itself, and a tree that does.
func TestCircles(t *testing.T) {
	b := hashDB(binary.LittleEndian, blob("a", 5000))
	binary.LittleEndian.PutUint32(b[2*512+16:], 2)
	binary.LittleEndian.PutUint16(b[2*512+22:], 0)
	if _, err := Read(foundtest.File("Packages", b)); !errors.Is(err, errDamaged) {
		t.Error(err)
	}
	b = sqliteDB(t)
	copy(b[100:], []byte{interiorPage, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1})
	if _, err := Read(foundtest.File("rpmdb.sqlite", b)); !errors.Is(err, errDamaged) || !strings.Contains(err.Error(), "itself") {
		t.Error(err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(ndbDB(blob("a", 10), blob("b", 600)))
	f.Add(hashDB(binary.LittleEndian, blob("a", 10), blob("b", 600)))
	f.Add(hashDB(binary.BigEndian, blob("a", 10)))
	f.Add(sqliteDB(f)[:16384])
	foundtest.Fuzz(f, "var/lib/rpm/Packages", Read)
}
