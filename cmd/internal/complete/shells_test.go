package complete

import (
	"slices"
	"testing"
)

func TestUnquote(t *testing.T) {
	t.Setenv("HOME", "/home/u")
	t.Setenv("A_1", "value")
	for _, tc := range []struct{ word, want string }{
		{"", ""},
		{"plain", "plain"},
		{`a\ b\,c`, "a b,c"},
		{`'a b"c'd`, `a b"cd`},
		{`"a 'b\"\c`, `a 'b"\c`},
		{`'open`, "open"},
		{`end\`, `end\`},
		{"~/x", "/home/u/x"},
		{"x~/y", "x~/y"},
		{"$A_1/x", "value/x"},
		{"${A_1}x", "valuex"},
		{`'$A_1'`, "$A_1"},
		{`"$A_1"`, "value"},
		{`\$A_1`, "$A_1"},
		{"${A_1", "${A_1"},
		{"$", "$"},
		{"$(touch x)`touch y`", "$(touch x)`touch y`"},
		{"$UNSET_VARIABLE.", "."},
	} {
		if got := unquote(tc.word); got != tc.want {
			t.Errorf("unquote(%q) = %q, want %q", tc.word, got, tc.want)
		}
	}
}

func TestArgs(t *testing.T) {
	if got := Args([]string{"__completeRaw", "build", `a\ b`, ""}); !slices.Equal(got, []string{"__complete", "build", "a b", ""}) {
		t.Errorf("%q", got)
	}
	if got := Args([]string{"build", `a\ b`}); !slices.Equal(got, []string{"build", `a\ b`}) {
		t.Errorf("%q", got)
	}
}
