package strictjson

import (
	"encoding/json"
	"strings"
	"testing"
)

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		data string
		fold bool
		err  string
	}{
		{`{"a":{"b":1},"c":[{"b":2},{"b":3}]}`, true, ""},
		{` "x" `, true, ""},
		{`{"a":1,"A":2}`, false, ""},
		{`{"a":1,"A":2}`, true, "twice"},
		{`{"s":1,"ſ":2}`, true, "twice"},
		{`{"a":1,"\u0061":2}`, false, "twice"},
		{`{"x":[{"a":1,"a":1}]}`, false, "twice"},
		{`{} {}`, false, "more behind"},
		{`{}]`, false, "more behind"},
		{`{"a":`, false, "not JSON"},
		{`{"a" 1}`, false, "not JSON"},
		{``, false, "not JSON"},
		{"{\"a\":\"\xff\"}", false, "UTF-8"},
		{strings.Repeat("[", maxDepth) + strings.Repeat("]", maxDepth), false, ""},
		{strings.Repeat("[", maxDepth+1) + strings.Repeat("]", maxDepth+1), false, "nested"},
	} {
		err := Check([]byte(tc.data), tc.fold)
		if (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%.50s: %v, want %q", tc.data, err, tc.err)
		}
	}
}

func FuzzCheck(f *testing.F) {
	f.Add([]byte(`{"a":[1,{"b":null}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		folded, exact := Check(data, true), Check(data, false)
		if exact == nil && !json.Valid(data) {
			t.Error("it is not JSON")
		}
		if folded == nil && exact != nil {
			t.Error("a name is there twice, and not if capitals do not matter")
		}
	})
}
