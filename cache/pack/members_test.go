package pack

import (
	"bytes"
	"encoding/binary"
	"slices"
	"testing"

	"github.com/kilnbuild/kiln/internal/gunzip"
)

func TestMembers(t *testing.T) {
	list := []gunzip.Member{{Size: 100, Data: 1000}, {Size: 200, Data: 0}, {Size: 50, Data: 500}, {Size: 30, Data: 10}}
	table := EncodeMembers(list)
	m, err := DecodeMembers(table, 380)
	if err != nil || !slices.Equal(m, list) {
		t.Fatalf("%v, %v", m, err)
	}
	for _, tc := range []struct {
		offset, length int64
		want           Span
		ok             bool
	}{
		{0, 1, Span{0, 100, 0}, true},
		{0, 1000, Span{0, 100, 0}, true},
		{999, 1, Span{0, 100, 999}, true},
		{999, 2, Span{0, 350, 999}, true},
		{1000, 500, Span{300, 350, 0}, true},
		{1200, 305, Span{300, 380, 200}, true},
		{1500, 10, Span{350, 380, 0}, true},
		{1500, 11, Span{}, false},
		{5000, 1, Span{}, false},
		{-1, 5, Span{}, false},
		{0, 0, Span{}, false},
		{1, 1<<63 - 1, Span{}, false},
	} {
		got, ok := m.Span(tc.offset, tc.length)
		if ok != tc.ok || ok && got != tc.want {
			t.Errorf("Span(%d, %d) = %v, %v; want %v, %v", tc.offset, tc.length, got, ok, tc.want, tc.ok)
		}
	}
	for name, bad := range map[string][]byte{
		"nothing": nil, "another version": bytes.Replace(table, []byte("1\n"), []byte("2\n"), 1), "cut off": table[:len(table)-1],
		"longer": append(slices.Clip(table), 0), "many": binary.AppendUvarint([]byte(membersHeader), 1<<60),
		"a member of nothing": EncodeMembers([]gunzip.Member{{Size: 0, Data: 1}, {Size: 380, Data: 1}}),
		"a member too large":  EncodeMembers([]gunzip.Member{{Size: 1, Data: maxMember + 1}, {Size: 379}}),
	} {
		if _, err := DecodeMembers(bad, 380); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if _, err := DecodeMembers(table, 381); err == nil {
		t.Error("a table of another blob is no error")
	}
	if EncodeMembers(list[:1]) != nil {
		t.Error("a blob of one member has a table")
	}
}

// Whatever a table says, its spans lie in the blob and are in order.
func FuzzMembers(f *testing.F) {
	f.Add(EncodeMembers([]gunzip.Member{{Size: 100, Data: 1000}, {Size: 200, Data: 30}}), int64(300), int64(900), int64(120))
	f.Fuzz(func(t *testing.T, table []byte, size, offset, length int64) {
		m, err := DecodeMembers(table, size)
		if err != nil {
			return
		}
		if s, ok := m.Span(offset, length); ok && (s.From < 0 || s.From >= s.To || s.To > size || s.Skip < 0 || s.Skip > offset) {
			t.Errorf("%+v of a blob of %d bytes", s, size)
		}
	})
}
