package found

import (
	"errors"
	"strings"
	"testing"
)

// TestWeight: packages add up to what a document can have, however they are.
func TestWeight(t *testing.T) {
	long := strings.Repeat("x", MaxField)
	for name, add := range map[string]Package{"short": {Name: "a"}, "long": {Name: long, Version: long, License: long}} {
		p := &Packages{}
		n := 0
		for p.Add(add) == nil {
			n++
		}
		if total := len(p.All) * add.Weight(); n != len(p.All) || total > MaxWeight || total+add.Weight() <= MaxWeight {
			t.Errorf("%s: %d packages weigh %d", name, n, total)
		}
		if err := p.Add(add); !errors.Is(err, ErrTooMany) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
