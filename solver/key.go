package solver

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
)

// KeyVersion is part of every key. It changes whenever the meaning of an op or the form of its inputs changes, so that
// an older record is never taken for a result of today's code.
const KeyVersion = "kiln-4"

// Key names a step by everything that can decide its result. It is not a digest of any content: the compiler keeps keys
// and content digests apart.
type Key [sha256.Size]byte

// String returns the key as 64 hexadecimal digits.
func (k Key) String() string { return hex.EncodeToString(k[:]) }

// ParseKey reads what Key.String wrote.
func ParseKey(s string) (Key, error) {
	var k Key
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != len(k) {
		return k, fmt.Errorf("parse key %q: want %d hexadecimal digits", s, 2*len(k))
	}
	copy(k[:], b)
	return k, nil
}

// Input is one thing that decides a step's result, in words: {"arg", "make"}, {"root", "9f86…"}. Keys are computed from a
// list of inputs and records keep that list, so what explains a key is what made it.
type Input struct {
	Name  string
	Value string
}

// KeyOf returns the key of a step with these inputs, in their order. Every string enters with its length, so no two
// different lists are the same bytes.
func KeyOf(inputs []Input) Key {
	h := sha256.New()
	writeString(h, KeyVersion)
	for _, in := range inputs {
		writeString(h, in.Name)
		writeString(h, in.Value)
	}
	return Key(h.Sum(nil))
}

func writeString(h hash.Hash, s string) {
	var n [8]byte
	binary.LittleEndian.PutUint64(n[:], uint64(len(s)))
	h.Write(n[:])
	h.Write([]byte(s))
}
